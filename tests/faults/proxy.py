"""Run a proxy before an object store that disturbs requests as networks and stores do: HTTP/1.1, loopback,
seeded."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'
OWN = ("connection", "keep-alive", "transfer-encoding")  # headers that belong to one connection


@dataclass(frozen=True)
class Faults:
    """Say how often each fault happens, 0 to 1.

    Attributes:
        slow: 503.
        reset: the connection breaks before the store gets the request.
        lost: a PUT is done and its acknowledgement never comes.
        conflict: a conditional PUT is answered 409, as while another PUT is under way.
        once: whether `lost` and `conflict` happen only once to each object.
        unconditional: 501 to a PUT with a condition.
        denied: 403.
        latency: seconds, at most.
    """

    slow: float = 0.0
    reset: float = 0.0
    lost: float = 0.0
    conflict: float = 0.0
    unconditional: float = 0.0
    denied: float = 0.0
    once: bool = False
    latency: float = 0.0


class Proxy(ThreadingHTTPServer):
    """Run the proxy.

    Attributes:
        met: number of faults of each kind that happened.
    """

    daemon_threads = True

    def __init__(self, port: int, faults: Faults, seed: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.faults, self.met = port, faults, Counter()
        self._dice, self._lock, self._struck = random.Random(seed), threading.Lock(), set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def happens(self, kind: str) -> bool:
        with self._lock:
            hit = self._dice.random() < getattr(self.faults, kind)
            self.met[kind] += hit
            return hit

    def waits(self) -> float:
        with self._lock:
            return self._dice.random() * self.faults.latency

    def happens_to(self, kind: str, path: str) -> bool:
        """Return whether a fault happens, where it may happen only once to each object."""
        if self.faults.once and (kind, path) in self._struck:
            return False
        hit = self.happens(kind)
        if hit:
            self._struck.add((kind, path))
        return hit

    def handle_error(self, request, client_address) -> None:
        """Ignore errors: a worker that is killed leaves half a request behind."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.server.waits())
        if self.server.happens("reset"):
            return self._reset()
        if self.server.happens("slow"):
            return self._refuse(503, "SlowDown")
        if self.server.happens("denied"):
            return self._refuse(403, "AccessDenied")
        if "If-None-Match" in self.headers and self.server.happens("unconditional"):
            return self._refuse(501, "NotImplemented")
        if "If-None-Match" in self.headers and self.server.happens_to("conflict", self.path):
            return self._refuse(409, "ConditionalRequestConflict")
        status, headers, data = self._ask(body)
        if self.command == "PUT" and status < 300 and self.server.happens_to("lost", self.path):
            return self._reset()
        self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass the request on unchanged. Host is passed on too, because the signature includes it."""
        store = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        with contextlib.closing(store):
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*OWN, "expect"):
                    store.putheader(name, value)
            store.endheaders(body)
            answer = store.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _refuse(self, status: int, code: str) -> None:
        self._answer(
            status,
            [("Content-Type", "application/xml")],
            b"" if self.command == "HEAD" else ERROR.format(code).encode(),
        )

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in (*OWN, "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length[0] if length and self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        """Send RST instead of an answer."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def proxy(port: int, faults: Faults, seed: int = 0) -> Iterator[Proxy]:
    """Run a proxy before the store at `port`."""
    with Proxy(port, faults, seed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
