"""Read a run that is to be compacted: what it consists of, if it is complete."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, parse_table
from wordsworth.pipeline.output.committed import UNIT_NAME
from wordsworth.pipeline.output.compacted_file import CompactionId
from wordsworth.pipeline.output.frozen_listing import FrozenListing, shard_names
from wordsworth.pipeline.output.manifest import summary_if_complete
from wordsworth.pipeline.output.records import MANIFEST
from wordsworth.pipeline.output.run_folder import RunFolder

# Records in _run/ that the compacted run has too, in the order in which they are copied.
RECORDS = ("estimate.json", "manifest.parquet", "summary.json", "plan.json")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Hold a run that is complete, as it was when the command began.

    Attributes:
        folder: the run folder.
        id: the compaction of this run.
        pages: paths of the pages of the listing.
        records: bytes of the records that the compacted run has too, by name, in the order in which they
            are copied.
        units: rows of the manifest, in the order of the listing and of the units of a shard.
    """

    folder: RunFolder
    id: CompactionId
    pages: list[str]
    records: dict[str, bytes]
    units: pa.Table

    @classmethod
    def read(cls, folder: RunFolder) -> "FinishedRun":
        """Read a run.

        Raises:
            UserError: there is no run, or the run is not complete.
        """
        plan = folder.plan_of_run()
        records = {}
        for name in RECORDS:
            path = folder.path("_run", name)
            if folder.fs.exists(path):
                records[name] = folder.fs.cat_file(path)
        frozen = FrozenListing(folder)
        pages = frozen.files()
        units = _complete_manifest(folder, frozen, records)
        return cls(
            folder=folder,
            id=CompactionId(run_id=plan.run_id, fingerprint=plan.fingerprint),
            pages=pages,
            records=records,
            units=_in_order(folder, frozen, units),
        )


def _complete_manifest(folder: RunFolder, frozen: FrozenListing, records: dict[str, bytes]) -> pa.Table:
    """Return the manifest of a run that is complete, one row a unit."""
    summary = summary_if_complete(folder, frozen)
    if summary is None:
        raise UserError(
            f"{folder.uri} is not complete: run its label command to the end first, and then compact it"
        )
    path = folder.path("_run", "manifest.parquet")
    try:
        manifest = parse_table(records.get("manifest.parquet", b""), MANIFEST.names)
    except Damaged as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it; "
            f"`wordsworth verify {folder.uri}` names all that is wrong"
        ) from error
    if manifest.num_rows != summary.files:
        raise UserError(f"{path} is not of this run: `wordsworth verify {folder.uri}` says what is wrong")
    return manifest.replace_schema_metadata(None).cast(MANIFEST)


def _in_order(folder: RunFolder, frozen: FrozenListing, units: pa.Table) -> pa.Table:
    """Return units in the order of their shards in the listing, and of their numbers."""
    names = [pa.array(shard_names(page), pa.string()) for page in frozen.pages()]
    shards = pc.struct_field(pc.extract_regex(units["file"], UNIT_NAME.pattern), "shard")
    place = pc.index_in(shards, value_set=pa.chunked_array(names, pa.string()).combine_chunks())
    if place.null_count:
        stray = units["file"].filter(pc.is_null(place))[0]
        raise UserError(f"{stray} belongs to no shard of the run: run `wordsworth verify {folder.uri}`")
    keys = pa.table({"place": place, "unit": units["unit"]})
    order = pc.sort_indices(keys, [("place", "ascending"), ("unit", "ascending")])
    return units.take(order)
