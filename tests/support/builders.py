"""Make images, shards and small models for the tests, all by code."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (96, 72), kind: str = "JPEG") -> bytes:
    """Return an encoded image with a camera's falling spectrum, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int, images: int, size: tuple[int, int] = (96, 72)) -> list[str]:
    """Write `shards` tars of `images` photographs with a json sidecar, and return the keys in order."""
    keys = []
    for shard in range(shards):
        members = {}
        for image in range(images):
            key = f"{shard:03d}/{image:04d}"
            keys.append(key)
            members[f"{key}.jpg"] = photo(shard * 100_000 + image, size)
            members[f"{key}.json"] = f'{{"n": {image}}}'.encode()
        write_tar(folder / f"part-{shard:03d}.tar", members)
    return keys


def make_model(folder: Path, **size) -> Path:
    import torch

    from wordsworth.vit_model.checkpoint import random_checkpoint
    from wordsworth.vit_model.config import Preprocessing, ViTConfig
    from wordsworth.vit_model.model_folder import save_folder

    labels = ("ant", "bee", "cat", "dog", "elk")
    checkpoint = random_checkpoint(ViTConfig(num_classes=len(labels), **size), Preprocessing(), 0, labels)
    generator = torch.Generator().manual_seed(1)
    for tensor in checkpoint.state.values():  # a head of zeros would give every image the same label
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    save_folder(folder, checkpoint)
    return folder
