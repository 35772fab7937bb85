"""Tell a web server that fails from a network that fails.

A table names images on many servers, and one that is gone must not hold up the others for ever. But a cable
that is pulled looks the same from one image. So an image that its server did not give is unreachable only
beside a witness: another server that answers, or another image of the same server. For an image on the
table's own server, only an image there counts.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from wordsworth.pipeline.sources.image_fetch import ImageFetch
from wordsworth.pipeline.sources.samples import StoreFault
from wordsworth.pipeline.sources.table_uris import Refused, Resolver
from wordsworth.pipeline.storage.filesystem import is_web, without_credentials
from wordsworth.pipeline.storage.whole_object import Unreachable

SEARCH_S = 60  # seconds in which a server is sought that answers
LOOKED_AT = 1000  # URIs from the table's first on among which it is sought
READ_HELD = 4  # images that were read last, which are asked first


class WebWitness:
    """Find a web server that answers, beside one that does not.

    Args:
        resolver: says where the URIs of the table lead
        first_uris: gives the URIs of the table from its first row on
    """

    def __init__(self, resolver: Resolver, first_uris: Callable[[], Iterator[str]]):
        self._resolver = resolver
        self._first_uris = first_uris
        self._read: dict[
            str, None
        ] = {}  # addresses that were answered for, one a server, the last at the end

    def note(self, fetch: ImageFetch) -> None:
        """Remember an address for which its server answered."""
        if fetch.sample.error == "refused_uri":
            return
        for address in [*self._read]:
            if address.split("/")[2] == fetch.path.split("/")[2] or len(self._read) >= READ_HELD:
                del self._read[address]
        self._read[fetch.path] = None

    def confirm(self, fetch: ImageFetch, error: Unreachable, waiting: Iterable[ImageFetch]) -> None:
        """Make a sample an error whose server fails, if another server answers.

        Args:
            fetch: the image
            error: how its server failed
            waiting: images of the rows behind

        Raises:
            StoreFault: no server answers: nothing shows that this one alone fails.
        """
        web = self._resolver.web
        is_witnessed = error.is_known or web.answered_since(error.began, fetch.path)
        if not is_witnessed and not self._any_answers(fetch.path, waiting):
            address = without_credentials(fetch.path)
            raise StoreFault(f"{address}: {error}; no other image shows that the network works")
        web.leave_alone(fetch.path, error.began)
        fetch.fail("unreachable", str(error))

    def _any_answers(self, path: str, waiting: Iterable[ImageFetch]) -> bool:
        began = time.monotonic()
        for address in self._candidates(path, waiting):
            if self._resolver.web.answers(address):
                return True
            if time.monotonic() - began > SEARCH_S:
                break
        return False

    def _candidates(self, path: str, waiting: Iterable[ImageFetch]) -> Iterator[str]:
        """Yield addresses that may be answered for, the likeliest first."""
        web = self._resolver.web
        seen: set[str] = set()
        beside: list[str] = []  # of the same server, which may be down: asked last, and not many
        for address in islice(self._addresses(waiting), LOOKED_AT):
            server = address.split("/")[2]
            if web.reach.own or server != path.split("/")[2]:
                name = address if web.reach.own else server
                if name not in seen and web.is_witness(path, address):
                    seen.add(name)
                    yield address
            elif len(beside) < READ_HELD and address not in beside and web.is_witness(path, address):
                beside.append(address)
        yield from beside

    def _addresses(self, waiting: Iterable[ImageFetch]) -> Iterator[str]:
        yield from reversed(self._read)
        yield from (fetch.path for fetch in waiting if is_web(fetch.path))
        for uri in self._first_uris():
            try:
                path = self._resolver.resolve(uri).path
            except Refused:
                continue
            if is_web(path):
                yield path
