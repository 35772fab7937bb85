"""wordsworth finetune SOURCE... --model MODEL --output MODEL_DIR: a trained model for classes of one's own."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from wordsworth.jobs.options import ModelOptions, SourceOptions
from wordsworth.jobs.train_options import (
    RECIPE,
    Count,
    DataOptions,
    NotNegative,
    Positive,
    RecipeOptions,
    RunOptions,
    execute,
)


@Parameter(name="*", group=RECIPE)
@dataclass
class FinetuneOptions(RecipeOptions):
    """As the paper fine-tunes (B.1.1): SGD with momentum, no weight decay, cosine decay."""

    epochs: Count = 8
    batch_size: Count = 512
    "Images in one step, over all workers."
    optimizer: Literal["adamw", "sgd"] = "sgd"
    "sgd has a momentum of 0.9."
    lr: Positive = 0.01
    "The peak of the learning rate: 0.001 to 0.03 are what the paper tries."
    weight_decay: NotNegative = 0.0
    warmup: NotNegative = 0.05
    "The share of the steps in which the learning rate rises; from 1 on, their number."


def finetune(
    sources: Annotated[
        list[str],
        Parameter(
            help="Tar shards, images or tables: files, folders, globs, local or s3://, gs://, az://, hf://."
        ),
    ],
    /,
    *,
    model: Annotated[
        str, Parameter(help="What is fine-tuned: a model folder or file of weights, timm:NAME or hf:NAME.")
    ],
    output: Annotated[
        str, Parameter(help="The model folder; of an unfinished training, the same command goes on with it.")
    ],
    image_size: Annotated[
        int | None, Parameter(help="Pixels a side, such as 384: positions are resampled.")
    ] = None,
    data: DataOptions | None = None,
    recipe: FinetuneOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
) -> int:
    """Train a trained model on: a new head of zeros for the classes of these images, larger pictures if asked for."""
    source = source or SourceOptions()
    start = ModelOptions(model).load(
        lambda said: Console(stderr=True, soft_wrap=True).print(said, markup=False), source.storage
    )
    sized = start.config.image_size if image_size is None else image_size
    asked = {
        "output": output,
        "config": replace(
            start.config,
            image_size=sized,
            num_classes=0,
            representation_size=0,
            projection=False,
            head_bias=True,
        ),
        "preprocessing": start.preprocessing,
        "start": start,
    }
    return execute(
        asked, sources, data or DataOptions(), recipe or FinetuneOptions(), source, run or RunOptions()
    )


if __name__ == "__main__":
    from wordsworth.jobs.cli import main_of

    main_of("finetune")
