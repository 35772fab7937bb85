"""Ask for one object by its exact name.

s3fs changes some names before it asks the store: it cuts slashes at the end, and takes `?versionId=` for a
version. Two different objects can so become one. Here such names go to the store as they are. All other
names, and all other stores, go through fsspec.
"""

import errno
import io
import os
import stat
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from wordsworth.pipeline.storage.filesystem import HTTP, is_local, is_web

VERSION_MARK = "?versionId="
_NO_SUCH_RANGE = ("InvalidRange", "416")  # S3's codes for a range behind the end of an object


class RangeAnswer(NamedTuple):
    """Hold what a store answered to a request for a range.

    Attributes:
        data: the bytes
        info: what the answer says of the whole object, as `object_info` does; empty where the client drops it
    """

    data: bytes
    info: dict[str, Any]


def object_info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return what the store tells about an object: at least "name", "size" and "type".

    Raises:
        FileNotFoundError: there is no such object.
    """
    if not _needs_exact_call(fs, path):
        return fs.info(path)
    return _info(path, _call(fs, "head_object", path))


def _info(path: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer of S3 says of the whole object."""
    _, _, size = answer.get("ContentRange", "").rpartition("/")
    if size == "*":
        raise OSError(f"{path}: the store does not say how large it is")
    return {**answer, "name": path, "size": int(size or answer["ContentLength"]), "type": "file"}


def object_bytes(
    fs: fsspec.AbstractFileSystem,
    path: str,
    start: int | None = None,
    end: int | None = None,
    listed_size: int | None = None,
) -> bytes:
    """Return an object, or its bytes from `start` to before `end`; both are given or none.

    A web server may send more than it told when it was listed: then one byte more than `listed_size` is read.

    S3 gets one request: s3fs itself asks for the size of a whole object first.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: ENXIO for a pipe, a socket or a device, whose reading may never end.
    """
    if is_local(fs):
        _check_is_file(path)
    if is_web(path) and start is None and listed_size is not None:
        return fs.cat_file(path, most_bytes=listed_size + 1)
    if start is None or end is None:
        return _call(fs, "get_object", path) if is_s3(fs, path) else fs.cat_file(path)
    if is_s3(fs, path):
        return _range_of(fs, path, start, end)[0]
    data: bytes = fs.cat_file(path, start=start, end=end)
    if len(data) > max(0, end - start):  # nothing tells where they begin
        raise OSError(f"{path}: the store gives more bytes than it was asked for")
    return data


def unread_object(fs: fsspec.AbstractFileSystem, path: str) -> Any:
    """Return the answer of S3 about an object, with its "ContentLength" and a "Body" that was not read yet.

    Raises:
        FileNotFoundError: there is no such object.
    """
    return _call(fs, "get_object", path, ask=_ask_without_body)


def gives_ranges(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether each range of an object is one request: so with the clients of S3, Google and Azure.

    A web server may answer a range with the whole object.
    """
    if not isinstance(fs, AsyncFileSystem):
        return False
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not set(HTTP) & set(protocols)


def object_range(fs: fsspec.AbstractFileSystem, path: str, start: int, end: int) -> RangeAnswer:
    """Return the bytes of an object from `start` to before `end`; fewer at its end.

    On S3 (`is_s3`) the answer says too which object it is of.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if not is_s3(fs, path):
        return RangeAnswer(object_bytes(fs, path, start, end), {})
    try:
        data, answer = _range_of(fs, path, start, end)
    except OSError as error:
        if _code_of(error) not in _NO_SUCH_RANGE:
            raise
        return RangeAnswer(b"", object_info(fs, path))
    return RangeAnswer(data, _info(path, answer))


def _range_of(fs: Any, path: str, start: int, end: int) -> tuple[bytes, dict[str, Any]]:
    """Return bytes of an object on S3, cut out of the whole object if that is the answer, and its headers."""
    answer = _call(fs, "get_object", path, _ask_with_info, Range=f"bytes={start}-{end - 1}")
    data: bytes = answer.pop("Body")
    begin = 0 if "ContentRange" in answer else start
    return data[begin : begin + end - start], answer


def _code_of(error: OSError) -> str | None:
    """Return S3's code for an error."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"].get("Code") if isinstance(response, dict) else None


def open_object(fs: fsspec.AbstractFileSystem, path: str, size: int, block_bytes: int) -> IO[bytes]:
    """Open an object for reading from any place, `block_bytes` ahead.

    Args:
        fs: file system of the object.
        path: path of the object in `fs`.
        size: bytes of the object.
        block_bytes: bytes that one request asks for.
    """
    if not _needs_exact_call(fs, path):
        return fs.open(path, "rb", block_size=block_bytes, cache_type="readahead")
    return io.BufferedReader(_Ranges(fs, path, size), block_bytes)


def _check_is_file(path: str) -> None:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder raises an error of its own
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)


def bucket_and_key(path: str) -> tuple[str, str]:
    """Return the bucket and the key of a path on S3."""
    bucket, _, key = path.partition("/")
    return bucket, key


def _needs_exact_call(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether s3fs would ask for another name than this one."""
    return is_s3(fs, path) and ("//" in path or path.endswith("/") or VERSION_MARK in path)


def is_s3(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether a path is a bucket and a key on S3, and not the name of an access point."""
    return hasattr(fs, "call_s3") and not path.startswith("arn:")


def _call(fs: Any, method: str, path: str, ask: Callable[..., Any] | None = None, **arguments: str) -> Any:
    """Return the answer of S3 about a key.

    A name with `?versionId=` is the name of an object; only where there is none, it is a version of another.
    """
    ask = ask or _ask
    bucket, key = bucket_and_key(path)
    try:
        return sync(fs.loop, ask, fs, method, {"Bucket": bucket, "Key": key, **arguments})
    except FileNotFoundError:
        plain, mark, version = key.partition(VERSION_MARK)
        if not mark:
            raise
        request = {"Bucket": bucket, "Key": plain, "VersionId": version, **arguments}
        try:
            return sync(fs.loop, ask, fs, method, request)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the store knows no such form of a version
                raise
        raise


async def _ask_without_body(fs: Any, method: str, request: dict[str, str]) -> Any:
    return await fs._call_s3(method, **request)


async def _ask(fs: Any, method: str, request: dict[str, str]) -> Any:
    """Return a call's answer; of an answer with a body, the bytes of the body."""
    answer = await _ask_with_info(fs, method, request)
    return answer.get("Body", answer)


async def _ask_with_info(fs: Any, method: str, request: dict[str, str]) -> dict[str, Any]:
    """Return a call's answer, with the bytes of its body."""
    answer = await fs._call_s3(method, **request)
    if "Body" not in answer:
        return answer
    try:
        return {**answer, "Body": await answer["Body"].read()}
    finally:
        answer["Body"].close()


class _Ranges(io.RawIOBase):
    """Read an object from any place, each read by one request."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int):
        self.fs = fs
        self.path = path
        self.size = size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.size, self.position + len(buffer))
        if end <= self.position:
            return 0
        data = object_bytes(self.fs, self.path, self.position, end)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
