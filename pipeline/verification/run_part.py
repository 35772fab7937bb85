"""Find out whether a run has a part of its source only: the first images, or a sample."""

import pyarrow as pa

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.output.frozen_listing import SAMPLE, FrozenListing
from wordsworth.pipeline.output.run_folder import RunFolder


class RunPart:
    """Say which part of its source a run has.

    Attributes:
        folder: name of the folder of the listing in _run/.
        limit: images after which the last command stopped; 0 where the listing has come to its end.
        is_sample: whether the run is a sample.
    """

    def __init__(self, run: RunFolder):
        self.is_sample = not run.names("_run", "shards") and bool(run.names("_run", SAMPLE))
        self.folder = SAMPLE if self.is_sample else "shards"
        self.limit = 0 if self.is_sample else _limit(run)

    @property
    def is_part(self) -> bool:
        """Return whether the run is one of a part."""
        return self.is_sample or self.limit > 0

    def finding(self, num_rows: int) -> tuple[str, str, str]:
        """Return code, place and detail of the finding that says so."""
        if self.is_sample:
            what = f"this run is a sample of {plural(num_rows, 'image')}"
            return "sample_run", "_run/sample", f"{what}: the same command without --sample labels all"
        what = f"this run has the first {plural(num_rows, 'image')} of its source (--limit {self.limit})"
        return "limited_run", "_run/shards", f"{what}: the same command without --limit labels the rest"


def _limit(run: RunFolder) -> int:
    try:
        pages = FrozenListing(run).files()
        if not pages or pages[-1].endswith("-end.parquet"):
            return 0
        return FrozenListing(run).metadata(pages[-1]).limit
    except (pa.ArrowInvalid, ValueError, TypeError):
        return 0  # the page is reported later
