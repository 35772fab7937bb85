"""wordsworth pretrain SOURCE... --output MODEL_DIR --variant S/16: a Vision Transformer from scratch."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from jobs.options import SourceOptions
from pipeline.errors import UserError

ARCHITECTURE = Group("Architecture")
RECIPE = Group("Recipe")
RUN = Group("Run")


@Parameter(name="*", group=ARCHITECTURE)
@dataclass
class ArchitectureOptions:
    """A variant, or a size of one's own."""

    variant: str | None = None
    "Such as S/16; or leave it out and give --width, --depth, --heads and --patch-size."
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float = 4.0
    patch_size: int | None = None
    image_size: int = 224
    "Pixels a side."


@Parameter(name="*", group=RECIPE)
@dataclass
class RecipeOptions:
    """How it is trained: linear warm-up, cosine decay, gradients clipped to a norm of 1."""

    epochs: int = 90
    batch_size: int = 256
    "Images in one step, over all workers."
    optimizer: Literal["adamw", "sgd"] = "adamw"
    "sgd has a momentum of 0.9."
    lr: float = 1e-3
    "The peak of the learning rate."
    weight_decay: float = 0.1
    warmup: float = 0.1
    "The share of the steps in which the learning rate rises."
    layer_decay: float = 1.0
    "The learning rate of a layer, as a share of that of the layer above it."
    label_smoothing: float = 0.0
    crop_scale: float = 0.35
    "The smallest share of a picture's area that a random crop covers."
    aspect: float = 4 / 3
    "The largest change of a crop's aspect ratio."
    flip: bool = True
    "Mirror every second picture."
    seed: int = 0

    def asked(self) -> dict[str, Any]:
        """For a TrainRequest."""
        from pipeline.training_data import Augmentation

        names = ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup", "layer_decay", "label_smoothing", "seed")
        return {name: getattr(self, name) for name in names} | {
            "augmentation": Augmentation(self.crop_scale, self.aspect, self.flip)
        }


@Parameter(name="*", group=RECIPE)
@dataclass
class DecoderOptions:
    """MAE's decoder, which is thrown away afterwards."""

    decoder_width: int = 512
    "Of the decoder of --objective mae."
    decoder_depth: int = 8
    decoder_heads: int = 16


@Parameter(name="*", group=RUN)
@dataclass
class RunOptions:
    """Where it runs."""

    workers: int = 1
    "Ray Train workers."
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    "auto is bf16 on CUDA and on CPUs that have it."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    "Join the Ray cluster at this address (or RAY_ADDRESS); else a local Ray starts and stops with the command."
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Print the last epoch's metrics as JSON."


def pretrain(
    sources: Annotated[list[str], Parameter(help="WebDataset shards with .cls, as `wordsworth pack` makes them.")],
    /,
    *,
    output: Annotated[str, Parameter(help="The model folder.")],
    objective: Annotated[
        Literal["supervised", "masked-patch", "mae"], Parameter(help="The latter two need no classes; their model has no head.")
    ] = "supervised",
    labels: Annotated[str | None, Parameter(help="Class names, one a line; else labels.txt beside the shards, if there.")] = None,
    architecture: ArchitectureOptions | None = None,
    recipe: RecipeOptions | None = None,
    decoder: DecoderOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Train a Vision Transformer from scratch; what it writes is what `label` and `embed` load."""
    recipe, decoder, run = recipe or RecipeOptions(), decoder or DecoderOptions(), run or RunOptions()
    storage = (source or SourceOptions()).storage
    config = _config(architecture or ArchitectureOptions())

    from pipeline.training_data import class_names
    from vit_model.config import Preprocessing

    asked = {
        "sources": tuple(sources),
        "output": output,
        "config": config,
        "preprocessing": Preprocessing(crop_pct=1.0),
        "objective": objective,
        "decoder": (decoder.decoder_width, decoder.decoder_depth, decoder.decoder_heads),
        "labels": class_names(labels, sources, storage) if objective == "supervised" else None,
        "storage_options": storage,
    }
    return execute(asked | recipe.asked(), run)


def execute(asked: dict[str, Any], run: RunOptions) -> int:
    """Train, print a line an epoch and the end: what `pretrain` and `finetune` share."""
    from pipeline.recipe import TrainRequest
    from pipeline.training import train
    from vit_model.config import num_params

    request = TrainRequest(**asked, workers=run.workers, precision=run.precision, device=run.device, address=run.address)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    size = f"{num_params(request.config) / 1e6:.2f} M parameters"
    console.print(f"training {size} for {request.epochs} epochs ({request.objective})")
    metrics = train(request, lambda metrics: console.print(_line(metrics, request.epochs)))
    if run.json:
        print(json.dumps(metrics, indent=1))
        return 0
    command = "label" if request.objective == "supervised" else "embed"
    Console(highlight=False, soft_wrap=True).print(
        f"model in {request.output}: loss {metrics['loss']}, training {_share(metrics, 4)}\n"
        f"next: wordsworth {command} SOURCE --output OUT --model {request.output}"
    )
    return 0


def _config(options: ArchitectureOptions):
    from vit_model.config import ViTConfig, variant

    free = (options.width, options.depth, options.heads, options.patch_size)
    if options.variant:
        if any(free):
            raise UserError("--variant fixes the size: leave out --width, --depth, --heads and --patch-size", exit_code=2)
        return replace(variant(options.variant, image_size=options.image_size), num_classes=0)
    if not all(free):
        raise UserError("give --variant, or all of --width, --depth, --heads and --patch-size", exit_code=2)
    width, depth, heads, patch_size = free
    mlp_dim = round(width * options.mlp_ratio)
    return ViTConfig(options.image_size, patch_size, width, depth, heads, mlp_dim, num_classes=0)


def _line(metrics: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {metrics['epoch']:>3}/{epochs}  loss {metrics['loss']:.3f}  {_share(metrics, 3)}  "
        f"{metrics['images_per_second']:,.0f} images/s  data wait {metrics['data_wait']:.0%}"
    )


def _share(metrics: dict[str, Any], digits: int) -> str:
    """What the objective says beside its loss: the share of right answers, or of the variance that is explained."""
    name = next(name for name in ("accuracy", "explained") if name in metrics)
    return f"{name} {metrics[name]:.{digits}f}"


if __name__ == "__main__":
    from jobs.cli import main_of

    main_of("pretrain")
