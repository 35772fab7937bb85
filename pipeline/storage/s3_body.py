"""Read the bodies of S3's answers: whole, and as their headers say."""

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, Self

from wordsworth.pipeline.storage.s3_faults import PassingFault

WINDOW_S = 15.0  # seconds over which the speed of a body is judged
SLOWEST_BYTES_S = 1000  # a body that is slower is broken off and asked for again
PIECE_BYTES = 1 << 20
MD5 = re.compile(r"[0-9a-f]{32}")


class Store(Protocol):
    """Ask a store that speaks S3: the part of S3Files that a body needs.

    Attributes:
        etags_are_md5: whether ETags of the form of an MD5 are taken for one.
    """

    etags_are_md5: bool

    async def ask(self, method: str, akwarglist: tuple, kwargs: dict[str, Any]) -> Any: ...

    async def patiently(
        self, method: str, kwargs: dict[str, Any], ask: Callable[[], Awaitable[Any]]
    ) -> Any: ...

    def doubt_etags(self) -> None: ...


class Body:
    """Read the body of an answer to get_object. Where it breaks off or lies, the request is sent again."""

    def __init__(self, fs: Store, akwarglist: tuple, request: dict[str, Any], answer: dict[str, Any]):
        self._fs, self._akwarglist, self._request = fs, akwarglist, request
        self._position = 0  # bytes that were given already
        self._readings = Readings(fs)
        self._first: dict[str, Any] = {}
        self._take(answer, request)

    def _take(self, answer: dict[str, Any], request: dict[str, Any]) -> None:
        self._answer, self._stream = answer, answer["Body"]
        span = re.fullmatch(r"bytes (\d+)-(\d+)/\S+", answer.get("ContentRange", ""))
        self._left = int(span[2]) - int(span[1]) + 1 if span else answer.get("ContentLength")
        self._is_other = self._tells_other_bytes(span and int(span[1]), request)
        self._first = self._first or answer
        self._window_s, self._window_bytes = 0.0, 0

    def _tells_other_bytes(self, begin: int | None, request: dict[str, Any]) -> bool:
        """Tell whether an answer is of another range than that of the request.

        The first answer to a range may be the whole object: who asked sees that in the headers and cuts the
        range. Any later answer has to be of the same kind, since the first one's headers are what is seen.

        Args:
            begin: where the range of the answer begins; None for the whole object.
        """
        asked = re.match(r"bytes=(\d+)-", request.get("Range", ""))
        if not asked:
            return False
        if begin is not None and begin != int(asked[1]):
            return True
        is_ranged = "ContentRange" in self._first if self._first and "Range" in self._request else None
        return (begin is None and self._position > 0) or (
            is_ranged is not None and is_ranged == (begin is None)
        )

    async def read(self, amt: int | None = None) -> bytes:
        """Return all bytes that are left, or at most `amt` of them; none at the end."""
        is_all = amt is None or amt < 0
        fetch = self._rest if is_all else lambda: self._piece(amt or 0)
        data: bytes = await self._fs.patiently("get_object", self._request, partial(self._from_stream, fetch))
        self._position += len(data)
        return data

    async def _from_stream(self, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return what `fetch` reads. After an error the stream is closed, and the next call opens another."""
        try:
            if self._stream is None:
                await self._open_again()
            if self._is_other:
                raise PassingFault("the store gives other bytes than it was asked for")
            return await fetch()
        except BaseException:
            self.close()
            raise

    async def _open_again(self) -> None:
        request = dict(self._request)
        if self._position:
            begin, _, end = request.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            request["Range"] = f"bytes={int(begin) + self._position}-{end}"
        if "ETag" in self._answer:
            request["IfMatch"] = self._answer["ETag"]  # the rest of another object is no rest
        self._take(await self._fs.ask("get_object", self._akwarglist, request), request)

    async def _piece(self, amt: int) -> bytes:
        """Return the bytes that come next, at most `amt`; none at the end."""
        began = time.monotonic()
        piece: bytes = await self._stream.read(amt)
        self._window_s += time.monotonic() - began
        self._window_bytes += len(piece)
        if self._window_s > WINDOW_S:
            if self._window_bytes < SLOWEST_BYTES_S * self._window_s:
                raise PassingFault(f"the body trickles: {self._window_bytes} bytes in {self._window_s:.0f} s")
            self._window_s, self._window_bytes = 0.0, 0
        if self._left is not None:
            if amt and not piece and self._left:
                raise PassingFault(f"the body ends {self._left} bytes early")
            self._left -= len(piece)
        return piece

    async def _rest(self) -> bytes:
        pieces = []
        while piece := await self._piece(PIECE_BYTES):
            pieces.append(piece)
        data = b"".join(pieces)
        await self._check(data)
        return data

    async def _check(self, data: bytes) -> None:
        is_whole = not self._position and "Range" not in self._request
        if is_whole and self._readings.can_check(self._answer):
            found = md5_of(data) if len(data) <= PIECE_BYTES else await asyncio.to_thread(md5_of, data)
            if not self._readings.check(found, self._answer):
                await self._check_size(len(data))

    async def _check_size(self, num_bytes: int) -> None:
        """Check that bytes that came twice are the whole object, although they are not as its ETag says."""
        names = ("Bucket", "Key", "VersionId")
        where: dict[str, Any] = {name: self._request[name] for name in names if name in self._request}
        told = await self._fs.ask("head_object", self._akwarglist, where)
        if told["ContentLength"] != num_bytes:
            raise PassingFault(f"the body has {num_bytes} of {told['ContentLength']} bytes")
        self._fs.doubt_etags()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


class Readings:
    """Compare the readings of one object with its ETag, where that is the MD5 of the object.

    Some stores have other ETags of the same form. There a second reading gives the same bytes as the first.
    """

    def __init__(self, fs: Store):
        self._fs = fs
        self._found: set[str] = set()

    def can_check(self, answer: dict[str, Any]) -> bool:
        """Return whether the ETag of an answer may be the object's MD5."""
        is_plain = answer.get("ServerSideEncryption", "AES256") == "AES256"
        is_plain = is_plain and "SSECustomerAlgorithm" not in answer
        return self._fs.etags_are_md5 and is_plain and MD5.fullmatch(_etag(answer)) is not None

    def check(self, found: str, answer: dict[str, Any]) -> bool:
        """Compare the MD5 of a reading with the ETag of its answer.

        Returns:
            Whether they are the same; if not, an earlier reading gave the same bytes.

        Raises:
            PassingFault: they differ, and no earlier reading gave these bytes.
        """
        if found == _etag(answer):
            return True
        if found in self._found:
            return False
        self._found.add(found)
        raise PassingFault("the bytes are not as their ETag says")


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
