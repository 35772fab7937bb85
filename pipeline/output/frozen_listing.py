"""Freeze the listing of a run: pages of shards in _run/shards/, written in order while the source is listed.

    00000.parquet  00001.parquet  ...  00007-end.parquet        `-end` says that the listing is complete
    00008-end.parquet                                           found later, by `--update`

The metadata of a page say which files were ignored and which earlier shards the page replaces. A listing
that was killed begins again behind the last file of its last page. Two jobs that list at once write the
same pages, or list on behind each other's pages.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wordsworth.pipeline.output.commit import parquet_bytes
from wordsworth.pipeline.output.committed import CommittedUnits
from wordsworth.pipeline.output.records import FOOTER_KEY
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.finder import Finder
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.passed_over import PassedOver
from wordsworth.pipeline.sources.shards import LISTING, NAMED, PICKS, Shard, listing_table, unit_stem
from wordsworth.pipeline.storage.atomic import put_if_absent

SHARDS_IN_PAGE = 1000  # shards in a page, at most
MEMBERS_IN_PAGE = 65536  # loose images in a page, at most, before the last shard is added
PAGE_SECONDS = (
    2.0  # seconds after which a page of a slow store is written as it is, so that labelling can begin
)
CUT = pa.field("cut", pa.int32())  # column of a page with a cut
NAMING = ("table", NAMED)  # kinds of shards whose size does not tell that of their images
SAMPLE = "sample"  # folder of the listing of a sample, which is a listing of its own
SHORT_PAGES = 8  # pages in a listing that is cheap to compare with the source


@dataclass(frozen=True, kw_only=True)
class PageMetadata:
    """Hold what a page says beside its shards.

    Attributes:
        ignored: files of the sources that are neither shards nor images, by extension.
        replaces: ids of shards in earlier pages that are no longer part of the run.
        skipped: files and folders of the sources that were skipped by their names, by kind.
        left_out: links to folders that were not followed, and special files, as `PassedOver` has them.
        limit: images after which the command stopped that wrote the page; 0 for none.
        cut: samples of the page's last shard after which a unit ends, full or not; 0 for none. It stands here
            so that whoever reads the shard makes the same units.
        sample: samples that were to be drawn, and the seed; empty for a listing of all.
    """

    ignored: dict[str, int] = field(default_factory=dict)
    replaces: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    limit: int = 0
    cut: int = 0
    sample: list[int] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the value of FOOTER_KEY. A page that skips and leaves out nothing is that of earlier
        versions."""
        told = asdict(self)
        for name in ("skipped", "left_out", "limit", "cut", "sample"):
            if not told[name]:
                del told[name]
        return json.dumps(told)

    @classmethod
    def of_listing(cls, passed_over: PassedOver) -> Self:
        """Return the metadata of a page for which the listing passed something over."""
        return cls(
            ignored=dict(passed_over.ignored),
            skipped=dict(passed_over.skipped),
            left_out=dict(passed_over.left_out),
        )

    def passed_over(self) -> PassedOver:
        """Return what the listing passed over for the page."""
        return PassedOver(Counter(self.ignored), Counter(self.skipped), Counter(self.left_out))

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """Return the metadata of a page with this schema."""
        return cls(**json.loads((schema.metadata or {}).get(FOOTER_KEY, b"{}")))


class FrozenListing:
    """Read and write the pages of a run.

    Args:
        run: the run folder.
        folder: name of the folder of the pages in _run/; SAMPLE for those of a sample.
    """

    def __init__(self, run: RunFolder, folder: str = "shards"):
        self.run = run
        self.folder = folder

    def files(self) -> list[str]:
        """Return the paths of the pages, in order."""
        paths = self.run.parquet_files("_run", self.folder)
        return sorted(path for path in paths if not path.rpartition("/")[2].startswith("_"))

    @property
    def complete(self) -> bool:
        return _is_end(self.files()[-1:])

    def is_short(self) -> bool:
        """Return whether listing the source again costs no more than a few answers of the store."""
        files = self.files()
        if not files or len(files) > SHORT_PAGES:
            return False
        return sum(_count_objects(self.read(path)) for path in files) <= MEMBERS_IN_PAGE

    def close_update(self) -> bool:
        """End an update that was interrupted while it was listing, and return whether there was one.

        The shards that the update found belong to the run. The next update finds the rest.
        """
        files = self.files()
        interrupted = not _is_end(files[-1:]) and any(_is_end([file]) for file in files)
        return interrupted and self.put(len(files), [], last=True, metadata=PageMetadata())

    def read(self, path: str) -> pa.Table:
        """Return the shards of a page, as LISTING.

        There is a column CUT more where a unit of the last shard is cut, and PICKS where samples were drawn.
        """
        with self.run.fs.open(path, "rb") as file:
            table = pq.read_table(file)
        metadata = PageMetadata.of(table.schema)
        schema = LISTING.append(PICKS) if PICKS.name in table.column_names else LISTING
        return with_cut(table.replace_schema_metadata(None).cast(schema), metadata.cut)

    def metadata(self, path: str) -> PageMetadata:
        """Return the metadata of a page; no shard is read."""
        with self.run.fs.open(path, "rb") as file:
            return PageMetadata.of(pq.read_schema(file))

    def replaced_in(self) -> dict[str, int]:
        """Return the number of the last page that replaces or drops a shard, by the shard's id.

        Only updates replace shards, so only their pages are read.
        """
        found: dict[str, int] = {}
        first_listing_ended = False
        for number, path in enumerate(self.files()):
            if first_listing_ended:
                found.update(dict.fromkeys(self.metadata(path).replaces, number))
            first_listing_ended = first_listing_ended or _is_end([path])
        return found

    def replaced(self) -> set[str]:
        """Return the ids of shards that are no longer part of the run."""
        replaced_in = self.replaced_in()
        gone = set(replaced_in)
        first = min(replaced_in.values(), default=0)
        for number, path in enumerate(self.files()):
            if gone and number > first:  # what was dropped may have come back as it was
                page = drop_shards(self.read(path), number, replaced_in)
                gone.difference_update(page["id"].to_pylist())
        return gone

    def pages(self) -> Iterator[pa.Table]:
        """Yield the shards of the run, page by page, in the order in which they were found."""
        replaced_in = self.replaced_in()
        for number, path in enumerate(self.files()):
            yield drop_shards(self.read(path), number, replaced_in)

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of the run, in the order in which they were found."""
        for page in self.pages():
            yield from map(Shard.from_row, page.to_pylist())

    def passed_over(self) -> PassedOver:
        """Return what the listing passed over."""
        total = PassedOver()
        for path in self.files():
            total.add(self.metadata(path).passed_over())
        return total

    def cursor(self) -> ListingCursor:
        """Return the cursor behind the last file that is frozen."""
        cursor = ListingCursor()
        for path in self.files():
            cursor.advance(map(Shard.from_row, self.read(path).to_pylist()))
        return cursor

    def put(self, number: int, shards: list[Shard], *, last: bool, metadata: PageMetadata) -> bool:
        """Freeze a page.

        Returns:
            False if a page of this number has other shards.
        """
        table = listing_table(shards)
        end = "-end" if last else ""
        path = self.run.path("_run", self.folder, f"{number:05d}{end}.parquet")
        for file in self.files():
            if file.rpartition("/")[2].startswith(f"{number:05d}") and file != path:
                return False
        page = table.replace_schema_metadata({FOOTER_KEY: metadata.to_json()})
        if put_if_absent(self.run.fs, path, parquet_bytes(page)):
            return True
        is_same = self.metadata(path).replaces == metadata.replaces
        return is_same and self.read(path)["id"].equals(table["id"])


def with_cut(page: pa.Table, cut: int) -> pa.Table:
    """Return a page of LISTING with a column CUT: `cut` for its last shard. For 0 it stays as it is."""
    if not cut:
        return page
    cuts = [None] * (page.num_rows - 1) + [cut]
    return page.append_column(CUT, pa.array(cuts, CUT.type))


def drop_shards(page: pa.Table, number: int, replaced_in: dict[str, int]) -> pa.Table:
    """Return a page without the shards that a later page replaces or drops.

    Args:
        page: shards as LISTING.
        number: number of the page.
        replaced_in: as `FrozenListing.replaced_in` gives it.
    """
    if not replaced_in:
        return page
    is_kept = [replaced_in.get(id, -1) <= number for id in page["id"].to_pylist()]
    return page.filter(pa.array(is_kept, pa.bool_()))


def shard_names(page: pa.Table) -> list[str]:
    """Return `Shard.name` of every row of a page, without reading the loose images."""
    return list(map(unit_stem, page["uri"].to_pylist(), page["id"].to_pylist()))


def _count_objects(page: pa.Table) -> int:
    members = page["members"].combine_chunks().value_lengths().fill_null(0)
    return page.num_rows + sum(members.to_pylist())


def _is_end(files: list[str]) -> bool:
    return bool(files) and files[0].endswith("-end.parquet")


# ---- listing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FirstPage:
    """Hold the first page of a listing before it is written, so that faults of the sources are told at once.

    Attributes:
        shards: the shards of the page.
        ended: whether the listing ends with this page.
        metadata: what the listing passed over.
    """

    shards: list[Shard]
    ended: bool
    metadata: PageMetadata

    @classmethod
    def of(cls, finder: Finder, seconds: float = PAGE_SECONDS) -> Self:
        """List the sources up to the end of the first page."""
        for shards, last in split_into_pages(finder.shards(), seconds):
            metadata = PageMetadata.of_listing(finder.passed_over)
            return cls(shards=shards, ended=last, metadata=metadata)
        raise AssertionError("a listing has at least one page")

    @property
    def source_bytes(self) -> float:
        """Return the bytes of all images; infinite where the listing goes on, or where shards name images."""
        if not self.ended or any(shard.kind in NAMING for shard in self.shards):
            return math.inf
        return sum(shard.size for shard in self.shards)

    def freeze(self, frozen: FrozenListing) -> None:
        """Freeze this page as page 0, unless another job has frozen one."""
        if not frozen.files():
            frozen.put(0, self.shards, last=self.ended, metadata=self.metadata)


def read_frozen(
    frozen: FrozenListing, seen: int, cursor: ListingCursor, replaced_in: dict[str, int]
) -> Iterator[pa.Table]:
    """Yield the frozen pages from page `seen` on, and move the cursor behind them.

    replaced_in: as `FrozenListing.replaced_in` gives it.
    """
    for number, path in enumerate(frozen.files()[seen:], seen):
        page = frozen.read(path)
        cursor.advance(map(Shard.from_row, page.to_pylist()))
        yield drop_shards(page, number, replaced_in)


def list_pages(frozen: FrozenListing, finder: Finder) -> Iterator[pa.Table]:
    """Yield the frozen pages, and then the rest of the source, each page frozen before it is given."""
    replaced_in = frozen.replaced_in()
    cursor = ListingCursor()
    seen = 0
    while True:
        for page in read_frozen(frozen, seen, cursor, replaced_in):
            yield page
            seen += 1
        if frozen.complete:
            return
        for page in _freeze_rest(frozen, finder, seen, cursor):
            seen += 1
            yield page


def _freeze_rest(
    frozen: FrozenListing, finder: Finder, number: int, cursor: ListingCursor
) -> Iterator[pa.Table]:
    """List behind a cursor, and freeze pages from `number` on, until another job has frozen one of them."""
    before = finder.passed_over.copy()
    for shards, last in split_into_pages(finder.shards(cursor.copy()), PAGE_SECONDS):
        metadata = PageMetadata.of_listing(finder.passed_over.since(before))
        if not frozen.put(number, shards, last=last, metadata=metadata):
            return
        cursor.advance(shards)
        number += 1
        before = finder.passed_over.copy()
        yield listing_table(shards)


def split_into_pages(shards: Iterable[Shard], seconds: float) -> Iterator[tuple[list[Shard], bool]]:
    """Yield pages of shards, and whether a page is the last one, which may be empty.

    Args:
        seconds: time after which a page ends before it is full.
    """
    page: list[Shard] = []
    members = 0
    begun = time.monotonic()
    for shard in shards:
        full = len(page) >= SHARDS_IN_PAGE or members >= MEMBERS_IN_PAGE
        is_due = full or (page and time.monotonic() - begun > seconds)
        if is_due and not _belong_together(page[-1], shard):
            yield page, False
            page = []
            members = 0
            begun = time.monotonic()
        page.append(shard)
        members += len(shard.members)
    yield page, True


def _belong_together(shard: Shard, after: Shard) -> bool:
    """Return whether two shards are pages of images that were named in turn on two stores.

    A listing goes on behind the last source that its pages name, so both come in one page, or none.
    """
    return shard.is_page and after.is_page and shard.source == after.source and shard.uri != after.uri


# ---- what is left to do -----------------------------------------------------------------------------------

OPEN_SHARD = pa.schema([*LISTING, CUT, PICKS, ("start", pa.int32()), ("have", pa.list_(pa.int32()))])


def open_shards(page: pa.Table, done: CommittedUnits) -> Iterator[pa.Table]:
    """Yield the shards of a page that are not complete, one row each, as OPEN_SHARD.

    `start` is the number of the first unit that is missing, `have` the numbers of the later units that are
    done, `cut` as PageMetadata has it.
    """
    for column in (CUT, PICKS):
        if column.name not in page.column_names:
            page = page.append_column(column, pa.nulls(page.num_rows, column.type))
    listed = page.select([*LISTING.names, CUT.name, PICKS.name])
    names = shard_names(page)
    for number in np.flatnonzero(~done.complete(names)).tolist():
        units = done[names[number]]
        start = pa.array([units.contiguous], pa.int32())
        have = pa.array([sorted(units.after_gap)], pa.list_(pa.int32()))
        yield pa.Table.from_arrays([*listed.slice(number, 1).columns, start, have], schema=OPEN_SHARD)


def open_pages(frozen: FrozenListing, done: CommittedUnits) -> Iterator[pa.Table]:
    """Yield the shards of all pages that are not complete, as `open_shards`."""
    for page in frozen.pages():
        yield from open_shards(page, done)
