"""Fetch images that a table only names, several at once."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from wordsworth.pipeline.sources.byte_budget import ByteBudget
from wordsworth.pipeline.sources.disk_pace import DiskPace
from wordsworth.pipeline.sources.image_fetch import ImageFetch
from wordsworth.pipeline.sources.lost_objects import is_readable, loss_of
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_uris import Refused, Resolver
from wordsworth.pipeline.sources.web_witness import WebWitness
from wordsworth.pipeline.storage.filesystem import is_local, is_web

FETCHERS = 16  # objects asked for at once by one read task: 320 a second of a store that answers after 50 ms
AHEAD = 32  # rows that may wait behind the row that comes next
HELD_BYTES = 64 << 20  # encoded bytes that may be held by waiting rows, unless a single object is larger
NamedImage = tuple[
    EncodedSample, str | None
]  # a sample, and the URI of the image that the sample still lacks


def fetched(
    samples: Iterator[NamedImage],
    shard: Shard,
    settings: ReadSettings,
    first_uris: Callable[[], Iterator[str]] = lambda: iter(()),
) -> Iterator[EncodedSample]:
    """Yield the samples in their order.

    Where a URI stands beside a sample, its image is fetched into the sample. A URI that may not be followed,
    or that names nothing, makes the sample an error.

    Args:
        samples: samples, each with the URI of the image that it lacks
        shard: the table
        settings: how to read
        first_uris: gives the URIs of the table from its first row on, to find a web server that answers

    Raises:
        StoreFault, OSError: a store does not answer. What a store failed to give never becomes a row.
    """
    resolver = Resolver(shard, settings.storage_options)
    pool = ThreadPoolExecutor(FETCHERS, "fetch")
    queue = _FetchQueue(pool, settings.max_bytes, WebWitness(resolver, first_uris))
    try:
        for sample, uri in samples:
            if not queue and (uri is None or queue.fetch_at_once(sample, uri, resolver)):
                yield sample
                continue
            queue.add(sample, uri, resolver)
            while queue.is_due():
                yield queue.pop()
        while queue:
            yield queue.pop()
    finally:
        queue.close()
        pool.shutdown(wait=True, cancel_futures=True)


# ---- fetching ---------------------------------------------------------------------------------------------


class _FetchQueue:
    """Fetch images in threads, and give the samples back in their order.

    The reads begin in the order of the rows, as long as their bytes fit into HELD_BYTES. The row that comes
    next never waits for bytes that a later row holds.
    """

    def __init__(self, pool: ThreadPoolExecutor, max_bytes: int, web_witness: WebWitness):
        self._pool = pool
        self._web_witness = web_witness
        self._max_bytes = max_bytes
        self._budget = ByteBudget(HELD_BYTES)
        self._waiting: deque[ImageFetch] = deque()
        self._num_added = 0
        self._expected_bytes = 0  # of the next image, by the images before
        self._last_read: ImageFetch | None = None  # of the images that came from a store
        self._pace = DiskPace()  # of this machine's disks

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, sample: EncodedSample, uri: str | None, resolver: Resolver) -> None:
        """Append a sample, and begin to read the image that it lacks."""
        fetch = ImageFetch(sample, self._num_added)
        self._num_added += 1
        self._waiting.append(fetch)
        if uri is None:
            return
        try:
            fetch.fs, fetch.path, fetch.refusal = resolver.resolve(uri)
        except Refused as refusal:
            fetch.fail("refused_uri", str(refusal))
        else:
            self._pace.count()
            fetch.read = self._pool.submit(fetch.load, self._max_bytes, self._budget, self._expected_bytes)

    def close(self) -> None:
        """Let no read wait for room any more."""
        self._budget.close()

    def fetch_at_once(self, sample: EncodedSample, uri: str, resolver: Resolver) -> bool:
        """Fetch an image from a quick disk, without the threads, which would take longer; nothing waits.

        Returns:
            Whether the sample is complete. Else it has to wait for others.
        """
        if self._pace.rows_in_threads or not resolver.local:
            return False
        fetch = ImageFetch(sample)
        try:
            fetch.fs, fetch.path, fetch.refusal = resolver.resolve(uri)
        except Refused:
            return False
        if not is_local(fetch.fs):
            return False
        self._fetch_here(fetch)
        if sample.data:
            self._last_read = fetch
        return fetch.refused is None

    def _fetch_here(self, fetch: ImageFetch) -> None:
        began = time.perf_counter()
        with _naming(fetch.path):
            fetch.load_now(self._max_bytes)
        self._pace.saw(time.perf_counter() - began, len(fetch.sample.data))

    def is_due(self) -> bool:
        """Return whether the first sample should be taken: it is complete, or too many wait behind it."""
        if not self._waiting:
            return False
        if len(self._waiting) > AHEAD:
            return True
        first = self._waiting[0]
        is_complete = first.read is None or first.read.done()
        # Of an image that may not be read, a later row may show that the store gives others.
        return is_complete and (first.refused is None or self._last_read is not None)

    def pop(self) -> EncodedSample:
        """Return the first sample as soon as it is complete.

        Raises StoreFault and OSError for a store that fails.
        """
        fetch = self._waiting.popleft()
        if fetch.read is not None:
            with _naming(fetch.path):
                fetch.read.result()
        self._budget.take(fetch.number)
        if fetch.refused is not None:
            self._confirm(fetch, fetch.refused)
        elif fetch.unreachable is not None:
            self._web_witness.confirm(fetch, fetch.unreachable, self._waiting)
        elif is_web(fetch.path):
            self._web_witness.note(fetch)
        if fetch.sample.data and fetch.path:
            self._last_read = fetch
            num_bytes = len(fetch.sample.data)
            self._expected_bytes = (
                (7 * self._expected_bytes + num_bytes) // 8 if self._expected_bytes else num_bytes
            )
        return fetch.sample

    def _confirm(self, fetch: ImageFetch, refused: PermissionError) -> None:
        """Make a sample an error whose image may not be read, if another image beside it can be read now.

        Raises:
            StoreFault: none can: nothing shows that this image alone is forbidden.
        """
        loss = loss_of(refused, fetch.fs, fetch.path)
        for other in (self._last_read, *self._waiting):
            if loss and other and other.is_beside(fetch) and is_readable(other.fs, other.path):
                self._last_read = other
                fetch.fail(*loss)
                return
        raise StoreFault(f"{fetch.path}: {type(refused).__name__}: {refused}") from refused


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make a StoreFault of a client's own exception, which says nothing of the data, and name the object."""
    try:
        yield
    except (OSError, StoreFault):
        raise
    except Exception as error:
        raise StoreFault(f"{path}: {type(error).__name__}: {error}") from error
