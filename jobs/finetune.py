"""wordsworth finetune SOURCE... --model MODEL --output MODEL_DIR: fit a trained model to your own classes."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from wordsworth.jobs.cluster_options import WorkersOptions
from wordsworth.jobs.live import LiveDisplay, first_wait
from wordsworth.jobs.options import Flag, ModelOptions, SourceOptions, Sources, WeightsOptions
from wordsworth.jobs.train_options import (
    NOT_ASKED,
    RECIPE,
    Count,
    DataOptions,
    ModelFolder,
    Natural,
    NotNegative,
    Positive,
    RecipeOptions,
    RunOptions,
    TrainOptions,
    run_training,
    train_request,
)
from wordsworth.pipeline.cluster.joining import reach
from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from wordsworth.vit_model.checkpoint import Checkpoint

WITHOUT_CLASSES = ("masked-patch", "mae")  # objectives
# What the head looks at after these: docs/training.md, "Without classes", has what it brings.
AFTER_MASKS: Literal["avg-norm"] = "avg-norm"


@Parameter(name="*", group=RECIPE)
@dataclass
class FinetuneOptions(RecipeOptions):
    """Fine-tune as the paper does (B.1.1): SGD with momentum, no weight decay, cosine decay."""

    default_batch: ClassVar[int] = 512

    epochs: Count = 8
    "How often the model sees every image."
    batch_size: Count | None = None
    "Images in one step, over all workers: 512, if not given, or fewer where there are fewer images."
    optimizer: Literal["adamw", "sgd"] = "sgd"
    "sgd has a momentum of 0.9."
    lr: Positive = 0.01
    "The peak of the learning rate: the paper tries 0.001 to 0.03."
    weight_decay: NotNegative = 0.0
    "Of AdamW and SGD, for matrices alone."
    warmup: NotNegative = 0.05
    "The share of the steps in which the learning rate rises; from 1 on, their number."
    freeze: Annotated[bool, Flag] = field(default=False, metadata=NOT_ASKED)
    "Train the head alone (a linear probe): all other weights stay as they are."
    unfreeze_last: Natural | None = None
    "Train the head, the final norm and the last N blocks alone."

    def asked(self) -> dict[str, Any]:
        """Return the recipe as fields of a TrainRequest.

        Raises:
            UserError: as for every recipe.
        """
        asked = super().asked()
        if self.freeze and self.unfreeze_last is None:
            asked["unfreeze_last"] = 0
        return asked


def finetune(
    sources: Sources,
    /,
    *,
    model: WeightsOptions,
    output: ModelFolder,
    image_size: Annotated[
        int | None, Parameter(help="Pixels a side, such as 384: positions are resampled.")
    ] = None,
    pool: Annotated[
        Literal["token", "avg", "avg-norm"] | None,
        Parameter(
            help="""What the head looks at: [class]; the mean of the patches; or their mean and then the final
            norm. Without it: avg-norm after pre-training without classes, else as the model."""
        ),
    ] = None,
    data: DataOptions | None = None,
    recipe: FinetuneOptions | None = None,
    source: SourceOptions | None = None,
    run: RunOptions | None = None,
    cluster: WorkersOptions | None = None,
) -> int:
    """Train a trained model further, on classes of your own.

    The model gets a new head of zeros for the classes of these images, and larger images if asked for.
    """
    source = source or SourceOptions()
    data = data or DataOptions()
    cluster = cluster or WorkersOptions()
    run = run or RunOptions()
    options = TrainOptions(
        data=data,
        recipe=recipe or FinetuneOptions(),
        source=source,
        run=run,
        cluster=cluster,
    )
    with LiveDisplay() as display:
        display.wait_for(first_wait([*sources, *(data.val or ()), output]))
        reach(cluster.request, display.note)
        source.check(*sources, *(data.val or ()), model.model, model.weights, output=output, is_new=True)
        display.wait_for("loading the model")
        start = _start(model, source, display.note)
        if pool is None and start.extra.get("objective") in WITHOUT_CLASSES:
            pool = AFTER_MASKS
            display.note(
                f"--model was trained by {start.extra['objective']}: the new head looks at the mean of the "
                f"patches, which then pass the final norm (--pool {pool})"
            )
        if pool:
            start = start.pooled(pool)
        size = start.config.image_size if image_size is None else (image_size, image_size)
        config = replace(start.config.with_head(0), image_size=size)
        asked = {"output": output, "config": config, "preprocessing": start.preprocessing, "start": start}
        request = train_request(sources, asked, options)
    return run_training(request, run.json)


def _start(model: WeightsOptions, source: SourceOptions, note: Callable[[str], None]) -> "Checkpoint":
    """Return the model that is fine-tuned. `note` gets what the user should know of it.

    Raises:
        UserError: an architecture is named and no weights.
        ModelError: another library's module computes the model.
    """
    from wordsworth.pipeline.prediction.model_names import is_variant
    from wordsworth.vit_model.checkpoint import Checkpoint
    from wordsworth.vit_model.config import ModelError

    if is_variant(model.model) and model.weights is None:
        raise UserError(
            f"--model {model.model} names an architecture but no weights: add --weights FILE, or train from "
            f"random weights: wordsworth pretrain --variant {model.model}",
            exit_code=2,
        )
    options = ModelOptions(**{option.name: getattr(model, option.name) for option in fields(model)})
    loaded = options.load(note, source.storage)
    if isinstance(loaded, Checkpoint):
        return loaded
    library, _, architecture = (loaded.variant or "").partition(":")
    raise ModelError(
        f"--model {model.model}: finetune trains our own Vision Transformer, which computes plain ViTs and "
        "DeiTs of timm: and hf:, Google's files, and models of pretrain and finetune; "
        f"{architecture} is a module of {library}. Train it with {library}, and give label the file by "
        "--weights; or see by evaluate --train what a linear classifier of its embeddings would reach"
    )
