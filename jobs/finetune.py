"""wordsworth finetune SOURCE... --model MODEL --output MODEL_DIR: a trained model for classes of one's own."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from jobs.options import ModelOptions, SourceOptions
from jobs.pretrain import RECIPE, RecipeOptions, RunOptions, execute


@Parameter(name="*", group=RECIPE)
@dataclass
class FinetuneOptions(RecipeOptions):
    """As the paper fine-tunes (B.1.1): SGD with momentum, no weight decay, cosine decay."""

    epochs: int = 8
    batch_size: int = 512
    "Images in one step, over all workers."
    optimizer: Literal["adamw", "sgd"] = "sgd"
    "sgd has a momentum of 0.9."
    lr: float = 0.01
    "The peak of the learning rate: 0.001 to 0.03 are what the paper tries."
    weight_decay: float = 0.0
    warmup: float = 0.05
    "The share of the steps in which the learning rate rises."


def finetune(
    sources: Annotated[list[str], Parameter(help="WebDataset shards with .cls, as `wordsworth pack` makes them.")],
    /,
    *,
    model: Annotated[str, Parameter(help="What is fine-tuned: a model folder or file of weights, timm:NAME or hf:NAME.")],
    output: Annotated[str, Parameter(help="The model folder.")],
    image_size: Annotated[int | None, Parameter(help="Pixels a side, such as 384: positions are resampled.")] = None,
    labels: Annotated[str | None, Parameter(help="Class names, one a line; else labels.txt beside the shards, if there.")] = None,
    recipe: FinetuneOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Train a trained model on: a new head of zeros for the classes of these shards, larger pictures if asked for."""
    storage = (source or SourceOptions()).storage

    from pipeline.training_data import class_names

    start = ModelOptions(model).load(lambda said: Console(stderr=True, soft_wrap=True).print(said, markup=False), storage)
    sized = start.config.image_size if image_size is None else image_size
    asked = {
        "sources": tuple(sources),
        "output": output,
        "config": replace(start.config, image_size=sized, num_classes=0, representation_size=0),
        "preprocessing": start.preprocessing,
        "start": start,
        "labels": class_names(labels, sources, storage),
        "storage_options": storage,
    }
    return execute(asked | (recipe or FinetuneOptions()).asked(), run or RunOptions())


if __name__ == "__main__":
    from jobs.cli import main_of

    main_of("finetune")
