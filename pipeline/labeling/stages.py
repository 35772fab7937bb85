"""Define the stages: the functions that Ray Data calls in its workers.

    list_stage    in place of any input: the shards that are not complete
    read_stage    a shard -> units of encoded images
    decode_stage  a unit -> the unit with patches
    Predictor     a unit -> the unit with predictions (pipeline.prediction.actor)
    write_stage   a unit -> its file, and a receipt

    limited_stage in place of list and read: the units of the first images, one after another

    fetch_stage   in place of list and read: a file with errors -> a unit of the samples that failed
    merge_stage   in place of write: a unit of retried samples -> new rows in its file, and a receipt

A stage gets one block, a table of one row. Messages and worker processes name a stage after its function.
Nothing here imports torch, so that the processes that read, decode and write start fast.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.cluster.env_file import refuse_untaken_env_file
from wordsworth.pipeline.cluster.life import give_sign_of_life
from wordsworth.pipeline.cluster.signs import UnitUnderWay, hear_store, place_on_cluster
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.labeling.retry import fetch_failed, replace_rows
from wordsworth.pipeline.labeling.unit_begin import unit_begin
from wordsworth.pipeline.output.commit import commit
from wordsworth.pipeline.output.frozen_listing import FrozenListing, list_pages, open_shards
from wordsworth.pipeline.output.limited_listing import ImagesLeft, list_limited
from wordsworth.pipeline.output.own_run import refuse_another_store
from wordsworth.pipeline.output.prediction_rows import WriteSettings
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.finder import Finder
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import StorageOptions, without_credentials
from wordsworth.pipeline.storage.patience import hearing_trouble
from wordsworth.pipeline.unit import Unit


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """Hold the settings of the list stage.

    Attributes:
        sources: files, folders and globs.
        format: "tar", "zip", "images" or "table" for all sources; None lets their names say so.
        image_keys: extensions that are images, in order of preference.
        storage_options: for fsspec.
        rules: what to take beside plain files and folders.
        folder: name of the listing's folder, as `FrozenListing` has it.
    """

    sources: Sequence[str]
    format: str | None
    image_keys: tuple[str, ...]
    storage_options: StorageOptions
    rules: ListingRules = field(default_factory=ListingRules)
    folder: str = "shards"

    def finder(self) -> Finder:
        """Return what lists the sources."""
        return Finder(
            self.sources,
            format=self.format,
            image_keys=self.image_keys,
            storage_options=self.storage_options,
            rules=self.rules,
        )


def list_stage(
    _: pa.Table, settings: ListSettings, output: str, committed: dict[str, Any]
) -> Iterator[pa.Table]:
    """Yield the shards that are not complete, one a block, so that each becomes a read task of its own.

    The frozen pages come first. An incomplete listing is continued, and its shards come as they are found.

    Args:
        output: the run folder.
        committed: {"ref": ObjectRef of the CommittedUnits when the command began}. A snapshot: Ray may run
            this task again, which must then give the same blocks in the same order.
    """
    import ray

    done = ray.get(committed["ref"])
    frozen = FrozenListing(RunFolder(output, settings.storage_options), settings.folder)
    with hearing_trouble(hear_store):
        for page in list_pages(frozen, settings.finder()):
            yield from open_shards(page, done)


def read_stage(table: pa.Table, settings: ReadSettings, output: str) -> Iterator[pa.Table]:
    """Yield the units of a shard that the run does not have yet.

    Args:
        table: a shard of the listing, as OPEN_SHARD: `start` is the number of the first unit that is missing,
            `have` are the numbers of later units that are there.
        output: the run folder.

    Raises:
        UserError: the class of a sample is none that `settings.target` knows.
    """
    with hearing_trouble(hear_store):
        for unit in missing_units(table, settings, output):
            yield unit.to_arrow()


def missing_units(table: pa.Table, settings: ReadSettings, output: str) -> Iterator[Unit]:
    refuse_untaken_env_file()
    (row,) = table.to_pylist()
    shard = Shard.from_row(row)
    have = set(row["have"])
    begin = unit_begin(RunFolder(output, settings.storage_options), shard.name, row["start"])
    settings = replace(settings, cut=row["cut"])
    units = read_units(shard, settings, row["start"], begin.position, begin.index, begin.in_group)
    for unit in units:
        if unit.number in have and not unit.fault:
            continue
        if unit.fault:
            unit.fault += place_on_cluster()
        if settings.target:  # checked here: a class that is unknown is found before its unit is labelled
            good = unit.samples.filter(pc.is_null(unit.samples["error"]))
            settings.target.of_samples(good, without_credentials(unit.shard_uri))
        yield unit


def decode_stage(table: pa.Table, settings: DecodeSettings) -> pa.Table:
    """Decode a unit. The driver hears how far it is, and where its images are slow, that they come."""
    unit = Unit.from_arrow(table)
    sign = UnitUnderWay("decode", unit.name, len(unit.samples), unit.bytes_read)
    return decode_unit(unit, settings, alive=give_sign_of_life, reached=sign.reached).to_arrow()


def limited_stage(
    _: pa.Table,
    settings: ListSettings,
    reading: ReadSettings,
    output: str,
    committed: dict[str, Any],
    limit: int,
    rows_done: int,
) -> Iterator[pa.Table]:
    """Yield the units that the run does not have yet, in the order of the listing, until it has `limit` rows.

    Args:
        reading: how to read.
        output, committed: as for `list_stage`.
        limit: rows that the run is to have.
        rows_done: rows that it had when the command began.
    """
    import ray

    done = ray.get(committed["ref"])
    frozen = FrozenListing(RunFolder(output, settings.storage_options), settings.folder)
    left = ImagesLeft(limit, limit - rows_done)
    with hearing_trouble(hear_store):
        for page in list_limited(frozen, settings.finder(), left):
            for shard in open_shards(page, done):
                for unit in missing_units(shard, reading, output):
                    yield unit.to_arrow()
                    left.count -= len(unit.samples)
                    if left.count <= 0:
                        return


def write_stage(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write the file of a predicted unit, and return its receipt."""
    refuse_untaken_env_file()
    with hearing_trouble(hear_store):
        refuse_another_store(settings)
        return commit(Unit.from_arrow(table), settings).to_arrow()


def fetch_stage(table: pa.Table, settings: ReadSettings, output: str) -> pa.Table:
    """Return a unit of the samples of a file that failed, with their images fetched again.

    Args:
        table: a shard of the listing, with the name of one of its files, as FAILED_FILE.
        output: the run folder.
    """
    (row,) = table.to_pylist()
    run = RunFolder(output, settings.storage_options)
    with hearing_trouble(hear_store):
        return fetch_failed(run, Shard.from_row(row), row["file"], settings).to_arrow()


def merge_stage(table: pa.Table, settings: WriteSettings) -> pa.Table:
    """Replace the rows of a unit of retried samples in its file, and return its receipt."""
    with hearing_trouble(hear_store):
        refuse_another_store(settings)
        return replace_rows(Unit.from_arrow(table), settings).to_arrow()
