"""Write the figures of a training into its output: metrics.jsonl, TensorBoard's event files, curves.png."""

import json
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from wordsworth.pipeline.storage.filesystem import StorageOptions, is_local, open_filesystem
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.training.last_values import write_last_values
from wordsworth.pipeline.training.news import (
    BeginNews,
    EpochNews,
    ProbeNews,
    StepNews,
    TrainNews,
    quality,
)

LINES = "metrics.jsonl"
CURVES = "curves.png"
NO_CURVES = f"no {CURVES} without matplotlib: pip install 'wordsworth[plots]' has the curves drawn"
NOT_DRAWN = ("step", "steps", "epoch")  # numbers of a record that are no figures for TensorBoard

_Lines = dict[str, list[tuple[int, float]]]  # (epoch, value) by the name of a line


class MetricsLog:
    """Write news as they come: a context.

    A training that continues from a checkpoint continues its log: lines behind the checkpoint are removed.
    A local output is written in place. For any other output the files are copied there after every epoch.
    """

    def __init__(self, output: str, storage_options: StorageOptions):
        self.fs, path = open_filesystem(output, storage_options)
        self.path = path.rstrip("/")
        self.scratch = None
        self.folder = Path(self.path)
        if not is_local(self.fs):
            self.scratch = tempfile.TemporaryDirectory(prefix="wordsworth-metrics-")
            self.folder = Path(self.scratch.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.scratch and self.fs.exists(f"{self.path}/{LINES}"):
            self.fs.get_file(f"{self.path}/{LINES}", str(self.folder / LINES))
        self.board: Any = None  # tensorboardX's writer, from the first BeginNews on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.board:
            self.board.close()
        self._copy_out()
        if self.scratch:
            self.scratch.cleanup()

    def add(self, news: TrainNews) -> None:
        """Write one record, if it has figures."""
        if isinstance(news, BeginNews):
            self._begin(news.step)
        if not isinstance(news, StepNews | EpochNews | ProbeNews):
            return
        line = news.to_json()
        with open(self.folder / LINES, "a") as file:
            file.write(json.dumps(line | {"time": round(time.time(), 3)}) + "\n")
        # The probe before the first step is the first point of the epochs' curves.
        group = EpochNews.kind if isinstance(news, ProbeNews) else news.kind
        for name, value in line.items():
            if isinstance(value, int | float) and name not in NOT_DRAWN:
                self.board.add_scalar(f"{group}/{name}", value, news.step)
        if isinstance(news, EpochNews):
            self.board.flush()
            self._copy_out()

    def _begin(self, step: int) -> None:
        """Remove what was logged after `step`, and open TensorBoard's file."""
        from tensorboardX import SummaryWriter

        kept = [json.dumps(line) + "\n" for line in self.lines() if step and line["step"] <= step]
        (self.folder / LINES).write_text("".join(kept))
        if self.board:
            self.board.close()
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines so far, without half a line that a killed command may have left."""
        path = self.folder / LINES
        found: list[dict[str, Any]] = []
        if not path.exists():
            return found
        for text in path.read_text().splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return found

    def epochs(self) -> list[EpochNews]:
        """Return the epochs so far, in order."""
        return [EpochNews.from_json(line) for line in self.lines() if line["kind"] == EpochNews.kind]

    def draw(self) -> str | None:
        """Write curves.png. Where matplotlib is not installed, return a note for the user instead."""
        if not can_draw():
            return NO_CURVES
        before = [ProbeNews.from_json(line) for line in self.lines() if line["kind"] == ProbeNews.kind]
        draw_curves(self.epochs(), before, self.folder / CURVES)
        self._copy_out()
        return None

    def _copy_out(self) -> None:
        if self.scratch:
            for file in self.folder.iterdir():
                with_retries(partial(self.fs.put_file, str(file), f"{self.path}/{file.name}"))


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_curves(epochs: list[EpochNews], before: list[ProbeNews], path: Path) -> None:
    """Draw loss and quality by epoch into a PNG file: of training, of --val, and what --probe gave.

    Args:
        epochs: at least one.
        before: the probe before the first step, if there was one.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    drawn: dict[str, _Lines] = {}
    for name in ("loss", quality(epochs[0].means)[0]):
        drawn[name] = {
            "training": [(news.epoch, news.means[name]) for news in epochs if name in news.means],
            "validation": [(news.epoch, news.validation.means[name]) for news in epochs if news.validation],
        }
    probes = [(news.epoch, news.probe) for news in before]
    probes += [(news.epoch, news.probe) for news in epochs if news.probe]
    if probes:
        drawn["accuracy on --probe"] = {
            "linear probe": [(epoch, probe.linear) for epoch, probe in probes],
            "nearest neighbours": [(epoch, probe.knn) for epoch, probe in probes],
        }
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(5 * len(drawn), 4), layout="constrained")
    for axis, (name, lines) in zip(axes, drawn.items(), strict=True):
        for label, points in lines.items():
            if points:
                _draw_line(axis, points, label)
        write_last_values(axis, lines, ".3f", {})
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_line(axis: Any, points: list[tuple[int, float]], label: str) -> None:
    epochs, values = zip(*points, strict=True)
    marker = "o" if len(points) < 30 else None
    axis.plot(epochs, values, marker=marker, markersize=3, label=label)
