"""Make small trainings: requests, and images to learn from."""

from io import BytesIO

import numpy as np
import psutil
from PIL import Image

from tests.support.builders import write_tar
from wordsworth.pipeline.training.augment import Augmentation
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.vit_model.config import Preprocessing, ViTConfig

SIZE = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=0)


def request(tmp_path, **changes) -> TrainRequest:
    given = {
        "sources": (str(tmp_path / "shards"),),
        "output": str(tmp_path / "model"),
        "config": SIZE,
        "preprocessing": Preprocessing(crop_pct=1.0),
        "epochs": 3,
        "batch_size": 16,
        "precision": "fp32",
        "device": "cpu",
        "augmentation": Augmentation(crop_scale=0.8),
    }
    return TrainRequest(**(given | changes))


def write_classes(folder, shards: int, images: int, classes: int = 2, rare: int = 0) -> None:
    """Write images whose class is their brightness.

    Args:
        folder: gets the shards.
        shards: number of shards.
        images: images of a shard.
        classes: number of classes, which come in turn.
        rare: if given, one image of so many is of class 1, and all others are of class 0.
    """
    rng = np.random.default_rng(0)
    for shard in range(shards):
        members = {}
        for number in range(images):
            label = int(number % rare == 0) if rare else (shard + number) % classes
            buffer = BytesIO()
            pixels = rng.integers(0, 100, (24, 24, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            members[f"{shard}-{number}.png"] = buffer.getvalue()
            members[f"{shard}-{number}.cls"] = str(label).encode()
        write_tar(folder / f"{shard}.tar", members)


def workers() -> list[psutil.Process]:
    """Return the processes that train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found += [process] if "RayTrainWorker" in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found
