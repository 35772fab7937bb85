"""Label as Ray Data's documentation teaches it: read_webdataset, a function, an actor, write_parquet.

    python -m benchmarks.peers.ray_data SHARDS OUT --width 192 --depth 12 --heads 3 --actors 2 --batch-size 32
        --dtype fp32

Prints a line of JSON for every batch that the actors have done, in the form of loader.py. The lines come at
the end, because the actors write down when each batch was done.
"""

import argparse
import json
import time
from pathlib import Path

START = time.time()


def preprocess(batch: dict) -> dict:
    import numpy as np
    import timm
    from PIL import Image

    transform = timm.data.create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.9)
    return {
        "key": batch["__key__"],
        "image": np.stack([transform(Image.fromarray(image)).numpy() for image in batch["jpg"]]),
    }


class Classify:
    def __init__(self, width: int, depth: int, heads: int, dtype: str, log: str):
        import os

        import torch
        from timm.models.vision_transformer import VisionTransformer

        torch.set_num_threads(1)
        self.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.model = VisionTransformer(embed_dim=width, depth=depth, num_heads=heads).eval().to(self.dtype)
        self.log = Path(f"{log}-{os.getpid()}")

    def __call__(self, batch: dict) -> dict:
        import torch

        with torch.inference_mode():
            best = self.model(torch.as_tensor(batch["image"]).to(self.dtype)).float().softmax(-1).topk(5)
        with self.log.open("a") as file:
            file.write(f"{time.time()} {len(batch['key'])}\n")
        return {"key": batch["key"], "labels": best.indices.numpy(), "scores": best.values.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("width", "depth", "heads", "actors", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], required=True)
    options = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    log = options.out.with_suffix(".log")
    model = {name: getattr(options, name) for name in ("width", "depth", "heads", "dtype")}
    (
        ray.data.read_webdataset(sorted(map(str, options.shards.glob("*.tar"))), suffixes=["jpg"])
        .map_batches(preprocess, batch_size=options.batch_size)
        .map_batches(
            Classify,
            fn_constructor_kwargs={**model, "log": str(log)},
            batch_size=options.batch_size,
            compute=ray.data.ActorPoolStrategy(size=options.actors),
        )
        .write_parquet(str(options.out))
    )
    lines = [
        line.split() for path in log.parent.glob(f"{log.name}-*") for line in path.read_text().splitlines()
    ]
    done = 0
    for at, images in sorted((float(at), int(images)) for at, images in lines):
        done += images
        print(json.dumps({"at": at - START, "images": done}))


if __name__ == "__main__":
    main()
