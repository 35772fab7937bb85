"""Runs of the labeler in this process, on the local Ray."""

from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from wordsworth.pipeline.images.decode import fit
from wordsworth.pipeline.labeling import labeler
from wordsworth.pipeline.labeling.plan import LabelRequest


class Watcher:
    """A progress that remembers."""

    def __init__(self):
        self.notes, self.receipts, self.plan = [], [], {}

    def planned(self, **counts):
        self.plan = counts

    def listed(self, shards, bytes_total):
        self.plan |= {"shards": shards, "bytes_total": bytes_total}

    def note(self, message):
        self.notes.append(message)

    def receipt(self, receipt):
        self.receipts.append(receipt)


def run(tmp_path: Path, model, *sources, watcher: Watcher | None = None, **asked):
    watcher = watcher or Watcher()
    asked = {"command": "label", "model": "small", "precision": "fp32"} | asked
    request = LabelRequest(sources=tuple(map(str, sources)), output=str(tmp_path / "out"), **asked)
    return labeler.label(request, model, watcher), watcher


def rows(tmp_path: Path) -> list[dict]:
    return pq.read_table(tmp_path / "out" / "predictions").to_pylist()


def label_of(model, data: bytes) -> str:
    """The label by the model itself, on the crop that the labeler makes."""
    pixels = torch.from_numpy(
        fit(Image.open(BytesIO(data)), model.preprocessing, model.config.image_size).copy()
    )
    with torch.no_grad():
        return model.labels[int(model.model()((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5).argmax())]
