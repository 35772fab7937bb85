"""Gather what verify finds: findings, each with a stable code, and the totals of a run."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from wordsworth.pipeline.errors import plural, without_secrets


@dataclass(frozen=True, slots=True)
class Finding:
    """Name one thing that is wrong with a run.

    Attributes:
        code: short and stable, one of
            a shard's units: missing_unit, missing_end, unit_after_end, two_names
            a file: foreign_file, unreadable_file, wrong_schema, other_run, wrong_footer, wrong_rows,
            wrong_errors
            a file's rows: repeated_row, missing_row, wrong_shard, missing_prediction, prediction_on_error
            compacted files: missing_file, wrong_size, differing_rows, and all codes of a file
            records of a compaction: unreadable_generation, wrong_generation
            records of the run: incomplete_listing, unreadable_listing, wrong_listing, not_finished,
            limited_run, sample_run,
            wrong_summary, wrong_manifest
            the source: source_changed, unreadable_source, skipped_name
            rows and source: missing_sample, extra_row, wrong_key, wrong_error, wrong_place (offset or size)
        where: the file, the shard or the record that is wrong.
        detail: one line that says what is wrong with it.
    """

    code: str
    where: str
    detail: str


@dataclass(slots=True)
class Report:
    """Hold what verify counted and found.

    Attributes:
        rows: rows of all units, wherever the units lie.
        shards: shards of the run.
        files: units of the run.
        errors: rows with an error, by code.
        recounted: samples that were counted in the source; None where the source was not read.
        findings: everything that is wrong.
        repeated_keys: rows whose key an earlier row of the same shard has. Nothing is wrong with them: a tar
            or a table may hold a key twice.
        first_repeated: the first such key and its shard.
    """

    rows: int = 0
    shards: int = 0
    files: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    recounted: int | None = None
    findings: list[Finding] = field(default_factory=list)
    repeated_keys: int = 0
    first_repeated: str | None = None

    @property
    def is_exact_so_far(self) -> bool:
        """Return whether nothing is wrong but that the run has a part of its source only."""
        return [finding.code for finding in self.findings] in (["limited_run"], ["sample_run"])

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.findings

    def add(self, code: str, where: str, detail: str, count: int = 1) -> None:
        """Add one finding for `count` equal ones, of which `detail` describes the first."""
        if count > 1:
            detail += f" ({count} such here)"
        self.findings.append(Finding(code, where, without_secrets(" ".join(detail.split()))))

    def add_repeated_keys(self, where: str, key: str, count: int) -> None:
        """Count rows of a shard whose key an earlier row has, the first of them with this key."""
        self.repeated_keys += count
        self.first_repeated = self.first_repeated or f"{key[:200]!r} in {where}"

    def notes(self) -> list[str]:
        """Return what a person should know, though nothing is wrong."""
        if not self.repeated_keys:
            return []
        return [
            f"{plural(self.repeated_keys, 'row has', 'rows have')} the key of another row of their shard, "
            f"first {self.first_repeated}: shard and index tell such rows apart"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as `wordsworth verify --json` prints it."""
        faults = [{"what": one.code, "where": one.where, "detail": one.detail} for one in self.findings]
        return {
            "rows": self.rows,
            "shards": self.shards,
            "files": self.files,
            "errors": dict(self.errors),
            "recounted": self.recounted,
            "repeated_keys": self.repeated_keys,
            "faults": faults,
            "ok": self.ok,
        }
