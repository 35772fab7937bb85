"""Read and write a run folder: the records in _run/, and the files of a run.

OUT/predictions/*.parquet   units, a file each: see wordsworth.pipeline.output.commit
OUT/compacted/*.parquet     units, many in a file: see wordsworth.pipeline.output.unit_store
OUT/_run/                   the records: see wordsworth.pipeline.output.records
"""

import contextlib
import json
import os
import time
from typing import Any

import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.committed import UNIT_NAME, CommittedUnits
from wordsworth.pipeline.output.records import JsonObject, RunPlan, Summary
from wordsworth.pipeline.output.unit_store import UnitStore
from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    is_local,
    open_filesystem,
    without_credentials,
)
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.walk import list_names

FOLDERS = ("predictions", "compacted", "_run", "_run/shards", "_run/compacted")  # folders that a run may have
ROW_FILES = "[a-z]*/*.parquet"  # in a run folder: the files of rows, and not the records


class RunFolder:
    """Find, read and write what an output folder holds.

    Attributes:
        fs: file system of the folder.
        root: path of the folder in `fs`.
        uri: URI of the folder.
    """

    def __init__(self, output: str, storage_options: StorageOptions | None = None):
        self.fs, root = open_filesystem(output, storage_options)
        self.root = root.rstrip("/")
        self.uri = absolute_uri(self.fs, self.root)

    def path(self, *parts: str) -> str:
        """Return the path of a file or folder of the run."""
        return "/".join([self.root, *parts])

    def exists(self, *parts: str) -> bool:
        """Return whether there is a file or folder of this name now."""
        self.fs.invalidate_cache()
        with naming(self.uri):
            return with_retries(lambda: self.fs.exists(self.path(*parts)))

    def names(self, *parts: str) -> list[str]:
        """Return the names in a folder of the run, in order.

        Names with an underscore are leftovers that no reader sees.
        """
        with naming(self.uri):
            found = set(list_names(self.fs, self.path(*parts)))
        return sorted(name for name in found if not name.startswith("_"))

    def parquet_files(self, *parts: str) -> list[str]:
        """Return the paths of the Parquet files in a folder of the run, in any order."""
        folder = self.path(*parts)
        return [f"{folder}/{name}" for name in list_names(self.fs, folder) if name.endswith(".parquet")]

    # ---- units ----

    def units(self) -> UnitStore:
        """Return the units of the run, as they are now."""
        return UnitStore(self.fs, self.root)

    def committed(self) -> CommittedUnits:
        """Return which units are done, by shard name."""
        return self.units().committed()

    def prediction_files(self) -> list[str]:
        """Return the paths of predictions/*.parquet, in order: one LIST."""
        return sorted(self.parquet_files("predictions"))

    def remove_shards(self, ids: set[str]) -> int:
        """Remove the units of shards that are no longer part of the run, and return the number of files."""
        if not ids:
            return 0
        paths = []
        for path in self.prediction_files():
            match = UNIT_NAME.fullmatch(path.rpartition("/")[2])
            if match and match["shard"][-12:] in ids:
                paths.append(path)
        self._remove(paths)
        return len(paths)

    def remove_records(self, *parts: str) -> None:
        """Remove the Parquet files in a folder of the run."""
        self._remove(self.parquet_files(*parts))

    def _remove(self, paths: list[str]) -> None:
        """Remove files, of which some may be gone already; on an object store by one call for all files."""
        if not is_local(self.fs):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(paths)
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def sweep(self, older_than: float = 3600.0) -> None:
        """Remove temporary files that killed writers left on a local disk.

        Args:
            older_than: age in seconds from which no living writer can own a file.
        """
        if not is_local(self.fs):
            return
        for folder in map(self.path, FOLDERS):
            for name in list_names(self.fs, folder):
                if not name.startswith("_tmp-"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - os.stat(f"{folder}/{name}").st_mtime > older_than:
                        os.unlink(f"{folder}/{name}")

    # ---- the records ----

    def read_json(self, *parts: str) -> JsonObject | None:
        """Return a record as it is, without looking at its fields; None where there is none.

        Raises:
            UserError: the file is not a JSON object.
        """
        try:
            with naming(self.uri):
                data = with_retries(lambda: self.fs.cat_file(self.path(*parts)))
        except FileNotFoundError:
            return None
        try:
            return dict(json.loads(data))
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged(parts, error) from error

    def _damaged(self, parts: tuple[str, ...], error: Exception) -> UserError:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        return UserError(f"{self.path(*parts)} is damaged ({why}): restore it, or choose a new --output")

    def plan(self) -> RunPlan | None:
        """Return the frozen plan; None where there is no run.

        Raises:
            UserError: plan.json is damaged.
        """
        told = self.read_json("_run", "plan.json")
        if told is None:
            return None
        try:
            return RunPlan.from_dict(told)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(("_run", "plan.json"), error) from error

    def plan_of_run(self) -> RunPlan:
        """Return the frozen settings of the run that is here.

        Raises:
            UserError: there is no run, or plan.json is damaged.
        """
        try:
            plan = self.plan()
        except NotADirectoryError as error:
            raise UserError(f"{without_credentials(self.uri)} is a file: name the run folder") from error
        if plan is not None:
            return plan
        above = self.root.rpartition("/")[0]
        with naming(self.uri):
            is_above = with_retries(lambda: self.fs.exists(f"{above}/_run/plan.json"))
        uri = without_credentials(absolute_uri(self.fs, above))
        why = "name the --output of a wordsworth label or embed"
        if is_above:
            why = f"name the folder above it, {uri}"
        raise UserError(f"{without_credentials(self.uri)} holds no run: {why}")

    def create(self, plan: RunPlan) -> RunPlan:
        """Freeze a plan, and return it, or the plan that another job froze a moment before.

        Raises:
            UserError: the folder holds something else.
        """
        foreign = self.foreign()
        if foreign and self.plan() is None:  # in this order: a plan is older than all that its run writes
            raise UserError(f"{self.uri} {foreign}")
        put_if_absent(self.fs, self.path("_run", "plan.json"), plan.to_json())
        return self.plan() or plan

    def foreign(self) -> str | None:
        """Say what this folder holds that keeps a new run from beginning here; None for a new folder."""
        if self.exists("_run", "plan.json"):
            return "holds a run: choose a new folder as --output"
        if self.names("_run", "compacted"):
            return (
                "holds a compaction that is not complete: run the same `wordsworth compact` command again, "
                "or choose a new folder as --output"
            )
        if self.exists():
            for path in self.fs.ls(self.root, detail=False):
                if path.rstrip("/").rpartition("/")[2] != "_run":
                    return "is not empty and holds no run: choose a new folder as --output"
        return None

    def summary(self) -> Summary | None:
        """Return the summary; None where the run has not come to its end.

        Raises:
            UserError: summary.json is damaged.
        """
        told = self.read_json("_run", "summary.json")
        if told is None:
            return None
        try:
            return Summary.from_dict(told)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(("_run", "summary.json"), error) from error

    def reopen(self) -> None:
        """Remove the summary before the units of a complete run change: the run is not complete again."""
        self._remove([self.path("_run", "summary.json")])

    def finish(self, manifest: pa.Buffer, summary: Summary) -> None:
        """Write the manifest, a Parquet file in memory, and after it the summary: the run is complete."""
        overwrite(self.fs, self.path("_run", "manifest.parquet"), manifest)
        told = json.dumps(summary.to_dict(), indent=1)
        overwrite(self.fs, self.path("_run", "summary.json"), told.encode())

    def keep_estimate(self, estimate: dict[str, Any]) -> None:
        """Keep what `wordsworth plan` foretold, so that the summary can be compared with the estimate."""
        overwrite(self.fs, self.path("_run", "estimate.json"), json.dumps(estimate, indent=1).encode())

    def estimate(self) -> JsonObject | None:
        """Return what `wordsworth plan` foretold; None where no estimate was kept."""
        return self.read_json("_run", "estimate.json")
