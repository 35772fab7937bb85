"""Label as Daft's documentation teaches it: download, decode, resize, a class with a batch method, Parquet.

    python -m benchmarks.peers.daft_images FOLDER OUT --weights FILE --copies 1 --threads 2 --batch-size 32
        --dtype bf16 [--on-error raise]

It needs an environment with daft, timm and torch. Daft's own resize takes the place of timm's transform: it
is faster, and its pixels are others.
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True)
    for name in ("copies", "threads", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--on-error", choices=["raise", "null"], default="null")
    options = parser.parse_args()
    import daft
    from daft import DataType, col
    from daft.functions import decode_image, download, resize

    best = DataType.struct({"label_id": DataType.int32(), "score": DataType.float32()})

    @daft.cls(max_concurrency=options.copies)
    class Classify:
        def __init__(self):
            import timm
            import torch

            torch.set_num_threads(options.threads)
            self.dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
            model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=options.weights)
            self.model = model.eval().to(self.dtype)

        @daft.method.batch(return_dtype=best, batch_size=options.batch_size)
        def predict(self, images: daft.Series) -> list:
            import numpy as np
            import torch

            pixels = images.to_pylist()
            places = [place for place, image in enumerate(pixels) if image is not None]
            found: list = [None] * len(pixels)
            if places:
                batch = torch.from_numpy(np.stack([pixels[place] for place in places]))
                batch = ((batch.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(self.dtype)
                with torch.inference_mode():
                    scores, labels = self.model(batch).float().softmax(-1).max(-1)
                for place, label, score in zip(places, labels.tolist(), scores.tolist(), strict=True):
                    found[place] = {"label_id": label, "score": score}
            return found

    content = download(col("path"), on_error=options.on_error)
    pixels = resize(decode_image(content, on_error=options.on_error), 224, 224)
    table = daft.from_glob_path(f"{options.folder}/**/*.jpg").select("path").with_column("image", pixels)
    table.with_column("best", Classify().predict(col("image"))).exclude("image").write_parquet(
        str(options.out)
    )


if __name__ == "__main__":
    main()
