"""Check one tar, sample by sample. Memory holds a hash for every key, and never a member's data."""

import contextlib
from collections.abc import Iterable, Iterator

from wordsworth.pipeline.sources.lint_report import MOST_TEXT, LintPlace, ShardFindings
from wordsworth.pipeline.sources.samples import MAX_READINGS, ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.tar import TarNote
from wordsworth.pipeline.sources.tar_fields import image_field, other_images, sample_rule, sidecar
from wordsworth.pipeline.sources.tar_groups import TarSample
from wordsworth.pipeline.sources.tar_headers import TarCut
from wordsworth.pipeline.sources.tar_keys import is_skipped, split_key
from wordsworth.pipeline.sources.tar_reader import settle, tar_stream
from wordsworth.pipeline.sources.tar_split import read_by_rule, shared_keys
from wordsworth.pipeline.storage.filesystem import open_exact

_MOST_SIDECARS = 64  # extensions whose absence is counted, the first ones of a shard
_TRAILING = "end blocks with more behind them: tarfile, webdataset and Ray stop here, the labeler reads on"
_DIVIDED = "each is a sample, keyed up to the last dot; webdataset and --key-rule first-dot see one sample"
_ONE_SAMPLE = "one of them is labelled (--key-rule first-dot); --key-rule auto takes each"
_MOST_BASE = 80  # characters of a base name in a detail
_Problem = tuple[str, int, str]  # code, byte offset, detail


def lint_tar(shard: Shard, settings: ReadSettings, found: ShardFindings) -> int:
    """Check a tar; return the number of samples.

    As for the labeler, a cut counts when it is met twice at the same place.

    Raises:
        StoreFault: each reading breaks off somewhere else.
        OSError: the store fails.
    """
    fs, path = open_exact(shard.uri, settings.storage_options)
    lint = _TarLint(settings, found)
    rule = sample_rule(settings)
    position = 0
    in_group = 0  # samples from `position` on that were checked
    met: int | None = None  # where the reading before was cut
    for _ in range(MAX_READINGS):
        torn: list[TarSample] = []
        num_known = in_group  # samples to come that were checked
        lint.begin()
        with contextlib.closing(tar_stream(fs, path, shard.size, position)) as stream:
            try:
                settle(stream, position)
                # A limit of 0 refuses every member: none is held, and sizes and sparse files are known all
                # the same.
                for sample in read_by_rule(stream, position, 0, None, lint.note, rule):
                    if num_known:
                        num_known -= 1
                    elif sample.cut:
                        torn.append(sample)
                    else:
                        lint.add(sample)
                        position = sample.next
                        in_group = sample.next_in_group
                return lint.end()
            except TarCut as cut:
                if met == cut.offset:
                    return lint.end(cut, torn)
                met = cut.offset
    raise StoreFault(f"{path} breaks off somewhere else at each of {MAX_READINGS} readings")


class _TarLint:
    """Check the samples of one tar in their order."""

    def __init__(self, settings: ReadSettings, found: ShardFindings):
        self.settings = settings
        self.found = found
        self.num_samples = 0
        self.last_key: str | None = None  # key of the sample before
        self.last_name = ""  # name of the first member of the sample before
        self.keys: set[int] = set()  # hashes of keys; two keys with equal 64 bits would be a false alarm
        self.sidecars = _Sidecars(settings.keep, found.most_places)
        self.group: TarSample | None = None  # the first sample of a group that is divided
        self.group_images = 0  # samples of the group
        self.noted = -1  # offset of the last note
        self.known = -1  # offset of the last note of the readings before

    def begin(self) -> None:
        """Begin a reading at the end of the last whole sample. Notes from there up to a cut come again."""
        self.known = self.noted

    def note(self, note: TarNote) -> None:
        """Add what the tar's reader tells."""
        if note.offset <= self.known:
            return
        self.noted = note.offset
        if note.what == "skipped":
            self.found.add("skipped_member", note.name, note.offset, note.kind, note.kind)
        elif note.what == "end":
            self.found.add("trailing_data", None, note.offset, _TRAILING)
        elif not is_skipped(note.name, self.settings.include_hidden):
            key = split_key(note.name)[0]
            self.found.add("not_utf8_name", key, note.offset, f"the name is read as {note.name}")

    def add(self, sample: TarSample) -> None:
        """Check a sample."""
        image = image_field(sample, self.settings)
        name = next(iter(sample.fields.values())).name
        self._group(sample)
        for problems in (
            self._order(sample, name),
            self._image(sample, image),
            self._members(sample, image),
            self._other_images(sample, image),
        ):
            for code, offset, detail in problems:
                self.found.add(code, sample.key, offset, detail)
        if not sample.cut:
            extensions = set(sample.fields)
            if image is not None and image not in self.settings.keep:
                extensions.remove(image)
            for name in self.settings.keep:
                if sidecar(sample, name, image, self.settings.key_rule):
                    extensions.add(name)
            self.sidecars.add(sample, extensions)
        self.num_samples += 1
        self.keys.add(hash(sample.key))
        self.last_key = sample.key
        self.last_name = name

    def _group(self, sample: TarSample) -> None:
        """Count the samples of a group that is divided."""
        if self.group is not None and self.group.group_start != sample.group_start:
            self._end_group()
        if sample.group_start is not None:
            self.group = self.group or sample
            self.group_images += 1

    def _end_group(self) -> None:
        if self.group is not None and self.group.group_start is not None:
            key = split_key(self.group.key)[0]
            detail = f"{self.group_images} images share the base name {_base(key)}: {_DIVIDED}"
            self.found.add("shared_name", key, self.group.group_start, detail)
        self.group = None
        self.group_images = 0

    def _other_images(self, sample: TarSample, image: str | None) -> Iterator[_Problem]:
        keys = shared_keys(sample, self.settings.image_keys)
        if keys:
            detail = f"{len(keys)} images share the base name {_base(sample.key)}: {_ONE_SAMPLE}"
            yield "shared_name", sample.start, detail
        elif image is not None and other_images(sample, self.settings):
            yield "other_image", sample.start, f"{image} is labelled, of {', '.join(sample.fields)}"

    def _order(self, sample: TarSample, name: str) -> Iterator[_Problem]:
        if sample.key == self.last_key:
            yield (
                "repeated_key",
                sample.start,
                "again right behind itself: a second member with one extension",
            )
        elif hash(sample.key) in self.keys:
            yield "repeated_key", sample.start, "again, with other keys in between"
        # `tar --sort=name` sorts file names, where "a-b.jpg" stands before "a.jpg" and the key "a-b" before
        # "a".
        if self.last_key is not None and sample.key < self.last_key and name < self.last_name:
            yield "unsorted", sample.start, f"stands behind {self.last_key[:MOST_TEXT]}"
        if sample.key.startswith("/"):
            yield "unsafe_key", sample.start, "an absolute path"
        elif ".." in sample.key.split("/"):
            yield "unsafe_key", sample.start, "leaves its folder by .."

    def _image(self, sample: TarSample, image: str | None) -> Iterator[_Problem]:
        if image is None:
            yield "missing_image", sample.start, f"has only {', '.join(sample.fields)}"
            return
        member = sample.fields[image]
        if image not in self.settings.image_keys:
            yield "hidden_extension", member.start, f"the field is {image}: other readers find no image"
        if member.size == 0:
            yield "empty_file", member.start, f"{image} has no bytes"

    def _members(self, sample: TarSample, image: str | None) -> Iterator[_Problem]:
        most = self.settings.max_bytes
        for extension, member in sample.fields.items():
            needed = extension == image or extension in self.settings.keep
            if member.refused == "sparse_member":
                detail = f"{extension} is a sparse file; {member.size} bytes of it are stored"
                yield "sparse_member", member.start, detail
            elif member.size > most and needed:
                detail = f"{extension} has {member.size} bytes, at most {most} go"
                yield "oversized_member", member.start, detail

    def end(self, cut: TarCut | None = None, torn: Iterable[TarSample] = ()) -> int:
        """Return the number of samples.

        A torn sample counts if its image was whole: the labeler then has a row for it.
        """
        for sample in torn:
            if image_field(sample, self.settings):
                self.add(sample)
        self._end_group()
        if cut:
            self.found.add("truncated", None, cut.offset, cut.reason)
        elif not self.num_samples:
            self.found.add("empty_shard", None, 0, "no sample")
        for extension, count, first in self.sidecars.absent():
            places = [LintPlace(key, start, f"has no {extension}") for key, start in first]
            self.found.add_all("missing_sidecar", places, count, extension)
        return self.num_samples


def _base(key: str) -> str:
    return key.rpartition("/")[2][:_MOST_BASE]


class _Sidecars:
    """Find the samples that lack a field that most samples have.

    Which fields most samples have is known at the end only. So the first samples that lack a field are
    kept, for each field.
    """

    def __init__(self, keep: tuple[str, ...], most_places: int):
        self.keep = keep
        self.most_places = most_places
        self.num_samples = 0
        self.first: list[
            tuple[str, int]
        ] = []  # the first samples, which lack each extension that comes later
        self.having: dict[str, int] = dict.fromkeys(keep, 0)  # number of samples that have an extension
        self.lacking: dict[str, list[tuple[str, int]]] = {extension: [] for extension in keep}

    def add(self, sample: TarSample, extensions: set[str]) -> None:
        """Count the extensions of a sample."""
        room = max(0, _MOST_SIDECARS - len(self.having))
        for extension in sorted(extensions - self.having.keys())[:room]:
            self.having[extension] = 0
            self.lacking[extension] = list(self.first)
        place = (sample.key[:MOST_TEXT], sample.start)
        for extension, places in self.lacking.items():
            if extension in extensions:
                self.having[extension] += 1
            elif len(places) < self.most_places:
                places.append(place)
        if len(self.first) < self.most_places:
            self.first.append(place)
        self.num_samples += 1

    def absent(self) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
        """Yield each field that some samples lack, the number of these samples, and their first places."""
        for extension, having in self.having.items():
            expected = extension in self.keep or 2 * having > self.num_samples
            if having < self.num_samples and expected:
                yield extension, self.num_samples - having, self.lacking[extension]
