"""Images that a table only names: which names may be followed, and how they are fetched, several at once and in order."""

import errno
import posixpath
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, patiently, public

FETCHERS = 8  # objects asked for at once by one read task
AHEAD = 32  # rows that may wait behind the one that is due
HELD_BYTES = 64 << 20  # encoded bytes that may wait, unless one object alone is larger
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PASSING = (408, 425, 429)  # of HTTP: too late, too early, too often
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "http" in protocols or "https" in protocols


class Refused(Exception):
    """A URI that this table may not name. The message says why."""


class Resolver:
    """URIs as they stand in a table -> file system and path. Relative ones are relative to the table's folder.

    A table that lies in a bucket is a stranger's: what it names on this machine's disk is refused, however it is spelled.
    """

    def __init__(self, shard: Shard, options: dict):
        self.options = options
        fs, path = open_filesystem(shard.uri, options)
        self.local, self.folder = is_local(fs), path.rpartition("/")[0]
        self.fs = fs
        self._known: dict[str, fsspec.AbstractFileSystem] = {}

    def resolve(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Raises Refused; StoreFault where a client of the store is not installed or not set up."""
        if "\0" in uri:
            raise Refused("it holds a NUL byte")
        if not _SCHEME.match(uri) and "::" not in uri:
            return self._beside(uri)
        try:
            fs, path = open_filesystem(uri, self.options)
        except UserError as error:
            if isinstance(error.__cause__, ImportError):
                raise StoreFault(str(error)) from error
            raise Refused(str(error)) from error
        except Exception as error:  # what a client says about its own settings can be anything
            raise StoreFault(f"cannot open {public(uri)}: {type(error).__name__}: {error}") from error
        if is_local(fs) and not self.local:
            raise Refused("a table in a store may not name files of this machine")
        return fs, path

    def _beside(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        if name.startswith("/"):
            if not self.local:
                raise Refused("a table in a store may not name files of this machine")
            return self.fs, name
        path = posixpath.normpath(f"{self.folder}/{name}")
        if not self.local and (path.startswith("..") or path.split("/")[0] != self.folder.split("/")[0]):
            raise Refused("it leads out of the table's bucket")
        return self.fs, path


# ---- fetching -------------------------------------------------------------------------------------------------------------


class _Turns:
    """Lets the fetches read in their order, as long as what waits to be taken fits: the first that is due never waits for a
    later one, so nobody waits for ever."""

    def __init__(self):
        self._changed, self._turn, self._held, self._closed = threading.Condition(), 0, 0, False

    def enter(self, ticket: int, size: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or (self._turn == ticket and (not self._held or self._held + size <= HELD_BYTES))
                )
            )
            if self._closed:
                raise StoreFault("reading was given up")
            self._turn, self._held = self._turn + 1, self._held + size
            self._changed.notify_all()

    def leave(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(slots=True)
class _Fetch:
    """One object on its way into its sample."""

    sample: EncodedSample
    fs: fsspec.AbstractFileSystem
    path: str
    ticket: int
    claimed: int = 0

    def run(self, turns: _Turns, limit: int) -> None:
        entered = False
        try:
            size = self._size()
            too_large = size is not None and size > limit
            self.claimed = 0 if too_large else min(limit, size if size is not None else HELD_BYTES)
            turns.enter(self.ticket, self.claimed)
            entered = True
            data = b"" if too_large else self._read(size, limit)
            self._take(data, max(size or 0, len(data)), limit)
        except _MISSING:
            self._fail("not_found", "there is no such object")
        except ValueError as error:
            self._fail("refused_uri", str(error))
        except OSError as error:
            status = getattr(error.__cause__, "status", 0)
            if _is_web(self.fs) and 400 <= status < 500 and status not in _PASSING:
                self._fail(
                    "not_found", f"the server answers {status}"
                )  # links die; a store's refusal is a fault
            elif error.errno in _NO_PATH and is_local(self.fs):
                self._fail("refused_uri", error.strerror)
            else:
                raise
        finally:
            if not entered:
                turns.enter(self.ticket, 0)  # whoever comes next waits for this turn

    def _size(self) -> int | None:
        """Bytes, or None where the store does not say."""
        info = self.fs.info(self.path) if is_local(self.fs) else patiently(lambda: self.fs.info(self.path))
        if info.get("type") == "directory":
            raise IsADirectoryError(self.path)
        if info.get("type", "file") != "file":
            raise ValueError("not a regular file")  # reading a device or a pipe may never end
        return info.get("size")

    def _read(self, size: int | None, limit: int) -> bytes:
        if size is not None:
            return patiently(lambda: self.fs.cat_file(self.path))
        with patiently(lambda: self.fs.open(self.path, "rb")) as file:
            return patiently(lambda: file.read(limit + 1))

    def _take(self, data: bytes, size: int, limit: int) -> None:
        self.sample.size = size
        if size > limit:
            self.sample.error, self.sample.detail = "too_many_bytes", f"{size} bytes"
        else:
            self.sample.data = data

    def _fail(self, error: str, detail: str) -> None:
        self.sample.error, self.sample.detail = error, detail


def fetched(
    samples: Iterator[tuple[EncodedSample, str | None]], shard: Shard, settings: ReadSettings
) -> Iterator[EncodedSample]:
    """The samples in their order; where a URI stands beside one, what it names is fetched into it.

    A URI that may not be followed, or that names nothing, makes the sample an error. Raises StoreFault and OSError for a store that
    does not answer: nothing that it failed to give becomes a row.
    """
    resolver, turns = Resolver(shard, settings.storage_options), _Turns()
    waiting: deque[tuple[EncodedSample, Future | None, _Fetch | None]] = deque()
    pool, tickets = ThreadPoolExecutor(FETCHERS, "fetch"), 0
    try:
        for sample, uri in samples:
            fetch = _begin(sample, uri, resolver, tickets) if uri is not None else None
            if fetch:
                tickets += 1
            waiting.append(
                (sample, pool.submit(fetch.run, turns, settings.max_bytes) if fetch else None, fetch)
            )
            while waiting and (len(waiting) > AHEAD or waiting[0][1] is None or waiting[0][1].done()):
                yield _due(*waiting.popleft(), turns)
        while waiting:
            yield _due(*waiting.popleft(), turns)
    finally:
        turns.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(sample: EncodedSample, uri: str, resolver: Resolver, ticket: int) -> _Fetch | None:
    try:
        return _Fetch(sample, *resolver.resolve(uri), ticket)
    except Refused as refusal:
        sample.error, sample.detail = "refused_uri", str(refusal)
        return None


def _due(sample: EncodedSample, future: Future | None, fetch: _Fetch | None, turns: _Turns) -> EncodedSample:
    if future:
        try:
            future.result()
        except (OSError, StoreFault):
            raise
        except Exception as error:  # a client's own complaint: not about the data, as far as anyone can tell
            raise StoreFault(f"{fetch.path}: {type(error).__name__}: {error}") from error
        turns.leave(fetch.claimed)
    return sample
