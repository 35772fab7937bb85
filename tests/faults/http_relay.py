"""Read the heads of HTTP/1.1 messages, and copy their bodies as they come."""

import asyncio
from urllib.parse import parse_qsl, urlsplit

CHUNK_BYTES = 1 << 18


class Head:
    """Hold the first line and the headers of a request or an answer, as they came."""

    def __init__(self, raw: bytes):
        self.raw = raw
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.first = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length") or 0)

    @property
    def is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    def without(self, *names: str) -> bytes:
        """Return the bytes without some headers."""
        first, *lines = self.raw[:-4].split(b"\r\n")
        kept = [line for line in lines if line.split(b":")[0].strip().lower().decode("latin-1") not in names]
        return b"\r\n".join([first, *kept]) + b"\r\n\r\n"


def operation_of(head: Head) -> str:
    """Return what a request asks of the store, in the words of S3: LIST, HEAD, GET, PUT, UploadPart,
    CreateMPU, CompleteMPU, AbortMPU, COPY, DELETE or DELETES; a request of Azure by the word that fits."""
    method, target = head.first[0], urlsplit(head.first[1])
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    part = query.get("comp")
    if method == "GET":
        is_bucket = "/" not in target.path.strip("/")
        return "LIST" if part == "list" or "list-type" in query or is_bucket else "GET"
    if method == "PUT" and (part == "block" or "partNumber" in query):
        return "UploadPart"
    if method == "PUT" and "x-amz-copy-source" in head.headers:
        return "COPY"
    if part == "blocklist" or (method == "POST" and "uploadId" in query):
        return "CompleteMPU"
    if method == "POST":
        return "CreateMPU" if "uploads" in query else "DELETES"
    return "AbortMPU" if method == "DELETE" and "uploadId" in query else method


async def relay(reader: asyncio.StreamReader, head: Head, writer: asyncio.StreamWriter | None) -> None:
    """Copy a body as it comes; without a writer it is only read."""
    if head.is_chunked:
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            data = line + await reader.readexactly(size + 2)
            if writer is not None:
                writer.write(data)
                await writer.drain()
            if not size:
                return
    left = head.length
    while left:
        data = await reader.read(min(left, CHUNK_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(data, left)
        left -= len(data)
        if writer is not None:
            writer.write(data)
            await writer.drain()


async def read_body(reader: asyncio.StreamReader, head: Head) -> bytearray:
    """Return a whole body."""
    if not head.is_chunked:
        return bytearray(await reader.readexactly(head.length))
    body = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        body += (await reader.readexactly(size + 2))[:size]
        if not size:
            return body
