"""Serve a folder by S3's protocol, read only, with a latency, and count the requests.

The first folders are the buckets. Signatures are not checked. One thread answers from the page cache, so that
a benchmark on few cores measures the reader more than the server:

    python -m tests.support.counting_store FOLDER PORT [--latency SECONDS]

A GET of `/?counts` gives the counts and the CPU-seconds since the last one, as JSON, after no latency.
"""

import argparse
import asyncio
import contextlib
import email.utils
import json
import os
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

END = b"\r\n\r\n"  # of the head of a request, or an answer
MAX_KEYS = 1000  # keys in one answer
REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed"}
REASONS |= {405: "Method Not Allowed", 416: "Range Not Satisfiable"}


class Request(NamedTuple):
    """Hold one request.

    Attributes:
        method: such as "GET", or "LIST" for the listing of a bucket
        path: bucket and key, as s3fs writes them
        headers: values by the names in lower case
    """

    method: str
    path: str
    headers: dict[str, str]


class CountingStore:
    """Answer requests.

    Attributes:
        root: folder of the buckets
        latency_s: seconds before each answer
        requests: the requests that came
        in_flight: requests that wait for their answer now
        most_in_flight: at a time
    """

    def __init__(self, root: Path, latency_s: float = 0.0):
        self.root = root
        self.latency_s = latency_s
        self.requests: list[Request] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""

    @property
    def counts(self) -> Counter[str]:
        """Return the number of requests by method."""
        return Counter(request.method for request in self.requests)

    def answer(self, request: Request, query: dict[str, str]) -> bytes:
        """Return the whole answer to a request."""
        if request.method == "LIST":
            return _answer(200, _listing(self.root, request.path, query), {"Content-Type": "application/xml"})
        if request.method not in ("GET", "HEAD"):
            return _error(405, "MethodNotAllowed")
        try:
            with open(self.root / request.path, "rb") as file:
                return _object(file.fileno(), request)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return _error(404, "NoSuchKey")

    @contextlib.contextmanager
    def serving(self) -> Iterator["CountingStore"]:
        """Serve in a thread of this process, at `url`."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(loop.create_server(lambda: _Connection(self, loop), "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        thread = threading.Thread(target=loop.run_forever, name="counting store")
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(server.close)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class _Connection(asyncio.Protocol):
    """Read the requests of one connection, which come one after another."""

    def __init__(self, store: CountingStore, loop: asyncio.AbstractEventLoop):
        self.store = store
        self.loop = loop
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (end := self.held.find(END)) >= 0:
            head, self.held = self.held[:end].decode("latin-1"), self.held[end + len(END) :]
            first, *lines = head.split("\r\n")
            method, target, _ = first.split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            path, _, asked = target.partition("?")
            query = dict(urllib.parse.parse_qsl(asked, keep_blank_values=True))
            if "counts" in query:
                self.transport.write(_answer(200, self._counts(), {}))
                continue
            if method == "GET" and "list-type" in query:
                method = "LIST"
            request = Request(method, urllib.parse.unquote(path).strip("/"), headers)
            self.store.requests.append(request)
            self.store.in_flight += 1
            self.store.most_in_flight = max(self.store.most_in_flight, self.store.in_flight)
            self.loop.call_later(self.store.latency_s, self._send, request, query)

    def _send(self, request: Request, query: dict[str, str]) -> None:
        self.store.in_flight -= 1
        if not self.transport.is_closing():
            answer = self.store.answer(request, query)
            self.transport.write(answer.partition(END)[0] + END if request.method == "HEAD" else answer)

    def _counts(self) -> bytes:
        counts = {**self.store.counts, "cpu_s": time.process_time(), "in_flight": self.store.most_in_flight}
        self.store.requests.clear()
        self.store.most_in_flight = 0
        return json.dumps(counts).encode()


def _object(file: int, request: Request) -> bytes:
    status = os.fstat(file)
    tag = f'"{status.st_mtime_ns:x}{status.st_size:x}"'
    headers = {"ETag": tag, "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True)}
    if request.headers.get("if-match", tag).strip('"') != tag.strip('"'):
        return _error(412, "PreconditionFailed")
    begin, end = 0, status.st_size
    code = 200
    if "range" in request.headers:
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or end) + 1, end)
        if begin >= status.st_size:
            return _error(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
        code = 206
    return _answer(code, os.pread(file, end - begin, begin), headers)


def _error(status: int, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return _answer(status, body, {"Content-Type": "application/xml"})


def _answer(status: int, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + END + body


def _listing(root: Path, bucket: str, query: dict[str, str]) -> bytes:
    """Return ListObjectsV2's answer."""
    prefix = query.get("prefix", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    found = []
    for folder, _, names in os.walk(root / bucket):
        keys = (os.path.relpath(f"{folder}/{name}", root / bucket) for name in names)
        found += [key for key in keys if key.startswith(prefix) and key > after]
    found.sort()
    keys, rest = found[: int(query.get("max-keys", MAX_KEYS))], found[int(query.get("max-keys", MAX_KEYS)) :]
    lines = [f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(keys)}</KeyCount>"]
    for key in keys:
        status = (root / bucket / key).stat()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
        tag = f"&quot;{status.st_mtime_ns:x}{status.st_size:x}&quot;"
        lines.append(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{date}</LastModified><ETag>{tag}</ETag>"
            f"<Size>{status.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    lines.append(f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>")
    if rest:
        lines.append(f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>")
    return "".join([*lines, "</ListBucketResult>"]).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    store = CountingStore(options.root, options.latency)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(store, loop), "127.0.0.1", options.port)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
