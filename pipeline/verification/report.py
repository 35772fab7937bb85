"""What verify finds: faults, each with a stable code, and the report that gathers them."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. detail: one line. where: what it is wrong with; what: a short stable code, which is one of

    a shard's units     missing_unit, missing_end, unit_after_end, two_names
    a file              foreign_file, unreadable_file, wrong_schema, other_run, wrong_footer, wrong_rows, wrong_errors
    a file's rows       repeated_row, missing_row, wrong_shard, missing_prediction, prediction_on_error
    compacted files     missing_file, wrong_size, differing_rows (from a small file that is still there), and as a file's
    compactions         unreadable_generation, wrong_generation
    the run's records   incomplete_listing, unreadable_listing, wrong_listing, not_finished, wrong_summary, wrong_manifest
    the source          source_changed, unreadable_source
    rows and source     missing_sample, extra_row, wrong_key, wrong_error, wrong_place (offset or size)
    """

    what: str
    where: str
    detail: str


@dataclass(slots=True)
class Report:
    """What was found. rows, files: of units, wherever they lie. errors: rows by error code. recounted: in the source, or None."""

    rows: int = 0
    shards: int = 0
    files: int = 0
    errors: Counter = field(default_factory=Counter)
    recounted: int | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def add(self, what: str, where: str, detail: str, count: int = 1) -> None:
        """One fault for `count` alike, of which `detail` tells the first."""
        more = f" ({count} such here)" if count > 1 else ""
        self.faults.append(Fault(what, where, " ".join(f"{detail}{more}".split())))
