"""Hold what a report says of image sizes and of speed."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.output.records import JsonObject, Summary
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.charts import areas, histogram, line
from wordsworth.pipeline.report.html import bytes_of, duration, number, percent
from wordsworth.pipeline.report.label_sections import Context
from wordsworth.pipeline.report.provenance import Facts
from wordsworth.pipeline.report.statistics import ASPECT_EDGES, BYTE_EDGES, SIDE_EDGES, SizeTally
from wordsworth.pipeline.report.timeline import Timeline
from wordsworth.pipeline.unit import STAGES

SIDE_TICKS = (16, 64, 256, 1024, 4096, 16384)  # pixels
BYTE_TICKS = (1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20)  # bytes
ASPECT_TICKS = ((0.25, "1:4"), (0.5, "1:2"), (1.0, "1:1"), (2.0, "2:1"), (4.0, "4:1"))


# ---- images ---------------------------------------------------------------------------------------------


def size_section(sizes: SizeTally, album: Album) -> Context:
    """Return charts and figures of the sizes of images, and the formats of those that were fetched."""
    charts = []
    if sizes.num_sized:
        names = [f"{_pixels(a)} to {_pixels(b)} pixels" for a, b in pairwise(SIDE_EDGES)]
        chart = _log_histogram("Images by longer side", sizes.sides, SIDE_EDGES, names, SIDE_TICKS, _pixels)
        charts.append(
            (
                "Longer side",
                chart,
                "Pixels, before resizing; each column is wider by 41% than the one before.",
            )
        )
        names = [f"{a:.2f} to {b:.2f}" for a, b in pairwise(ASPECT_EDGES)]
        ticks = [(_log_share(value, ASPECT_EDGES), text) for value, text in ASPECT_TICKS]
        chart = histogram("Images by width over height", sizes.aspects, names, ticks)
        charts.append(("Shape", chart, "Width over height."))
    if sizes.num_bytes:
        names = [f"{bytes_of(a)} to {bytes_of(b)}" for a, b in pairwise(BYTE_EDGES)]
        chart = _log_histogram(
            "Images by encoded size", sizes.bytes, BYTE_EDGES, names, BYTE_TICKS, _binary_bytes
        )
        charts.append(("Encoded size", chart, "Bytes of the encoded image in its shard."))
    return {"size_charts": charts, "size_facts": _size_facts(sizes, album)}


def _size_facts(sizes: SizeTally, album: Album) -> Facts:
    facts: Facts = []
    if sizes.num_sized and sizes.smallest and sizes.largest:
        shapes = ", ".join(
            f"{name} {percent(count / sizes.num_sized)}" for name, count in sizes.shapes.most_common()
        )
        facts += [
            ("decoded", plural(sizes.num_sized, "image")),
            ("smallest", f"{sizes.smallest[0]:,} × {sizes.smallest[1]:,} pixels"),
            ("largest", f"{sizes.largest[0]:,} × {sizes.largest[1]:,} pixels"),
            ("shapes", shapes),
        ]
    else:
        facts.append(("decoded", "no image: so no size is known"))
    if sizes.num_bytes:
        mean = sizes.sum_bytes / sizes.num_bytes
        facts.append(("encoded", f"{bytes_of(sizes.sum_bytes)}, {bytes_of(mean)} an image"))
    else:
        facts.append(
            ("encoded", "the rows have no sizes: images of tables and of compressed shards have none")
        )
    formats = Counter(picture.format for picture in album.pictures if picture.format)
    told = ", ".join(f"{name} {percent(count / formats.total())}" for name, count in formats.most_common())
    where = (
        f"{told}, of the {plural(formats.total(), 'image')} that this page fetched"
        if told
        else "no image was fetched"
    )
    return [*facts, ("formats", where)]


def _log_histogram(title: str, counts: Any, edges: Any, names: list[str], ticks: Any, told: Any) -> Any:
    """Draw the columns of bins on a logarithmic axis, without the empty ones at the ends."""
    used = np.flatnonzero(counts)
    begin, end = max(0, int(used[0]) - 1), min(len(counts), int(used[-1]) + 2)
    own = edges[begin : end + 1]
    places = [(_log_share(value, own), told(value)) for value in ticks if own[0] <= value <= own[-1]]
    return histogram(title, counts[begin:end], names[begin:end], places)


def _log_share(value: float, edges: Any) -> float:
    return float(np.log(value / edges[0]) / np.log(edges[-1] / edges[0]))


def _pixels(value: float) -> str:
    return f"{value:,.0f}"


def _binary_bytes(value: float) -> str:
    return f"{value / 1024:.0f} KiB" if value < 1 << 20 else f"{value / (1 << 20):.0f} MiB"


# ---- speed ----------------------------------------------------------------------------------------------


def speed_section(timeline: Timeline, summary: Summary | None, estimate: JsonObject | None) -> Context:
    """Return the rate over time, the work of each stage, and the plan beside what came of it."""
    command = summary.last_command if summary else None
    stages = command.stages if command else None
    busy = stages.busy if stages else {}
    held_back = stages.bottleneck if stages else None
    return {
        "speed": {
            "intro": _speed_intro(timeline, held_back),
            "charts": _speed_charts(timeline),
            "stages": _stage_rows(timeline, busy),
            "note": _speed_note(timeline, bool(busy)),
            "plan": _plan_rows(timeline, summary, estimate, held_back),
        }
    }


def _speed_intro(timeline: Timeline, held_back: str | None) -> str:
    text = ""
    if timeline.is_timed and timeline.elapsed_s and timeline.num_read == timeline.num_units:
        text = (
            f"{plural(timeline.images, 'image')} in {duration(timeline.elapsed_s)} between the first "
            f"file and the last: {number(timeline.images / timeline.elapsed_s)} images a second. "
        )
    if held_back:
        return f"{text}Bottleneck: {held_back}."
    if timeline.slowest:
        return f"{text}Most work went into {timeline.slowest}: more workers there help first."
    return f"{text}The files of this run have no times."


def _speed_charts(timeline: Timeline) -> list[Context]:
    if len(timeline.bin_images) < 3 or not timeline.images:
        return []
    charts: list[Context] = []
    end = float(timeline.bin_edges[-1])
    if timeline.is_timed:
        ticks = [(share, duration(share * end)) for share in (0.0, 0.5, 1.0)]
        rates = timeline.bin_images / np.diff(timeline.bin_edges)
        broken = f" {plural(timeline.breaks, 'break')} of the run left out." if timeline.breaks else ""
        charts.append(
            {
                "title": "Images a second",
                "chart": line("Images a second over the time of the run", rates, ticks),
                "legend": [],
                "note": f"By the times at which files were written.{broken}",
            }
        )
    else:
        ticks = [(0.0, "first file"), (1.0, "last file")]
    if any(timeline.seconds.values()):
        per_image = {
            stage: 1000 * values / np.maximum(1, timeline.bin_images)
            for stage, values in timeline.bin_seconds.items()
        }
        charts.append(
            {
                "title": "Worker time of an image",
                "chart": areas("Milliseconds of workers for one image, by stage", per_image, ticks),
                "legend": [(f"s{place}", stage) for place, stage in enumerate(per_image)],
                "note": "Milliseconds, by stage, one on top of the other.",
            }
        )
    return charts


def _stage_rows(timeline: Timeline, busy: dict[str, float]) -> list[Context]:
    total = sum(timeline.seconds.values())
    if not total:
        return []
    rows = []
    for stage in STAGES:
        seconds = timeline.seconds.get(stage)
        if seconds is None and stage not in busy:
            continue
        rows.append(
            {
                "name": stage,
                "is_slowest": stage == timeline.slowest,
                "seconds": duration(seconds),
                "ms": "–" if seconds is None else number(1000 * seconds / max(1, timeline.images)),
                "share": "–" if seconds is None else percent(seconds / total),
                "busy": f"{busy[stage]:.1f}" if stage in busy else "–",
            }
        )
    return rows


def _speed_note(timeline: Timeline, has_busy: bool) -> str:
    notes = []
    if timeline.num_read < timeline.num_units:
        notes.append(
            f"The {timeline.num_units:,} files of this run have no manifest yet, and "
            f"{timeline.num_read:,} of them were looked at."
        )
    if not timeline.is_timed:
        notes.append("The times of the files are not known, or all the same: charts go by their order.")
    notes.append("Seconds of writing stand in no file: a file is closed before its writing ends.")
    if has_busy:
        notes.append("Busy: workers, on average, in the last command of the run.")
    return " ".join(notes)


def _plan_rows(
    timeline: Timeline, summary: Summary | None, estimate: JsonObject | None, held_back: str | None
) -> list[dict[str, str]]:
    if not estimate:
        return []
    found = (summary.estimate if summary else None) or {}
    forecast = estimate.get("forecast") or {}
    rows = []
    for name, key, told in (
        ("images", "images", number),
        ("images a second", "images_per_second", number),
        ("bytes of Parquet", "bytes_written", bytes_of),
    ):
        foretold, came = found.get(key, [None, None])
        rows.append(_plan_row(name, foretold, came, told))
    rows.append(_plan_row("time", forecast.get("seconds"), timeline.elapsed_s, duration))
    slowest = held_back or timeline.slowest or "–"
    rows.append(
        {
            "name": "bottleneck",
            "foretold": str(forecast.get("bottleneck", "–")),
            "found": slowest,
            "ratio": "",
        }
    )
    return rows


def _plan_row(name: str, foretold: float | None, found: float | None, told: Any) -> dict[str, str]:
    ratio = percent(found / foretold) if foretold and found is not None else "–"
    return {"name": name, "foretold": told(foretold), "found": told(found), "ratio": ratio}
