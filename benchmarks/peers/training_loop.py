"""Train as one writes it today: webdataset, a torch DataLoader, timm's model, AdamW and autocast.

    python -m benchmarks.peers.training_loop SHARDS --width 192 --depth 12 --heads 3 --workers 1 --threads 2
        --batch-size 64 --epochs 4 --classes 10 --dtype bf16

Prints a line of JSON for every step: seconds since the start of the process, images so far, and the loss.
"""

import argparse
import json
import time
from pathlib import Path

START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    for name in ("width", "depth", "heads", "workers", "threads", "batch-size", "epochs", "classes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], required=True)
    options = parser.parse_args()
    import torch
    import torch.nn.functional as F
    import webdataset as wds
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_weight_decay
    from torchvision.transforms import v2

    torch.set_num_threads(options.threads)
    model = VisionTransformer(
        embed_dim=options.width, depth=options.depth, num_heads=options.heads, num_classes=options.classes
    ).train()
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, 0.1), lr=1e-4, fused=True)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(
                224, (0.35, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    dataset = (
        wds.WebDataset(sorted(map(str, options.shards.glob("*.tar"))), shardshuffle=8, empty_check=False)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, None)
    )
    loader = torch.utils.data.DataLoader(
        dataset, options.batch_size, num_workers=options.workers, drop_last=True
    )
    images = 0
    for _ in range(options.epochs):
        for pixels, classes in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16"):
                loss = F.cross_entropy(model(pixels), classes)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            images += len(classes)
            print(
                json.dumps(
                    {"at": time.perf_counter() - START, "images": images, "loss": float(loss.detach())}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
