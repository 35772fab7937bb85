"""Make runs of many rows: the rows are made up and point into small real tars, and the product's own code
commits them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.support.runs import finish, made_up_plan, provenance_of
from wordsworth.pipeline.output.commit import commit
from wordsworth.pipeline.output.frozen_listing import FrozenListing, PageMetadata
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.unit import SAMPLE, Unit


def link_tars(tar: Path, folder: Path, count: int) -> Path:
    """Give one tar several names: a source of many shards that takes the room of one."""
    folder.mkdir(parents=True)
    for number in range(count):
        os.link(tar, folder / f"{number:05d}.tar")
    return folder


def make_many(
    out: Path,
    source: Path,
    *,
    rows_per_shard: int,
    labels: tuple[str, ...] | None,
    num_labels: int,
    width: int = 0,
    unit_rows: int = 5000,
) -> Path:
    """Make a finished run in which each shard has this number of rows, over the images that it really has.

    Labels are drawn so that some are frequent and some are rare, and the first `num_labels` rows of the run
    have a label each. An embedding is the centre of its label and noise.

    Args:
        out: the run folder.
        source: tars, of at least one image each.
        rows_per_shard: rows of each tar.
        labels: names of the classes; None gives none.
        num_labels: classes.
        width: length of an embedding; 0 for none.
        unit_rows: rows of a unit.
    """
    run = RunFolder(str(out))
    run.create(made_up_plan({"source": [str(source)], "top-k": 1, "embedding": width and "float16"}))
    shards = find_shards([str(source)]).shards
    FrozenListing(run).put(0, shards, last=True, metadata=PageMetadata())
    settings = WriteSettings(
        output=run.root,
        provenance=provenance_of(run.plan()),
        labels=labels,
        top_k=1,
        embedding="float16" if width else None,
        width=width,
    )
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(num_labels, max(1, width))).astype(np.float32)
    number = 0
    for shard in shards:
        own = [
            row
            for unit in read_units(shard, ReadSettings(unit_rows=4096))
            for row in unit.samples.to_pylist()
        ]
        for begin in range(0, rows_per_shard, unit_rows):
            count = min(unit_rows, rows_per_shard - begin)
            unit = _unit(shard, own, begin, count)
            unit.number, unit.last = begin // unit_rows, begin + count == rows_per_shard
            ids = (num_labels * generator.random(count) ** 3).astype(np.int32)
            forced = np.arange(number, number + count) < num_labels
            ids[forced] = np.arange(number, number + count)[forced]
            _predict(unit, ids, centres[:, :width], generator)
            commit(unit, settings)
            number += count
    finish(out)
    return out


def _unit(shard: Shard, own: list[dict], begin: int, count: int) -> Unit:
    """Return a unit whose rows go round and round over the images of a tar."""
    numbers = np.arange(begin, begin + count)
    places = numbers % len(own)
    keys = np.array([row["key"] for row in own], object)[places]
    columns = {
        "key": pa.array([f"{key}-{number}" for key, number in zip(keys, numbers.tolist(), strict=True)]),
        "index": pa.array(numbers, pa.int32()),
        "offset": pa.array(np.array([row["offset"] for row in own])[places]),
        "size": pa.array(np.array([row["size"] for row in own])[places]),
        "sidecars": pa.array([[]] * count, pa.list_(pa.string())),
        "error": pa.nulls(count, pa.string()),
        "error_detail": pa.nulls(count, pa.string()),
    }
    return Unit(
        shard_uri=shard.uri,
        shard_name=shard.name,
        number=0,
        last=False,
        next_offset=0,
        next_index=begin + count,
        bytes_read=int(columns["size"].to_numpy().sum()),
        samples=pa.table(columns, schema=SAMPLE),
        payload=np.empty(0, np.uint8),
        seconds={"read": count / 5000, "decode": count / 400, "predict": count / 250},
    )


def _predict(unit: Unit, ids: np.ndarray, centres: np.ndarray, generator: np.random.Generator) -> None:
    count, width = len(ids), centres.shape[1]
    lists = pa.array(np.arange(count + 1, dtype=np.int32))
    scores = generator.beta(5, 2, count).astype(np.float32)
    columns = {
        "width": pa.array(np.full(count, 96), pa.int32()),
        "height": pa.array(np.full(count, 72), pa.int32()),
        "topk_ids": pa.ListArray.from_arrays(lists, pa.array(ids)),
        "topk_scores": pa.ListArray.from_arrays(lists, pa.array(scores)),
    }
    if width:
        noise = generator.normal(size=(count, width)).astype(np.float32)
        flat = pa.array((centres[ids] + noise).astype(np.float16).reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
    for name, column in columns.items():
        unit.samples = unit.samples.append_column(name, column)
