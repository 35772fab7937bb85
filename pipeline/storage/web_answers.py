"""Tell from an answer of a web server whether it gives an object, refuses it, or fails."""

import email.utils
import time
from importlib.metadata import PackageNotFoundError, version

import aiohttp

from wordsworth.pipeline.storage.schemes import without_credentials

_IDENTITY = ("", "identity")
_GONE = (404, 410)
_BUSY = (429, 503)
MOST_SAID = 40  # characters of a server's own words in a message


class WebRefusal(PermissionError):
    """Report that a server does not give an object, and will not: it says so."""


def check_answer(answer: aiohttp.ClientResponse, url: str) -> None:
    """Check that an answer holds an object, or a part of it.

    Raises:
        FileNotFoundError: there is no such object.
        WebRefusal: the server does not give it.
        OSError: the server fails, which may pass.
    """
    status = answer.status
    if status < 300 or status == 416:
        encoding = answer.headers.get("Content-Encoding", "").lower()
        if encoding not in _IDENTITY and not url.partition("?")[0].endswith((".gz", ".tgz", ".zst")):
            raise WebRefusal(f"the server sends {encoding[:MOST_SAID]}, which it was asked not to")
        return
    address = without_credentials(url)
    if status in _GONE:
        raise FileNotFoundError(address)
    if is_refusal(status):
        raise WebRefusal(f"{address}: the server answers {status}")
    raise OSError(f"{address}: the server answers {status}")


def is_refusal(status: int) -> bool:
    """Return whether a status says that the object is not given: not that the server is busy or fails."""
    return 300 <= status < 500 and status not in (408, 425, 429)


def failure_of(error: Exception, seconds: float) -> str:
    """Return what to say of a failed request. The address is not repeated: a redirect may lead elsewhere."""
    if isinstance(error, TimeoutError):
        return f"not read within {max(1, round(seconds))} s"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer breaks off"
    if isinstance(error, aiohttp.ClientSSLError):
        return "no connection: the certificate or the encryption is not accepted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {error.os_error.strerror or 'failed'}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server breaks off the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the server's answer is no valid HTTP"
    return str(error) or type(error).__name__


async def at_most(answer: aiohttp.ClientResponse, num_bytes: int) -> bytes:
    """Return the body of an answer, or its first bytes, whatever more is sent."""
    data = bytearray()
    while len(data) < num_bytes:
        piece = await answer.content.read(num_bytes - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def retry_after(answer: aiohttp.ClientResponse) -> float | None:
    """Return the seconds that a busy server asks to wait; None where it does not ask."""
    text = answer.headers.get("Retry-After", "").strip()
    if answer.status not in _BUSY or not text:
        return None
    if text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def user_agent() -> str:
    """Return the name by which web servers know this program."""
    try:
        return f"wordsworth/{version('wordsworth')}"
    except PackageNotFoundError:
        return "wordsworth"
