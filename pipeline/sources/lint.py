"""What is wrong with shards, without a model: each tar read once, front to back, by the labeler's own reader.

Memory holds a hash for every key of one shard, and the first places of each finding; never a member's data.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wordsworth.pipeline.sources.reader import image_field, settle, tar_stream
from wordsworth.pipeline.sources.samples import MAX_READINGS, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard, find_shards
from wordsworth.pipeline.sources.table import table_rows
from wordsworth.pipeline.sources.tar import Passed, Sample, TarCut, is_skipped, read_samples, split_key
from wordsworth.pipeline.storage.filesystem import open_filesystem, public

CODES = {  # in the order in which a shard's findings are shown
    "truncated": "the tar or table ends or breaks before its end",
    "bad_record": "a line of a table that cannot be read",
    "trailing_data": "more behind end blocks: other readers stop there, the labeler reads on",
    "empty_shard": "no sample in the shard",
    "missing_image": "a sample without an image",
    "missing_sidecar": "a sample without a field that most samples have, or that is to be kept",
    "empty_file": "an image of no bytes",
    "oversized_member": "an image or a kept field that is too large to be read",
    "sparse_member": "a GNU sparse file, which is not unpacked",
    "repeated_key": "a key that another sample of the shard has",
    "colliding_key": "a loose image that would share its key with another in a tar",
    "unsorted": "a key smaller than the one before it",
    "not_utf8_name": "a name that is not UTF-8; its key has escapes",
    "unsafe_key": "a key that would leave its folder if it became a path",
    "hidden_extension": "an image that only the last part of its extension tells",
    "skipped_member": "a member that is no part of a sample",
}
HARMLESS = {"skipped_member"}  # counted and shown, but no reason to exit with 3
MOST_PLACES = 100  # that are kept of one shard and code
_MOST_SIDECARS = 64  # extensions whose absence is counted, the first that a shard has
_MOST_TEXT = 1000  # characters of a key or a detail that are kept: a name in a tar can have a million


class Place(NamedTuple):
    """Where a finding is. key: None where there is none; of a skipped member its name. offset: bytes from the beginning of the
    tar to the header of the member, or of the sample's first; None for loose images. detail: one line."""

    key: str | None
    offset: int | None
    detail: str


@dataclass(slots=True)
class Finding:
    """All of one code in one shard. count: all of them; places: the first. kinds: the count divided, where there are kinds."""

    code: str
    shard: str
    count: int = 0
    places: list[Place] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)


@dataclass(slots=True)
class Report:
    """What was found. ignored: files that are neither shards nor images, by extension. unreadable: shard and the store's error."""

    shards: int = 0
    samples: int = 0
    findings: list[Finding] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.unreadable and all(finding.code in HARMLESS for finding in self.findings)


def lint(
    sources: list[str],
    settings: ReadSettings,
    format: str | None = None,
    most_places: int = MOST_PLACES,
    begun: Callable[[int, int, str], None] = lambda number, shards, name: None,
) -> Report:
    """Read all shards of the sources and say what is wrong with them.

    settings: what the labeler would read with: image_keys, keep, max_bytes and storage_options count here. `begun` hears of each
    shard before it is read: its number from 1 on, how many there are, its name. A shard that the store does not give is in
    `unreadable`, and the others are read. Raises UserError as `find_shards` does.
    """
    listing = find_shards(sources, format, settings.image_keys, settings.storage_options)
    report = Report(ignored=listing.ignored)
    prefixes: dict[str, _Prefix] = {}  # loose images are in pages: what is found is told of their prefix
    for number, shard in enumerate(listing.shards, 1):
        name = public(shard.uri)
        begun(number, len(listing.shards), name)
        report.shards += 1
        if shard.kind == "images":
            report.samples += len(shard.members)
            prefixes.setdefault(name, _Prefix(settings, _Found(name, most_places))).add(shard)
            continue
        found = _Found(name, most_places)
        try:
            report.samples += (_lint_tar if shard.kind == "tar" else _lint_table)(shard, settings, found)
        except (OSError, StoreFault) as error:
            report.unreadable[name] = " ".join(f"{type(error).__name__}: {error}".split())
        report.findings += found.ordered()
    for prefix in prefixes.values():
        report.findings += prefix.found.ordered()
    return report


class _Found:
    """What is found in one shard."""

    def __init__(self, shard: str, most_places: int):
        self.shard, self.most_places = shard, most_places
        self.by_code: dict[str, Finding] = {}

    def add(
        self, code: str, key: str | None, offset: int | None, detail: str, kind: str | None = None
    ) -> None:
        self.add_all(code, [Place(key, offset, detail)], 1, kind)

    def add_all(self, code: str, places: list[Place], count: int, kind: str | None = None) -> None:
        """`count` alike, of which `places` are the first."""
        finding = self.by_code.setdefault(code, Finding(code, self.shard))
        finding.count += count
        for key, offset, detail in places[: self.most_places - len(finding.places)]:
            finding.places.append(Place(key and key[:_MOST_TEXT], offset, detail[:_MOST_TEXT]))
        if kind:
            finding.kinds[kind] += count

    def ordered(self) -> list[Finding]:
        return [self.by_code[code] for code in CODES if code in self.by_code]


# ---- tars -----------------------------------------------------------------------------------------------------------------


def _lint_tar(shard: Shard, settings: ReadSettings, found: _Found) -> int:
    """The number of samples. As for the labeler, a cut counts when it is met twice at the same place."""
    fs, path = open_filesystem(shard.uri, settings.storage_options)
    lint, position, met = _TarLint(settings, found), 0, None
    for _ in range(MAX_READINGS):
        torn = None
        lint.begin()
        with contextlib.closing(tar_stream(fs, path, shard.size, position)) as stream:
            try:
                settle(stream, position)
                # A limit of 0: all members come refused, so none is held; sizes and sparse files are known all the same.
                for sample in read_samples(stream, position, max_member_bytes=0, tell=lint.hear):
                    if sample.cut:
                        torn = sample
                    else:
                        lint.add(sample)
                        position = sample.end
                return lint.end()
            except TarCut as cut:
                if met == cut.offset:
                    return lint.end(cut, torn)
                met = cut.offset
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


class _TarLint:
    """One tar, sample by sample."""

    def __init__(self, settings: ReadSettings, found: _Found):
        self.settings, self.found = settings, found
        self.samples = 0
        self.key: str | None = None  # of the sample before, and the name that it begins with
        self.name = ""
        self.keys: set[int] = set()  # hashes: a false alarm would take two keys of equal 64 bits
        self.sidecars = _Sidecars(settings.keep, found.most_places)
        self.heard = (
            self.known
        ) = -1  # offset of the last thing heard, and of the last that an earlier reading heard

    def begin(self) -> None:
        """A reading begins, at the end of the last whole sample; what lies between there and a cut is heard again."""
        self.known = self.heard

    def hear(self, passed: Passed) -> None:
        if passed.offset <= self.known:
            return
        self.heard = passed.offset
        if passed.what == "skipped":
            self.found.add("skipped_member", passed.name, passed.offset, passed.kind, passed.kind)
        elif passed.what == "end":
            detail = "end blocks with more behind them: tarfile, webdataset and Ray stop here, the labeler reads on"
            self.found.add("trailing_data", None, passed.offset, detail)
        elif not is_skipped(passed.name):
            self.found.add(
                "not_utf8_name",
                split_key(passed.name)[0],
                passed.offset,
                f"the name is read as {passed.name}",
            )

    def add(self, sample: Sample) -> None:
        image = image_field(sample, self.settings)
        for code, offset, detail in [
            *self._order(sample),
            *self._image(sample, image),
            *self._members(sample, image),
        ]:
            self.found.add(code, sample.key, offset, detail)
        if not sample.cut:
            self.sidecars.add(sample, sample.fields.keys() - ({image} - set(self.settings.keep)))
        self.samples += 1
        self.keys.add(hash(sample.key))
        self.key, self.name = sample.key, next(iter(sample.fields.values())).name

    def _order(self, sample: Sample) -> Iterator[tuple[str, int, str]]:
        if sample.key == self.key:
            yield (
                "repeated_key",
                sample.start,
                "again right behind itself: a second member with one extension",
            )
        elif hash(sample.key) in self.keys:
            yield "repeated_key", sample.start, "again, with other keys in between"
        # `tar --sort=name` sorts file names, where "a-b.jpg" stands before "a.jpg" and the key "a-b" before "a".
        name = next(iter(sample.fields.values())).name
        if self.key is not None and sample.key < self.key and name < self.name:
            yield "unsorted", sample.start, f"stands behind {self.key[:_MOST_TEXT]}"
        if sample.key.startswith("/") or ".." in sample.key.split("/"):
            yield (
                "unsafe_key",
                sample.start,
                "an absolute path" if sample.key.startswith("/") else "leaves its folder by ..",
            )

    def _image(self, sample: Sample, image: str | None) -> Iterator[tuple[str, int, str]]:
        if image is None:
            yield "missing_image", sample.start, f"has only {', '.join(sample.fields)}"
        elif image not in self.settings.image_keys:
            yield (
                "hidden_extension",
                sample.fields[image].start,
                f"the field is {image}: other readers find no image",
            )
        if image is not None and sample.fields[image].size == 0:
            yield "empty_file", sample.fields[image].start, f"{image} has no bytes"

    def _members(self, sample: Sample, image: str | None) -> Iterator[tuple[str, int, str]]:
        for extension, member in sample.fields.items():
            if member.refused == "sparse_member":
                yield (
                    "sparse_member",
                    member.start,
                    f"{extension} is a sparse file; {member.size} bytes of it are stored",
                )
            elif member.size > self.settings.max_bytes and (
                extension == image or extension in self.settings.keep
            ):
                yield (
                    "oversized_member",
                    member.start,
                    f"{extension} has {member.size} bytes, at most {self.settings.max_bytes} go",
                )

    def end(self, cut: TarCut | None = None, torn: Sample | None = None) -> int:
        """The number of samples, a torn one included if its image was whole: the labeler has a row for it then."""
        if torn and image_field(torn, self.settings):
            self.add(torn)
        if cut:
            self.found.add("truncated", None, cut.offset, cut.reason)
        elif not self.samples:
            self.found.add("empty_shard", None, 0, "no sample")
        for extension, lacking, first in self.sidecars.absent():
            places = [Place(key, start, f"has no {extension}") for key, start in first]
            self.found.add_all("missing_sidecar", places, lacking, extension)
        return self.samples


class _Sidecars:
    """Which samples lack a field that most have. That is known at the end only, so the first lacking ones of each are kept."""

    def __init__(self, keep: tuple[str, ...], most_places: int):
        self.keep, self.most_places = keep, most_places
        self.samples = 0
        self.first: list[
            tuple[str, int]
        ] = []  # the first samples: whoever meets an extension late knows that they lack it
        self.having: dict[str, int] = dict.fromkeys(keep, 0)
        self.lacking: dict[str, list[tuple[str, int]]] = {extension: [] for extension in keep}

    def add(self, sample: Sample, extensions: set[str]) -> None:
        for extension in sorted(extensions - self.having.keys())[: max(0, _MOST_SIDECARS - len(self.having))]:
            self.having[extension], self.lacking[extension] = 0, list(self.first)
        place = (sample.key[:_MOST_TEXT], sample.start)
        for extension, places in self.lacking.items():
            if extension in extensions:
                self.having[extension] += 1
            elif len(places) < self.most_places:
                places.append(place)
        if len(self.first) < self.most_places:
            self.first.append(place)
        self.samples += 1

    def absent(self) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
        for extension, having in self.having.items():
            if having < self.samples and (extension in self.keep or 2 * having > self.samples):
                yield extension, self.samples - having, self.lacking[extension]


# ---- tables ---------------------------------------------------------------------------------------------------------------


def _lint_table(shard: Shard, settings: ReadSettings, found: _Found) -> int:
    """The number of rows. Images that are named by a URI are not asked for."""
    codes = {"shard_truncated": "truncated", "too_many_bytes": "oversized_member"}
    keys: set[int] = set()
    rows = 0
    for sample, uri in table_rows(shard, settings):
        rows += sample.key is not None
        if sample.error:
            found.add(codes.get(sample.error, sample.error), sample.key, None, sample.detail or "")
        elif uri is None and sample.size == 0:
            found.add("empty_file", sample.key, None, "the image has no bytes")
        if sample.key is not None and hash(sample.key) in keys:
            found.add("repeated_key", sample.key, None, "again")
        keys.add(hash(sample.key))
    if not rows:
        found.add("empty_shard", None, None, "no row")
    return rows


# ---- loose images ---------------------------------------------------------------------------------------------------------


class _Prefix:
    """The loose images under one prefix, page by page. Nothing is read: the listing has the sizes."""

    def __init__(self, settings: ReadSettings, found: _Found):
        self.settings, self.found = settings, found
        self.keys: set[int] = set()

    def add(self, page: Shard) -> None:
        for member in page.members:
            for code, detail in self._image(member):
                self.found.add(code, member["key"], None, detail)

    def _image(self, member: dict[str, Any]) -> Iterator[tuple[str, str]]:
        key = split_key(member["key"])[0]
        if hash(key) in self.keys:
            yield "colliding_key", f"its key in a tar would be {key[:_MOST_TEXT]}, as of another image here"
        self.keys.add(hash(key))
        if member["size"] == 0:
            yield "empty_file", "has no bytes"
        elif member["size"] > self.settings.max_bytes:
            yield "oversized_member", f"has {member['size']} bytes, at most {self.settings.max_bytes} go"
