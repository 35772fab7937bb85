"""Count the source again, and hold a run's rows against it.

It shares no code with the reader, on purpose. A sample that the reader never gave is in no unit, so the run folder alone looks
whole; and a recount by the reader's own rules would pass over the same sample again. So here tars are read by Python's tarfile,
loose images come from a fresh listing, tables and compressed tars are read by other means (recount_table, recount_compressed), and
what a sample and its key are is written anew. Where the two differ, one is wrong.
All they have in common is what a shard is (wordsworth.pipeline.sources.shards) and how a store is asked
(wordsworth.pipeline.storage.filesystem).
"""

import contextlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import open_filesystem, public, version_of
from wordsworth.pipeline.verification.recount_compressed import Expanded
from wordsworth.pipeline.verification.recount_tables import Unusable, Watched, table_rows
from wordsworth.pipeline.verification.report import Report


class Sample(NamedTuple):
    """What a row and a sample of the source have in common. error: of a sample, only what the source alone decides."""

    key: str | None
    offset: int | None  # of the encoded image in its shard, bytes
    size: int | None  # bytes
    error: str | None


class _Changed(Exception):
    """The source is not what it was when the run was planned, so counting it proves nothing."""


class Recount:
    """Counts the source again, shard by shard, and holds the rows against it."""

    def __init__(self, plan: dict[str, Any], options: dict[str, Any] | None, report: Report):
        self.image_column, self.key = (plan["asked"].get(name) for name in ("image-column", "key"))
        self.image_keys, self.sources = plan["asked"]["image-key"], plan["asked"]["source"]
        self.options, self.report = options, report
        self.prefix: str | None = (
            None  # of loose images, with what is under it and has not been met in a page
        )
        self.unmet: dict[str, tuple[int, str]] = {}

    def shard(self, shard: Shard, rows: list[Sample]) -> None:
        where = public(shard.uri)
        try:
            samples = {"tar": self._tar, "table": self._table, "images": self._page}[shard.kind](shard)
        except (_Changed, FileNotFoundError) as error:
            return self.report.add(
                "source_changed", where, str(error) if isinstance(error, _Changed) else "it is gone"
            )
        except (OSError, Unusable) as error:
            return self.report.add("unreadable_source", where, f"{type(error).__name__}: {error}")
        self.report.recounted += sum(sample.error != "shard_truncated" for sample in samples)
        first, counts = {}, Counter()
        for what, detail in _differences(samples, rows):
            first.setdefault(what, detail)
            counts[what] += 1
        for what, detail in first.items():
            self.report.add(what, where, detail, counts[what])

    @contextlib.contextmanager
    def _opened(self, shard: Shard) -> Iterator[BinaryIO]:
        fs, path = open_filesystem(shard.uri, self.options)
        fs.invalidate_cache()
        info = fs.info(path)
        if (info["size"], version_of(info)) != (shard.size, shard.version):
            raise _Changed("it was replaced since the run was planned")
        with fs.open(path, "rb", block_size=8 << 20, cache_type="readahead") as file:
            yield file

    def _tar(self, shard: Shard) -> list[Sample]:
        with self._opened(shard) as file:
            if shard.uri.lower().endswith(".tar"):
                return _tar_samples(_Whole(file, shard.size), self.image_keys)
            expanded = Expanded(lambda: file.seek(0) or _Whole(file, shard.size), shard.uri)
            samples = _tar_samples(expanded, self.image_keys)
        if expanded.broken and not (samples and samples[-1].key is None):
            samples.append(Sample(None, None, None, "shard_truncated"))
        return [
            sample._replace(offset=None) for sample in samples
        ]  # of the decompressed tar: no range read finds it

    def _table(self, shard: Shard) -> list[Sample]:
        with self._opened(shard) as file:
            rows = table_rows(Watched(file, shard.size), shard.uri, self.image_column, self.key)
            return [Sample(row.key, None, row.size, row.error) for row in rows]

    def _page(self, shard: Shard) -> list[Sample]:
        if self.prefix != public(shard.uri):
            self.close()
            self.unmet, self.prefix = self._find(shard.uri), public(shard.uri)
        now = {member["key"]: self.unmet.pop(member["key"], None) for member in shard.members}
        changed = [
            member["key"]
            for member in shard.members
            if now[member["key"]] != (member["size"], member["version"])
        ]
        if changed:
            raise _Changed(
                f"{len(changed)} of {len(now)} images were replaced or removed since, first {changed[0]!r}"
            )
        return [Sample(key, 0, now[key][0], None) for key in sorted(now)]

    def _find(self, uri: str) -> dict[str, tuple[int, str]]:
        """Size and version of the images under a prefix, by their path under it."""
        fs, root = open_filesystem(uri, self.options)
        fs.invalidate_cache()
        found = {
            path.removeprefix(root).lstrip("/"): info for path, info in fs.find(root, detail=True).items()
        }
        return {key: (info["size"], version_of(info)) for key, info in found.items() if self._is_image(key)}

    def _is_image(self, key: str) -> bool:
        base = key.split("/")[-1]
        return not base.startswith("._") and "." in base and base.lower().split(".")[-1] in self.image_keys

    def close(self) -> None:
        """Images under a prefix that no page names: a fault where the prefix itself, and nothing below it, was the source."""
        whole = self.prefix in self.sources and not any(
            other.startswith(f"{self.prefix}/") for other in self.sources
        )
        if whole and self.unmet:
            detail = f"{min(self.unmet)!r} is not part of this run: it is new since, or was overlooked"
            self.report.add("source_changed", self.prefix, detail, len(self.unmet))
            self.report.recounted += len(self.unmet)
        self.prefix, self.unmet = None, {}


def _differences(samples: list[Sample], rows: list[Sample]) -> Iterator[tuple[str, str]]:
    """What differs between the samples of a shard and its rows, both in order: code and detail. Linear in their number."""
    samples_left, rows_left = (Counter(entry.key for entry in entries) for entries in (samples, rows))
    at = place = 0
    while at < len(samples) or place < len(rows):
        sample, row = (
            entries[i] if i < len(entries) else None for entries, i in ((samples, at), (rows, place))
        )
        if sample and row and sample.key == row.key:
            yield from _pair_differences(sample, row)
        elif row is None or (sample and samples_left[row.key] and not rows_left[sample.key]):
            yield "missing_sample", f"{_describe(sample)} has no row"
            row = None  # it belongs to a later sample
        elif sample is None or (rows_left[sample.key] and not samples_left[row.key]):
            yield "extra_row", f"{_describe(row)} has a row and is no sample here"
            sample = None
        else:
            yield "wrong_key", f"{_describe(row)} stands where {_describe(sample)} should"
        for entry, left in ((sample, samples_left), (row, rows_left)):
            if entry:
                left[entry.key] -= 1
        at, place = at + (sample is not None), place + (row is not None)


def _pair_differences(sample: Sample, row: Sample) -> Iterator[tuple[str, str]]:
    decided = (
        "missing_image",
        "bad_record",
        "shard_truncated",
    )  # errors that the source alone decides; the others are the decoder's
    if sample.error != (row.error if row.error in decided else None):
        yield "wrong_error", f"{_describe(row)} has the error {row.error} and should have {sample.error}"
    elif row.error is None and sample.size is None and row.offset is None:
        return  # a table names it: what lies there now is not part of the shard
    elif row.error is None and (row.offset, row.size) != (sample.offset, sample.size):
        at, size = row.offset, row.size
        yield (
            "wrong_place",
            f"{_describe(row)}: {size} bytes at {at}, in the source {sample.size} at {sample.offset}",
        )


def _describe(entry: Sample) -> str:
    return "the mark that the shard is cut" if entry.key is None else f"key {entry.key!r}"


# ---- tars, by Python's tarfile --------------------------------------------------------------------------------------------


class _Whole:
    """A file that must not end before its known size: a store that answers short is no cut tar."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        if not data and self.left:
            raise OSError(f"the store ended it {self.left} bytes early")
        return data


def _strict_headers() -> type[tarfile.TarInfo]:
    """tarfile takes any end for the end, and with ignore_zeros steps over damage. But it asks this class about every header
    block up to the object's last: here the end blocks are demanded and damage is not forgiven."""

    class Header(tarfile.TarInfo):
        zeros = 0  # blocks of zeros since the last header
        asked = False  # reset for each member: once it is set, all of that member has gone by

        @classmethod
        def frombuf(cls, buf, encoding, errors):
            cls.asked = True
            blank, full = not buf.strip(b"\0"), len(buf) == tarfile.BLOCKSIZE
            if not (blank and full) and (cls.zeros == 1 or (not full and not (blank and cls.zeros))):
                raise tarfile.ReadError("the end blocks are missing")
            cls.zeros = cls.zeros + 1 if blank else 0
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if blank:
                    raise  # tarfile goes on behind it, or ends
                raise tarfile.ReadError(str(error)) from error
            if header.type in b"xXgLK" and header.size > 1 << 20:  # tarfile would hold it in memory
                raise tarfile.ReadError("an extension header that is too large")
            return header

    return Header


def _members(file: _Whole | Expanded) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, each once its last block has gone by. Raises tarfile.ReadError at a cut or damage."""
    header, held = _strict_headers(), None
    try:
        names = {"encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(
            fileobj=file, mode="r|", bufsize=1 << 16, ignore_zeros=True, tarinfo=header, **names
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or they would pile up
                if held is not None and held.isreg():
                    yield held
                held, header.asked = member, False
    except (tarfile.TarError, ValueError, LookupError) as error:  # a damaged pax header can be any of them
        if held is not None and held.isreg() and header.asked:
            yield held
        raise tarfile.ReadError(str(error)) from error
    if held is not None and held.isreg():
        yield held


def _is_part(name: str) -> bool:
    """Whether a member belongs to a sample: webdataset passes over names without extension, hidden ones, and its own `__x__`."""
    *folders, base = name.split("/")
    top = (folders or [base])[0]
    junk = any(folder == "__MACOSX" or re.fullmatch(r"PaxHeaders?(\.[0-9]+)?", folder) for folder in folders)
    return (
        base.find(".") > 0
        and not junk
        and not (len(top) >= 4 and top.startswith("__") and top.endswith("__"))
    )


def _tar_samples(file: _Whole | Expanded, image_keys: list[str]) -> list[Sample]:
    """The samples of a tar in order: members in a row with one key, a repeated extension begins anew.

    A cut is one more, without key; the sample that it goes through counts if its image had gone by.
    """
    samples, key, fields, cut = [], None, {}, False
    try:
        for member in _members(file):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if not _is_part(name):
                continue
            folder, base = name[: name.rfind("/") + 1], name[name.rfind("/") + 1 :]
            stem, extension = base.split(".", 1)
            if fields and (folder + stem != key or extension.lower() in fields):
                samples.append(_sample(key, fields, image_keys))
                fields = {}
            key = folder + stem
            fields[extension.lower()] = member
    except tarfile.ReadError:
        cut = True
    if fields and not (cut and _sample(key, fields, image_keys).error):
        samples.append(_sample(key, fields, image_keys))
    return [*samples, Sample(None, None, None, "shard_truncated")] if cut else samples


def _sample(key: str, fields: dict[str, tarfile.TarInfo], image_keys: list[str]) -> Sample:
    """The image is the first of the image keys, else the first field that ends in one, as `v1.2.jpg` does."""
    exact = [name for name in image_keys if name in fields]
    ending = [name for name in fields if name.split(".")[-1] in image_keys]
    image = fields[(exact or ending)[0]] if exact or ending else None
    return (
        Sample(key, image.offset_data, image.size, None)
        if image
        else Sample(key, None, None, "missing_image")
    )
