"""Write the page of a comparison: figures, tables, and the images whose label changed."""

import time
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.errors import plural, shown, without_secrets
from wordsworth.pipeline.report.album import Album
from wordsworth.pipeline.report.calibration import Calibrated, bin_rows, counts_chart, reliability_chart
from wordsworth.pipeline.report.charts import bar
from wordsworth.pipeline.report.diff_facts import (
    agreement_told,
    embedding_facts,
    errors_told,
    overview_facts,
    scores_told,
    truth_facts,
)
from wordsworth.pipeline.report.difference import Difference, Drift, Flip, PairExample, TruthDifference
from wordsworth.pipeline.report.html import percent, render, short_name
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem

SECTIONS = (
    ("overview", "Overview"),
    ("truth", "Accuracy"),
    ("flips", "Changed labels"),
    ("confusion", "Confusion"),
    ("scores", "Scores"),
    ("embeddings", "Embeddings"),
    ("rows", "Rows of one run"),
)
OPEN_GALLERIES = 6  # kinds of changes whose images are in view at once
PLACES = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def write_diff_page(
    run: RunRows, found: Difference, file: str, storage_options: StorageOptions | None = None
) -> list[tuple[str, int]]:
    """Write the page, in place of an earlier one, and return why images are missing, and of how many.

    Args:
        run: the first run, whose source the images are fetched from.
        found: what the runs differ in.
        file: where the page goes.
        storage_options: of its store.

    Raises:
        UserError: the process that decodes images does not start, or a record of the run is damaged.
    """
    album = Album()
    galleries = [_gallery(album, flip, number) for number, flip in enumerate(found.flips)]
    farthest = _pictures(album, found.drift.farthest) if found.drift else []
    truth = _truth_section(album, found.truth) if found.truth else None
    album.fetch(run)
    flips = [gallery | {"flip": flip} for gallery, flip in zip(galleries, found.flips, strict=True)]
    page = render(
        "diff.html.j2",
        sections=[section for section in SECTIONS if section[0] != "truth" or truth],
        truth=truth,
        found=found,
        name_a=_name(found.a.path),
        name_b=_name(found.b.path),
        headlines=_headlines(found),
        facts_of_all=overview_facts(found),
        flips=flips,
        bar=bar,
        missing=album.reasons(),
        scores_note=scores_told(found),
        embedding_facts=embedding_facts(found.drift) if found.drift else [],
        farthest=farthest,
        row_groups=_row_groups(found),
        closing=_closing(found),
    )
    fs, path = open_filesystem(file, storage_options)
    overwrite(fs, path, page.encode("utf-8", "backslashreplace"))
    return album.reasons()


def _name(path: str) -> str:
    return shown(without_secrets(path.rstrip("/"))).rpartition("/")[2] or path


def _gallery(album: Album, flip: Flip, number: int) -> dict[str, Any]:
    return {
        "id": f"flip-{number}",
        "is_open": number < OPEN_GALLERIES,
        "pictures": _pictures(album, flip.examples),
    }


def _pictures(album: Album, examples: list[PairExample]) -> list[dict[str, Any]]:
    """Return the images of examples as a gallery shows them; they are there once the album is fetched."""
    rows = [{name: getattr(example, name) for name in PLACES.names} for example in examples]
    pictures = album.add(pa.Table.from_pylist(rows, schema=PLACES))
    shown_images = []
    for example, picture in zip(examples, pictures, strict=True):
        scores = f"{_score(example.score_a)} → {_score(example.score_b)}"
        caption = f"{_label(example.label_a)} {_score(example.score_a)} → "
        caption += f"{_label(example.label_b)} {_score(example.score_b)}"
        detail = f"{picture.key} in {short_name(example.shard)}"
        if example.truth is not None:
            detail = f"it is {short_name(example.truth)}; {detail}"
        if example.cosine is not None:
            scores = f"cosine {example.cosine:.3f}"
            detail = f"{scores}; {detail}"
        shown_images.append({"picture": picture, "caption": caption, "detail": detail, "short": scores})
    return shown_images


def _truth_section(album: Album, truth: TruthDifference) -> dict[str, Any]:
    """Return what the template prints of the classes."""
    sides = [("A", truth.a), ("B", truth.b)]
    runs = [Calibrated(name, side.bins, side.calibration_error) for name, side in sides]
    return {
        "facts": truth_facts(truth),
        "chart": reliability_chart(runs),
        "legend": [(f"s{number}", run.name) for number, run in enumerate(runs)],
        "counts": [(run.name, counts_chart(run)) for run in runs],
        "bins": [{"name": run.name, "rows": bin_rows(run)} for run in runs],
        "table": truth,
        "galleries": [
            _changed(album, "became-wrong", "Became wrong", truth.num_only_a_right, truth.became_wrong),
            _changed(album, "became-right", "Became right", truth.num_only_b_right, truth.became_right),
        ],
    }


def _changed(album: Album, id: str, title: str, num: int, examples: list[PairExample]) -> dict[str, Any]:
    return {"id": id, "title": title, "num": num, "pictures": _pictures(album, examples)}


def _label(label: str | None) -> str:
    return "no label" if label is None else short_name(label)


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def _headlines(found: Difference) -> list[dict[str, str]]:
    interval = found.agreement_interval
    between = f"95% interval {interval[0]:.2%} to {interval[1]:.2%}" if interval else ""
    figures = [
        ("images in both runs", f"{found.num_joined:,}", f"{found.num_labelled:,} with a label in both"),
        ("agreement", "–" if found.agreement is None else f"{found.agreement:.2%}", between),
        ("changed labels", f"{found.num_flips:,}", percent(found.flip_share)),
        ("rows of one run", f"{found.only_a.num + found.only_b.num:,}", _of_each(found)),
        ("errors of one run", f"{found.errors_a.num + found.errors_b.num:,}", errors_told(found)),
    ]
    if found.truth:
        low, high = found.truth.change_interval
        figures.append(("accuracy", f"{found.truth.change:+.2%}", f"95% interval {low:+.2%} to {high:+.2%}"))
    if found.scores:
        figures.append(("PSI of the scores", f"{found.scores.psi:.3f}", _strength(found.scores.psi)))
    if found.drift and found.drift.mean is not None:
        figures.append(("mean cosine", f"{found.drift.mean:.4f}", _compared(found.drift)))
    return [{"name": name, "value": value, "note": note} for name, value, note in figures]


def _of_each(found: Difference) -> str:
    return f"{found.only_a.num:,} only in A, {found.only_b.num:,} only in B"


def _strength(psi: float) -> str:
    if psi < 0.1:
        return "no change to speak of"
    return "some change" if psi <= 0.25 else "a large change"


def _compared(drift: Drift) -> str:
    return f"of {plural(drift.num, 'embedding')}"


def _row_groups(found: Difference) -> list[dict[str, Any]]:
    """Return the rows of one run alone, and those with an error in one run alone."""
    groups = (
        ("Rows only in A", found.only_a),
        ("Rows only in B", found.only_b),
        ("Errors only in A", found.errors_a),
        ("Errors only in B", found.errors_b),
    )
    return [
        {"title": title, "num": group.num, "examples": group.examples} for title, group in groups if group.num
    ]


def _closing(found: Difference) -> str:
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    return (
        f"Made {made}. {agreement_told(found)}. All counts are of every row; the images are those of which "
        "both models are most sure. The page is one file, and asks no server for anything."
    )
