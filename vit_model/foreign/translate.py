"""Translate other people's weights: recognise the format, rename tensors, tell the model from shapes."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import renames
from wordsworth.vit_model.foreign.formats import WEIGHT_FORMATS, Format, distilled
from wordsworth.vit_model.foreign.wrappers import Unwrapped, unwrap
from wordsworth.vit_model.variants import VARIANTS
from wordsworth.vit_model.weights import State, check_weights

OUTER_HEADS = ("head", "classifier", "fc")  # names of the linear layer over a `backbone`
SWIGLU = r"mlp\.(w12|w3|weights_in|gate_proj)\."


@dataclass(frozen=True, kw_only=True)
class Translated:
    """Hold the weights of a file under our names.

    Attributes:
        format: the format of the file.
        state: the tensors under our names. A tensor that the format does not know keeps its own name.
        own: the tensors as the file names them, without prefix.
        left_out: number of tensors of the file that are no part of the model.
        wrapped: the model among the tensors of the file.
        outer_head: the name of the head where it stands beside the model; "" elsewhere.
    """

    format: Format
    state: State
    own: State
    left_out: int
    wrapped: Unwrapped
    outer_head: str = ""

    def called(self, ours: str) -> str:
        """Return the names that the file lacks when our tensor is missing."""
        absent = [name for name in renames.their_names(ours, self.format.table) if name not in self.own]
        return ", ".join(absent) or ours

    def provenance(self, where: str | Path) -> dict[str, Any]:
        """Return the origin of the weights, as a Checkpoint keeps it in `extra`."""
        origin = {"format": self.format.name} | self.wrapped.provenance(where, self.left_out)
        return origin | ({"head": self.outer_head} if self.outer_head else {})


def translate(state: State, where: str | Path) -> Translated:
    """Recognise the format and give the tensors our names.

    Args:
        state: the tensors of a file.
        where: name of the file in messages.

    Raises:
        ModelError: no known format.
    """
    wrapped = unwrap(state, lambda tensors: _format_of(tensors) is not None, where)
    _refuse_language_model(wrapped.state, where)
    tower = _image_tower(wrapped.state)
    dropped = len(state) - len(tower)
    tower = _unstacked(tower)
    format = _recognise(tower, where)
    own = format.select(tower)
    dropped += len(tower) - len(own)
    ours, unknown = renames.read(own, format.table)
    for key in unknown:
        if re.fullmatch(format.ignored, key) or _is_counter(own[key]):
            dropped += 1
        else:  # `check_weights` will refuse the tensor, unless the model calls it so
            ours[key] = own[key]
    for key in ours:
        if re.search(SWIGLU, key):
            lack = "which this model lacks"
            raise ModelError(f"{where} has a SwiGLU instead of an MLP with GELU ({key}), {lack}")
    head = _outer_head(wrapped.outside, ours, format)
    if head:
        for kind in ("weight", "bias"):
            if f"{head}.{kind}" in wrapped.outside:
                ours[f"head.{kind}"] = wrapped.outside[f"{head}.{kind}"]
                dropped -= 1
    return Translated(
        format=format,
        state=format.finish(ours),
        own=own,
        left_out=dropped,
        wrapped=wrapped,
        outer_head=head,
    )


def _outer_head(outside: State, ours: State, format: Format) -> str:
    """Return the name of a linear layer beside a model without a head that takes the model's output, or "".

    Where a format's tower has more layers between output and head, the layer does not tell what it takes.
    """
    if "head.weight" in ours or format.is_hugging_face or format.tower or format.finish is distilled:
        return ""
    width = len(ours.get("norm.weight", ours.get("fc_norm.weight", ())))
    fitting = []
    for name in OUTER_HEADS:
        weight = outside.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2 and weight.shape[1] == width:
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else ""


def _is_counter(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor counts something, such as batches, and is no parameter."""
    return tensor.numel() == 1 and not tensor.is_floating_point()


def _refuse_language_model(state: State, where: str | Path) -> None:
    for key in state:
        if re.match(r"(params/)?llm/", key):
            reason = "whose head is of tokens, not of images"
            raise ModelError(f"{where} is a language model with an image tower ({key}), {reason}")


def _image_tower(state: State) -> State:
    """Return the tensors of the image tower, without those of the optimizer and of other towers."""
    tower = {key: tensor for key, tensor in state.items() if not key.startswith("opt/")}
    for prefix in ("params/img/", "img/", "params/"):  # big_vision: two towers, or one
        if any(key.startswith(prefix) for key in tower):
            own = [key for key in tower if key.startswith(prefix)]
            tower = {key.removeprefix(prefix): tower[key] for key in own}
    return tower


def _unstacked(state: State) -> State:
    """Return the tensors with every tensor of all blocks taken apart (big_vision with scan=True)."""
    stacked = "Transformer/encoderblock/"
    apart = {key: tensor for key, tensor in state.items() if not key.startswith(stacked)}
    for key, tensor in state.items():
        if key.startswith(stacked):
            for i, block in enumerate(tensor):
                apart[key.replace(stacked, f"Transformer/encoderblock_{i}/")] = block
    return apart


def _recognise(state: State, where: str | Path) -> Format:
    format = _format_of(state)
    if format:
        return format
    names = ", ".join(dict.fromkeys(format.name for format in WEIGHT_FORMATS))
    first = ", ".join(list(state)[:3])
    raise ModelError(f"{where} is in no format known here ({names}); its first tensors are {first}")


def _format_of(state: State) -> Format | None:
    for format in WEIGHT_FORMATS:
        if all(_has(state, mark) for mark in format.marks):
            return format
    return None


def _has(state: State, pattern: str) -> bool:
    return any(re.fullmatch(pattern, key) for key in state)


# ---- the model that the shapes tell ----


def architecture(translated: Translated, where: str | Path, **known: Any) -> ViTConfig:
    """Return the config that the shapes of the tensors tell, with the switches of the format.

    Args:
        translated: the weights.
        where: name of the file in messages.
        known: fields that are known from elsewhere, such as a config.json; these fields are not derived.

    Raises:
        ModelError: the shapes leave the config open.
    """
    state = translated.state
    try:
        fields = _stem_fields(state) | _size_fields(state) | _part_fields(state)
    except KeyError as error:
        missing = translated.called(str(error.args[0]))
        raise ModelError(f"{where} does not have the tensors of a ViT: missing {missing}") from None
    except IndexError:
        missing = "a tensor of another shape"
        raise ModelError(f"{where} does not have the tensors of a ViT: missing {missing}") from None
    fields |= {**translated.format.switches, **known}
    if "heads" not in fields:
        fields["heads"] = _num_heads(translated.own, fields, where)
    if "image_size" not in fields:
        fields["image_size"] = fields["patch_size"] * _grid_side(translated, fields["class_token"], where)
    fields |= _position_fields(state, fields, translated.format)
    return ViTConfig(**fields)


def _stem_fields(state: State) -> dict[str, Any]:
    kernel = state["patch_embed.proj.weight"]  # (D, C, P, P)
    fields: dict[str, Any] = {"patch_bias": "patch_embed.proj.bias" in state, "patch_size": kernel.shape[-1]}
    if any(key.startswith("patch_embed.backbone.") for key in state):
        resnet = _num_bottlenecks(state)
        fields["resnet"] = resnet
        fields["patch_size"] *= 4 * 2 ** max(len(resnet) - 1, 0)
    return fields


def _num_bottlenecks(state: State) -> tuple[int, ...]:
    """Return the number of bottlenecks of each stage of a hybrid's ResNet."""
    stages: dict[int, int] = {}
    for key in state:
        match = re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", key)
        if match:
            stage, block = int(match[1]), int(match[2])
            stages[stage] = max(stages.get(stage, 0), block + 1)
    return tuple(stages[i] for i in range(len(stages)))


def _size_fields(state: State) -> dict[str, Any]:
    depth = 0
    for key in state:
        match = re.match(r"blocks\.(\d+)\.", key)
        if match:
            depth = max(depth, int(match[1]) + 1)
    return {
        "width": state["patch_embed.proj.weight"].shape[0],
        "depth": depth,
        "mlp_dim": state["blocks.0.mlp.fc1.weight"].shape[0],
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "representation_size": state["pre_logits.weight"].shape[0] if "pre_logits.weight" in state else 0,
        "registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
    }


def _part_fields(state: State) -> dict[str, Any]:
    return {
        "class_token": "cls_token" in state,
        "norm_pre": "norm_pre.weight" in state,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else 0.0,
        "pool": _pool(state),
        "pool_norm": "fc_norm.weight" in state,
        "projection": "pre_logits.weight" in state and "pre_logits.bias" not in state,
        "head_bias": "head.weight" not in state or "head.bias" in state,
    }


def _pool(state: State) -> str:
    if (
        "head.weight" in state
        and state["head.weight"].shape[1] == 2 * state["blocks.0.norm1.weight"].shape[0]
    ):
        return "distilled"
    if "attn_pool.latent" in state:
        return "map"
    if "fc_norm.weight" in state or "cls_token" not in state:
        return "avg"
    return "token"


def _num_heads(own: State, fields: dict[str, Any], where: str | Path) -> int:
    """Return the number of heads, which flax's kernels (D, H, D_h) tell, or else the published size."""
    for key, tensor in own.items():
        if re.fullmatch(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_\d/query/kernel", key):
            return tensor.shape[1]
    size = fields["width"], fields["depth"], fields["mlp_dim"]
    heads = published_heads(*size)
    if heads is None:
        what = "{} wide and {} deep with an MLP of {}".format(*size)
        raise ModelError(
            f"{where} holds a model {what}, no published size, and does not tell its heads: "
            "name a model that does with --model, and give this as --weights"
        )
    return heads


def published_heads(width: int, depth: int, mlp_dim: int) -> int | None:
    """Return the number of heads of the named variant of this size, or None."""
    sizes = {numbers[:3]: numbers[3] for numbers in VARIANTS.values()}
    return sizes.get((width, depth, mlp_dim))


def _grid_side(translated: Translated, class_token: bool, where: str | Path) -> int:
    """Return the patches along a side of a square image, from the rows of the position table."""
    rows = translated.state["pos_embed"].shape[1] if "pos_embed" in translated.state else 0
    for class_rows in _possible_class_rows(translated.format, class_token):
        patches = rows - class_rows
        side = round(max(patches, 0) ** 0.5)
        if side and side * side == patches:
            return side
    what = f"its position table has {rows} rows, which is no square" if rows else "it has no position table"
    advice = "name the architecture with --model and give this as --weights"
    raise ModelError(f"{where} does not tell its image size: {what}; {advice}")


def _possible_class_rows(format: Format, class_token: bool) -> tuple[int, ...]:
    if not class_token:
        return (0,)
    if format.class_row is None:
        return (1, 0)
    return (int(format.class_row),)


def _position_fields(state: State, fields: dict[str, Any], format: Format) -> dict[str, Any]:
    if "pos_embed" not in state:
        return {"position": format.no_table}
    size = fields["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // fields["patch_size"]) * (width // fields["patch_size"])
    return {"class_position": not fields["class_token"] or state["pos_embed"].shape[1] == patches + 1}


def checkpoint_of(
    translated: Translated,
    config: ViTConfig,
    preprocessing: Preprocessing,
    where: str | Path,
    labels: tuple[str, ...] | None = None,
) -> Checkpoint:
    """Return the weights with their config, preprocessing and labels, once the weights fit the config.

    Raises:
        ModelError: the weights do not fit.
    """
    return Checkpoint(
        config=config,
        preprocessing=preprocessing,
        labels=labels,
        state=check_weights(config, translated.state, where, translated.called),
        extra=translated.provenance(where),
    )


def with_classes_of(state: State, config: ViTConfig) -> ViTConfig:
    """Return the config with the head that the tensors have: its number of classes, or none."""
    if "head.weight" not in state:
        return replace(config, num_classes=0, head_bias=True)
    return replace(config, num_classes=state["head.weight"].shape[0], head_bias="head.bias" in state)
