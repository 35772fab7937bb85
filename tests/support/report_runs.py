"""Make runs with varied labels, scores, embeddings and errors for the tests of what people look at; no model
and no Ray."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.support.runs import finish, made_up_plan, provenance_of
from wordsworth.pipeline.output.commit import commit
from wordsworth.pipeline.output.frozen_listing import SAMPLE, FrozenListing, PageMetadata
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.kept_columns import output_name, source_name
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.unit import Unit

LABELS = ("ant", "bee", "cat", "dog", "elk")
WIDTH = 4  # of an embedding


class Made(NamedTuple):
    """Say what the made-up model answers for one image.

    Attributes:
        label_id: number of the best class.
        score: its score.
        embedding: WIDTH numbers.
    """

    label_id: int
    score: float
    embedding: tuple[float, ...]


def by_number(number: int) -> Made:
    """Return an answer that depends on the number of the image among all of the run."""
    angle = number / 10
    return Made(number % 3, 0.5 + (number % 50) / 100, (np.cos(angle), np.sin(angle), 0.0, 0.0))


def make_run(
    out: Path | str,
    *sources: Path | str,
    answer: Callable[[int], Made] = by_number,
    labels: tuple[str, ...] = LABELS,
    num_labels: int | None = None,
    embedding: str | None = "float16",
    keep: tuple[str, ...] = (),
    top_k: int = 2,
    options: dict | None = None,
    **settings,
) -> Path | str:
    """Make a finished run over real sources. Images that Pillow does not open become errors.

    Args:
        out: the run folder.
        answer: gives the answer for the image of a number, counted over the run.
        labels: names of the classes; none for a model without names, which has `num_labels` classes.
        embedding: type of the embeddings; None leaves the column out.
        keep: sidecars to keep as columns: NAME or NAME=COLUMN.
        top_k: best classes of a row; 0 for a run of `embed`.
        options: storage options of the sources and the run.
        settings: fields of ReadSettings; the format of the sources; picks, numbers of the samples that were
            drawn from each shard.
    """
    run = RunFolder(str(out), options)
    format = settings.pop("format", None)
    image_keys = settings.get("image_keys", IMAGE_KEYS)
    asked = {"source": list(map(str, sources)), "image-key": list(image_keys), "key-rule": "auto"}
    asked |= {"format": format, "top-k": top_k, "embedding": embedding, "keep": list(keep)}
    asked |= {"image-column": settings.get("image_column"), "key": settings.get("key")}
    run.create(made_up_plan(asked))
    found = find_shards(
        list(map(str, sources)), format=format, image_keys=image_keys, storage_options=options
    )
    picks = settings.pop("picks", ())
    shards = [replace(shard, picks=picks) for shard in found.shards]
    frozen = FrozenListing(run, SAMPLE) if picks else FrozenListing(run)
    frozen.put(0, shards, last=True, metadata=PageMetadata())
    reading = ReadSettings(
        unit_rows=4, keep=tuple(map(source_name, keep)), storage_options=options or {}, **settings
    )
    writing = WriteSettings(
        output=run.root if options is None else str(out),
        provenance=provenance_of(run.plan()),
        labels=labels or None,
        top_k=top_k,
        embedding=embedding,
        width=WIDTH,
        keep=tuple(map(output_name, keep)),
        storage_options=options or {},
    )
    number = 0
    for shard in shards:
        for unit in read_units(shard, reading):
            assert unit.fault is None, unit.fault
            commit(_predicted(unit, number, answer, num_labels or len(labels)), writing)
            number += unit.samples.num_rows
    finish(out, options)
    return out


def _predicted(unit: Unit, first: int, answer: Callable[[int], Made], num_labels: int) -> Unit:
    rows = unit.samples.to_pylist()
    columns: dict[str, list] = {
        name: [] for name in ("width", "height", "topk_ids", "topk_scores", "embedding")
    }
    begin = 0
    for number, row in enumerate(rows, first):
        size = None
        if row["error"] is None:
            end = begin + row["size"]
            size = _size_of(unit.payload[begin:end].tobytes())
            begin = end
            if size is None:
                row["error"], row["error_detail"] = "not_an_image", "made for a test"
        made = answer(number)
        second = (made.label_id + 1) % num_labels
        columns["width"].append(size and size[0])
        columns["height"].append(size and size[1])
        columns["topk_ids"].append(size and [made.label_id, second])
        columns["topk_scores"].append(size and [made.score, 1 - made.score])
        columns["embedding"].append(size and list(made.embedding))
    types = {
        "width": pa.int32(),
        "height": pa.int32(),
        "topk_ids": pa.list_(pa.int32()),
        "topk_scores": pa.list_(pa.float32()),
    }
    unit.samples = pa.Table.from_pylist(rows, schema=unit.samples.schema)
    for name, kind in types.items():
        unit.samples = unit.samples.append_column(name, pa.array(columns[name], kind))
    vectors = [None if vector is None else np.array(vector, np.float16) for vector in columns["embedding"]]
    unit.samples = unit.samples.append_column("embedding", pa.array(vectors, pa.list_(pa.float16(), WIDTH)))
    return unit


def _size_of(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except OSError:
        return None
