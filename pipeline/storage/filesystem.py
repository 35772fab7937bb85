"""Object stores and file systems through fsspec: which URLs are allowed, and how an object appears whole or not at all."""

import contextlib
import errno
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec
import tenacity
from fsspec.implementations.local import LocalFileSystem

from wordsworth.pipeline.errors import UserError

SCHEMES = ("file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
HTTP = ("http", "https")
ALLOW_HTTP = "wordsworth_allow_http"  # in the storage options, which every process gets: --allow-http
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
# Some of what the stores' clients raise is no OSError: aiohttp's ClientPayloadError, gcsfs's HttpError, all of Azure's.
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
CHECKSUMS = (
    "request_checksum_calculation",
    "response_checksum_validation",
)  # of Amazon's client; AWS_... sets them
_USER = re.compile(r"[^/?#]*@|[^/:@?#]+:(?!\d*/)[^@?#]*@")  # the latter: a secret with a slash in it


def check_scheme(uri: str, allow_http: bool = False) -> None:
    """Refuse, before any I/O, whatever is not on the list: `pipe:` runs a shell and `::` chains file systems."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", uri)
    allowed = SCHEMES + HTTP * allow_http
    if "::" in uri or (scheme and scheme[1] not in allowed):
        hint = " (--allow-http reads from web servers)" if scheme and scheme[1] in HTTP else ""
        raise UserError(
            f"cannot read {public(uri)}: the scheme is not one of {', '.join(allowed)}{hint}", exit_code=2
        )


def open_filesystem(uri: str, options: dict[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it; local paths come back absolute."""
    options = dict(options or {})
    check_scheme(uri, options.pop(ALLOW_HTTP, False))
    if uri.startswith(("s3://", "s3a://")):
        options = _checksums(options)
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = EXTRAS.get(uri.split(":", 1)[0], "")
        raise UserError(
            f"cannot read {public(uri)}: {error}; try: pip install 'wordsworth[{extra}]'"
        ) from error
    return fs, path


def _checksums(options: dict[str, Any]) -> dict[str, Any]:
    """Amazon's own S3 keeps the additional checksums of its client, other stores get them only where they are required.

    Some of those store the framing of a checksum with the object, or answer a range with the checksum of the whole.
    """
    elsewhere = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    if not (elsewhere or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        return options
    asked = {name: "when_required" for name in CHECKSUMS if f"AWS_{name.upper()}" not in os.environ}
    return {**options, "config_kwargs": asked | options.get("config_kwargs", {})}


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def full_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """How a path is written into a plan and a prediction row: absolute, with its scheme unless it is local."""
    return path if is_local(fs) else fs.unstrip_protocol(path)


def public(uri: str) -> str:
    """The URI without user name and password. What stands before Azure's `@` is a container."""
    scheme, separator, rest = uri.partition("://")
    user = _USER.match(rest) if separator else None
    if user is None or (scheme.lower().startswith(("az", "abfs")) and ":" not in user[0]):
        return uri
    return f"{scheme}://{rest[user.end() :]}"


def version_of(info: dict[str, Any]) -> str:
    """What changes when an object is overwritten: its etag where the store has one, else its time of modification."""
    for name in (
        "ETag",
        "etag",
        "md5Hash",
        "content_md5",
        "mtime",
        "LastModified",
        "last_modified",
        "updated",
    ):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


# How file systems say that they have no hard links (FUSE, SMB, exFAT), and that a folder cannot be synced.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
# What a person can put right, by the number of the error: what is wrong, and what to do.
REFUSALS = {
    errno.ENOSPC: ("no space is left", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room"),
    errno.EROFS: ("the file system is read-only", "make it writable or choose another place"),
    errno.EACCES: ("permission denied", "get the right to write there or choose another place"),
    errno.EPERM: ("not permitted", "get the right to write there or choose another place"),
    errno.ENOENT: ("the bucket does not exist", "create it or choose another place"),
}


def put_if_absent(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Make `data` appear at `path`, whole and at once. False: something is there already; read it to see what.

    A local file is written beside its place, synced and linked: a link fails where a name exists. On an object store it is one
    conditional PUT; a store without conditions gets a plain PUT, which is as good as long as the bytes follow from the name.

    Raises UserError where there is no room or no right to write.
    """
    with _refusals(fs, path):
        return (
            _link_if_absent(path, data)
            if is_local(fs)
            else patiently(lambda: _conditional_put(fs, path, bytes(data)))
        )


@contextlib.contextmanager
def _refusals(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """A full disk, a missing right or bucket as one line; a store's client names some of them by the exception's type alone."""
    try:
        yield
    except OSError as error:
        kind = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}.get(type(error))
        number = error.errno if error.errno in REFUSALS else kind
        if number not in REFUSALS or (number == errno.ENOENT and is_local(fs)):
            raise
        what, remedy = REFUSALS[number]
        where = public(full_uri(fs, path))
        raise UserError(
            f"cannot write {where}: {what}: {remedy}, then run the same command again: what is done is kept"
        ) from error


def _conditional_put(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
        return True
    except FileExistsError:
        fs.invalidate_cache()  # a listing from before the object was there would hide it
        return False
    except (NotImplementedError, TypeError):
        pass  # a client that knows no conditions
    except Exception as error:
        # A lost precondition is a plain OSError in some clients, and so is an acknowledgement that got lost. Where nothing is
        # there, a conflict with another writer (409) or a passing fault is tried again, by our caller.
        fs.invalidate_cache()
        if fs.exists(path):
            return False
        if getattr(error, "errno", None) != errno.ENOSYS:  # 501: a store that knows no conditions
            raise
    fs.pipe_file(path, data)
    return True


def _link_if_absent(path: str, data: bytes) -> bool:
    if os.path.exists(path):
        return False
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _rename_if_absent(temporary, path)
    return True


def _rename_if_absent(temporary: str, path: str) -> bool:
    """For a file system without hard links: as whole, but the last of two writers at the same moment wins, like a plain PUT.

    A unit's rows follow from its name, so it is as good. The plan and the pages of the listing follow from the command and the
    source: there two jobs that begin in the same instant, with other machines or another state of the source, could each go
    on with its own for a moment. Verify names what comes of it (`other_run`, `foreign_file`).
    """
    if os.path.exists(path):
        return False
    os.replace(temporary, path)
    return True


def replace(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Make `data` appear at `path`, whole, in place of whatever is there. Raises UserError as `put_if_absent` does."""
    with _refusals(fs, path):
        if not is_local(fs):
            patiently(lambda: fs.pipe_file(path, bytes(data)))
            return
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)


@contextlib.contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """A temporary file that holds `data` durably; the block gives it its name."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # A leading underscore: Spark, pyarrow and Hive skip the file if a crash leaves it behind.
    temporary = os.path.join(folder, f"_tmp-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # renamed; or the disk became read-only, which is said already
            os.unlink(temporary)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """A new name is durable only once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


# ---- reading --------------------------------------------------------------------------------------------------------------


def retrying() -> tenacity.Retrying:
    """Passing faults of a store pass; what is missing or forbidden does not."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
        retry=tenacity.retry_if_exception(
            lambda error: (
                isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)
            )
        ),
        reraise=True,
    )


def patiently(call: Callable[[], Any]) -> Any:
    """What `call` gives, as soon as a store's passing faults have passed. A client's own exceptions become OSError."""
    for attempt in retrying():
        with attempt:
            try:
                return call()
            except Exception as error:
                if isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in CLIENTS:
                    raise
                raise OSError(f"{type(error).__name__}: {error}") from error


class ObjectStream(io.RawIOBase):
    """A forward-only view of an object that opens again where it stood when a read fails or ends early."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int, position: int):
        self.fs, self.path, self.size, self.position = fs, path, size, position
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        want = min(len(buffer), self.size - self.position)
        if want <= 0:
            return 0
        data = patiently(lambda: self._read(want))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _read(self, want: int) -> bytes:
        try:
            if self._file is None:
                self._file = self.fs.open(self.path, "rb", block_size=8 << 20, cache_type="readahead")
                self._file.seek(self.position)
            data = self._file.read(want)
            if not data:
                raise OSError(f"{self.path} ended at byte {self.position} of {self.size}")
            return data
        except Exception:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._drop()
        super().close()
