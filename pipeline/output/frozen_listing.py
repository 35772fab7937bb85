"""The frozen listing: pages of shards in _run/shards/, each written once, in order, while the source is being listed.

    00000.parquet  00001.parquet  ...  00007-end.parquet        `-end` says that the listing is complete
    00008-end.parquet                                           what `--update` found later

A page's own metadata says which files were ignored and which earlier shards it replaces. A listing that was killed goes on
behind the last file of its last page; two jobs that list at once write the same pages, or go on behind each other's.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import Done
from wordsworth.pipeline.output.run_folder import RunFolder, parquet
from wordsworth.pipeline.sources.shards import LISTING, PAGE, Finder, Place, Shard, listing_table, unit_stem
from wordsworth.pipeline.storage.filesystem import public, put_if_absent

SHARDS_IN_PAGE, MEMBERS_IN_PAGE = 1000, 65536  # a page of the listing holds at most so many
PAGE_SECONDS = 2.0  # and a slow store's page is written after so long, for labelling to begin
ABOUT = b"wordsworth"


@dataclass
class About:
    """What a page says beside its shards. ignored: files of other kinds by extension; replaces: ids of earlier shards."""

    ignored: dict[str, int] = field(default_factory=dict)
    replaces: list[str] = field(default_factory=list)


class FrozenListing:
    """The pages of a run."""

    def __init__(self, run: RunFolder):
        self.run = run

    def files(self) -> list[str]:
        return sorted(
            path
            for path in self.run.parquet_files("_run", "shards")
            if not path.rpartition("/")[2].startswith("_")
        )

    @property
    def complete(self) -> bool:
        return _is_end(self.files()[-1:])

    def is_short(self) -> bool:
        """Whether listing the source again costs no more than a few answers of the store."""
        files = self.files()
        pages = (self.read(path)[0] for path in files) if len(files) <= 8 else ()
        return bool(files) and len(files) <= 8 and sum(_objects_in(page) for page in pages) <= MEMBERS_IN_PAGE

    def close_update(self) -> bool:
        """End an update that was interrupted while it was listing: what it found counts, the next update finds the rest."""
        files = self.files()
        interrupted = not _is_end(files[-1:]) and any(_is_end([file]) for file in files)
        return interrupted and self.put(len(files), [], True, About())

    def read(self, path: str) -> tuple[pa.Table, About]:
        with self.run.fs.open(path, "rb") as file:
            table = pq.read_table(file)
        return table.replace_schema_metadata(None).cast(LISTING), _about(table.schema)

    def about(self, path: str) -> About:
        """Without reading the shards."""
        with self.run.fs.open(path, "rb") as file:
            return _about(pq.read_schema(file))

    def replaced(self) -> set[str]:
        """Ids of shards that a later page replaces. Only updates do, so a run without one reads nothing here."""
        files = self.files()
        first_end = next((number for number, file in enumerate(files) if _is_end([file])), len(files))
        return {name for path in files[first_end + 1 :] for name in self.about(path).replaces}

    def pages(self) -> Iterator[pa.Table]:
        """The shards that count, page by page, in the order in which they were found."""
        gone = self.replaced()
        for path in self.files():
            yield without(self.read(path)[0], gone)

    def shards(self) -> Iterator[Shard]:
        for page in self.pages():
            yield from map(Shard.from_row, page.to_pylist())

    def ignored(self) -> Counter:
        return sum((Counter(self.about(path).ignored) for path in self.files()), Counter())

    def place(self) -> Place:
        """Behind the last file that is frozen."""
        place = Place()
        for path in self.files():
            place.passed(map(Shard.from_row, self.read(path)[0].to_pylist()))
        return place

    def put(self, number: int, shards: list[Shard], last: bool, about: About) -> bool:
        """Freeze a page. False: this number is taken, by other shards."""
        table = listing_table(shards)
        path = self.run.path("_run", "shards", f"{number:05d}{'-end' if last else ''}.parquet")
        taken = [
            file
            for file in self.files()
            if file.rpartition("/")[2].startswith(f"{number:05d}") and file != path
        ]
        if taken:
            return False
        written = put_if_absent(
            self.run.fs, path, parquet(table.replace_schema_metadata({ABOUT: json.dumps(vars(about))}))
        )
        return written or self.read(path)[0]["id"].equals(table["id"])


def _about(schema: pa.Schema) -> About:
    return About(**json.loads((schema.metadata or {}).get(ABOUT, b"{}")))


def without(page: pa.Table, gone: set[str]) -> pa.Table:
    """The page less some shards."""
    return page.filter(pc.invert(pc.is_in(page["id"], pa.array(sorted(gone), pa.string())))) if gone else page


def _objects_in(page: pa.Table) -> int:
    return page.num_rows + sum(page["members"].combine_chunks().value_lengths().fill_null(0).to_pylist())


def _is_end(files: list[str]) -> bool:
    return bool(files) and files[0].endswith("-end.parquet")


# ---- the first listing -----------------------------------------------------------------------------------------------------


@dataclass
class Head:
    """The beginning of a listing, found before anything is written: what is wrong with the sources is said at once."""

    shards: list[Shard]
    ended: bool
    ignored: Counter

    @classmethod
    def of(cls, finder: Finder, seconds: float = PAGE_SECONDS) -> "Head":
        for page, last in _batches(finder.shards(), seconds):
            return cls(page, last, Counter(finder.ignored))
        raise AssertionError("a listing has at least one page")

    def freeze(self, frozen: FrozenListing) -> None:
        """As page 0. Where another job was faster, its page is as good."""
        if not frozen.files():
            frozen.put(0, self.shards, self.ended, About(dict(self.ignored)))


def listed(frozen: FrozenListing, finder: Finder) -> Iterator[pa.Table]:
    """Every page of the listing: those that are frozen, by whom ever, and then those still to be listed, each written before it
    is given."""
    gone, place, seen = frozen.replaced(), Place(), 0
    while True:
        for path in frozen.files()[seen:]:
            page = frozen.read(path)[0]
            place.passed(map(Shard.from_row, page.to_pylist()))
            seen += 1
            yield without(page, gone)
        if frozen.complete:
            return
        for page in _freeze_on(frozen, finder, seen, place):
            seen += 1
            yield page


def _freeze_on(frozen: FrozenListing, finder: Finder, number: int, place: Place) -> Iterator[pa.Table]:
    """List behind a place, and freeze pages from `number` on; stops where another job was faster with one."""
    counted = Counter(finder.ignored)
    for shards, last in _batches(
        finder.shards(replace(place, kinds=dict(place.kinds), images=Counter(place.images))), PAGE_SECONDS
    ):
        if not frozen.put(number, shards, last, About(dict(finder.ignored - counted))):
            return
        place.passed(shards)
        number, counted = number + 1, Counter(finder.ignored)
        yield listing_table(shards)


def _batches(shards: Iterable[Shard], seconds: float) -> Iterator[tuple[list[Shard], bool]]:
    """Pages of shards, and which is the last: an empty one, if need be."""
    page, members, begun = [], 0, time.monotonic()
    for shard in shards:
        if (
            len(page) >= SHARDS_IN_PAGE
            or members >= MEMBERS_IN_PAGE
            or (page and time.monotonic() - begun > seconds)
        ):
            yield page, False
            page, members, begun = [], 0, time.monotonic()
        page.append(shard)
        members += len(shard.members)
    yield page, True


# ---- the stage ---------------------------------------------------------------------------------------------------------------

OPEN_SHARD = pa.schema([*LISTING, ("start", pa.int32()), ("have", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class ListSettings:
    """Where the run is, and what it lists."""

    output: str
    sources: tuple[str, ...]
    format: str | None
    image_keys: tuple[str, ...]
    storage_options: dict[str, Any] = field(default_factory=dict)


def list_stage(_: pa.Table, settings: ListSettings, done: dict[str, Any]) -> Iterator[pa.Table]:
    """Ray Data's function: the shards that are not complete, a block each so that every one is a read task of its own.

    What is frozen comes first; an incomplete listing goes on, and its shards come as they are found.

    done: {"ref": ObjectRef of what was committed when the command began}. A snapshot, because this task may run again, and must
    then give the same blocks in the same order.
    """
    import ray

    committed = ray.get(done["ref"])
    frozen = FrozenListing(RunFolder(settings.output, settings.storage_options))
    for page in listed(
        frozen, Finder(list(settings.sources), settings.format, settings.image_keys, settings.storage_options)
    ):
        yield from open_shards(page, committed)


def shard_names(page: pa.Table) -> list[str]:
    """`Shard.name` of every row, without reading its members."""
    return list(map(unit_stem, page["uri"].to_pylist(), page["id"].to_pylist()))


def open_shards(page: pa.Table, done: Done) -> Iterator[pa.Table]:
    """The shards of a page that are not complete, one row each, with the units that they have."""
    names = shard_names(page)
    for number in np.flatnonzero(~done.complete(names)).tolist():
        have = done[names[number]]
        more = [pa.array([have.prefix], pa.int32()), pa.array([sorted(have.beyond)], pa.list_(pa.int32()))]
        yield pa.Table.from_arrays([*page.slice(number, 1).columns, *more], schema=OPEN_SHARD)


def open_pages(frozen: FrozenListing, done: Done) -> Iterator[pa.Table]:
    """The same of every page."""
    for page in frozen.pages():
        yield from open_shards(page, done)


# ---- what is new, what is another --------------------------------------------------------------------------------------------


@dataclass
class Changes:
    """The source now against the frozen listing. changed: names of shards or images that have another size or version now."""

    new: int = 0
    changed: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)  # to be added
    replaces: dict[str, str] = field(
        default_factory=dict
    )  # id of an added shard: of the one that it replaces


class _Known:
    """Which objects a listing has, as hashes: 16 bytes for each, however long their names are."""

    def __init__(self, shards: Iterable[Shard]):
        names, identities = [], []
        for shard in shards:
            for name, identity in objects(shard):
                names.append(_hash(name))
                identities.append(_hash(f"{name}|{identity}"))
        order = np.argsort(np.array(names, np.uint64))
        self.names, self.identities = (np.array(values, np.uint64)[order] for values in (names, identities))

    def state(self, name: str, identity: tuple[int, str]) -> str:
        """ "new", "same" or "changed"."""
        at = int(np.searchsorted(self.names, np.uint64(_hash(name))))
        found = at < len(self.names) and self.names[at] == np.uint64(_hash(name))
        if not found:
            return "new"
        return "same" if self.identities[at] == np.uint64(_hash(f"{name}|{identity}")) else "changed"


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def objects(shard: Shard) -> Iterator[tuple[str, tuple[int, str]]]:
    """The objects of the store that a shard consists of: URI, and size and version."""
    if shard.kind != "images":
        yield shard.uri, (shard.size, shard.version)
    for member in shard.members:
        yield f"{shard.uri}/{member['key']}", (member["size"], member["version"])


def changes(frozen: FrozenListing, finder: Finder, replace_changed: bool = False) -> Changes:
    """What an update would add, and with `replace_changed` what it would replace. Lists the whole source."""
    known, found, place = _Known(frozen.shards()), Changes(), frozen.place()
    changed: dict[str, Shard | dict[str, Any]] = {}
    fresh: dict[tuple[str, int], list[dict]] = {}
    for shard in finder.shards():
        for name, identity in objects(shard):
            state = known.state(name, identity)
            found.new += state == "new"
            if state == "changed":
                found.changed.append(name)
                changed[name] = (
                    shard if shard.kind != "images" else dict(zip(("size", "version"), identity, strict=True))
                )
            elif state == "new" and shard.kind != "images":
                found.shards.append(shard)
            elif state == "new":
                key = name.removeprefix(f"{shard.uri}/")
                member = dict(zip(("key", "size", "version"), (key, *identity), strict=True))
                fresh.setdefault((shard.uri, shard.source), []).append(member)
    for (uri, source), members in fresh.items():
        found.shards += _image_pages(uri, source, members, place)
    if replace_changed and changed:
        for old in frozen.shards():
            if new := _replacement(old, changed):
                found.shards.append(new)
                found.replaces[new.id] = old.id
    return found


def _image_pages(uri: str, source: int, members: list[dict], place: Place) -> Iterator[Shard]:
    for begin in range(0, len(members), PAGE):
        page = tuple(members[begin : begin + PAGE])
        first = place.images[uri]
        place.images[uri] += len(page)
        yield Shard("images", uri, sum(member["size"] for member in page), "", first, page, source)


def _replacement(old: Shard, changed: dict[str, Any]) -> Shard | None:
    """The shard as it is now, if anything in it changed: the same place in the listing, another id."""
    if old.kind != "images":
        return changed.get(old.uri)
    if not any(name in changed for name, _ in objects(old)):
        return None
    members = tuple({**member, **changed.get(f"{old.uri}/{member['key']}", {})} for member in old.members)
    size = sum(member["size"] for member in members)
    return Shard(old.kind, old.uri, size, old.version, old.first_index, members, old.source)


def freeze_update(frozen: FrozenListing, found: Changes) -> None:
    """Add what was found to the listing: the last page is the update's end.

    Raises UserError where another job updates the same run.
    """
    number = len(frozen.files())
    for shards, last in _batches(found.shards, float("inf")):
        replaces = [found.replaces[shard.id] for shard in shards if shard.id in found.replaces]
        if not frozen.put(number, shards, last, About(replaces=replaces)):
            raise UserError(
                f"another job updates {public(frozen.run.uri)} right now: run the same command again when it is done"
            )
        number += 1
