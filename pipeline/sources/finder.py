"""Find the shards of a source: tars, zip archives, tables, pages of loose images. The listing is a stream."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.earlier_sources import EarlierSources
from wordsworth.pipeline.sources.file_kinds import (
    FORMATS,
    IMAGE_KEYS,
    NO_EXTENSION,
    base_name,
    extension_of,
    is_json,
    kind_of,
)
from wordsworth.pipeline.sources.listing_cursor import ListingCursor
from wordsworth.pipeline.sources.name_lookup import Name, NamedImage, NameLookup
from wordsworth.pipeline.sources.named_images import pages_of
from wordsworth.pipeline.sources.passed_over import ListingRules, PassedOver
from wordsworth.pipeline.sources.run_outputs import RunOutputs
from wordsworth.pipeline.sources.shard_index import INDEX
from wordsworth.pipeline.sources.shards import ListedImage, Shard
from wordsworth.pipeline.sources.source_files import (
    FileInfo,
    NothingFound,
    leads_nowhere,
    list_files,
    name_in_text,
)
from wordsworth.pipeline.sources.source_names import SourceNames
from wordsworth.pipeline.sources.table_formats import instead_of, refuse_table_below
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    key_under,
    open_exact,
    open_filesystem,
    version_of,
    without_credentials,
)
from wordsworth.pipeline.storage.refusals import naming

PAGE = 4096  # loose images in one page of the listing, which is one shard
LEADING = ("tar", "images")  # kinds beside which files of other kinds do not count
FEW = 256  # names that are looked up together at least, however few images are wanted
BESIDE_SHARDS = ("labels.txt", INDEX)  # what `pack` writes beside shards: names of classes, and counts
PEEK = 4096  # files of a source that are looked at before its kind is decided


@dataclass(slots=True)
class Listing:
    """Hold all that a set of sources holds.

    Attributes:
        shards: the shards, in the order of the sources and of the paths
        passed_over: what was passed over
    """

    shards: list[Shard] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def ignored(self) -> Counter[str]:
        """Return the number of files that are neither shards nor images, by extension."""
        return self.passed_over.ignored

    @property
    def skipped(self) -> Counter[str]:
        """Return the number of files and folders that were skipped by their names, by kind."""
        return self.passed_over.skipped


class _File(NamedTuple):
    """Hold one listed file.

    Attributes:
        path, info: as `FileInfo`
        kind: None for a file that is neither a shard nor an image
        passed_over: what the listing passed over right in front of the file; None for nothing
    """

    path: str
    info: dict[str, Any]
    kind: str | None
    passed_over: PassedOver | None


def find_shards(
    sources: Sequence[str],
    *,
    format: str | None = None,
    image_keys: tuple[str, ...] = IMAGE_KEYS,
    storage_options: StorageOptions | None = None,
    rules: ListingRules | None = None,
) -> Listing:
    """Return the whole listing at once. `Finder` gives the same shards as a stream."""
    finder = Finder(
        sources,
        format=format,
        image_keys=image_keys,
        storage_options=storage_options,
        rules=rules,
    )
    return Listing(list(finder.shards()), finder.passed_over)


class Finder:
    """List the shards of sources in a fixed order, each once.

    A source is a file, a folder or a glob, local or of any allowed fsspec URL. The listing is a stream:
    memory holds the names of one folder (one answer of the store on S3).

    Args:
        sources: files, folders, globs and URLs
        format: one of FORMATS, for a source that holds several kinds
        image_keys: extensions of images, in lower case
        storage_options: options of the store's client
        rules: what to take beside plain files and folders

    Attributes:
        passed_over: what was passed over in front of the shard that was taken last; at the end all
        most_images: loose images that the next page may have, at most
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        format: str | None = None,
        image_keys: tuple[str, ...] = IMAGE_KEYS,
        storage_options: StorageOptions | None = None,
        rules: ListingRules | None = None,
    ):
        self.sources = sources if isinstance(sources, SourceNames) else SourceNames(sources)
        self.format = format
        self.image_keys = image_keys
        self.options = storage_options
        self.rules = rules or ListingRules()
        self.passed_over = PassedOver()
        self._newly_passed = PassedOver()  # in front of the next shard
        self.most_images = PAGE
        self._earlier = EarlierSources(self.rules)
        self._lookup = NameLookup()

    def shards(self, after: ListingCursor | None = None) -> Iterator[Shard]:
        """Yield all shards, or the shards behind `after`, a cursor that an earlier listing moved.

        Raises:
            UserError: a source is missing, holds nothing to label, or holds several kinds.
        """
        yield from self._counted(self._listed(after or ListingCursor()))

    def _counted(self, shards: Iterator[Shard]) -> Iterator[Shard]:
        """Yield shards, and count what the listing passed over on the way to each."""
        for shard in shards:
            yield shard
            self.count_passed()  # not before: a page that ends with this shard must not count for the next
        self.count_passed()

    def _listed(self, cursor: ListingCursor, may_be_gone: bool = False) -> Iterator[Shard]:
        """Yield the shards behind a cursor. Sources that are called like images are looked up together."""
        by_name = groupby(enumerate(self.sources), lambda entry: self._is_image_name(entry[1]))
        for is_image_name, sources in by_name:
            if not is_image_name:
                for number, _ in sources:
                    yield from self._shards_of_source(number, cursor, may_be_gone)
                continue
            while numbered := list(islice(sources, min(PAGE, max(FEW, self.most_images)))):
                yield from self._named(numbered, cursor, may_be_gone)

    def _page_size(self) -> int:
        return min(PAGE, self.most_images)

    def _is_image_name(self, source: str) -> bool:
        if self.format not in (None, "images") or source.endswith("/"):
            return False
        return kind_of(base_name(source), self.image_keys, self.format) == "images"

    def _named(
        self, numbered: list[tuple[int, str]], cursor: ListingCursor, may_be_gone: bool
    ) -> Iterator[Shard]:
        """Yield pages of the sources that name one image each, and the shards of the others among them."""
        names = [self._name(number, source) for number, source in numbered]
        names = [name for name in names if not self._is_left_out(name, cursor)]
        num_done = sum(name.source < cursor.source for name in names)
        if num_done:
            self._earlier.note_named([name.uri for name in names[:num_done]], are_files=False)
        found = self._lookup.find(names[num_done:], may_be_gone)
        for is_image, run in groupby(found, lambda image: image.is_file):
            if is_image:
                new = self._new_images(list(run), cursor)
                yield from self._numbered([image for image in new if not image.is_gone], cursor)
                continue
            for image in run:
                yield from self._shards_of_source(image.name.source, cursor, may_be_gone)

    def _name(self, number: int, source: str) -> Name:
        fs, path = open_filesystem(source, self.options)
        return Name(number, fs, path, absolute_uri(fs, path), self.sources.is_listed(number))

    def _is_left_out(self, name: Name, cursor: ListingCursor) -> bool:
        """Return whether a name of a list is no text, and so the name of no row; name it."""
        escaped = name_in_text(name.path) if name.is_listed else None
        if escaped and name.source >= cursor.source:
            self._newly_passed.leave_out("name", escaped)
        return escaped is not None

    def _new_images(self, images: list[NamedImage], cursor: ListingCursor) -> list[NamedImage]:
        """Return the images that are not listed already and that no earlier source gives."""
        uris = [image.name.uri for image in images]
        came_before = self._earlier.note_named(uris, are_files=True)
        new: list[NamedImage] = []
        for image, uri, is_repeated in zip(images, uris, came_before, strict=True):
            number = image.name.source
            is_listed = number == cursor.source and cursor.last is not None
            if is_repeated:
                self._newly_passed.leave_out("repeated", uri)
            elif not is_listed and not self._earlier.give_named(number, uri, cursor.kinds):
                new.append(image)
        return new

    def _numbered(self, images: list[NamedImage], cursor: ListingCursor) -> Iterator[Shard]:
        """Yield the pages of images, with the numbers of their first ones."""
        while images:
            size = self._page_size()
            for page in pages_of(images[:size]):
                yield replace(page, first_index=cursor.take_indexes(page))
            images = images[size:]

    def count_passed(self) -> None:
        """Count what was passed over in front of the shard that was taken last."""
        passed = self._newly_passed.take()
        if passed:
            self.passed_over.add(passed)

    def shards_left(self, kinds: dict[int, str]) -> Iterator[Shard]:
        """Yield the shards of sources that were listed before and may be gone, wholly or in part.

        Args:
            kinds: kind of each source as it was listed, by the source's number.

        Raises:
            UserError: a source may not be listed.
        """
        yield from self._counted(self._listed(ListingCursor(kinds=dict(kinds)), may_be_gone=True))

    def _shards_of_source(self, number: int, cursor: ListingCursor, may_be_gone: bool) -> Iterator[Shard]:
        fs, path = open_filesystem(self.sources[number], self.options)
        escaped = name_in_text(path)
        if escaped:
            raise UserError(f"the name {escaped} is not UTF-8: rename it")
        with naming(absolute_uri(fs, path)):
            self._earlier.note(number, fs, path)
        if number < cursor.source:
            return
        last = cursor.last if number == cursor.source else None
        with (
            naming(absolute_uri(fs, path)),
            contextlib.suppress(NothingFound) if may_be_gone else contextlib.nullcontext(),
        ):
            yield from self._shards_of(number, fs, path, cursor, last)

    def _shards_of(
        self, number: int, fs: fsspec.AbstractFileSystem, path: str, cursor: ListingCursor, last: str | None
    ) -> Iterator[Shard]:
        """Yield the shards of one source that lie behind the file `last`, a URI."""
        source = self.sources[number]
        if last:
            last = open_exact(last, self.options)[1]
        passed_over = PassedOver()
        root, entries = list_files(fs, path, source, last, self.rules, passed_over)
        files = self._with_kinds(entries, fs, source, passed_over)
        kind = cursor.kinds.get(number)
        if kind is None:
            kind, files = self._decide_kind(files, source, passed_over)
            cursor.kinds[number] = kind
        chosen = self._choose(files, kind, number, fs, cursor)
        if kind == "images":
            yield from _pages(fs, root, chosen, cursor, number, self._page_size)
        else:
            yield from _single_files(fs, kind, chosen, number)
        self._newly_passed.add(passed_over)  # behind the last file

    # ---- the kind of a source -----------------------------------------------------------------------------

    def _with_kinds(
        self, entries: Iterator[FileInfo], fs: fsspec.AbstractFileSystem, source: str, passed_over: PassedOver
    ) -> Iterator[_File]:
        """Yield the files of a listing with their kinds, and with what it passes over on the way."""
        outputs = RunOutputs(fs)
        named_json = is_json(source)  # the file itself, or the end of a glob
        for path, info in entries:
            kind = kind_of(base_name(path), self.image_keys, self.format)
            if named_json and is_json(path):
                kind = "table"
            if path.endswith("/") and kind != "images":  # no tool writes a tar or a table under such a name
                kind = None
            escaped = name_in_text(path)
            if kind is not None and escaped:
                passed_over.leave_out("name", escaped)
                continue
            if kind == "table" and outputs.holds(path):
                passed_over.leave_out("run", path.rpartition("/")[0])
                continue
            if kind is None and leads_nowhere(path, info):
                passed_over.leave_out("dangling", f"{path} -> {os.readlink(path)}")
                continue
            if kind is None:
                refuse_table_below(fs, path, source)
            passed = passed_over.take() if passed_over.skipped or passed_over.left_out else None
            yield _File(path, info, kind, passed)

    def _decide_kind(
        self, files: Iterator[_File], source: str, passed_over: PassedOver
    ) -> tuple[str, Iterator[_File]]:
        """Return the kind of a source, judged by its first files, and the files from the judged ones on."""
        peeked = list(islice(files, PEEK))
        kinds = self._kinds_among(peeked)
        while peeked and not kinds:  # a source may begin with many files that are of no kind
            for file in peeked:
                self._ignore(file)
            peeked = list(islice(files, PEEK))
            kinds = self._kinds_among(peeked)
        if not peeked:
            self._newly_passed.add(passed_over)
            raise NothingFound(self._nothing_found(source))
        return _one_of(kinds, source), chain(peeked, files)

    def _kinds_among(self, files: list[_File]) -> list[str]:
        """Return the kinds of the files in the order of their first files; with a format, that kind alone."""
        kinds: list[str] = []
        for file in files:
            if file.kind is None or file.kind in kinds:
                continue
            if self.format is None or file.kind == self.format:
                kinds.append(file.kind)
        return kinds

    def _nothing_found(self, source: str) -> str:
        wanted = FORMATS[self.format] if self.format in FORMATS else _either(FORMATS.values())
        self.count_passed()
        counts = [f"{count} {name}" for name, count in self.passed_over.ignored.most_common(3)]
        held = ", ".join(counts) or "no file at all"
        skipped = "".join(f"; {note}" for note in self.passed_over.serious_notes())
        instead = instead_of(self.passed_over.ignored)
        if not instead and self.format is None and NO_EXTENSION in self.passed_over.ignored:
            instead = "--format images takes files without an extension, by their bytes"
        if source.endswith(".txt"):
            instead = f"@{without_credentials(source)} takes it as a list of sources, one a line"
        advice = f": {instead or 'name a place that has some'}"
        return f"no {wanted} in {without_credentials(source)} (it holds {held}{skipped}){advice}"

    # ---- the files of a source that count -----------------------------------------------------------------

    def _choose(
        self,
        files: Iterator[_File],
        kind: str,
        number: int,
        fs: fsspec.AbstractFileSystem,
        cursor: ListingCursor,
    ) -> Iterator[_File]:
        """Yield the files of the kind that no earlier source gives. Other files are counted as ignored."""
        for file in files:
            if file.kind != kind:
                self._ignore(file)
                if self.format is None and file.kind in LEADING:
                    self._newly_passed.leave_out("other_kind", file.path)
                continue
            self._count_front(file)
            if not self._earlier.give(number, absolute_uri(fs, file.path), cursor.kinds):
                yield file

    def _count_front(self, file: _File) -> None:
        if file.passed_over:
            self._newly_passed.add(file.passed_over)

    def _ignore(self, file: _File) -> None:
        self._count_front(file)
        base = base_name(file.path)
        if base in BESIDE_SHARDS:
            return
        extension = extension_of(base)
        self._newly_passed.ignored[f".{extension}" if extension else NO_EXTENSION] += 1


def _one_of(kinds: list[str], source: str) -> str:
    """Return the kind of a source that holds these kinds.

    A table beside tars or images describes them, as img2dataset's .parquet does. A zip archive beside them is
    named in a note.

    Raises:
        UserError: it may be more than one.
    """
    leading = [kind for kind in kinds if kind in LEADING] or kinds
    if len(leading) == 1:
        return leading[0]
    mixed = [kind for kind in FORMATS if kind in leading]
    names = " and ".join(FORMATS[kind] for kind in mixed)
    options = " or ".join(f"--format {kind}" for kind in mixed)
    raise UserError(f"{without_credentials(source)} holds both {names}: say which with {options}")


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


# ---- shards ----------------------------------------------------------------------------------------------


def _single_files(
    fs: fsspec.AbstractFileSystem, kind: str, files: Iterator[_File], source: int
) -> Iterator[Shard]:
    """Yield a shard for each file."""
    for file in files:
        yield Shard(
            kind=kind,
            uri=absolute_uri(fs, file.path),
            size=file.info["size"],
            version=version_of(file.info),
            source=source,
        )


def _pages(
    fs: fsspec.AbstractFileSystem,
    root: str,
    files: Iterator[_File],
    cursor: ListingCursor,
    source: int,
    page_size: Callable[[], int],
) -> Iterator[Shard]:
    """Yield pages of images. Sources under one prefix share its numbering."""
    uri = absolute_uri(fs, root)
    while page := list(islice(files, page_size())):
        members: list[ListedImage] = []
        for file in page:
            key = key_under(root, file.path)
            members.append({"key": key, "size": file.info["size"], "version": version_of(file.info)})
        shard = Shard(
            kind="images",
            uri=uri,
            size=sum(member["size"] for member in members),
            version="",
            members=tuple(members),
            source=source,
        )
        yield replace(shard, first_index=cursor.take_indexes(shard))
