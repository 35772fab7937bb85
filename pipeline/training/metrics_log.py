"""What a training leaves to look at: metrics.jsonl, TensorBoard's event files, curves.png, all in the output."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Self

from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem, patiently

LINES, CURVES = "metrics.jsonl", "curves.png"
WRITTEN = ("step", "epoch")  # kinds of news that have figures


class Journal:
    """Writes news as they come. A training that goes on from a checkpoint goes on here too: what lies behind that is taken back.

    In a local output everything is written there; elsewhere it is copied there after every epoch."""

    def __init__(self, output: str, storage_options: dict[str, Any]):
        self.fs, self.path = open_filesystem(output, storage_options)
        self.path = self.path.rstrip("/")
        self.scratch = (
            None if is_local(self.fs) else tempfile.TemporaryDirectory(prefix="wordsworth-journal-")
        )
        self.folder = Path(self.scratch.name if self.scratch else self.path)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.scratch and self.fs.exists(f"{self.path}/{LINES}"):
            self.fs.get_file(f"{self.path}/{LINES}", str(self.folder / LINES))
        self.board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        if self.board:
            self.board.close()
        self._copied()
        if self.scratch:
            self.scratch.cleanup()

    def add(self, news: dict[str, Any]) -> None:
        if news["kind"] == "begin":
            self._begin(news["step"])
        if news["kind"] not in WRITTEN:
            return
        with open(self.folder / LINES, "a") as file:
            file.write(json.dumps(news | {"time": round(time.time(), 3)}) + "\n")
        for name, value in news.items():
            if isinstance(value, (int, float)) and name not in ("step", "steps", "epoch"):
                self.board.add_scalar(f"{news['kind']}/{name}", value, news["step"])
        if news["kind"] == "epoch":
            self.board.flush()
            self._copied()

    def _begin(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        lines = [line for line in self.lines() if line["step"] <= step]
        (self.folder / LINES).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if self.board:
            self.board.close()
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def lines(self) -> list[dict[str, Any]]:
        """The news so far; half a line, of a driver that was killed as it wrote, is none."""
        path, found = self.folder / LINES, []
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return found

    def draw(self) -> None:
        """curves.png."""
        draw([line for line in self.lines() if line["kind"] == "epoch"], self.folder / CURVES)
        self._copied()

    def _copied(self) -> None:
        if self.scratch:
            for file in self.folder.iterdir():
                patiently(partial(self.fs.put_file, str(file), f"{self.path}/{file.name}"))


def draw(epochs: list[dict[str, Any]], path: Path) -> None:
    """The loss, and the accuracy or what the objective has in its place, by epoch: training and --val."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    quality = next(name for name in ("accuracy", "explained") if name in epochs[0])
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", quality), strict=True):
        for prefix, label in (("", "training"), ("val_", "validation")):
            points = [(line["epoch"], line[prefix + name]) for line in epochs if prefix + name in line]
            if points:
                _line(axis, points, label)
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _line(axis, points: list[tuple[int, float]], label: str) -> None:
    axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3, label=label)
    axis.annotate(f"{points[-1][1]:.3f}", points[-1], xytext=(4, 0), textcoords="offset points", fontsize=8)
