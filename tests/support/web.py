"""Run web servers that behave badly, or that only count who asks them, on loopback."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import ThreadingHTTPServer
from socket import AF_INET6
from threading import Thread

from tests.support.serving import POLL_SECONDS, Quiet, serving

PIECE = 16 << 10  # bytes that a slow or endless body is sent in


class Web:
    """Hold what a server was asked.

    Attributes:
        address: of the server, without a slash at the end
        asked: each request as its line and its headers
        most_at_once: requests that were under way at the same time, at most
        sent: bytes of bodies
    """

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.most_at_once = 0
        self.sent = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def paths(self) -> list[str]:
        return [line.split()[1] for line, _ in self.asked]

    @contextmanager
    def under_way(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


class Answering(Quiet):
    """Handle requests by a function, and give it the means to answer badly."""

    protocol_version = "HTTP/1.1"
    web: Web
    answer: Callable[["Answering"], None]

    def do_GET(self):
        self.web.asked.append((self.requestline, dict(self.headers)))
        with self.web.under_way():
            try:
                type(self).answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    do_HEAD = do_GET

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self, data: bytes, status: int = 200, **headers: object) -> None:
        self.head(status, Content_Length=len(data), **headers)
        self.write(data)

    def chunked(self, data: bytes, **headers: object) -> None:
        self.head(200, Transfer_Encoding="chunked", **headers)
        for begin in range(0, len(data), PIECE):
            piece = data[begin : begin + PIECE]
            self.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if len(data) > PIECE:
                time.sleep(0.0005)
        self.write(b"0\r\n\r\n")

    def until_closed(self, data: bytes, **headers: object) -> None:
        self.head(200, Connection="close", **headers)
        self.write(data)
        self.close_connection = True

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.web.sent += len(data)


@contextmanager
def web_server(answer: Callable[[Answering], None]) -> Iterator[Web]:
    """Serve by a function."""
    web = Web()
    with serving(type("Handler", (Answering,), {"web": web, "answer": staticmethod(answer)})) as web.address:
        yield web


def files_server(files: dict[str, bytes | int]):
    """Serve whole files by path; a number is a status."""

    def answer(request: Answering) -> None:
        found = files.get(request.path.partition("?")[0].lstrip("/"), 404)
        if isinstance(found, int):
            request.whole(b"", found)
        else:
            request.whole(found)

    return web_server(answer)


class _OnIPv6(ThreadingHTTPServer):
    address_family = AF_INET6


@contextmanager
def canary() -> Iterator[Web]:
    """Serve on one port of 127.0.0.1 and of ::1, and count whoever asks."""
    web = Web()

    def answer(request: Answering) -> None:
        request.whole(b"root:x:0:0")

    handler = type("Handler", (Answering,), {"web": web, "answer": staticmethod(answer)})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler)]
    with ExitStack() as stack:
        with suppress(OSError):  # a machine without IPv6
            servers.append(_OnIPv6(("::1", servers[0].server_port), handler))
        for server in servers:
            Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        web.address = f"http://127.0.0.1:{servers[0].server_port}"
        yield web
