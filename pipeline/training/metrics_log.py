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
from wordsworth.pipeline.training.news import BeginNews, EpochNews, StepNews, TrainNews, quality

LINES = "metrics.jsonl"
CURVES = "curves.png"
NO_CURVES = f"no {CURVES} without matplotlib: pip install 'wordsworth[plots]' has the curves drawn"
NOT_DRAWN = ("step", "steps", "epoch")  # numbers of a record that are no figures for TensorBoard


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
        if not isinstance(news, StepNews | EpochNews):
            return
        line = news.to_json()
        with open(self.folder / LINES, "a") as file:
            file.write(json.dumps(line | {"time": round(time.time(), 3)}) + "\n")
        for name, value in line.items():
            if isinstance(value, int | float) and name not in NOT_DRAWN:
                self.board.add_scalar(f"{news.kind}/{name}", value, news.step)
        if isinstance(news, EpochNews):
            self.board.flush()
            self._copy_out()

    def _begin(self, step: int) -> None:
        """Remove what was logged after `step`, and open TensorBoard's file."""
        from tensorboardX import SummaryWriter

        kept = [json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step]
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
        draw_curves(self.epochs(), self.folder / CURVES)
        self._copy_out()
        return None

    def _copy_out(self) -> None:
        if self.scratch:
            for file in self.folder.iterdir():
                with_retries(partial(self.fs.put_file, str(file), f"{self.path}/{file.name}"))


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_curves(epochs: list[EpochNews], path: Path) -> None:
    """Draw loss and quality by epoch, of training and of --val, into a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    quality_name, _ = quality(epochs[0].means)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", quality_name), strict=True):
        training = [(news.epoch, news.means[name]) for news in epochs if name in news.means]
        tried = [(news.epoch, news.validation.means[name]) for news in epochs if news.validation]
        for label, points in (("training", training), ("validation", tried)):
            if points:
                _draw_line(axis, points, label)
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
    axis.annotate(f"{values[-1]:.3f}", points[-1], xytext=(4, 0), textcoords="offset points", fontsize=8)
