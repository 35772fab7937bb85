"""Count the source again, and compare a run's rows with the source.

This module shares no code with the reader, on purpose. A sample that the reader never gave is in no unit, so
the run folder alone looks whole; and a recount by the reader's own rules would miss the same sample again.
Therefore Python's tarfile reads the tars (recount_tars.py), loose images come from a fresh listing, and
tables, zip archives and compressed tars are read by other means (recount_tables.py, recount_zips.py,
recount_compressed.py). The rules for samples and keys are written a second time too. Where the reader and the
recount differ, one of them is wrong.

They have two things in common: the record of a shard (wordsworth.pipeline.sources.shards), and the way to
open a file system (wordsworth.pipeline.storage.filesystem).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.verification.recount_compressed import Expanded
from wordsworth.pipeline.verification.recount_disk import files_named, files_on_disk
from wordsworth.pipeline.verification.recount_keys import Sample
from wordsworth.pipeline.verification.recount_lost import ASKED_AGAIN, LOST, error_now
from wordsworth.pipeline.verification.recount_named import named_samples
from wordsworth.pipeline.verification.recount_names import SkippedNames
from wordsworth.pipeline.verification.recount_objects import ListedObject
from wordsworth.pipeline.verification.recount_tables import TableFile, Unusable, table_rows
from wordsworth.pipeline.verification.recount_tars import WholeFile, tar_samples
from wordsworth.pipeline.verification.recount_zips import Rule, zip_samples
from wordsworth.pipeline.verification.report import Report

# Errors that the source alone decides. The decoder decides all others.
SOURCE_ERRORS = (
    "missing_image",
    "bad_record",
    "shard_truncated",
    "encrypted_member",
    "unknown_method",
    "damaged_member",
)


class _Changed(Exception):
    """Report that the source is not what it was when the run was planned, so counting it proves nothing."""


class Recount:
    """Count the source again, shard by shard, and compare the rows with it.

    Args:
        asked: the plan's `asked`.
        options: options of the file system.
        report: gets the findings and the number of samples.
        is_part: whether the run is to have a part of its sources only.
    """

    def __init__(
        self, asked: dict[str, Any], options: dict[str, Any] | None, report: Report, is_part: bool = False
    ):
        self.is_part = is_part
        self.image_column: str | None = asked.get("image-column")
        self.key: str | None = asked.get("key")
        self.image_keys: list[str] = asked["image-key"]
        self.takes_bare_names = asked.get("format") == "images"
        # How members become samples. A plan without a rule for keys has the rule of old.
        key_rule: str = asked.get("key-rule", "first-dot")
        self.rules = (key_rule, bool(asked.get("include-hidden")))
        self.sources: list[str] = asked["source"]
        self.asked = asked
        self.names = SkippedNames(self.sources, asked.get("include-hidden", False))
        self.options = options
        self.report = report
        self.prefix: str | None = None  # prefix of the pages of loose images that are read now
        # Size and version of the images under `prefix` that no page has named yet, by key.
        self.unmet: dict[str, tuple[int, str]] = {}

    def shard(self, shard: Shard, rows: list[Sample], is_begun: bool = False) -> None:
        """Count one shard, and report every difference from its rows.

        Args:
            shard: the shard.
            rows: its rows, in order.
            is_begun: whether a limited run labelled no more than the first samples of the shard so far.
        """
        if is_begun and not rows:
            return
        where = without_credentials(shard.uri)
        skipped = [uri for uri in _object_uris(shard) if self.names.skips(uri)]
        if skipped:
            detail = f"{skipped[0]} has a name that is skipped, and is in the listing"
            self.report.add("skipped_name", where, detail, len(skipped))
        try:
            samples = self._samples(shard, rows)
        except _Changed as error:
            self.report.add("source_changed", where, str(error))
            return
        except FileNotFoundError:
            self.report.add("source_changed", where, "it is gone")
            return
        except (OSError, Unusable) as error:
            self.report.add("unreadable_source", where, f"{type(error).__name__}: {error}")
            return
        if is_begun:
            samples = samples[: len(rows)]
        self._count(sum(sample.error != "shard_truncated" for sample in samples))
        first: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for code, detail in _differences(samples, rows):
            first.setdefault(code, detail)
            counts[code] += 1
        if first and shard.kind == "table" and self._is_of_earlier_version(shard, rows, is_begun):
            return  # an earlier version labelled this table
        for code, detail in first.items():
            self.report.add(code, where, detail, counts[code])

    def _is_of_earlier_version(self, table: Shard, rows: list[Sample], is_begun: bool) -> bool:
        samples = _drawn(self._table(table, by_number=True), table)
        return not any(_differences(samples[: len(rows)] if is_begun else samples, rows))

    def close(self) -> None:
        """Report the images under the last prefix that no page names.

        They are a finding where the prefix itself was a source, and nothing below it was another one, unless
        the run is one of a part of its sources.
        """
        if self.is_part:
            self.unmet = {}
        below = f"{self.prefix}/"
        is_whole = self.prefix in self.sources and not any(
            source.startswith(below) for source in self.sources
        )
        if self.prefix is not None and is_whole and self.unmet:
            detail = f"{min(self.unmet)!r} is not part of this run: it is new since, or was overlooked"
            self.report.add("source_changed", self.prefix, detail, len(self.unmet))
            self._count(len(self.unmet))
        self.prefix = None
        self.unmet = {}

    def _count(self, num_samples: int) -> None:
        self.report.recounted = (self.report.recounted or 0) + num_samples

    def _samples(self, shard: Shard, rows: list[Sample]) -> list[Sample]:
        return _drawn(self._all_samples(shard, rows), shard)

    def _all_samples(self, shard: Shard, rows: list[Sample]) -> list[Sample]:
        if shard.kind == "named":
            samples, changed = named_samples(shard, rows, self.options)
            _check_unchanged(changed, len(samples))
            return samples
        if shard.kind == "images":
            return self._page(shard, rows)
        if shard.kind == "zip":
            return self._zip(shard, rows)
        return self._tar(shard) if shard.kind == "tar" else self._table(shard)

    @contextlib.contextmanager
    def _opened(self, shard: Shard) -> Iterator[BinaryIO]:
        """Open a shard that has the size and the version that it was planned with."""
        found = ListedObject(shard.uri, self.options)
        if found.identity() != (shard.size, shard.version):
            raise _Changed("it was replaced since the run was planned")
        with found.open(shard.size) as file:
            yield file

    def _tar(self, shard: Shard) -> list[Sample]:
        with self._opened(shard) as file:
            if shard.uri.lower().endswith(".tar"):
                return tar_samples(WholeFile(file, shard.size), self.image_keys, *self.rules)

            def open_again() -> WholeFile:
                file.seek(0)
                return WholeFile(file, shard.size)

            expanded = Expanded(open_again, shard.uri)
            samples = tar_samples(expanded, self.image_keys, *self.rules)
        is_marked = bool(samples) and samples[-1].key is None
        if expanded.broken and not is_marked:
            samples.append(Sample(None, None, None, "shard_truncated"))
        # An offset in the decompressed tar is of no use: no range read of the object finds the image.
        return [sample._replace(offset=None) for sample in samples]

    def _zip(self, shard: Shard, rows: list[Sample]) -> list[Sample]:
        too_large = {row.key for row in rows if row.error == "too_many_bytes"}
        with self._opened(shard) as file:
            whole = cast(BinaryIO, TableFile(file, shard.size))
            rule = Rule(self.image_keys, too_large, include_hidden=self.rules[1])
            return zip_samples(whole, shard.size, rule)

    def _table(self, shard: Shard, by_number: bool = False) -> list[Sample]:
        with self._opened(shard) as file:
            table = TableFile(file, shard.size)
            rows = table_rows(table, shard.uri, self.image_column, self.key, by_number)
            return [Sample(row.key, None, row.size, row.error) for row in rows]

    def _page(self, shard: Shard, rows: list[Sample]) -> list[Sample]:
        """Compare a page of loose images with a fresh listing of its prefix. An image that its row calls lost
        may be gone from the listing, or must be lost still."""
        prefix = without_credentials(shard.uri)
        if self.prefix != prefix:
            self.close()
            self.unmet = self._find(shard.uri)
            self.prefix = prefix
        lost = {row.key: row.error for row in rows if row.error in LOST}
        samples: dict[str, Sample] = {}
        changed: list[str] = []
        asked = 0
        for member in shard.members:
            key = member["key"]
            now = self.unmet.pop(key, None)
            size = member["size"]
            if now is not None and size == 0:
                size = now[0]  # a link that led nowhere has no size until it leads to an image
            error = lost.get(key)
            is_told = now is None and (error or self.names.skips(f"{prefix}/{key}"))
            if now != (size, member["version"]) and not is_told:
                changed.append(key)
            elif now is not None and (error or not size) and asked < ASKED_AGAIN:
                asked += 1
                error = error_now(f"{shard.uri}/{key}", size, self.options)
            samples[key] = Sample(key, 0, size, error)
        _check_unchanged(changed, len(samples))
        return [samples[key] for key in sorted(samples)]

    def _find(self, uri: str) -> dict[str, tuple[int, str]]:
        """Return size and version of the images under a prefix, by their path under it."""
        prefix = without_credentials(uri)
        found = {}
        for key, identity in self._files_below(uri).items():
            if self._is_image(key, size=identity[0]) and not self.names.skips(f"{prefix}/{key}"):
                found[key] = identity
        return found

    def _files_below(self, uri: str) -> dict[str, tuple[int, str]]:
        if uri and not uri.startswith("/"):
            return ListedObject(uri, self.options).files_below()
        files = files_on_disk(uri, self.asked) if uri else {}  # "" stands above files of the root folder
        if uri not in self.sources:  # the pages are of files, or of globs, and not of the whole folder
            for source in self.sources:
                if source.startswith(f"{uri.rstrip('/')}/"):
                    files |= files_named(source, uri)
        return files

    def _is_image(self, key: str, size: int) -> bool:
        base = key.split("/")[-1]
        if base == "" and size > 0:  # no empty mark of a folder, but an object whose name ends with a slash
            base = key.rstrip("/").split("/")[-1]
        _, *extensions = base.lower().split(".")
        if extensions and extensions[-1]:
            return extensions[-1] in self.image_keys
        return self.takes_bare_names and base != ""


def _drawn(samples: list[Sample], shard: Shard) -> list[Sample]:
    """Return the samples that were drawn for a sample of the source; all where none was."""
    if not shard.picks:
        return samples
    drawn = set(shard.picks)
    return [sample for place, sample in enumerate(samples) if place in drawn]


def _check_unchanged(changed: list[str], num_images: int) -> None:
    if changed:
        found = f"{len(changed)} of {plural(num_images, 'image')}"
        raise _Changed(f"{found} were replaced or removed since, first {changed[0]!r}")


def _object_uris(shard: Shard) -> list[str]:
    """Return the URIs of the objects of a shard, without credentials."""
    uri = without_credentials(shard.uri)
    return [f"{uri}/{member['key']}" for member in shard.members] or [uri]


def _differences(samples: list[Sample], rows: list[Sample]) -> Iterator[tuple[str, str]]:
    """Yield code and detail of every difference between the samples of a shard and its rows.

    Both lists are in order. The time is linear in their lengths.
    """
    samples_left = Counter(sample.key for sample in samples)
    rows_left = Counter(row.key for row in rows)
    sample_at = 0
    row_at = 0
    while sample_at < len(samples) or row_at < len(rows):
        sample = samples[sample_at] if sample_at < len(samples) else None
        row = rows[row_at] if row_at < len(rows) else None
        if sample is None:
            verdict = "extra"
        elif row is None:
            verdict = "missing"
        else:
            verdict = _compare_keys(sample, row, samples_left, rows_left)
        if verdict == "same":
            yield from _pair_differences(cast(Sample, sample), cast(Sample, row))
        elif verdict == "missing":
            yield "missing_sample", f"{_describe(sample)} has no row"
            row = None  # the row belongs to a later sample
        elif verdict == "extra":
            yield "extra_row", f"{_describe(row)} has a row and is no sample here"
            sample = None  # the sample has a later row
        else:
            yield "wrong_key", f"{_describe(row)} stands where {_describe(sample)} should"
        if sample is not None:
            samples_left[sample.key] -= 1
            sample_at += 1
        if row is not None:
            rows_left[row.key] -= 1
            row_at += 1


def _compare_keys(sample: Sample, row: Sample, samples_left: Counter, rows_left: Counter) -> str:
    """Return how a sample and a row at the same place relate: "same", "missing", "extra" or "other"."""
    if sample.key == row.key:
        return "same"
    row_comes_later = samples_left[row.key] > 0
    sample_comes_later = rows_left[sample.key] > 0
    if row_comes_later and not sample_comes_later:
        return "missing"
    if sample_comes_later and not row_comes_later:
        return "extra"
    return "other"


def _pair_differences(sample: Sample, row: Sample) -> Iterator[tuple[str, str]]:
    """Yield code and detail of every difference between a sample and the row of the same key."""
    # Of an image that a table only names, the source does not say whether it is lost.
    is_told = row.error in SOURCE_ERRORS or (row.error in LOST and sample.size is not None)
    found_error = row.error if is_told else None
    if sample.error != found_error:
        yield "wrong_error", f"{_describe(row)} has the error {row.error} and should have {sample.error}"
        return
    if row.error is not None:
        return
    if sample.size is None and row.offset is None:
        return  # a table names the image: what lies at its URI now is not part of the shard
    if (row.offset, row.size) != (sample.offset, sample.size):
        found = f"{row.size} bytes at {row.offset}"
        yield (
            "wrong_place",
            f"{_describe(row)}: {found}, in the source {sample.size} at {sample.offset}",
        )


def _describe(entry: Sample | None) -> str:
    if entry is None or entry.key is None:
        return "the mark that the shard is cut"
    return f"key {entry.key!r}"
