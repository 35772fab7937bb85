"""Show a person how a labelling or a compaction goes, on stderr."""

from typing import TYPE_CHECKING

from rich.filesize import decimal

from wordsworth.jobs.live import LiveDisplay, duration

if TYPE_CHECKING:
    from wordsworth.pipeline.labeling.pace import RunFigures
    from wordsworth.pipeline.output.records import Receipt


class RunProgress(LiveDisplay):
    """Follow a run by its receipts and figures. Use as a context; of several, the inner one is shown."""

    def __init__(self, verb: str):
        super().__init__()
        self.verb = verb
        self.figures: RunFigures | None = None

    # ---- what the labeler calls ----

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
        count = "1 shard" if shards == 1 else f"{shards:,} shards"
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
        """Tell of a unit that the store did not give."""
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
        figures = self.figures
        if figures is None:
            return self.waited
        if figures.images_per_second is None and not figures.written:
            decoded = "1 image is" if figures.decoded == 1 else f"{figures.decoded:,} images are"
            return f"{decoded} decoded, the model begins"
        parts = [f"{figures.images:,} images"]
        if figures.images_per_second is not None:
            parts.append(f"{figures.images_per_second:,.{_digits(figures.images_per_second)}f} images/s")
        parts.append(f"{sum(figures.errors.values()):,} errors")
        if figures.seconds_left is not None:
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
            images_per_second=_rounded(figures.images_per_second),
            errors=figures.errors,
            seconds_left=_rounded(figures.seconds_left),
            bytes_read=figures.bytes_read,
            stage_seconds={stage: round(seconds, 1) for stage, seconds in figures.stage_seconds.items()},
        )


def _digits(rate: float) -> int:
    return 0 if rate >= 10 else 1


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
