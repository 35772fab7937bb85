"""Read images that tables name from web servers: each with one request, a limit of bytes and a deadline."""

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import yarl
from fsspec.asyn import sync

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.allowed_uris import AllowedUris, Place, place_of, web_place
from wordsworth.pipeline.storage.client_options import options_for
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, ALLOW_URIS, StorageOptions
from wordsworth.pipeline.storage.web import (
    CONNECT_S,
    HOST_CONNECTIONS,
    MAX_REDIRECTS,
    SILENCE_S,
    Host,
    WebFiles,
)
from wordsworth.pipeline.storage.web_answers import MOST_SAID, WebRefusal, failure_of, is_refusal, user_agent
from wordsworth.pipeline.storage.web_reach import WebReach, judged_socket
from wordsworth.pipeline.storage.whole_object import HasRoom, NoRoom, TooLarge, Unreachable, check_size

OBJECT_S = 120  # seconds that one image may take, all tries together
TRIES = 4
FIRST_WAIT_S = 0.5  # upper bound of the random wait before the second try; doubles with each try
LEAVE_ALONE_S = 30  # seconds that a server is not asked after it failed; doubles with each time
LONGEST_LEAVE_S = 600
PROBE_S = 10  # seconds for a request that shows whether a server answers
PIECE_BYTES = 256 << 10  # bytes that are read at a time


class RowFiles(WebFiles):
    """Read images that the rows of a table name.

    No identity of the user is sent: no header, cookie or password of the storage options. The server of the
    table itself gets the headers that it was given for the table.

    Args:
        own: server of the table, as `https://HOST`; None for a table elsewhere
        all_public: ask every server with a public address
        own_headers: what the server of the table is told
        others: as WebFiles takes them
    """

    def __init__(
        self,
        *args: Any,
        own: str | None = None,
        all_public: bool = False,
        own_headers: dict[str, str] | None = None,
        **others: Any,
    ):
        super().__init__(*args, **others)
        allowed = AllowedUris(others.get("allowed", ()))
        self.reach = WebReach(allowed, place_of(own) if own else None, all_public)
        self.own_headers = own_headers or {}
        self.answered_at = 0.0  # by time.monotonic, of any server

    def encode_url(self, url: str) -> yarl.URL:
        """Return what the server is asked for. Nobody typed it."""
        return self._encoded(url)

    async def _make_client(self, loop: Any = None, **settings: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"User-Agent": user_agent(), "Accept-Encoding": "identity"},
            connector=aiohttp.TCPConnector(limit_per_host=HOST_CONNECTIONS, socket_factory=judged_socket),
            middlewares=(self._judged,),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _prepare(self, request: aiohttp.ClientRequest, place: Place) -> None:
        if self.reach.is_own(place):
            request.headers.update(self.own_headers)

    def check(self, path: str) -> None:
        """Check that an address may be asked, without asking it.

        Raises:
            RefusedUri, ValueError: it may not, or is none.
        """
        self.reach.check(self._encoded(path))

    # ---- one image ----------------------------------------------------------------------------------------

    def read_whole(self, path: str, max_bytes: int, has_room: HasRoom) -> bytes:
        """Return an image, as `whole_object` has it.

        Raises:
            RefusedUri, ValueError: the address may not be asked, or is none.
            FileNotFoundError, WebRefusal: the server does not give it.
            Unreachable: the server fails at every try.
        """
        data: bytes = sync(self.loop, self._read_whole, self._encoded(path), max_bytes, has_room)
        return data

    async def _read_whole(self, url: yarl.URL, max_bytes: int, has_room: HasRoom) -> bytes:
        self.reach.check(url)
        host = self.host(web_place(url))
        began: float | None = None
        failure = ""
        for wait_s in _waits():
            if wait_s:
                await asyncio.sleep(wait_s)
            async with host.slots:
                now = time.monotonic()
                if host.down_until > now:
                    raise Unreachable(host.failure, now, is_known=True)
                began = began or now
                left_s = began + OBJECT_S - now
                if left_s <= 0:
                    break
                try:
                    data = await self._try(url, max_bytes, has_room, left_s)
                except (FileNotFoundError, WebRefusal, TooLarge, NoRoom):
                    self._note_answer(host)
                    raise
                except (aiohttp.ClientError, OSError) as error:
                    failure = failure_of(error, time.monotonic() - began)
                else:
                    self._note_answer(host)
                    return data
        host.failure = failure
        raise Unreachable(failure, began or time.monotonic())

    def _note_answer(self, host: Host) -> None:
        host.answered_at = self.answered_at = time.monotonic()
        host.pause_s = 0.0

    async def _try(self, url: yarl.URL, max_bytes: int, has_room: HasRoom, left_s: float) -> bytes:
        """Return an image by one request.

        Raises:
            ValueError: a redirect leads to what is no address.
        """
        session = await self.set_session()
        timeout = aiohttp.ClientTimeout(total=left_s, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            async with session.get(url, timeout=timeout, max_redirects=MAX_REDIRECTS + 1) as answer:
                _check_status(answer.status)
                return await _body(answer, max_bytes, has_room)
        except aiohttp.TooManyRedirects as error:
            raise WebRefusal(f"it redirects more than {MAX_REDIRECTS} times") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ValueError("it is no address of a web server, or redirects to what is none") from error

    # ---- servers that fail --------------------------------------------------------------------------------

    def answered_since(self, began: float, path: str) -> bool:
        """Return whether a server answered since a time; for an image on the table's own server, that one."""
        place = web_place(self._encoded(path))
        if self.reach.is_own(place):
            return self.host(place).answered_at >= began
        return self.answered_at >= began

    def is_witness(self, path: str, other: str) -> bool:
        """Return whether an answer for `other` shows that the failure of `path` is not one of the network."""
        place, other_place = web_place(self._encoded(path)), web_place(self._encoded(other))
        is_same_server = other_place[:2] == place[:2]
        return path != other if is_same_server else not self.reach.is_own(place)

    def answers(self, path: str) -> bool:
        """Return whether a server answers now, whatever it says of an object."""
        return bool(sync(self.loop, self._answers, self._encoded(path)))

    async def _answers(self, url: yarl.URL) -> bool:
        session = await self.set_session()
        timeout = aiohttp.ClientTimeout(total=PROBE_S)
        try:
            async with session.get(url, timeout=timeout, headers={"Range": "bytes=0-0"}) as answer:
                is_answer = answer.status < 300 or is_refusal(answer.status)
        except (aiohttp.ClientError, OSError, ValueError, UserError):
            return False
        if is_answer:
            self._note_answer(self.host(web_place(url)))
        return is_answer

    def leave_alone(self, path: str, began: float) -> None:
        """Do not ask a server for a while that gave nothing since a time."""
        host = self.host(web_place(self._encoded(path)))
        now = time.monotonic()
        if host.answered_at >= began or host.down_until > now:
            return
        host.pause_s = min(LONGEST_LEAVE_S, 2 * host.pause_s or LEAVE_ALONE_S)
        host.down_until = now + host.pause_s


def row_files(options: StorageOptions, own: str | None = None) -> RowFiles:
    """Return the file system for the images that a table names.

    Args:
        options: options of the store's client
        own: server of the table; None for a table elsewhere
    """
    of_own = options_for(own, options) if own else {}
    headers = {**of_own.get("client_kwargs", {}).get("headers", {}), **of_own.get("headers", {})}
    return RowFiles(
        own=own,
        all_public=bool(options.get(ALLOW_HTTP)),
        allowed=tuple(options.get(ALLOW_URIS, ())),
        own_headers=headers,
    )


def _waits() -> Iterator[float]:
    """Yield the seconds to wait before each try."""
    yield 0
    for number in range(TRIES - 1):
        yield random.uniform(0.5, 1) * FIRST_WAIT_S * 2**number


def _check_status(status: int) -> None:
    """Raise what a status says: the image is not given, or the server fails."""
    if status == 206:
        raise OSError("the server gives a part of the image, and was asked for all of it")
    if 200 <= status < 300:
        return
    if is_refusal(status):
        raise WebRefusal(f"the server answers {status}")
    raise OSError(f"the server answers {status}")


async def _body(answer: aiohttp.ClientResponse, max_bytes: int, has_room: HasRoom) -> bytes:
    """Return the whole body of an answer. No more than one piece too many is read, whatever its head says."""
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise WebRefusal(f"the server sends {encoding[:MOST_SAID]}, which it was asked not to")
    is_packed = encoding not in ("", "identity")
    size = None if is_packed else answer.content_length
    if size is not None:
        check_size(size, max_bytes, has_room)
    data = bytearray()
    try:
        async for piece in _unpacked(answer) if is_packed else answer.content.iter_chunked(PIECE_BYTES):
            data += piece
            if len(data) > max_bytes:
                raise TooLarge(size, max_bytes)
            if size is None and not has_room(len(data) + PIECE_BYTES):
                raise NoRoom(max_bytes)
        return bytes(data)
    finally:
        data.clear()  # an exception's traceback would hold it until the garbage is collected


async def _unpacked(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield pieces of a body that was compressed, none of more than PIECE_BYTES.

    Raises:
        WebRefusal: it is not compressed as the server says.
        OSError: it breaks off.
    """
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib
    async for packed in answer.content.iter_chunked(PIECE_BYTES):
        while packed and not inflate.eof:
            try:
                yield inflate.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise WebRefusal("the server compresses in another way than it says") from error
            packed = inflate.unconsumed_tail
    if not inflate.eof:
        raise OSError("the answer breaks off")
