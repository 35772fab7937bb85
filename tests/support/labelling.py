"""Run the labeler in this process, on the local Ray."""

from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from wordsworth.pipeline.images.decode import crop_for_evaluation
from wordsworth.pipeline.labeling import labeler
from wordsworth.pipeline.labeling.request import LabelRequest


class Watcher:
    """Remember everything that a progress is told."""

    def __init__(self):
        self.notes, self.receipts, self.plan = [], [], {}
        self.waits, self.figures = [], []

    def planned(self, **counts):
        self.plan = counts

    def listed(self, shards, bytes_total):
        self.plan |= {"shards": shards, "bytes_total": bytes_total}

    def note(self, message, **fields):
        self.notes.append(message)

    def waiting(self, what):
        self.waits.append(what)

    def working(self, figures):
        self.figures.append(figures)

    def receipt(self, receipt):
        self.receipts.append(receipt)


def run(tmp_path: Path, model, *sources, watcher: Watcher | None = None, **asked):
    """Label into tmp_path/out, unless an output is given; return the summary and the watcher."""
    watcher = watcher or Watcher()
    given = {"command": "label", "model": "small", "precision": "fp32", "output": str(tmp_path / "out")}
    request = LabelRequest(sources=tuple(map(str, sources)), **given | asked)
    return labeler.label(request, model, watcher), watcher


def rows(tmp_path: Path) -> list[dict]:
    return pq.read_table(tmp_path / "out" / "predictions").to_pylist()


def label_of(model, data: bytes) -> str:
    """Return the label that the model itself gives, on the crop that the labeler makes."""
    pixels = torch.from_numpy(
        crop_for_evaluation(Image.open(BytesIO(data)), model.preprocessing, model.config.image_size).copy()
    )
    with torch.no_grad():
        return model.labels[int(model.model()((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5).argmax())]
