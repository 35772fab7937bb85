"""Decide which web servers are asked, at every redirect, and to which addresses a socket may connect."""

import contextlib
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import yarl

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.addresses import is_public
from wordsworth.pipeline.storage.allowed_uris import AllowedUris, Place, web_place
from wordsworth.pipeline.storage.schemes import HTTP


class RefusedUri(UserError):
    """Report an address that may not be asked. The message says why, and which option allows it."""


class WebReach:
    """Decide which addresses of web servers may be asked.

    A source that a user types, and its server, may be anywhere. Data name other servers: a table by a URI,
    any server by a redirect. These may be public ones, or what --allow-uris names.

    Args:
        allowed: prefixes of --allow-uris
        own: scheme and host of the table whose rows name the images, None for a table elsewhere
        all_public: ask every server with a public address, as --allow-http says

    Attributes:
        typed: servers of the addresses that the user typed
    """

    def __init__(self, allowed: AllowedUris, own: Place | None = None, all_public: bool = True):
        self.allowed = allowed
        self.own = own
        self.all_public = all_public
        self.typed: set[tuple[str, str]] = set()

    def check(self, url: yarl.URL) -> None:
        """Check that an address may be asked, before any request.

        Raises:
            RefusedUri: it may not.
            ValueError: it is no address of a web server.
        """
        if url.scheme not in HTTP:
            raise ValueError(f"{url.scheme} is no scheme of a web server")
        place = web_place(url)
        if self.is_open(place):
            return
        # Connections to a named server are kept open, whatever its address. So all of it is named or nothing.
        is_named = any(prefix[:2] == place[:2] for prefix in self.allowed.places)
        if is_named or not self.all_public:
            raise RefusedUri(
                f"it is on {place.prefix}, which was not named (--allow-http, or --allow-uris {place.prefix})"
                if not is_named
                else f"it is not below what was named of {place.prefix} (--allow-uris {place.prefix})"
            )

    def is_open(self, place: Place) -> bool:
        """Return whether the user named a place, so that its address is not judged."""
        return self.is_own(place) or place[:2] in self.typed or self.allowed.has_object(place)

    def is_own(self, place: Place) -> bool:
        """Return whether a place is on the server of the table."""
        return self.own is not None and self.own[:2] == place[:2]


class _Connection:
    """Hold what is known of a connection that is about to be made.

    Attributes:
        is_open: whether any address will do
        refused: an address that was refused
    """

    def __init__(self, is_open: bool):
        self.is_open = is_open
        self.refused: str | None = None


_CONNECTION: ContextVar[_Connection] = ContextVar("connection")


@contextlib.contextmanager
def judged_addresses(place: Place, is_open: bool) -> Iterator[None]:
    """Let sockets connect to public addresses alone inside the block, unless `is_open`.

    Raises:
        RefusedUri: the server has another address.
    """
    connection = _Connection(is_open)
    token = _CONNECTION.set(connection)
    try:
        yield
    except Exception as error:
        if connection.refused is None:
            raise
        raise RefusedUri(
            f"{place.container} is at {connection.refused}, which is no public address "
            f"(--allow-uris {place.prefix})"
        ) from error
    finally:
        _CONNECTION.reset(token)


def judged_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an entry of getaddrinfo. aiohttp calls this right before it connects.

    So the address that is judged is the one that is connected to, however its name is spelled and whatever
    the name resolves to at another time.
    """
    family, kind, protocol, _, (host, *_) = address
    connection = _CONNECTION.get(_Connection(is_open=False))
    if not connection.is_open and not is_public(str(host)):
        connection.refused = str(host)
        raise PermissionError(f"{host} is no public address")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
