"""Say how fast a run's stages were, from the records of its units and the times of their files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.commit import Damaged, read_table
from wordsworth.pipeline.output.records import MANIFEST
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.report.rows import RunRows
from wordsworth.pipeline.storage.refusals import naming
from wordsworth.pipeline.unit import TIMED

NUM_BINS = 36  # of a curve over time
MOST_FOOTERS = 2000  # footers that are read of a run that has no manifest yet
FOOTERS_AT_ONCE = 16  # footers that are read at the same time
BREAK_S = 120.0  # seconds without a file from which on the run counts as interrupted, at least
MODIFIED = ("mtime", "LastModified", "last_modified", "updated")  # of fsspec's file systems


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Hold the work of a run's stages, and its course where the times of its files are known.

    Attributes:
        num_units: units of the run.
        num_read: units whose records the figures come from.
        images: images of these units.
        seconds: worker-seconds of each stage over these units.
        bytes_read: bytes of the sources that these units took.
        bytes_written: bytes of their files.
        elapsed_s: seconds from the first file to the last, without breaks; None where the times of the files
            are not known.
        breaks: times in which the run was interrupted.
        began, ended: when the first and the last file were written; None likewise.
        bin_edges: (B + 1,) seconds since the first file; places of units in their order where times are not
            known.
        bin_images: (B,) images by bin.
        bin_seconds: (B,) worker-seconds by bin, by stage.
    """

    num_units: int
    num_read: int
    images: int
    seconds: dict[str, float]
    bytes_read: int
    bytes_written: int
    elapsed_s: float | None
    breaks: int
    began: datetime | None
    ended: datetime | None
    bin_edges: np.ndarray
    bin_images: np.ndarray
    bin_seconds: dict[str, np.ndarray]

    @property
    def is_timed(self) -> bool:
        """Return whether the bins are of time."""
        return self.elapsed_s is not None

    @property
    def slowest(self) -> str | None:
        """Return the stage that took the most worker-seconds; None where nothing was timed."""
        if not any(self.seconds.values()):
            return None
        return max(self.seconds, key=lambda stage: self.seconds[stage])


def read_timeline(run: RunRows) -> Timeline:
    """Return how fast a run's stages were.

    Raises:
        UserError: the manifest or a footer is damaged.
        OSError: the store fails.
    """
    folder = run.folder
    with naming(folder.uri):
        units, num_units = _units(run)
        times = _times(folder, units["file"].to_pylist())
    rows = units["rows"].to_numpy()
    seconds = {stage: np.nan_to_num(units[stage].to_numpy()) for stage in TIMED}
    moments, breaks, elapsed_s = _course(times)
    edges, bins = _bins(moments)
    known = times[~np.isnan(times)]
    return Timeline(
        num_units=num_units,
        num_read=len(rows),
        images=int(rows.sum()),
        seconds={stage: float(values.sum()) for stage, values in seconds.items()},
        bytes_read=int(units["bytes_read"].to_numpy().sum()),
        bytes_written=int(units["bytes"].to_numpy().sum()),
        elapsed_s=elapsed_s,
        breaks=breaks,
        began=datetime.fromtimestamp(known.min()).astimezone() if elapsed_s is not None else None,
        ended=datetime.fromtimestamp(known.max()).astimezone() if elapsed_s is not None else None,
        bin_edges=edges,
        bin_images=np.bincount(bins, rows, len(edges) - 1),
        bin_seconds={stage: np.bincount(bins, values, len(edges) - 1) for stage, values in seconds.items()},
    )


def _units(run: RunRows) -> tuple[pa.Table, int]:
    """Return rows of the manifest, and how many units there are: of an unfinished run with many units some
    footers alone are read."""
    folder = run.folder
    if run.summary is not None and folder.exists("_run", "manifest.parquet"):
        try:
            table = read_table(folder.fs, folder.path("_run", "manifest.parquet"), MANIFEST.names)
        except Damaged as error:
            raise UserError(f"the manifest of {folder.uri} is damaged: {error}") from error
        return table, table.num_rows
    units = folder.units()
    recorded = units.recorded().select(MANIFEST.names)
    own = units.unrecorded()
    step = max(1, len(own) // MOST_FOOTERS)
    some = own[::step]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        tables = list(pool.map(lambda name: units.manifest([name]), some))
    return pa.concat_tables([recorded, *tables]), recorded.num_rows + len(own)


def _times(folder: RunFolder, files: list[str]) -> np.ndarray:
    """Return when each unit's own file was written, in seconds since 1970; NaN where this is not known."""
    found = dict(_modified(folder))
    return np.array([found.get(name, np.nan) for name in files], np.float64)


def _modified(folder: RunFolder) -> Iterator[tuple[str, float]]:
    if not folder.exists("predictions"):
        return
    for info in folder.fs.ls(folder.path("predictions"), detail=True):
        moment = next((info[name] for name in MODIFIED if info.get(name)), None)
        seconds = _seconds(moment)
        if seconds is not None:
            yield info["name"].rpartition("/")[2], seconds


def _seconds(moment: Any) -> float | None:
    """Return what a file system says of a time, in seconds since 1970."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return None
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if isinstance(moment, int | float) else None


def _course(times: np.ndarray) -> tuple[np.ndarray, int, float | None]:
    """Return where in the run each unit was written: seconds without breaks, the number of breaks, and the
    seconds of the whole run. Without times it is the unit's place in the order of names."""
    if not len(times) or np.isnan(times).any() or np.ptp(times) == 0:
        return np.arange(len(times), dtype=np.float64), 0, None
    order = np.argsort(times, kind="stable")
    gaps = np.diff(times[order])
    limit = max(BREAK_S, 20 * float(np.median(gaps)))
    is_break = gaps > limit
    moments = np.empty(len(times))
    moments[order] = np.r_[0.0, np.cumsum(np.where(is_break, 0.0, gaps))]
    return moments, int(is_break.sum()), float(moments.max())


def _bins(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of bins, and the bin of each unit: three units a bin, so that a curve is calm."""
    num_bins = max(1, min(NUM_BINS, len(moments) // 3))
    end = float(moments.max()) if len(moments) and moments.max() > 0 else 1.0
    edges = np.linspace(0.0, end, num_bins + 1)
    return edges, np.clip(np.searchsorted(edges, moments, side="right") - 1, 0, num_bins - 1)
