"""Read from web servers: sources that a user types, and images that tables name.

A query of a signed URL is sent byte for byte as it was given. The name of a source is its URL without the
query, which stays a secret. The query travels to every process in the storage options, as --allow-http does.
No record of a run holds it, so the same command continues a run with a new signature.
"""

import asyncio
import io
import re
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import yarl
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractBufferedFile

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.allowed_uris import AllowedUris, Place, web_place
from wordsworth.pipeline.storage.schemes import HTTP, without_credentials
from wordsworth.pipeline.storage.web_answers import (
    at_most,
    check_answer,
    failure_of,
    retry_after,
    user_agent,
)
from wordsworth.pipeline.storage.web_reach import WebReach, judged_addresses, judged_socket

HOST_CONNECTIONS = 8  # connections of a process to one server
MAX_REDIRECTS = 5
WHOLE_BYTES = 32 << 20  # bytes of an object that is read whole where a server gives no ranges
CONNECT_S = 10  # seconds for a connection
SILENCE_S = 30  # seconds without a byte
ANSWER_S = 300  # seconds for one answer of a source that was typed
LONGEST_PAUSE_S = 30  # seconds that a server may ask to wait for by Retry-After, and is waited for
_IS_ENCODED = re.compile(r"(?:[!$&-;=?-Z_a-z~@]|%[0-9A-Fa-f]{2})*")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_VERSION_HEADERS = ("ETag", "Content-MD5", "Digest", "Last-Modified")


class Host:
    """Hold what is known of one server.

    Attributes:
        slots: one for each connection
        not_before: time before which the server does not want to be asked
        answered_at: time of its last answer that says something of an object; 0 for none
        down_until: time until which it is not asked, since it failed while others answered
        pause_s: seconds that it was left alone for last
        failure: how it failed
    """

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(HOST_CONNECTIONS)
        self.not_before = 0.0
        self.answered_at = 0.0
        self.down_until = 0.0
        self.pause_s = 0.0
        self.failure = ""


class WebFiles(HTTPFileSystem):
    """Read from web servers.

    Args:
        queries: query of a URL, by the URL without it
        allowed: prefixes of --allow-uris
        others: as HTTPFileSystem takes them
    """

    protocol = HTTP  # early versions of fsspec do not say it

    def __init__(
        self, *args: Any, queries: dict[str, str] | None = None, allowed: Sequence[str] = (), **others: Any
    ):
        super().__init__(*args, **others)
        self.queries = queries or {}
        self.reach = WebReach(AllowedUris(allowed))
        self.hosts: dict[str, Host] = {}
        self.get_client = self._make_client

    def encode_url(self, url: str) -> yarl.URL:
        """Return what the server is asked for: fsspec calls this before each request."""
        encoded = self._encoded(url)
        self.reach.typed.add(web_place(encoded)[:2])
        return encoded

    def _encoded(self, url: str) -> yarl.URL:
        name, _, query = url.partition("?")
        query = query or self.queries.get(url, "")
        if not query or not _IS_ENCODED.fullmatch(query):
            return super().encode_url(url)
        return yarl.URL(f"{super().encode_url(name)}?{query}", encoded=True)

    # ---- the client ---------------------------------------------------------------------------------------

    async def _make_client(self, loop: Any = None, **settings: Any) -> aiohttp.ClientSession:
        """Return the client of this file system. fsspec calls this before the first request."""
        headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity"}
        defaults = {
            "timeout": aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        }
        return aiohttp.ClientSession(
            **{**defaults, **settings, "headers": headers | dict(settings.get("headers") or {})},
            connector=aiohttp.TCPConnector(limit_per_host=HOST_CONNECTIONS, socket_factory=judged_socket),
            middlewares=(self._judged,),
            auto_decompress=False,
        )

    async def _judged(self, request: aiohttp.ClientRequest, send: Any) -> aiohttp.ClientResponse:
        """Send a request where it may go. aiohttp calls this before each one, redirects included."""
        self.reach.check(request.url)
        place = web_place(request.url)
        self._prepare(request, place)
        with judged_addresses(place, self.reach.is_open(place) or bool(request.proxy)):
            return await self._sent_politely(request, send, self.host(place))

    def _prepare(self, request: aiohttp.ClientRequest, place: Place) -> None:
        """Add what one server alone is told."""

    async def _sent_politely(
        self, request: aiohttp.ClientRequest, send: Any, host: Host
    ) -> aiohttp.ClientResponse:
        """Send a request, and wait as long as the server asks for by Retry-After, within LONGEST_PAUSE_S."""
        await _wait_for(host)
        answer: aiohttp.ClientResponse = await send(request)
        pause_s = retry_after(answer)
        if pause_s is None:
            return answer
        host.not_before = max(host.not_before, time.monotonic() + pause_s)
        if pause_s > LONGEST_PAUSE_S:
            return answer
        answer.release()
        await _wait_for(host)
        again: aiohttp.ClientResponse = await send(request)
        return again

    def host(self, place: Place) -> Host:
        """Return what is known of the server of a place."""
        return self.hosts.setdefault(place.prefix, Host())

    # ---- one object ---------------------------------------------------------------------------------------

    async def _info(self, url: str, **others: Any) -> dict[str, Any]:
        """Return size and version of an object by one request for its first byte.

        Raises:
            UserError: the object can only be read as a whole, and is too large for that.
        """
        async with await self._ask(url, {"Range": "bytes=0-0"}) as answer:
            info = {name: answer.headers[name] for name in _VERSION_HEADERS if name in answer.headers}
            info |= {"name": url, "type": "file", "url": without_credentials(str(answer.url))}
            if answer.content_type:
                info["mimetype"] = answer.content_type
            span = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            if span and span[3] != "*":
                return info | {"size": int(span[3])}
            size = answer.content_length
            if size is None:
                size = len(await at_most(answer, WHOLE_BYTES + 1))
        if size > WHOLE_BYTES:
            raise UserError(
                f"{without_credentials(url)}: the server gives no byte ranges, and more than "
                f"{WHOLE_BYTES >> 20} MiB: download it first"
            )
        return info | {"size": size, "partial": False}

    async def _exists(self, path: str, strict: bool = False, **others: Any) -> bool:
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    async def _cat_file(
        self,
        url: str,
        start: int | None = None,
        end: int | None = None,
        most_bytes: int | None = None,
        **others: Any,
    ) -> bytes:
        """Return an object, its first `most_bytes`, or its bytes from `start` to before `end`.

        A server that ignores ranges is read up to `end`: `_info` refuses large objects there.
        """
        if start is None and end is None:
            async with await self._ask(url, {}) as answer:
                return await answer.read() if most_bytes is None else await at_most(answer, most_bytes)
        if start is None or start < 0 or end is None or end < 0:
            start, end = await self._places(url, start, end)
        if end <= start:
            return b""
        async with await self._ask(url, {"Range": f"bytes={start}-{end - 1}"}) as answer:
            if answer.status == 416:
                return b""
            if answer.status != 206:
                return (await at_most(answer, end))[start:]
            span = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            if span and span[1] is not None and int(span[1]) != start:
                raise OSError(
                    f"{without_credentials(url)}: the server gives other bytes than it is asked for"
                )
            return await at_most(answer, end - start)

    async def _places(self, url: str, start: int | None, end: int | None) -> tuple[int, int]:
        """Return the range that Python's slice means."""
        size = (await self._info(url))["size"]
        begin, stop, _ = slice(start, end).indices(size)
        return begin, stop

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **others: Any) -> Any:
        """Open an object for reading. An object without ranges is read at once."""
        info = self.info(path)
        if info.get("partial") is False:
            return io.BytesIO(self.cat_file(path))
        return _RangedFile(
            self,
            path,
            mode=mode,
            block_size=block_size or self.block_size,
            size=info["size"],
            cache_type=others.get("cache_type") or self.cache_type,
        )

    async def _ask(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Return the answer to a GET.

        Raises:
            FileNotFoundError, WebRefusal, OSError: the server does not give the object.
        """
        session = await self.set_session()
        settings = dict(self.kwargs)
        headers = {**settings.pop("headers", {}), **headers}
        began = time.monotonic()
        failure = ""
        answer: aiohttp.ClientResponse | None = None
        try:
            answer = await session.get(
                self.encode_url(url), headers=headers, max_redirects=MAX_REDIRECTS + 1, **settings
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = failure_of(error, time.monotonic() - began)
        if answer is None:  # outside of the block: the client's own error has the whole URL
            raise OSError(f"{without_credentials(url)}: {failure}")
        try:
            check_answer(answer, url)
        except BaseException:
            answer.release()
            raise
        return answer


class _RangedFile(AbstractBufferedFile):
    """Read an object of a web server in ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = sync(self.fs.loop, self.fs._cat_file, self.path, start, end)
        return data


async def _wait_for(host: Host) -> None:
    """Wait until a server wants to be asked.

    Raises:
        OSError: that is too long.
    """
    pause_s = host.not_before - time.monotonic()
    if pause_s > LONGEST_PAUSE_S:
        raise OSError(f"the server asks not to be asked for {round(pause_s)} s")
    if pause_s > 0:
        await asyncio.sleep(pause_s)
