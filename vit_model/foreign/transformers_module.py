"""Run image models of transformers: its own classes compute what our Vision Transformer does not cover."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError, as_size
from wordsworth.vit_model.foreign.heads import with_transformers_head
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.foreign.huggingface import read_weights
from wordsworth.vit_model.foreign.image_processors import read_image_processor
from wordsworth.vit_model.foreign.module import ModuleCheckpoint, ModuleConfig, tower_state
from wordsworth.vit_model.foreign.transformers_classes import (
    WITH_TEXT_TOWER,
    class_for,
    classifiers,
    encoders,
    library,
    load_tensors,
    one_line,
    their_config,
)
from wordsworth.vit_model.weights import NAMED_KEYS, State

# Fields of a config.json that say how transformers runs, what its answers look like, or what the classes are
# called: none of them is part of the model, and some would have code or weights fetched.
NOT_THE_MODEL = re.compile(
    r"_?attn_implementation.*|_?experts_implementation.*|use_kernels|auto_map|architectures|_name_or_path"
    r"|(torch_)?dtype|transformers_(version|weights)|fusion_config|(use_)?return_dict|torchscript"
    r"|output_(hidden_states|attentions)|id2label|label2id|num_labels|problem_type"
)
# What such a model needs for texts alone.
TEXT_PARTS = ("text_model", "text_projection", "logit_scale", "logit_bias", "temperature")
# model_type: the reading of a model without a head, where transformers gives no pooled vector.
READING_OF = {
    "cvt": "mean",  # its last stage is a map; the classifier's norm is no part of the plain model
    "ijepa": "mean",  # trained without a [class] token
    "internvl_vision": "class",
    "poolformer": "mean",
    "pvt": "class",  # its last stage has a [class] token
    "pvt_v2": "mean",
    "segformer": "mean",
    "swiftformer": "mean",
    "vit_mae": "class, unmasked",  # as its fine-tuning and linear probing do
    "vit_msn": "class",  # its targets are those of the [class] token
}
# model_type: fields without which a model would leave out patches at random.
WITHOUT_MASKING = {"vit_mae": {"mask_ratio": 0.0}}
# Classes with two heads over the same vector, whose mean is the answer.
TWO_HEADS = {
    "LevitForImageClassificationWithTeacher": ("classifier", "classifier_distill"),
    "SwiftFormerForImageClassification": ("head", "dist_head"),
}


def _answer(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what the heads give: (B, K), or (B, D) once they are taken out."""
    output = net(pixel_values=images)
    return output.logits if "logits" in output else output.last_hidden_state


def _pooled(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return net(pixel_values=images).pooler_output.flatten(1)


def _class_token(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return net(pixel_values=images).last_hidden_state[:, 0]


def _class_token_unmasked(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the [class] token of a masked autoencoder, whose patches would come in a random order."""
    in_order = torch.arange(net.embeddings.patch_embeddings.num_patches, device=images.device)
    return net(pixel_values=images, noise=in_order.expand(len(images), -1)).last_hidden_state[:, 0]


def _mean(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the mean of tokens (B, N, D), or of a map (B, D, H, W)."""
    states = net(pixel_values=images).last_hidden_state
    return states.mean(1) if states.ndim == 3 else states.mean((2, 3))


def _image_features(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return net.get_image_features(pixel_values=images).pooler_output


# How embeddings (B, D) are read from a model: the name stands in model folders.
READINGS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "heads": _answer,
    "pooled": _pooled,
    "class": _class_token,
    "class, unmasked": _class_token_unmasked,
    "mean": _mean,
    "image features": _image_features,
}


class TransformersTower(nn.Module):
    """Give logits and embeddings of a model of transformers.

    Its heads are taken out of it: the model then answers with the vector that they take.

    Attributes:
        net: transformers' module without its heads.
        heads: the heads. The logits are the mean of theirs; none: the model gives embeddings only.
        reading: one of READINGS.
        flips_channels: the model takes BGR.
    """

    def __init__(self, net: nn.Module, heads: tuple[str, ...], reading: str, flips_channels: bool = False):
        """Take the heads, by the names of their modules, out of a model."""
        super().__init__()
        self.heads = nn.ModuleList(net.get_submodule(name) for name in heads)
        self.head_names = heads
        self.net = net
        self.reading = reading
        self.flips_channels = flips_channels
        for name in heads:
            net.set_submodule(name, nn.Identity())
        if reading == "image features":
            for part in TEXT_PARTS:
                if hasattr(net, part):
                    setattr(net, part, None)

    @property
    def classifier(self) -> nn.Linear | None:
        """Return the head, if there is one and it is linear."""
        only = self.heads[0] if len(self.heads) == 1 else None
        return only if isinstance(only, nn.Linear) else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Map normalised images (B, 3, H, W) to logits (B, K) or None, and embeddings (B, D)."""
        if self.flips_channels:
            images = images.flip(1)
        embedding = READINGS[self.reading](self.net, images)
        if not self.heads:
            return None, embedding
        if self.classifier is not None:
            embedding = embedding.float()
        return torch.stack([head(embedding) for head in self.heads]).mean(0), embedding


def build_tower(config: ModuleConfig) -> TransformersTower:
    """Build transformers' module for a config.

    Raises:
        ModelError: transformers is missing, or this version of it does not build the model.
    """
    arguments = config.arguments
    theirs = their_config(arguments["config"], config.architecture)
    kinds = {kind.__name__: kind for kind in (*classifiers(theirs), *encoders(theirs))}
    with one_line(f"{library()} does not build {config.architecture}"):
        net = kinds[config.architecture](theirs)
    return TransformersTower(
        net, tuple(arguments["heads"]), arguments["reading"], arguments["flips_channels"]
    )


# ---- load a folder ----


def load_transformers_module(folder: str | Path) -> ModuleCheckpoint:
    """Load a folder that `save_pretrained` wrote, for transformers' own class.

    Raises:
        ModelError: transformers is missing or does not know the model; the model gives neither labels nor
            embeddings of images; a tensor is missing.
    """
    folder = Path(folder)
    about = read_json(folder / CONFIG)
    if "quantization_config" in about:
        raise ModelError(f"{folder} has quantised weights: give the model before its quantisation")
    values = _model_fields(about) | WITHOUT_MASKING.get(about["model_type"], {})
    theirs = their_config(values, folder)
    kind = class_for(about, theirs, folder)
    labels = kind in classifiers(theirs)
    if labels:
        # Two is transformers' default, which it leaves out of the file.
        values["num_labels"] = len(about.get("id2label") or ()) or about.get("num_labels") or 2
    processor = read_image_processor(folder, theirs.model_type)
    weights, state = read_weights(folder)
    net, left_out = _with_weights(kind, values, state, weights)
    num_tensors = len(net.state_dict())
    config = ModuleConfig(
        library="transformers",
        architecture=kind.__name__,
        arguments={"config": values, "flips_channels": processor.flips_channels},
        image_size=processor.image_size or as_size(_image_size(about)),
        num_classes=values["num_labels"] if labels else 0,
        embedding_dim=0,
    )
    tower = _tower(net, config, theirs.model_type)
    left_out += num_tensors - len(tower.state_dict())  # the text tower's
    config = replace(
        config,
        arguments=config.arguments | {"heads": list(tower.head_names), "reading": tower.reading},
        embedding_dim=_run(tower, config.image_size)[1].shape[1],
        linear_head=tower.classifier is not None,
    )
    extra = {"weights": weights.name} | ({"left_out": left_out} if left_out else {})
    found = ModuleCheckpoint(
        config=config,
        preprocessing=processor.preprocessing,
        state=tower_state(tower.state_dict()),
        extra=extra,
    )
    return with_transformers_head(found, about) if labels else found


def _model_fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json that describe the model, of its towers as well."""
    kept = {}
    for name, value in about.items():
        if not NOT_THE_MODEL.fullmatch(name):
            kept[name] = _model_fields(value) if isinstance(value, dict) else value
    return kept


def _image_size(about: dict[str, Any]) -> Any:
    """Return the image size of a config.json, for a folder without a processor."""
    size = about.get("vision_config", about).get("image_size") or 224
    return tuple(size) if isinstance(size, list) else size


def _with_weights(kind: Any, values: dict[str, Any], state: State, where: Path) -> tuple[nn.Module, int]:
    """Build a model and load its tensors, whose names of older versions transformers knows.

    Args:
        kind: transformers' class.
        values: the fields of its config. The number of classes becomes that of the weights.
        state: the tensors under the names of the file.
        where: the file, in messages.

    Returns:
        The model in eval mode, and the number of tensors that are no part of it.

    Raises:
        ModelError: a tensor is missing or has another shape. transformers itself would make it up.
    """
    net, found = load_tensors(kind, their_config(values, where), state, where)
    misshapen = sorted(found["mismatched_keys"])
    outputs = {theirs[0] for _, theirs, ours in misshapen if ours[0] == values.get("num_labels")}
    if len(outputs) == 1:  # id2label does not name every class
        values["num_labels"] = outputs.pop()
        net, found = load_tensors(kind, their_config(values, where), state, where)
        misshapen = sorted(found["mismatched_keys"])
    if misshapen:
        told = [f"{name} is {tuple(theirs)}, not {tuple(ours)}" for name, theirs, ours in misshapen]
        raise ModelError(f"{where} does not fit {kind.__name__}: {', '.join(told[:NAMED_KEYS])}")
    missing = sorted(found["missing_keys"])
    if missing:
        names = ", ".join(missing[:NAMED_KEYS])
        raise ModelError(f"{where} lacks {len(missing)} tensors of {kind.__name__}: {names}")
    return net, len(found["unexpected_keys"])


# ---- find the heads, or the embedding ----


def _tower(net: nn.Module, config: ModuleConfig, model_type: str) -> TransformersTower:
    """Return the tower of a model with its weights.

    Raises:
        ModelError: no head gives the logits, or the model gives no vector for an image.
    """
    flips = config.arguments["flips_channels"]
    if not config.num_classes:
        return TransformersTower(net, (), _reading(net, config, model_type), flips)
    with one_line(f"{config.architecture} does not take images of {config.image_size}"):
        expected = _run(lambda images: _answer(net, images), config.image_size)
    for heads in _candidates(net, config):
        tower = TransformersTower(net, heads, "heads")
        found, embedding = _run(tower, config.image_size)
        if embedding.ndim == 2 and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            tower.flips_channels = flips
            return tower
        for name, head in zip(heads, tower.heads, strict=True):
            net.set_submodule(name, head)
    raise ModelError(f"{config.architecture} has no head that gives its logits from one vector")


def _candidates(net: nn.Module, config: ModuleConfig) -> Iterator[tuple[str, ...]]:
    """Yield what may be the heads of a model: layers with an output for each class, the last one first."""
    if config.architecture in TWO_HEADS:
        yield TWO_HEADS[config.architecture]
    for name, module in reversed(list(net.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == config.num_classes:
            yield (name,)


def _reading(net: nn.Module, config: ModuleConfig, model_type: str) -> str:
    """Return how the embedding of a model without a head is read."""
    if model_type in WITH_TEXT_TOWER and hasattr(net, "get_image_features"):
        return "image features"
    if model_type in READING_OF:
        return READING_OF[model_type]
    with one_line(f"{config.architecture} does not take images of {config.image_size}"):
        output = _run(lambda images: net(pixel_values=images), config.image_size)
    if output.get("pooler_output") is None:
        raise ModelError(f"{config.architecture} gives no vector for a whole image")
    return "pooled"


@torch.no_grad()
def _run(model: Callable[[torch.Tensor], Any], image_size: tuple[int, int]) -> Any:
    """Return what a model answers to two images of noise."""
    generator = torch.Generator().manual_seed(0)
    return model(torch.randn(2, 3, *image_size, generator=generator))
