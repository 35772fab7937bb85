"""Read from stores that fail now and then: try a call again, and open a stream again where it broke off."""

import errno
import io
from collections.abc import Callable
from typing import IO, Any, TypeVar

import fsspec
import tenacity

from wordsworth.pipeline.storage.objects import open_object

Result = TypeVar("Result")

ATTEMPTS = 5  # tries of one call, the first one included
FIRST_WAIT_S = 0.2  # upper bound of the random wait before the second try; doubles with each try
LONGEST_WAIT_S = 10
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


def with_retries(call: Callable[[], Result]) -> Result:
    """Return what `call` returns, and call it again after an error that may pass.

    A missing object or a missing right does not pass. An exception of a store's client becomes an OSError.

    Raises:
        OSError: the last try failed too.
    """
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

    return _retrying()(call_again)


def _retrying() -> tenacity.Retrying:
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        retry=tenacity.retry_if_exception(_may_pass),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    lasting = FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError
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
    """Read an object forward, and open it again at the same byte when a read fails or ends early."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int, position: int):
        """Prepare a stream; the object is opened by the first read.

        Args:
            fs: file system of the object.
            path: path of the object in `fs`.
            size: bytes of the object.
            position: byte to begin at.
        """
        self.fs = fs
        self.path = path
        self.size = size
        self.position = position
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one read of the store. Return the number of bytes; 0 at the end."""
        num_bytes = min(len(buffer), self.size - self.position)
        if num_bytes <= 0:
            return 0
        data = with_retries(lambda: self._read(num_bytes))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

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
        self._drop()
        super().close()
