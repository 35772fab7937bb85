"""Explain a model by images: label each, see what it attended to, and draw the paper's figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.prediction.gpu import compute_in, find_gpu, own_gpus
from wordsworth.pipeline.report import explained_figures
from wordsworth.pipeline.report.explained_figures import Figure
from wordsworth.pipeline.sources.model_inputs import ImageFile, read_input
from wordsworth.vit_model.attended import Attention, Layout, layout_of, see
from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.inference import resolve_precision
from wordsworth.vit_model.patches import patchify

BEST = 5  # classes that are named of an image


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Say how a model is explained.

    Attributes:
        model: the model as it was named.
        layer: whose heads are drawn, as `explained_figures.heads` takes it.
        precision: "auto", "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
    """

    model: str
    layer: int | None = None
    precision: str = "auto"
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """Hold what a model says of one image.

    Attributes:
        name: of the image.
        width, height: pixels of the image, upright.
        best: (class, score) of the best classes, the best first; (None, value) of a model that gives a value;
            empty for a model without a head.
        figures: of the image.
    """

    name: str
    width: int
    height: int
    best: list[tuple[str | None, float]]
    figures: list[Figure] = field(default_factory=list)

    @property
    def told(self) -> str:
        """Return the prediction in words."""
        if not self.best:
            return "no label: the model gives embeddings"
        name, score = self.best[0]
        return f"value {score:.4g}" if name is None else f"{name} {score:.1%}"


@dataclass(kw_only=True)
class Explanation:
    """Hold the figures of a model and of images.

    Attributes:
        model: the model as it was named.
        facts: (name, value) of what was used.
        images: in their order.
        model_figures: of the model itself.
        notes: what is not drawn, and why.
    """

    model: str
    facts: list[tuple[str, str]]
    images: list[LabelledImage] = field(default_factory=list)
    model_figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """Return all figures: of the images, then of the model."""
        return [figure for image in self.images for figure in image.figures] + self.model_figures

    def add_note(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)


def explain(
    checkpoint: BaseCheckpoint, images: Sequence[ImageFile], settings: ExplainSettings
) -> Explanation:
    """Label images, and draw where their states come from and what the model has learned.

    Args:
        checkpoint: the model.
        images: at least one.
        settings: how.

    Raises:
        UserError: an image cannot be read, there is no such layer, or no GPU where one is asked for.
    """
    config = checkpoint.config
    decoding = DecodeSettings(
        preprocessing=checkpoint.preprocessing, image_size=config.image_size, patch_size=config.patch_size
    )
    inputs = [read_input(image, decoding) for image in images]
    device = _device(settings.device)
    precision = resolve_precision(settings.precision, device)
    compute_in(precision, device)
    found = Explanation(model=settings.model, facts=_facts(checkpoint, precision, device))
    model = checkpoint.model()
    layout = _layout(checkpoint, model)
    running = checkpoint.for_inference(precision, device)
    attentions = []
    for number, image in enumerate(inputs, 1):
        cells = torch.from_numpy(patchify(image.pixels, config.patch_size)).to(device)
        seen = see(running, cells, layout)
        labelled = LabelledImage(
            name=image.name, width=image.width, height=image.height, best=_best(checkpoint, seen.logits)
        )
        found.images.append(labelled)
        if isinstance(seen.attention, Attention):
            attentions.append(seen.attention)
            layout = seen.attention.layout
            labelled.figures.append(explained_figures.rollout(image, seen.attention, labelled.told, number))
            labelled.figures.extend(explained_figures.heads(image, seen.attention, settings.layer, number))
        else:
            found.add_note(f"no attention is drawn: {seen.attention}")
        if isinstance(layout, Layout):
            labelled.figures.append(explained_figures.patches(image, layout, number))
    _draw_model(found, checkpoint, model, layout)
    if attentions:
        found.model_figures.append(explained_figures.distances(attentions))
    return found


def _device(device: str) -> torch.device:
    """Return torch's device for the option: a GPU where it says so, or where there is one."""
    if device == "cuda" or (device == "auto" and own_gpus()):
        return find_gpu()
    return torch.device("cpu")


def _layout(checkpoint: BaseCheckpoint, model: nn.Module) -> Layout | str:
    """Return what the tokens of a model are, or why this cannot be told."""
    try:
        return layout_of(checkpoint, model)
    except ModelError as error:
        return str(error)


def _draw_model(
    found: Explanation, checkpoint: BaseCheckpoint, model: nn.Module, layout: Layout | str
) -> None:
    for figure in (
        explained_figures.filters(model, layout),
        explained_figures.positions(checkpoint, model, layout),
    ):
        if isinstance(figure, Figure):
            found.model_figures.append(figure)
        else:
            found.add_note(figure)


def _facts(checkpoint: BaseCheckpoint, precision: str, device: torch.device) -> list[tuple[str, str]]:
    """Return what is used, by name."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    facts = [("architecture", checkpoint.variant or "a Vision Transformer of one's own size")]
    if isinstance(checkpoint, Checkpoint):
        vit = checkpoint.config
        facts.append(("layers, width, heads", f"{vit.depth}, {vit.width}, {vit.heads}"))
    height, width = config.image_size
    steps = f"{preprocessing.interpolation}, {preprocessing.crop_mode} {preprocessing.crop_pct:g}"
    return [
        *facts,
        ("what the model sees", f"{width} x {height} pixels: {steps}, EXIF {preprocessing.exif}"),
        ("classes", f"{config.num_classes:,}"),
        ("precision and device", f"{precision}, {device.type}"),
        ("fingerprint of the model", checkpoint.fingerprint()),
    ]


def _best(checkpoint: BaseCheckpoint, logits: torch.Tensor | None) -> list[tuple[str | None, float]]:
    """Return the best classes and their scores, as `label` gives them."""
    if logits is None:
        return []
    if checkpoint.head.kind == "value":
        return [(None, float(logits[0]))]
    best, ids = logits.topk(min(BEST, len(logits)))
    scores = best.sigmoid() if checkpoint.head.kind == "sigmoid" else logits.softmax(-1)[ids]
    labels = checkpoint.labels
    pairs = []
    for number, score in zip(ids.tolist(), scores.tolist(), strict=True):
        pairs.append((labels[number] if labels else f"class {number}", score))
    return pairs
