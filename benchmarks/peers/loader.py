"""Label as one writes it today: webdataset, a torch DataLoader, timm's transform and model, one Parquet file.

    python -m benchmarks.peers.loader SHARDS OUT --width 192 --depth 12 --heads 3 --workers 2 --threads 1
        --batch-size 8 --dtype bf16

Prints a line of JSON for every batch: seconds since the start of the process, and the number of images that
are done.
"""

import argparse
import json
import time
from pathlib import Path

START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("width", "depth", "heads", "workers", "threads", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], required=True)
    options = parser.parse_args()
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    import torch
    import webdataset as wds
    from timm.models.vision_transformer import VisionTransformer

    torch.set_num_threads(options.threads)
    model = VisionTransformer(embed_dim=options.width, depth=options.depth, num_heads=options.heads).eval()
    model = model.to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    transform = timm.data.create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.9)
    dataset = (
        wds.WebDataset(sorted(map(str, options.shards.glob("*.tar"))), shardshuffle=False, empty_check=False)
        .decode("pilrgb")
        .to_tuple("__key__", "jpg")
        .map_tuple(None, transform)
    )
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, num_workers=options.workers)
    keys, labels, scores = [], [], []
    with torch.inference_mode():
        for names, images in loader:
            best = model(images.to(next(model.parameters()).dtype)).float().softmax(-1).topk(5)
            keys += names
            labels += best.indices.tolist()
            scores += best.values.tolist()
            print(json.dumps({"at": time.perf_counter() - START, "images": len(keys)}), flush=True)
    options.out.mkdir(parents=True)
    pq.write_table(
        pa.table({"key": keys, "labels": labels, "scores": scores}), options.out / "predictions.parquet"
    )


if __name__ == "__main__":
    main()
