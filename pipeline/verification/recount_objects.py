"""Reach the objects that a recount reads, by other code than the reader's (see recount.py).

The name of an object is whatever follows the bucket, byte for byte. s3fs takes some names for others; those
are asked for by boto's own calls.
"""

import io
from typing import Any, BinaryIO, cast

from fsspec.asyn import sync

from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, version_of

READAHEAD_BYTES = 8 << 20  # bytes that a store is asked for at a time


class ListedObject:
    """Reach one object of a listing.

    Args:
        uri: the object, or a prefix of objects.
        options: options of the file system.

    Attributes:
        fs: file system of the object.
        path: path of the object in `fs`.
    """

    def __init__(self, uri: str, options: StorageOptions | None):
        scheme, mark, name = uri.partition("://")
        is_local = uri[:1] == "/" or not mark
        top = "/" if is_local else scheme + mark + name.split("/")[0]
        self.fs, _ = open_filesystem(top, options)
        self.path = uri if is_local else name
        self._request: dict[str, str] | None = None  # of a call of boto's; None where fsspec asks
        if hasattr(self.fs, "split_path"):
            bucket, _, key = name.partition("/")
            if not self._takes_for(bucket, key):
                self._request = {"Bucket": bucket, "Key": key}
        elif not is_local:
            self.path = self.fs._strip_protocol(uri)
        self.fs.invalidate_cache()

    def _takes_for(self, bucket: str, key: str) -> bool:
        """Return whether s3fs takes a name for just this bucket and key, wherever it looks at it."""
        stripped = self.fs._strip_protocol(f"{bucket}/{key}")
        return "//" not in key and tuple(self.fs.split_path(stripped)[:2]) == (bucket, key)

    def identity(self) -> tuple[int, str]:
        """Return size and version of the object as it is now.

        Raises:
            FileNotFoundError: it is gone.
        """
        if self._request is None:
            info = self.fs.info(self.path)
            return info["size"], version_of(info)
        head = sync(self.fs.loop, _head, self.fs, self._request)
        return head["ContentLength"], version_of(head)

    def open(self, size: int) -> BinaryIO:
        """Open the object for reading; `size` is its bytes."""
        if self._request is None:
            opened = self.fs.open(self.path, "rb", block_size=READAHEAD_BYTES, cache_type="readahead")
            return cast(BinaryIO, opened)
        return cast(BinaryIO, io.BufferedReader(_Body(self.fs, self._request, size), READAHEAD_BYTES))

    def files_below(self) -> dict[str, tuple[int, str]]:
        """Return size and version of every file under the prefix, by what stands behind prefix and slash."""
        top = "/" if self.path == "/" else self.path + "/"
        found = {}
        for name, info in self.fs.find(self.path, detail=True).items():
            if name[: len(top)] == top:
                found[name[len(top) :]] = (info["size"], version_of(info))
        return found


class _Body(io.RawIOBase):
    """Read an object's body in pieces, from any place."""

    def __init__(self, fs: Any, request: dict[str, str], size: int):
        self._fs = fs
        self._request = request
        self._left = range(size)  # places that were not read yet

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._left.start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._left.start, self._left.stop)[whence]
        self._left = range(base + offset, self._left.stop)
        return base + offset

    def readinto(self, buffer: Any) -> int:
        piece = self._left[: len(buffer)]
        if not piece:
            return 0
        data = sync(self._fs.loop, _piece, self._fs, self._request, piece)
        buffer[: len(data)] = data
        self._left = self._left[len(data) :]
        return len(data)


async def _head(fs: Any, request: dict[str, str]) -> Any:
    return await fs._call_s3("head_object", **request)


async def _piece(fs: Any, request: dict[str, str], piece: range) -> bytes:
    answer = await fs._call_s3("get_object", Range=f"bytes={piece[0]}-{piece[-1]}", **request)
    async with answer["Body"] as body:
        return await body.read()
