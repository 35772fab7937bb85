"""Compact a finished run: write a new folder that has the same rows in few large files.

The run itself is never changed.

    LARGE/_run/compacted/00000-plan.parquet   first: which unit goes where
    LARGE/compacted/00000-00000.parquet ...   whole units one after the other; each file whole or not at all
    LARGE/_run/compacted/00000.parquet        the commit: all files are there
    LARGE/_run/shards/*, manifest.parquet, summary.json
                                              copies of the run's own records
    LARGE/_run/plan.json                      last: from here on LARGE is a run

Every name and every row follows from the plan. So the same command continues a compaction that was killed,
two commands at once write the same files, and there is nothing to clean up.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from rich.filesize import decimal

from wordsworth.pipeline.cluster.claims import RETRIES, MiB
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.compaction.file_plan import freeze_plan
from wordsworth.pipeline.compaction.finished_run import FinishedRun
from wordsworth.pipeline.compaction.merge import merge
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.output.commit import parquet_bytes
from wordsworth.pipeline.output.compacted_file import PLANNED, CompactionId, runs
from wordsworth.pipeline.output.records import FOOTER_KEY, JsonObject
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.places import check_places
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import StorageOptions, absolute_uri, is_local, without_credentials

TARGET_BYTES = 256_000_000  # bytes of a compacted file, at most
FEW_UNITS = 1000  # units that this process merges itself, sooner than a Ray has started
TASKS_PER_CPU = 2  # merges that are submitted before their results are taken, for each CPU of Ray
NOTE_EVERY_S = 10.0  # seconds between two notes on the progress
COMMIT = ("_run", "compacted", "00000.parquet")


class Notes(Protocol):
    """Show what a compaction does."""

    def note(self, message: str) -> None: ...

    def waiting(self, what: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CompactRequest:
    """Hold what the user asked for.

    Attributes:
        run: folder of a finished run.
        output: folder of the compacted run: a new one, or one where the same command was killed.
        target_size: bytes of a compacted file, at most, unless one unit is larger.
        cluster: Ray cluster to join; without an address few merging units here, and many on a local Ray.
        storage_options: for fsspec.
    """

    run: str
    output: str
    target_size: int = TARGET_BYTES
    cluster: ClusterRequest = field(default_factory=ClusterRequest)
    storage_options: StorageOptions = field(default_factory=dict)


def compact(request: CompactRequest, progress: Notes) -> JsonObject:
    """Write a compacted copy of a finished run, or continue one, and return what the copy holds.

    Raises:
        UserError: the run is not complete, one of its files is not what it wrote, or the output folder
            holds something else.
    """
    source = RunFolder(request.run, request.storage_options)
    large = RunFolder(request.output, request.storage_options)
    start = time.perf_counter()
    try:
        _refuse_overlap(source, large)
        progress.waiting("reading the run")
        run = FinishedRun.read(source)
        did = {"units": 0, "files": 0}
        large.sweep()
        planned = freeze_plan(run, large, request.target_size)
        if large.exists("_run", "plan.json"):
            progress.note("every file is in a compacted file already: nothing to merge")
        else:
            if not large.exists(*COMMIT):
                files = _merge_all(run, large, planned, request, progress)
                did = {"units": planned.num_rows, "files": files}
            _copy_records(run, large, planned)
    except OSError as error:
        raise UserError(
            f"cannot compact {without_credentials(source.uri)} into {without_credentials(large.uri)}: "
            f"{type(error).__name__}: {error}. What is done is kept: run the same command again"
        ) from error
    last_command = did | {"seconds": round(time.perf_counter() - start, 2)}
    return _totals(run.id, large) | {"last_command": last_command}


def _refuse_overlap(source: RunFolder, large: RunFolder) -> None:
    """Refuse a folder inside the other: who reads the outer folder would read each row twice."""
    one = f"{_real_path(source)}/"
    other = f"{_real_path(large)}/"
    if one.startswith(other) or other.startswith(one):
        raise UserError(
            f"{large.uri} and {source.uri} overlap: choose a new folder beside the run as --output",
            exit_code=2,
        )


def _real_path(run: RunFolder) -> str:
    return os.path.realpath(run.root) if is_local(run.fs) else run.uri


# ---- merging ----------------------------------------------------------------------------------------------


def _merge_all(
    run: FinishedRun, large: RunFolder, planned: pa.Table, request: CompactRequest, progress: Notes
) -> int:
    """Make all compacted files, commit the compaction, and return the number of files."""
    pieces = _pieces(run, planned)
    total = decimal(pc.sum(planned["bytes"]).as_py())
    progress.note(f"merging {plural(planned.num_rows, 'file')} ({total}) into {len(pieces):,}")
    progress.waiting("merging files")
    made: dict[int, pa.Table] = {}
    noted = time.monotonic()
    for number, units in _merged(run, large, pieces, request, progress):
        made[number] = units
        if time.monotonic() - noted > NOTE_EVERY_S:
            share = 100 * len(made) / len(pieces)
            progress.note(f"{share:.0f}%  {len(made):,} of {len(pieces):,} compacted files are there")
            noted = time.monotonic()
    units = pa.concat_tables([made[number] for number in range(len(pieces))])
    told = {FOOTER_KEY: json.dumps(asdict(run.id)).encode()}
    _put(large, COMMIT, parquet_bytes(units.replace_schema_metadata(told)))
    return len(pieces)


def _pieces(run: FinishedRun, planned: pa.Table) -> list[tuple[pa.Table, pa.Table]]:
    """Return the units of each compacted file: where they lie, as COMPACTED, and as PLANNED."""
    places = run.folder.units().locate(run.units)
    return [(places[piece], planned[piece]) for piece in runs(planned["into"])]


def _merged(
    run: FinishedRun,
    large: RunFolder,
    pieces: list[tuple[pa.Table, pa.Table]],
    request: CompactRequest,
    progress: Notes,
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the units of each compacted file as it is made. Ray tasks merge many units."""
    if run.units.num_rows <= FEW_UNITS and request.cluster.address is None:
        for number, (places, planned) in enumerate(pieces):
            yield number, merge(run.folder, large, run.id, places, planned)
        return
    with ray_session(request.cluster, progress.note):
        import ray

        objects = [absolute_uri(run.folder.fs, run.folder.path("_run", "plan.json"))]
        check_places(lambda: objects, large.uri, None, request.storage_options, progress.note)
        at_most = max(1, TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1))
        task = ray.remote(num_cpus=1, memory=_memory_claim(pieces), **RETRIES)(merge)
        running: dict[Any, int] = {}  # number of the file, by the task's reference
        for number, (places, planned) in enumerate(pieces):
            if len(running) >= at_most:
                yield _next_result(running)
            running[task.remote(run.folder, large, run.id, places, planned)] = number
        while running:
            yield _next_result(running)


def _next_result(running: dict[Any, int]) -> tuple[int, pa.Table]:
    import ray

    (done,), _ = ray.wait(list(running), num_returns=1)
    return running.pop(done), ray.get(done)


def _memory_claim(pieces: list[tuple[pa.Table, pa.Table]]) -> int:
    """Return the bytes of memory that a task may take.

    A task holds its file, which is copied once while the buffer grows and once when it is sent, and a row
    group decoded.
    """
    import ray

    claim = 512 * MiB + 3 * max(pc.sum(planned["bytes"]).as_py() for _, planned in pieces)
    nodes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    largest = max(nodes, default=0)
    if claim > largest:
        raise UserError(
            f"merging takes {claim / 2**30:.1f} GiB of memory in one place, "
            f"and Ray has {largest / 2**30:.1f}: "
            "start Ray with more (a smaller --target-size helps only where this compaction was not begun yet)"
        )
    return claim


# ---- the end ----------------------------------------------------------------------------------------------


def _copy_records(run: FinishedRun, large: RunFolder, planned: pa.Table) -> None:
    """Copy the listing and the records of the run, of which plan.json comes last: it makes the folder a run.

    Raises:
        UserError: the commit does not name the planned units.
    """
    if not large.units().recorded().select(PLANNED.names).equals(planned):
        raise UserError(f"{large.path(*COMMIT)} is of another compaction: choose a new folder as --output")
    for path in run.pages:
        _put(large, ("_run", "shards", path.rpartition("/")[2]), run.folder.fs.cat_file(path))
    for name, data in run.records.items():
        _put(large, ("_run", name), data)


def _put(large: RunFolder, parts: tuple[str, ...], data: bytes) -> None:
    """Write a record, or find the same record there already.

    Raises:
        UserError: another record is there.
    """
    path = large.path(*parts)
    if not put_if_absent(large.fs, path, data) and large.fs.cat_file(path) != bytes(data):
        raise UserError(f"{path} is of another compaction: choose a new folder as --output")


def _totals(id: CompactionId, large: RunFolder) -> JsonObject:
    units = large.units().recorded()
    files = units.group_by("into").aggregate([("into_bytes", "max")])
    return {
        "run_id": id.run_id,
        "fingerprint": id.fingerprint,
        "units": units.num_rows,
        "rows": pc.sum(units["rows"]).as_py() or 0,
        "files": files.num_rows,
        "bytes": pc.sum(files["into_bytes_max"]).as_py() or 0,
    }
