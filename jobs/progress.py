"""Show a person how a labelling or a compaction goes, on stderr."""

import time
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from wordsworth.jobs.live import LiveDisplay, duration
from wordsworth.pipeline.errors import plural

if TYPE_CHECKING:
    from wordsworth.pipeline.labeling.pace import RunFigures
    from wordsworth.pipeline.output.records import Receipt


class RunProgress(LiveDisplay):
    """Follow a run by its receipts and figures. Use as a context; of several, the inner one is shown."""

    def __init__(self, verb: str):
        super().__init__()
        self.verb = verb
        self.figures: RunFigures | None = None
        self.ends_by: float | None = None  # when a run that is told to end will have ended

    # ---- what the labeler calls ----

    def note(self, message: str, **fields: Any) -> None:
        """Print a line that the user should know. Of a run that is told to end it begins the countdown."""
        if fields.get("event") == "ending":
            self.ends_by = time.monotonic() + fields["seconds"]
        super().note(message, **fields)

    def waiting(self, what: str) -> None:
        """Show what is waited for, until the first image is worked on."""
        self.wait_for(what)
        self.figures = None

    def planned(
        self, *, shards: int, shards_done: int, bytes_total: int, bytes_done: int, listed: bool = True
    ) -> None:
        """Say how large the run is."""
        done = f", {shards_done:,} of them done before" if shards_done else ""
        more = "" if listed else ", and what else the listing finds"
        count = plural(shards, "shard")
        self.note(
            f"{self.verb} {count} ({decimal(bytes_total)}){done}{more}",
            event="plan",
            shards=shards,
            shards_done=shards_done,
            bytes_total=bytes_total,
            bytes_done=bytes_done,
        )

    def listed(self, *, shards: int, bytes_total: int) -> None:
        """Do nothing: the figures have the size of the run."""

    def working(self, figures: "RunFigures") -> None:
        """Show how far the run is."""
        self.figures = figures

    def receipt(self, receipt: "Receipt") -> None:
        """Tell of a file that the store did not give."""
        if receipt.fault:
            self.note(
                f"{receipt.shard} could not be read on: {receipt.fault}",
                level="warning",
                event="fault",
                shard=receipt.shard,
            )

    # ---- what is shown ----

    @property
    def has_figures(self) -> bool:
        """Tell whether the first image is worked on."""
        return self.figures is not None

    @property
    def share(self) -> float | None:
        """Return how much of the run is done, from 0 to 1; None while nobody knows."""
        return self.figures.share if self.figures else None

    def line(self) -> str:
        """Return one line of figures, or what is waited for."""
        return self._line()

    def line_beside_bar(self, columns: int) -> str:
        """Return the line without what counts least, where there are too few columns."""
        has_errors = self.figures is not None and any(self.figures.errors.values())
        forms = [self._line(), self._line(with_start=not has_errors, with_errors=has_errors)]
        for form in forms:
            if len(form) <= columns:
                return form
        return self._line(with_start=False, with_errors=False)

    def _line(self, with_start: bool = True, with_errors: bool = True) -> str:
        figures = self.figures
        if figures is None:
            return self.waited
        if not figures.predicted and not figures.written:
            decoded = plural(figures.decoded, "image")
            return f"{decoded} decoded, the model starts"
        if self.ends_by is not None:
            left = duration(max(0.0, self.ends_by - time.monotonic()))
            return f"{plural(figures.images, 'image')}, finishing files under way, {left} at most"
        parts = [plural(figures.images, "image")]
        if with_start and figures.start_seconds is not None:
            parts.append(f"start {duration(figures.start_seconds)}")
        if figures.images_per_second is not None:
            then = "then " if len(parts) > 1 else ""
            parts.append(f"{then}{rate(figures.images_per_second)}")
        if with_errors:
            parts.append(f"{sum(figures.errors.values()):,} errors")
        if figures.share is None:
            parts.append("still listing")
        elif figures.images_per_second is not None and figures.seconds_left is not None:
            parts.append(f"{duration(figures.seconds_left)} left")
        return ", ".join(parts)

    def write_line(self) -> None:
        """Print the figures as a plain line."""
        figures = self.figures
        if figures is None:
            return
        percent = "" if figures.share is None else f"{int(100 * figures.share)}%  "
        self.console.say(
            f"{percent}{self.line()}",
            event="progress",
            percent=None if figures.share is None else round(100 * figures.share, 2),
            images=figures.images,
            images_written=figures.written,
            units=figures.units,
            start_seconds=_rounded(figures.start_seconds),
            images_per_second=_rounded(figures.images_per_second),
            errors=figures.errors,
            seconds_left=_rounded(figures.seconds_left),
            bytes_read=figures.bytes_read,
            stage_seconds={stage: round(seconds, 1) for stage, seconds in figures.stage_seconds.items()},
        )


def rate(images_per_second: float) -> str:
    """Return a rate as a person says it, such as "133 images/s"."""
    digits = 0 if images_per_second >= 10 else 1
    return f"{images_per_second:,.{digits}f} images/s"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
