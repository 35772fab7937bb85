"""compact: the small unit files of a finished run merged into files of a size, in generations that are frozen before they are made.

    _run/compacted/00000-plan.parquet   first: which unit goes where
    compacted/00000-00000.parquet ...   whole units one after the other; each file appears whole or not at all
    _run/compacted/00000.parquet        the commit: from here on the small files are not needed

Every name and every row follows from the plan. So a compaction that was killed goes on with the same names, two at once write
the same files, and there is nothing to clean up. What an update adds later is the next generation.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wordsworth.pipeline.cluster.session import RETRIES, MiB, ray_session
from wordsworth.pipeline.compaction.compacted_file import parse, sizes_in
from wordsworth.pipeline.compaction.merge import Identity, check_compacted, merge
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import UNIT_NAME
from wordsworth.pipeline.output.frozen_listing import FrozenListing, open_shards, shard_names
from wordsworth.pipeline.output.run_folder import PLANNED, RunFolder, parquet
from wordsworth.pipeline.storage.filesystem import public, put_if_absent

TARGET = 256_000_000  # bytes of a compacted file
GROUP_BYTES, GROUP_ROWS = (
    16 * MiB,
    1 << 18,
)  # of units in a row group, at most: what a reader of one unit decodes
FEW = 1000  # units that are merged in this process, sooner than a Ray has started
IN_FLIGHT = 2  # tasks for each CPU that Ray has
NOTE_EVERY = 10.0  # seconds
DELETED_AT_ONCE = 1000


class Notes(Protocol):
    """What watches a compaction."""

    def note(self, message: str) -> None: ...


@dataclass(frozen=True)
class CompactRequest:
    """What the user asked for. target_size: bytes of a compacted file, at most. delete_small: remove what is merged."""

    output: str
    target_size: int = TARGET
    delete_small: bool = False
    address: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)


def compact(request: CompactRequest, progress: Notes) -> dict[str, Any]:
    """Merge the small files of a complete run; finish what an earlier compaction began. Returns what is there then.

    Raises UserError for a run that is not complete, and for a small file that is not what the run wrote; nothing is lost by it.
    """
    run = RunFolder(request.output, request.storage_options)
    try:
        return _compact(run, request, progress)
    except OSError as error:
        raise UserError(
            f"cannot compact {public(run.uri)}: {type(error).__name__}: {error}. What is done is kept: run the same command again"
        ) from error


def _compact(run: RunFolder, request: CompactRequest, progress: Notes) -> dict[str, Any]:
    start = time.perf_counter()
    identity = _identity(run)
    manifest = _finished(run)
    run.sweep()
    did = {"units": 0, "files": 0, "removed": 0}
    number = 0
    while plan := _plan(run, identity, number) or _freeze(
        run, identity, number, manifest, request.target_size
    ):
        if not _is_committed(run, number):
            merged = _carry_out(run, plan, request.address, progress)
            did = {name: did[name] + merged.get(name, 0) for name in did}
        number += 1
    if not did["units"]:
        progress.note("every unit is in a compacted file already: nothing to merge")
    if request.delete_small:
        did["removed"] = _delete_small(run, identity, progress)
    return _summary(run, identity) | {
        "last_command": did | {"seconds": round(time.perf_counter() - start, 2)}
    }


def _identity(run: RunFolder) -> dict[str, str]:
    plan = run.plan()
    if plan is None:
        raise UserError(f"{public(run.uri)} holds no run: _run/plan.json is missing")
    return {name: plan[name] for name in ("run_id", "fingerprint")}


def _finished(run: RunFolder) -> pa.Table:
    """The manifest of a run that is complete, one row a unit."""
    summary, frozen, done = run.summary(), FrozenListing(run), run.committed()
    is_open = (
        summary is None or not frozen.complete or any(any(open_shards(page, done)) for page in frozen.pages())
    )
    if is_open or summary["files"] != done.units:
        raise UserError(
            f"{run.uri} is not complete: run its label command to the end first, and then compact it"
        )
    manifest = _read(run, "_run", "manifest.parquet")
    if (
        manifest is None
        or manifest.num_rows != summary["files"]
        or not set(PLANNED.names[:-3]) <= set(manifest.column_names)
    ):
        raise UserError(
            f"_run/manifest.parquet of {run.uri} is not of this run: `wordsworth verify {run.uri}` says what is wrong"
        )
    return manifest


def _read(run: RunFolder, *parts: str) -> pa.Table | None:
    """A Parquet file of the run's own records, its pages checked; None where there is none."""
    run.fs.invalidate_cache()
    try:
        table = parse(run.fs.cat_file(run.path(*parts)))
    except FileNotFoundError:
        return None
    if isinstance(table, Exception):
        raise UserError(
            f"{run.path(*parts)} is damaged ({table}): restore it; `wordsworth verify {run.uri}` names all that is wrong"
        )
    return table


# ---- the plan ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A frozen generation. units: PLANNED, in the order in which they lie in the compacted files."""

    identity: Identity
    units: pa.Table

    @property
    def pieces(self) -> list[pa.Table]:
        """The units of each compacted file."""
        ends = pc.run_end_encode(self.units["into"].combine_chunks()).run_ends.to_pylist()
        return [self.units.slice(begin, end - begin) for begin, end in zip([0, *ends], ends, strict=False)]


def _plan(run: RunFolder, identity: dict[str, str], number: int) -> Plan | None:
    """The frozen plan of a generation."""
    name = f"{number:05d}-plan.parquet"
    table = _read(run, "_run", "compacted", name)
    if table is None:
        return None
    told = Identity.of(table.schema.metadata)
    if told != Identity(**identity, generation=number) or table.column_names != PLANNED.names:
        raise UserError(
            f"{run.path('_run', 'compacted', name)} is of another run: run `wordsworth verify {run.uri}`"
        )
    return Plan(told, table.replace_schema_metadata(None).cast(PLANNED))


def _freeze(
    run: RunFolder, identity: dict[str, str], number: int, manifest: pa.Table, target: int
) -> Plan | None:
    """Plan a generation of the units that are in none; None where all are in one. Another command's plan is as good."""
    merged = run.compacted(["file"])["file"].combine_chunks()
    units = manifest.filter(pc.invert(pc.is_in(manifest["file"], value_set=merged)))
    if not units.num_rows:
        return None
    units = planned(_in_order(run, units), number, target)
    about = Identity(**identity, generation=number).metadata(target=target)
    put_if_absent(
        run.fs,
        run.path("_run", "compacted", f"{number:05d}-plan.parquet"),
        parquet(units.replace_schema_metadata(about)),
    )
    return _plan(run, identity, number)


def _in_order(run: RunFolder, units: pa.Table) -> pa.Table:
    """Units in the order of the listing, which is the one that readers of the whole run go by, and then of their numbers."""
    names = pa.chunked_array(
        [pa.array(shard_names(page), pa.string()) for page in FrozenListing(run).pages()], pa.string()
    )
    shards = pc.struct_field(pc.extract_regex(units["file"], UNIT_NAME.pattern), "shard")
    place = pc.index_in(shards, value_set=names.combine_chunks())
    if place.null_count:
        stray = units["file"].filter(pc.is_null(place))[0]
        raise UserError(f"{stray} belongs to no shard of the run: run `wordsworth verify {run.uri}`")
    order = pc.sort_indices(
        pa.table({"place": place, "unit": units["unit"]}), [("place", "ascending"), ("unit", "ascending")]
    )
    return units.take(order)


def planned(units: pa.Table, generation: int, target: int) -> pa.Table:
    """Units in their order, with the file, the row group and the first row of each: greedily, up to the target in bytes."""
    sizes, rows = (units[name].to_numpy() for name in ("bytes", "rows"))
    into, groups, first = (np.empty(len(sizes), np.int64) for _ in range(3))
    file = group = row = file_bytes = group_bytes = group_rows = 0
    for at, (size, count) in enumerate(zip(sizes.tolist(), rows.tolist(), strict=True)):
        if file_bytes and file_bytes + size > target:
            file, group, row, file_bytes, group_bytes, group_rows = file + 1, 0, 0, 0, 0, 0
        elif group_bytes and (group_bytes + size > GROUP_BYTES or group_rows + count > GROUP_ROWS):
            group, group_bytes, group_rows = group + 1, 0, 0
        into[at], groups[at], first[at] = file, group, row
        row, file_bytes, group_bytes, group_rows = (
            row + count,
            file_bytes + size,
            group_bytes + size,
            group_rows + count,
        )
    names = pa.array([f"{generation:05d}-{number:05d}.parquet" for number in range(file + 1)], pa.string())
    more = {"into": names.take(pa.array(into)), "row_group": pa.array(groups), "first": pa.array(first)}
    columns = [more[name] if name in more else units[name] for name in PLANNED.names]
    return pa.table(columns, names=PLANNED.names).cast(PLANNED)


# ---- carrying it out --------------------------------------------------------------------------------------------------------


def _is_committed(run: RunFolder, number: int) -> bool:
    return any(path.endswith(f"/{number:05d}.parquet") for path in run.generations())


def _carry_out(run: RunFolder, plan: Plan, address: str | None, progress: Notes) -> dict[str, int]:
    """Make a generation's files and commit it; what this took."""
    pieces, number = plan.pieces, plan.identity.generation
    total = pc.sum(plan.units["bytes"]).as_py() / 1e6
    progress.note(f"merging {plan.units.num_rows:,} files ({total:,.1f} MB) into {len(pieces):,}")
    made: dict[int, pa.Table] = {}
    noted = time.monotonic()
    try:
        for at, units in _merged(run, plan, pieces, address):
            made[at] = units
            if time.monotonic() - noted > NOTE_EVERY:
                progress.note(
                    f"{100 * len(made) / len(pieces):.0f}%  {len(made):,} of {len(pieces):,} compacted files are there"
                )
                noted = time.monotonic()
    except Exception:
        if _is_committed(
            run, number
        ):  # another command was faster, and may have removed the small files since
            return {}
        raise
    _commit(run, plan, pa.concat_tables([made[at] for at in range(len(pieces))]))
    return {"units": plan.units.num_rows, "files": len(pieces)}


def _merged(
    run: RunFolder, plan: Plan, pieces: list[pa.Table], address: str | None
) -> Iterator[tuple[int, pa.Table]]:
    """Place and units of each compacted file, as they are made: here where there are few, else as Ray tasks."""
    if plan.units.num_rows <= FEW and address is None:
        yield from ((at, merge(run, plan.identity, units)) for at, units in enumerate(pieces))
        return
    with ray_session(address):
        import ray

        cpus = ray.cluster_resources().get("CPU", 1)
        task = ray.remote(num_cpus=1, memory=_claim(pieces), **RETRIES)(merge)
        waiting, flying = iter(enumerate(pieces)), {}
        while True:
            while len(flying) < max(1, IN_FLIGHT * cpus) and (piece := next(waiting, None)):
                flying[task.remote(run, plan.identity, piece[1])] = piece[0]
            if not flying:
                return
            (done,), _ = ray.wait(list(flying), num_returns=1)
            yield flying.pop(done), ray.get(done)


def _claim(pieces: list[pa.Table]) -> int:
    """Memory that a task may take: the file, while its buffer grows and as the bytes that are sent, and a row group decoded."""
    import ray

    claim = 512 * MiB + 3 * max(pc.sum(units["bytes"]).as_py() for units in pieces)
    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if claim > largest:
        raise UserError(
            f"merging takes {claim / 2**30:.1f} GiB of memory in one place, and Ray has {largest / 2**30:.1f}: "
            "start Ray with more (a smaller --target-size helps only where this compaction was not begun yet)"
        )
    return claim


def _commit(run: RunFolder, plan: Plan, units: pa.Table) -> None:
    name = f"{plan.identity.generation:05d}.parquet"
    if not put_if_absent(
        run.fs,
        run.path("_run", "compacted", name),
        parquet(units.replace_schema_metadata(plan.identity.metadata())),
    ):
        found = _read(run, "_run", "compacted", name)
        if (
            found is None
            or Identity.of(found.schema.metadata) != plan.identity
            or not found["file"].equals(units["file"])
        ):
            raise UserError(
                f"{run.path('_run', 'compacted', name)} is of another compaction: run `wordsworth verify {run.uri}`"
            )


# ---- removing what is merged --------------------------------------------------------------------------------------------------


def _delete_small(run: RunFolder, identity: dict[str, str], progress: Notes) -> int:
    """Remove the small files that a committed generation names, once their compacted files are seen to be there; how many."""
    small, units = sizes_in(run, "predictions"), run.compacted(["file", "bytes", "into", "into_bytes"])
    found = units.join(small, keys="file", right_keys="name", join_type="inner")
    if stray := found.filter(pc.not_equal(found["bytes"], found["size"])).slice(0, 1).to_pylist():
        raise UserError(
            f"{run.path('predictions', stray[0]['file'])} is not the file that was merged ({stray[0]['size']} bytes, not "
            f"{stray[0]['bytes']}): run `wordsworth verify {run.uri}`; nothing was removed"
        )
    for file in found.group_by("into").aggregate([("into_bytes", "max")]).to_pylist():
        check_compacted(run, identity, file["into"], file["into_bytes_max"])
    names = sorted(found["file"].to_pylist())
    if names:
        progress.note(f"removing {len(names):,} files that are merged")
    for begin in range(0, len(names), DELETED_AT_ONCE):
        run.remove([run.path("predictions", name) for name in names[begin : begin + DELETED_AT_ONCE]])
    return len(names)


def _summary(run: RunFolder, identity: dict[str, str]) -> dict[str, Any]:
    units = run.compacted(["rows", "into", "into_bytes"])
    files = units.group_by("into").aggregate([("rows", "sum"), ("into_bytes", "max")])
    return {
        **identity,
        "generations": len(run.generations()),
        "units": units.num_rows,
        "rows": pc.sum(units["rows"]).as_py() or 0,
        "files": files.num_rows,
        "bytes": pc.sum(files["into_bytes_max"]).as_py() or 0,
        "small_files": len(run.prediction_files()),
    }
