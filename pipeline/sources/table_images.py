"""Fetch images that a table only names, several at once."""

import contextlib
import errno
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import fsspec

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.sources.lost_objects import is_readable, loss_of
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.table_uris import Refused, Resolver
from wordsworth.pipeline.storage.filesystem import is_local
from wordsworth.pipeline.storage.objects import object_bytes, object_info
from wordsworth.pipeline.storage.streams import with_retries

FETCHERS = 8  # objects asked for at once by one read task
AHEAD = 32  # rows that may wait behind the row that comes next
QUICK_S = 0.001  # seconds for an image of a disk that answers at once, and QUICK_BYTES more
QUICK_BYTES = 500_000  # bytes that such a disk gives in a millisecond
SLOW_IMAGES = 3  # images in a row after which a disk counts as slow
SLOW_ROWS = 64  # rows that are fetched in threads after a disk was slow, before it is tried without again
HELD_BYTES = 64 << 20  # encoded bytes that may be held by waiting rows, unless a single object is larger
NamedImage = tuple[
    EncodedSample, str | None
]  # a sample, and the URI of the image that the sample still lacks
NO_FILE = "not a regular file"
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")  # a character in a URL
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PASSING = (408, 425, 429)  # HTTP statuses: too late, too early, too often
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def fetched(samples: Iterator[NamedImage], shard: Shard, settings: ReadSettings) -> Iterator[EncodedSample]:
    """Yield the samples in their order.

    Where a URI stands beside a sample, its image is fetched into the sample.

    A URI that may not be followed, or that names nothing, makes the sample an error.

    Raises:
        StoreFault, OSError: a store does not answer. What a store failed to give never becomes a row.
    """
    resolver = Resolver(shard, settings.storage_options)
    pool = ThreadPoolExecutor(FETCHERS, "fetch")
    queue = _FetchQueue(pool, settings.max_bytes)
    try:
        for sample, uri in samples:
            if not queue and (uri is None or queue.fetch_at_once(sample, uri, resolver)):
                yield sample
                continue
            queue.add(_Fetch(sample), uri, resolver)
            while queue.is_due():
                yield queue.pop()
        while queue:
            yield queue.pop()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---- fetching ---------------------------------------------------------------------------------------------


class _FetchQueue:
    """Fetch images in threads, and give the samples back in their order.

    All sizes are asked for at once. The reads begin in the order of the rows, as long as their bytes fit
    into HELD_BYTES: so the row that comes next never waits for bytes that a later row holds.
    """

    def __init__(self, pool: ThreadPoolExecutor, max_bytes: int):
        self._pool = pool
        self._max_bytes = max_bytes
        self._waiting: deque[_Fetch] = deque()
        self._num_begun = 0  # rows at the front of the queue whose reads have begun
        self._held = 0  # bytes that these rows may hold
        self._last_read: _Fetch | None = None  # of the images that came from a store
        self._rows_in_threads = 0  # rows to come that are fetched in threads, on disks too
        self._num_slow = 0  # images in a row for which a disk was slow

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, fetch: "_Fetch", uri: str | None, resolver: Resolver) -> None:
        """Append a sample, and ask for the size of the image that it lacks."""
        self._waiting.append(fetch)
        if uri is None:
            return
        try:
            fetch.fs, fetch.path, fetch.refusal = resolver.resolve(uri)
        except Refused as refusal:
            fetch.fail("refused_uri", str(refusal))
        else:
            self._rows_in_threads = max(0, self._rows_in_threads - 1)
            fetch.measured = self._pool.submit(fetch.measure, self._max_bytes)

    def fetch_at_once(self, sample: EncodedSample, uri: str, resolver: Resolver) -> bool:
        """Fetch an image from a quick disk, without the threads, which would take longer; nothing waits.

        Returns:
            Whether the sample is complete. Else it has to wait for others.
        """
        if self._rows_in_threads or not resolver.local:
            return False
        fetch = _Fetch(sample)
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

    def _fetch_here(self, fetch: "_Fetch") -> None:
        began = time.perf_counter()
        with _naming(fetch.path):
            fetch.measure(self._max_bytes)
            if not fetch.is_settled:
                fetch.load(self._max_bytes)
        seconds = time.perf_counter() - began
        is_slow = seconds > QUICK_S * (1 + len(fetch.sample.data) / QUICK_BYTES)
        self._num_slow = self._num_slow + 1 if is_slow else 0
        if self._num_slow == SLOW_IMAGES:  # one alone may have waited for the processor
            self._num_slow = 0
            self._rows_in_threads = SLOW_ROWS

    def is_due(self) -> bool:
        """Return whether the first sample should be taken: it is complete, or too many wait behind it."""
        if not self._waiting:
            return False
        self._begin_reads(wait=False)
        first = self._waiting[0]
        if len(self._waiting) > AHEAD:
            return True
        is_complete = self._num_begun > 0 and (first.read is None or first.read.done())
        # Of an image that may not be read, a later row may show that the store gives others.
        return is_complete and (first.refused is None or self._last_read is not None)

    def pop(self) -> EncodedSample:
        """Return the first sample as soon as it is complete.

        Raises StoreFault and OSError for a store that fails.
        """
        self._begin_reads(wait=True)
        fetch = self._waiting.popleft()
        self._num_begun -= 1
        self._held -= fetch.claimed
        if fetch.read is not None:
            with _naming(fetch.path):
                fetch.read.result()
        if fetch.refused is not None:
            self._confirm(fetch, fetch.refused)
        elif fetch.sample.data and fetch.path:
            self._last_read = fetch
        return fetch.sample

    def _confirm(self, fetch: "_Fetch", refused: PermissionError) -> None:
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

    def _begin_reads(self, wait: bool) -> None:
        """Begin the next reads that fit.

        wait: wait for the size of the first image, so that its read begins.
        """
        while self._num_begun < len(self._waiting):
            fetch = self._waiting[self._num_begun]
            if fetch.measured is not None:
                may_wait = wait and self._num_begun == 0
                if not (may_wait or fetch.measured.done()):
                    return
                failed = fetch.measured.exception() is not None or fetch.is_settled
                claim = 0 if failed else fetch.claim(self._max_bytes)
                if self._held and self._held + claim > HELD_BYTES:
                    return
                self._held += claim
                fetch.claimed = claim
                fetch.read = fetch.measured if failed else self._pool.submit(fetch.load, self._max_bytes)
            self._num_begun += 1


class _Fetch:
    """Hold one sample and the fetch of its image.

    Attributes:
        sample: the sample; the image is read into it
        fs, path: where the image lies
        refusal: why the URI is refused if nothing is there; None for a URI that may be followed
        size: bytes of the image, None where the store does not say
        claimed: bytes that the image may take
        refused: the error of a store that does not let the image be read
        measured: done when `size` is known; None where nothing is to be fetched
        read: done when the sample is complete
    """

    def __init__(self, sample: EncodedSample):
        self.sample = sample
        self.fs: fsspec.AbstractFileSystem = None
        self.path = ""
        self.refusal: str | None = None
        self.size: int | None = None
        self.claimed = 0
        self.refused: PermissionError | None = None
        self.measured: Future[None] | None = None
        self.read: Future[None] | None = None

    def measure(self, max_bytes: int) -> None:
        """Ask for the size. An image that is missing or too large makes the sample an error."""
        self._attempt(lambda: self._check_size(max_bytes))

    def load(self, max_bytes: int) -> None:
        """Read the image into the sample."""
        self._attempt(lambda: self._take(self._read(max_bytes), max_bytes))

    @property
    def is_settled(self) -> bool:
        """Return whether the image is not to be read."""
        return self.sample.error is not None or self.refused is not None

    def claim(self, max_bytes: int) -> int:
        """Return the bytes that reading the image may take."""
        return min(max_bytes, HELD_BYTES if self.size is None else self.size)

    def is_beside(self, other: "_Fetch") -> bool:
        """Return whether both images lie in one bucket, or on this machine."""
        if type(self.fs) is not type(other.fs) or self.path in ("", other.path):
            return False
        return is_local(self.fs) or self.path.split("/")[0] == other.path.split("/")[0]

    def fail(self, error: str, detail: str) -> None:
        """Make the sample an error."""
        self.sample.error = error
        self.sample.detail = without_secrets(detail)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do a step.

        What says something about the URI becomes an error of the sample; a store's fault is raised.
        """
        try:
            step()
        except _MISSING:
            if self.refusal:
                self.fail("refused_uri", self.refusal)
            else:
                self.fail("not_found", _nothing_at(self.path))
        except ValueError as error:
            self.fail("refused_uri", str(error))
        except PermissionError as error:
            self._refuse(error)
        except OSError as error:
            status = getattr(error.__cause__, "status", 0)
            # Links die, so a web server's refusal is about the link. A store's refusal is a fault of the
            # store.
            if _is_web(self.fs) and 400 <= status < 500 and status not in _PASSING:
                self.fail("not_found", f"the server answers {status}")
            elif error.errno in _NO_PATH and is_local(self.fs):
                self.fail("refused_uri", str(error.strerror))
            else:
                raise

    def _refuse(self, error: PermissionError) -> None:
        loss = loss_of(error, self.fs, self.path)
        if loss and loss.code == "archived":
            self.fail(*loss)
        else:
            self.refused = error

    def _check_size(self, max_bytes: int) -> None:
        self.size = self._size()
        if self.size is not None and self.size > max_bytes:
            self._take(b"", max_bytes)

    def _size(self) -> int | None:
        """Return the bytes of the image, or None where the store does not say."""
        if is_local(self.fs):
            return self._size_on_disk()
        info = with_retries(lambda: object_info(self.fs, self.path))
        if info.get("type") == "directory":
            raise IsADirectoryError(self.path)
        if info.get("type", "file") != "file":
            raise ValueError(NO_FILE)  # reading a device or a pipe may never end
        return info.get("size")

    def _size_on_disk(self) -> int:
        status = os.stat(self.path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(NO_FILE)
        return status.st_size

    def _read(self, max_bytes: int) -> bytes:
        if self.size is not None:
            return with_retries(lambda: object_bytes(self.fs, self.path))
        with with_retries(lambda: self.fs.open(self.path, "rb")) as file:
            return with_retries(lambda: file.read(max_bytes + 1))

    def _take(self, data: bytes, max_bytes: int) -> None:
        size = max(self.size or 0, len(data))
        self.sample.size = size
        if size > max_bytes:
            self.fail("too_many_bytes", f"{size} bytes")
        else:
            self.sample.data = data


def _nothing_at(path: str) -> str:
    """Return what to say of a name that names nothing, and why that may be."""
    name = path.rpartition("/")[2]
    if "\\" in name:
        return "there is no such object: between folders stands /, not \\"
    if _ESCAPE.search(name):
        return "there is no such object: names are taken as they are written, %20 is no space"
    return "there is no such object"


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "http" in protocols or "https" in protocols


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make a StoreFault of a client's own exception, which says nothing of the data, and name the object."""
    try:
        yield
    except (OSError, StoreFault):
        raise
    except Exception as error:
        raise StoreFault(f"{path}: {type(error).__name__}: {error}") from error
