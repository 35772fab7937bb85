"""Ask for one object by its exact name.

s3fs changes some names before it asks the store: it cuts slashes at the end, and takes `?versionId=` for a
version. Two different objects can so become one. Here such names go to the store as they are. All other
names, and all other stores, go through fsspec.
"""

import errno
import io
import os
import stat
from typing import IO, Any

import fsspec
from fsspec.asyn import sync

from wordsworth.pipeline.storage.filesystem import is_local

VERSION_MARK = "?versionId="


def object_info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return what the store tells about an object: at least "name", "size" and "type".

    Raises:
        FileNotFoundError: there is no such object.
    """
    if not _needs_exact_call(fs, path):
        return fs.info(path)
    answer = _call(fs, "head_object", path)
    return {**answer, "name": path, "size": answer["ContentLength"], "type": "file"}


def object_bytes(
    fs: fsspec.AbstractFileSystem, path: str, start: int | None = None, end: int | None = None
) -> bytes:
    """Return an object, or its bytes from `start` to before `end`; both are given or none.

    S3 gets one request: s3fs itself asks for the size of a whole object first.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: ENXIO for a pipe, a socket or a device, whose reading may never end.
    """
    if is_local(fs):
        _check_is_file(path)
    if start is None or end is None:
        return _call(fs, "get_object", path) if _is_s3(fs, path) else fs.cat_file(path)
    if _is_s3(fs, path):
        return _call(fs, "get_object", path, Range=f"bytes={start}-{end - 1}")
    return fs.cat_file(path, start=start, end=end)


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
    return _is_s3(fs, path) and ("//" in path or path.endswith("/") or VERSION_MARK in path)


def _is_s3(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether a path is a bucket and a key. An access point's name has a form that s3fs knows."""
    return hasattr(fs, "call_s3") and not path.startswith("arn:")


def _call(fs: Any, method: str, path: str, **arguments: str) -> Any:
    """Return the answer of S3 about a key.

    A name with `?versionId=` is the name of an object; only where there is none, it is a version of another.
    """
    bucket, key = bucket_and_key(path)
    try:
        return sync(fs.loop, _ask, fs, method, {"Bucket": bucket, "Key": key, **arguments})
    except FileNotFoundError:
        plain, mark, version = key.partition(VERSION_MARK)
        if not mark:
            raise
        request = {"Bucket": bucket, "Key": plain, "VersionId": version, **arguments}
        try:
            return sync(fs.loop, _ask, fs, method, request)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the store knows no such form of a version
                raise
        raise


async def _ask(fs: Any, method: str, request: dict[str, str]) -> Any:
    """Return a call's answer; of an answer with a body, the bytes of the body."""
    answer = await fs._call_s3(method, **request)
    if "Body" not in answer:
        return answer
    try:
        return await answer["Body"].read()
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
