"""Write the report of a run: one page that opens without a network."""

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.errors import plural, shown, without_secrets
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.charts import bar
from wordsworth.pipeline.report.embedding_sections import EmbeddingSections
from wordsworth.pipeline.report.figure_sections import size_section, speed_section
from wordsworth.pipeline.report.html import bytes_of, duration, number, percent, render
from wordsworth.pipeline.report.label_sections import (
    PER_SHELF,
    UNSURE,
    error_section,
    gallery_section,
    label_section,
    unsure_share,
)
from wordsworth.pipeline.report.provenance import Facts, model_facts, setting_facts, version_facts
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.report.statistics import RunStatistics
from wordsworth.pipeline.report.timeline import Timeline, read_timeline
from wordsworth.pipeline.report.truth import read_truth
from wordsworth.pipeline.report.truth_section import truth_banner, truth_headline, truth_section
from wordsworth.pipeline.report.truth_tally import Accuracy, TruthTally
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem
from wordsworth.pipeline.storage.schemes import without_credentials

FILE_NAME = "report.html"  # in the run folder
SECTIONS = (
    ("overview", "Overview"),
    ("labels", "Labels"),
    ("truth", "Accuracy"),
    ("galleries", "Galleries"),
    ("errors", "Errors"),
    ("map", "Map"),
    ("duplicates", "Near-duplicates"),
    ("images", "Images"),
    ("speed", "Speed"),
    ("provenance", "Provenance"),
)


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """Say what was written.

    Attributes:
        path: where the page is, without credentials.
        num_rows: rows of the run.
        num_images: images on the page.
        missing: why images are missing, and of how many.
        size_bytes: bytes of the page.
        seconds: seconds that it took.
        truth: how often the labels are right; None where no classes were named.
    """

    path: str
    num_rows: int
    num_images: int
    missing: list[tuple[str, int]]
    size_bytes: int
    seconds: float
    truth: Accuracy | None = None


def write_report(
    output: str,
    *,
    file: str | None = None,
    seed: int = 0,
    truth: str | None = None,
    storage_options: StorageOptions | None = None,
) -> WrittenReport:
    """Write the report of a run, in place of an earlier one.

    Args:
        output: the run folder.
        file: where the page goes; None is report.html in the run folder.
        seed: of all that is drawn at random: the same run and seed show the same images.
        truth: where the class of an image stands, as in `TruthNames`; None compares with no classes.
        storage_options: of the stores of the run, of its sources and of `file`.

    Raises:
        UserError: there is no run, one of its files is damaged, the page cannot be written, or no row has a
            class where `truth` says.
        OSError: the store fails.
    """
    begin = time.monotonic()
    run = RunRows.open(output, storage_options)
    statistics = RunStatistics(run.schema, PER_SHELF, seed)
    tally = TruthTally(read_truth(run, truth)) if truth is not None else None
    _count(run, statistics, tally)
    accuracy = tally.accuracy() if tally else None
    album = Album()
    about_truth = None
    if tally and accuracy:
        about_truth = truth_section(tally, accuracy, album, run.has("labels"))
    page = _page(run, statistics, album, seed, accuracy, about_truth).encode("utf-8", "backslashreplace")
    fs, path = run.fs, run.folder.path(FILE_NAME)
    if file is not None:
        fs, path = open_filesystem(file, storage_options)
    overwrite(fs, path, page)
    return WrittenReport(
        path=without_credentials(file or f"{output.rstrip('/')}/{FILE_NAME}"),
        num_rows=statistics.num_rows,
        num_images=sum(picture.reason is None for picture in album.pictures),
        missing=album.reasons(),
        size_bytes=len(page),
        seconds=round(time.monotonic() - begin, 1),
        truth=accuracy,
    )


def _count(run: RunRows, statistics: RunStatistics, tally: TruthTally | None) -> None:
    """Count all rows in one pass."""
    columns = list(dict.fromkeys([*statistics.columns, *(tally.columns if tally else [])]))
    for batch in run.batches(columns):
        rows = pa.table(batch)
        statistics.add(rows)
        if tally:
            tally.add(rows)


def _page(
    run: RunRows,
    statistics: RunStatistics,
    album: Album,
    seed: int,
    accuracy: Accuracy | None,
    about_truth: dict[str, Any] | None,
) -> str:
    timeline = read_timeline(run)
    galleries = gallery_section(statistics, album)
    embeddings = EmbeddingSections(statistics, album, seed)
    album.fetch(run)
    context: dict[str, Any] = {
        "sections": [section for section in SECTIONS if section[0] != "truth" or about_truth],
        "name": _name(run),
        "lead": _lead(run, statistics),
        "banners": _banners(run) + (truth_banner(accuracy) if accuracy else []),
        "headlines": _headlines(run, statistics, timeline, accuracy),
        "truth": about_truth,
        "multi_label": run.has("labels"),
        "bar": bar,
        "missing": album.reasons(),
        "provenance": {
            "model": model_facts(run.plan),
            "versions": version_facts(run.plan) + _written(timeline),
            "settings": setting_facts(run.plan),
        },
        "closing": _closing(statistics, seed),
    }
    return render(
        "report.html.j2",
        **context,
        **label_section(statistics),
        **galleries,
        **error_section(statistics),
        **embeddings.map_section(),
        **embeddings.duplicates,
        **size_section(statistics.sizes, album),
        **speed_section(timeline, run.summary, run.folder.estimate()),
    )


def _name(run: RunRows) -> str:
    return (
        shown(without_secrets(without_credentials(run.output.rstrip("/")))).rpartition("/")[2] or run.output
    )


def _lead(run: RunRows, statistics: RunStatistics) -> str:
    done = {"label": "labelled", "embed": "embedded"}.get(str(run.plan.asked.get("command")), "processed")
    return f"{plural(statistics.num_rows, 'image')} {done} by {run.plan.model}."


def _banners(run: RunRows) -> list[str]:
    if run.summary is None:
        return [
            "This run is not complete. The page shows the rows that are there now; the same command "
            "continues the run."
        ]
    if run.summary.limit:
        return [f"This run was limited to the first {plural(run.summary.limit, 'image')} of its source."]
    if run.summary.sample:
        return [f"This run is a sample of {plural(run.summary.sample, 'image')} of its source."]
    return []


def _headlines(
    run: RunRows, statistics: RunStatistics, timeline: Timeline, accuracy: Accuracy | None
) -> list[dict[str, str]]:
    figures = [("images", f"{statistics.num_rows:,}", _shards(run))]
    if statistics.has_labels:
        labels = statistics.labels
        top = labels.names[int(labels.counts.argmax())] if len(labels.counts) else ""
        figures.append(("labels", f"{len(labels.counts):,}", f"most frequent: {top[:40]}" if top else "none"))
    if accuracy:
        figures.append(truth_headline(accuracy))
    if statistics.num_scored:
        mean = number(statistics.score_sum / statistics.num_scored)
        kind = "mean value" if statistics.has_value and not statistics.has_labels else "mean score"
        note = "" if kind == "mean value" else f"{percent(unsure_share(statistics))} below {UNSURE:g}"
        figures.append((kind, mean, note))
    if statistics.has_embedding:
        length = run.schema.field("embedding").type.list_size
        figures.append(("embeddings", f"{statistics.num_embedded:,}", f"of {length:,} numbers"))
    share = percent(statistics.num_errors / max(1, statistics.num_rows))
    figures.append(("errors", f"{statistics.num_errors:,}", f"{share} of the rows"))
    written = f"{bytes_of(timeline.bytes_written)} written as Parquet"
    figures.append(("read", bytes_of(timeline.bytes_read), written))
    if timeline.elapsed_s:
        rate = number(timeline.images / timeline.elapsed_s)
        figures.append(("images a second", rate, f"{duration(timeline.elapsed_s)} in all"))
    elif run.summary and run.summary.last_command.images:
        command = run.summary.last_command
        figures.append(
            ("images a second", number(command.images_per_second), f"{duration(command.seconds)} in all")
        )
    return [{"name": name, "value": value, "note": note} for name, value, note in figures]


def _shards(run: RunRows) -> str:
    return f"from {plural(run.summary.shards, 'shard')}" if run.summary else "so far"


def _written(timeline: Timeline) -> Facts:
    """Return when the files of the run were written."""
    if timeline.began is None or timeline.ended is None:
        return []
    return [("written", f"{timeline.began:%Y-%m-%d %H:%M} to {timeline.ended:%Y-%m-%d %H:%M %Z}")]


def _closing(statistics: RunStatistics, seed: int) -> str:
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    return (
        f"Made {made} from {plural(statistics.num_rows, 'row')}. All counts and means are of every row; "
        f"images, examples and points are drawn with --seed {seed}. The page is one file, and asks "
        "no server for anything."
    )
