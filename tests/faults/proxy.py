"""Run a proxy before an object store that disturbs requests as networks and stores do: HTTP/1.1, loopback,
seeded. Bodies are streamed."""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.faults.http_relay import CHUNK_BYTES, Head, operation_of, read_body, relay

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'
TRICKLE_BYTES, TRICKLE_S = 16, 0.1  # bytes at a time, seconds between two times
WRITES = ("PUT", "POST", "DELETE")
# Refusals before the store gets the request, the first that happens counts: status and code of the answer.
REFUSALS = {
    "slow": (503, "SlowDown"),
    "broken": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
    "unconditional": (501, "NotImplemented"),
    "conflict": (409, "ConditionalRequestConflict"),
}
CONDITIONAL = ("unconditional", "conflict")  # happen to conditional writes alone
BODIES = ("truncated", "short", "flipped", "trickle")  # faults of an answer's body
NO_BODY = (204, 304)  # statuses of answers without a body


@dataclass(frozen=True)
class Faults:
    """Say how often each fault happens, 0 to 1.

    Attributes:
        slow: 503.
        burst: number of requests in a row that get 503 when `slow` happens.
        broken: 500.
        late_error: 200 to a CompleteMPU, whose body is an error.
        reset: the connection breaks before the store gets the request.
        lost: a write is done and its acknowledgement never comes.
        conflict: a conditional write is answered 409, as while another write is under way.
        unconditional: 501 to a write with a condition.
        denied: 403.
        truncated: the body of an answer breaks off in the middle, with a reset.
        short: the body of an answer has half of the object, and a Content-Length that agrees.
        flipped: one bit of the body of an answer is another.
        hang: the answer never comes.
        trickle: the body of an answer comes at 160 bytes a second.
        once: whether each fault happens only once to each object.
        only: operations to which faults happen; none named: to all.
        expired_after: number of requests after which the credentials of the next one have ended (400
            ExpiredToken), whoever uses them; 0: never.
        latency: seconds, at most.
        delay: seconds that every request takes longer.
    """

    slow: float = 0.0
    burst: int = 1
    broken: float = 0.0
    late_error: float = 0.0
    reset: float = 0.0
    lost: float = 0.0
    conflict: float = 0.0
    unconditional: float = 0.0
    denied: float = 0.0
    truncated: float = 0.0
    short: float = 0.0
    flipped: float = 0.0
    hang: float = 0.0
    trickle: float = 0.0
    once: bool = False
    only: tuple[str, ...] = ()
    expired_after: int = 0
    latency: float = 0.0
    delay: float = 0.0


class Arrival(NamedTuple):
    """Hold when a request came, its operation, and the fault that it met, "" for none."""

    seconds: float  # of time.monotonic()
    operation: str
    fault: str


class Proxy:
    """Run the proxy in a thread of its own.

    Attributes:
        faults: what happens; another value may be set at any moment.
        met: number of faults of each kind that happened.
        requests: number of requests by operation.
        sent_bytes: bytes of the bodies of answers, by operation.
        arrivals: all requests in the order in which they came.
    """

    def __init__(self, port: int, faults: Faults, seed: int = 0):
        self.behind, self.faults = port, faults
        self.met: Counter = Counter()
        self.requests: Counter = Counter()
        self.sent_bytes: Counter = Counter()
        self.arrivals: list[Arrival] = []
        self._dice, self._burst = random.Random(seed), 0
        self._struck: set[tuple[str, str]] = set()
        self._expired: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK_BYTES, backlog=512)
        )
        self.server_port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """End the proxy and every connection."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- which fault -------------------------------------------------------------------------------------

    def _happens(self, kind: str, operation: str, path: str) -> bool:
        if self.faults.only and operation not in self.faults.only:
            return False
        if self.faults.once and (kind, path) in self._struck:
            return False
        if self._dice.random() >= getattr(self.faults, kind):
            return False
        self._struck.add((kind, path))
        self.met[kind] += 1
        return True

    def _fault_before(self, head: Head, operation: str) -> str:
        """Return the fault that a request meets before the store has it, "" for none."""
        if self._has_expired(head):
            return "expired"
        if self._burst:
            self._burst -= 1
            self.met["slow"] += 1
            return "slow"
        is_conditional = "if-none-match" in head.headers and head.first[0] in WRITES
        for kind in ("reset", "hang", *REFUSALS):
            if kind in CONDITIONAL and not is_conditional:
                continue
            if self._happens(kind, operation, head.first[1]):
                self._burst = self.faults.burst - 1 if kind == "slow" else self._burst
                return kind
        is_complete = operation == "CompleteMPU" and self._happens("late_error", operation, head.first[1])
        return "late_error" if is_complete else ""

    def _fault_after(self, head: Head, operation: str, answer: Head) -> str:
        """Return the fault that an answer meets, "" for none."""
        status = int(answer.first[1])
        if status >= 300:
            return ""
        if head.first[0] in WRITES:
            return "lost" if self._happens("lost", operation, head.first[1]) else ""
        if head.first[0] == "HEAD" or (answer.length < 2 and not answer.is_chunked):
            return ""
        return next((kind for kind in BODIES if self._happens(kind, operation, head.first[1])), "")

    def _has_expired(self, head: Head) -> bool:
        """Return whether the credentials of a request have ended."""
        found = re.search(r"Credential=([^/,]+)", head.headers.get("authorization", ""))
        key = found[1] if found else ""
        is_end = self.faults.expired_after and sum(self.requests.values()) > self.faults.expired_after
        if is_end and not self._expired:
            self._expired.add(key)
        if key in self._expired:
            self.met["expired"] += 1
        return key in self._expired

    # ---- one connection ----------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(self, reader, writer)
        # The client may leave in the middle, a worker be killed, the store be ended: both sides are closed.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await connection.request():
                pass
        connection.close()


class _Connection:
    """Hold a client's connection, and the connection to the store that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self.store: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self) -> bool:
        """Pass one request on, with what happens to it. Return whether another may follow."""
        proxy = self.proxy
        head = Head(await self.reader.readuntil(b"\r\n\r\n"))
        operation = operation_of(head)
        proxy.requests[operation] += 1
        fault = proxy._fault_before(head, operation)
        proxy.arrivals.append(Arrival(time.monotonic(), operation, fault))
        wait = proxy.faults.delay + proxy._dice.random() * proxy.faults.latency
        if wait:
            await asyncio.sleep(wait)
        if head.headers.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault:
            await relay(self.reader, head, None)
            return await self._refuse(head, fault)
        answer = await self._ask(head)
        fault = proxy._fault_after(head, operation, answer)
        if fault == "lost":
            return self._reset()
        proxy.sent_bytes[operation] += answer.length if operation != "HEAD" else 0
        return await self._answer(head, answer, fault)

    async def _ask(self, head: Head) -> Head:
        """Send a request to the store, and return the head of its answer. Host stays as it is, because the
        signature includes it."""
        if self.store is None or self.store[0].at_eof():
            self.close_store()
            self.store = await asyncio.open_connection("127.0.0.1", self.proxy.behind, limit=CHUNK_BYTES)
        reader, writer = self.store
        writer.write(head.without("expect"))
        await relay(self.reader, head, writer)
        await writer.drain()
        while True:
            answer = Head(await reader.readuntil(b"\r\n\r\n"))
            if answer.first[1] != "100":
                return answer

    async def _refuse(self, head: Head, fault: str) -> bool:
        if fault == "reset":
            return self._reset()
        if fault == "hang":
            await self.reader.read(1)  # until the client gives up
            return False
        status, code = REFUSALS.get(fault, (400, "ExpiredToken"))
        if fault == "late_error":
            status, code = 200, "InternalError"
        body = b"" if head.first[0] == "HEAD" else ERROR.format(code).encode()
        kind = b"Content-Type: application/xml\r\nx-ms-error-code: " + code.encode()
        self.writer.write(b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, code.encode(), kind))
        self.writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await self.writer.drain()
        return True

    async def _answer(self, head: Head, answer: Head, fault: str) -> bool:
        reader = self.store[0]
        has_body = head.first[0] != "HEAD" and int(answer.first[1]) not in NO_BODY
        if not fault:
            self.writer.write(answer.raw)
            if has_body:
                await relay(reader, answer, self.writer)
            await self.writer.drain()
            return "close" not in answer.headers.get("connection", "").lower()
        body = await read_body(reader, answer)
        if fault == "flipped" and body:
            place = self.proxy._dice.randrange(len(body))
            body[place] ^= 1 << self.proxy._dice.randrange(8)
        length = len(body) // 2 if fault == "short" else len(body)
        begin = answer.without("content-length", "transfer-encoding")[:-2]
        self.writer.write(begin + b"Content-Length: %d\r\n\r\n" % length)
        if fault == "trickle":
            return await self._trickle(body)
        if fault == "truncated":
            self.writer.write(body[: len(body) // 2])
            await self.writer.drain()
            await asyncio.sleep(0.02)  # the client shall have these bytes before the reset
            return self._reset()
        self.writer.write(body[:length])
        await self.writer.drain()
        return True

    async def _trickle(self, body: bytes) -> bool:
        for place in range(0, len(body), TRICKLE_BYTES):
            self.writer.write(body[place : place + TRICKLE_BYTES])
            await self.writer.drain()
            await asyncio.sleep(TRICKLE_S)
        return True

    def _reset(self) -> bool:
        """Send RST instead of an answer."""
        client = self.writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        return False

    def close_store(self) -> None:
        if self.store is not None:
            self.store[1].transport.abort()
        self.store = None

    def close(self) -> None:
        self.close_store()
        self.writer.close()


@contextlib.contextmanager
def proxy(port: int, faults: Faults, seed: int = 0) -> Iterator[Proxy]:
    """Run a proxy before the store at `port`."""
    server = Proxy(port, faults, seed)
    try:
        yield server
    finally:
        server.close()
