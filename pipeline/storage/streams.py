"""Read from stores that fail now and then: try a call again, and open a stream again where it broke off."""

import errno
import io
from collections.abc import Callable
from typing import IO, Any, TypeVar

import fsspec
import tenacity

from wordsworth.pipeline.storage.objects import gives_ranges, object_range, open_object
from wordsworth.pipeline.storage.patience import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    StoreFailure,
    patience_of,
    tell_trouble,
)
from wordsworth.pipeline.storage.read_ahead import ReadAhead

Result = TypeVar("Result")

ATTEMPTS = 5  # tries of one call, the first one included
UNNAMED = "a store or disk"  # in a message, where the call does not say what it asks
BLOCK_BYTES = 8 << 20  # read ahead by an open stream
AZURE_ARCHIVED = "BlobArchived"  # Azure's code of an object that is archived
# Packages whose exceptions are not all OSError: aiohttp's ClientPayloadError, gcsfs's HttpError, all of
# Azure's.
CLIENTS = (
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)


def with_retries(call: Callable[[], Result], patience_s: float | None = None) -> Result:
    """Return what `call` returns, and call it again after an error that may pass.

    A missing object or a missing right does not pass. An exception of a store's client becomes an OSError.
    S3 has tries of its own, which last longer (`S3Files`); what they could not outlast is not tried again.

    Args:
        call: asks a store or a disk.
        patience_s: seconds after which no further try begins. None leaves it to `patience.py` on S3, and to
            ATTEMPTS elsewhere.

    Raises:
        StoreFailure: S3 failed until the patience was over.
        OSError: the last try failed too.
    """
    with patience_of(patience_s):
        return _with_tries(call, patience_s)


def _with_tries(call: Callable[[], Result], patience_s: float | None) -> Result:
    try:
        return _with_os_errors(call)
    except OSError as error:
        if not _may_pass(error):
            raise
        failed = [error]

    def call_again() -> Result:
        if failed:  # the first try was made already, and counts
            raise failed.pop()
        return _with_os_errors(call)

    return _retrying(patience_s)(call_again)


def _retrying(patience_s: float | None) -> tenacity.Retrying:
    stop: tenacity.stop.stop_base = tenacity.stop_after_attempt(ATTEMPTS)
    if patience_s is not None:
        stop |= tenacity.stop_before_delay(patience_s)
    return tenacity.Retrying(
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=_tell_trouble,
        reraise=True,
    )


def _tell_trouble(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    tell_trouble(UNNAMED, state.seconds_since_start or 0.0, error)


def _may_pass(error: BaseException) -> bool:
    lasting = FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError | StoreFailure
    if not isinstance(error, OSError) or isinstance(error, lasting):
        return False
    return error.errno not in (errno.ELOOP, errno.ENXIO)


def _with_os_errors(call: Callable[[], Result]) -> Result:
    """Return what `call` returns, and raise an OSError in place of a client's own exception."""
    try:
        return call()
    except Exception as error:
        kind = _kind_of_refusal(error)
        if kind:
            raise kind(f"{type(error).__name__}: {error}") from error
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def _kind_of_refusal(error: Exception) -> type[OSError] | None:
    """Return FileNotFoundError or PermissionError for a client's exception that says as much of one object.

    s3fs raises these two itself. gcsfs raises an OSError for 403, with which Google also answers too many
    requests. Azure answers 403 when a signature ended too.
    """
    text = str(error)
    if type(error) is OSError and text.startswith("Forbidden: "):
        is_busy = any(word in text.lower() for word in ("rate limit", "ratelimit", "quota"))
        return None if is_busy else PermissionError
    if type(error).__module__.partition(".")[0] not in ("azure", "huggingface_hub"):
        return None
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 404:
        return FileNotFoundError
    is_refused = status == 403 and code != "AuthenticationFailed"
    return PermissionError if is_refused or code == AZURE_ARCHIVED else None


class ObjectStream(io.RawIOBase):
    """Read an object forward. A read that fails or ends early is tried again at the same byte.

    Of a store that gives ranges, the next ones come while one is worked on.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        size: int,
        position: int,
        check: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Prepare a stream; the object is opened by the first read.

        Args:
            fs: file system of the object.
            path: path of the object in `fs`.
            size: bytes of the object.
            position: byte to begin at.
            check: is called with what each answer of S3 says of the object, as `object_info` does, and may
                raise.
        """
        self.fs = fs
        self.path = path
        self.size = size
        self.position = position
        self._check = check
        self._file: IO[bytes] | None = None
        self._ahead = ReadAhead(self._range, with_retries, size, position) if gives_ranges(fs) else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one read of the store. Return the number of bytes; 0 at the end."""
        num_bytes = min(len(buffer), self.size - self.position)
        if num_bytes <= 0:
            return 0
        if self._ahead:
            data: bytes | memoryview = self._ahead.read(num_bytes)
        else:
            data = with_retries(lambda: self._read(num_bytes))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _range(self, begin: int, end: int) -> bytes:
        answer = object_range(self.fs, self.path, begin, end)
        if self._check and answer.info:
            self._check(answer.info)
        return answer.data

    def _read(self, num_bytes: int) -> bytes:
        try:
            if self._file is None:
                self._file = open_object(self.fs, self.path, self.size, BLOCK_BYTES)
                self._file.seek(self.position)
            data = self._file.read(num_bytes)
            if not data:
                raise OSError(f"{self.path} ended at byte {self.position} of {self.size}")
            return data
        except Exception:
            self._drop()  # the next try opens the object anew
            raise

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._ahead:
            self._ahead.close()
        self._drop()
        super().close()
