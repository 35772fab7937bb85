"""Weights that other code has written: which format is it, what are the tensors in our names, what model are they of."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wordsworth.vit_model.checkpoint import Checkpoint, fit, load_weights, saved_checkpoint
from wordsworth.vit_model.config import VARIANTS, ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import renames
from wordsworth.vit_model.foreign.formats import FORMATS, Format
from wordsworth.vit_model.foreign.renames import State

TELLING = (
    "norm_pre.",
    "attn_pool.",
    "reg_token",
    "blocks.0.ls1",
)  # parts of towers whose switches are not those of a plain ViT
SWIGLU = r"mlp\.(w12|w3|weights_in|gate_proj)\."


@dataclass(frozen=True)
class Translated:
    """The weights of a file in our names; what the format does not know keeps its own."""

    format: Format
    state: State
    own: State  # as the file names them, without prefix
    left_out: int  # tensors of the file that are no part of the model

    def called(self, ours: str) -> str:
        """What the file lacks when our tensor is missing."""
        absent = [name for name in renames.their_names(ours, self.format.table) if name not in self.own]
        return ", ".join(absent) or ours


def translate(state: State, where: str | Path) -> Translated:
    """Recognise the format and give the tensors our names.

    Raises:
        ModelError: no format known here.
    """
    state, dropped = _unwrapped(state, where)
    format = _recognised(state, where)
    own = format.own(state)
    ours, unknown = renames.read(own, format.table)
    left = [key for key in unknown if re.fullmatch(format.others, key)]
    ours |= {
        key: own[key] for key in unknown if key not in left
    }  # `fit` will refuse them, unless they are called so in the model
    if swiglu := [key for key in ours if re.search(SWIGLU, key)]:
        raise ModelError(
            f"{where} has a SwiGLU instead of an MLP with GELU ({swiglu[0]}), which this model lacks"
        )
    return Translated(format, format.finish(ours), own, dropped + len(state) - len(own) + len(left))


def _unwrapped(state: State, where: str | Path) -> tuple[State, int]:
    """Without the wrappers that trainers put around any model, and with blocks that were stored as one taken apart.

    Returns:
        The tensors, and how many were of another tower.
    """
    state = {
        re.sub(r"^(module\.|_orig_mod\.|opt/target/)+", "", key): tensor for key, tensor in state.items()
    }
    if language := [key for key in state if re.match(r"(params/)?llm/", key)]:
        raise ModelError(
            f"{where} is a language model with an image tower ({language[0]}), whose head is of tokens, not of images"
        )
    training = [key for key in state if key.startswith("opt/")]  # the optimizer's own
    for key in training:
        state.pop(key)
    dropped = len(training)
    for prefix in ("params/img/", "img/", "params/"):  # big_vision: two towers, or one
        if any(key.startswith(prefix) for key in state):
            own = {
                key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
            }
            state, dropped = own, dropped + len(state) - len(own)
    stacked = "Transformer/encoderblock/"
    for key in [key for key in state if key.startswith(stacked)]:
        for i, tensor in enumerate(state.pop(key)):
            state[key.replace(stacked, f"Transformer/encoderblock_{i}/")] = tensor
    return state, dropped


def _recognised(state: State, where: str | Path) -> Format:
    for format in FORMATS:
        if all(any(re.fullmatch(mark, key) for key in state) for mark in format.marks):
            return format
    names = ", ".join(dict.fromkeys(format.name for format in FORMATS))
    raise ModelError(
        f"{where} is in no format known here ({names}); its first tensors are {', '.join(list(state)[:3])}"
    )


# ---- what model is it ------------------------------------------------------------------------------------------------


def architecture(translated: Translated, where: str | Path, **known: Any) -> ViTConfig:
    """The config that the shapes of the tensors tell, with the switches of the format.

    Args:
        known: fields that are known otherwise, from a config.json or a named variant; they are not derived.

    Raises:
        ModelError: the shapes do not tell it.
    """
    state = translated.state
    try:
        fields = _stem(state) | _sizes(state) | _parts(state)
    except (KeyError, IndexError) as error:
        missing = (
            translated.called(str(error.args[0]))
            if isinstance(error, KeyError)
            else "a tensor of another shape"
        )
        raise ModelError(f"{where} does not have the tensors of a ViT: missing {missing}") from None
    fields |= {**translated.format.switches, **known}
    if "heads" not in fields:
        fields["heads"] = _heads(translated.own, fields, where)
    if "image_size" not in fields:
        side = _grid_side(translated, fields["class_token"], where)
        fields["image_size"] = side * fields["patch_size"]
    fields |= _position(state, fields, translated.format)
    return ViTConfig(**fields)


def _stem(state: State) -> dict[str, Any]:
    kernel = state["patch_embed.proj.weight"]  # (D, C, P, P)
    fields = {"patch_bias": "patch_embed.proj.bias" in state}
    stages: dict[int, int] = {}
    for key in state:
        if match := re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", key):
            stage, block = map(int, match.groups())
            stages[stage] = max(stages.get(stage, 0), block + 1)
    if any(key.startswith("patch_embed.backbone.") for key in state):
        fields["resnet"] = tuple(stages[i] for i in range(len(stages)))
        return fields | {"patch_size": kernel.shape[-1] * 4 * 2 ** max(len(stages) - 1, 0)}
    return fields | {"patch_size": kernel.shape[-1]}


def _sizes(state: State) -> dict[str, Any]:
    blocks = {int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    width = state["patch_embed.proj.weight"].shape[0]
    return {
        "width": width,
        "depth": max(blocks, default=-1) + 1,
        "mlp_dim": state["blocks.0.mlp.fc1.weight"].shape[0],
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "representation_size": state["pre_logits.weight"].shape[0] if "pre_logits.weight" in state else 0,
        "registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
    }


def _parts(state: State) -> dict[str, Any]:
    token = "cls_token" in state
    pool = (
        "map" if "attn_pool.latent" in state else "avg" if "fc_norm.weight" in state or not token else "token"
    )
    if (
        "head.weight" in state
        and state["head.weight"].shape[1] == 2 * state["blocks.0.norm1.weight"].shape[0]
    ):
        pool = "distilled"
    return {
        "class_token": token,
        "norm_pre": "norm_pre.weight" in state,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else 0.0,
        "pool": pool,
        "pool_norm": "fc_norm.weight" in state,
        "projection": "pre_logits.weight" in state and "pre_logits.bias" not in state,
        "head_bias": "head.weight" not in state or "head.bias" in state,
    }


def _heads(own: State, fields: dict[str, Any], where: str | Path) -> int:
    """Only flax's kernels (D, H, D_h) tell it; of the others the published sizes are known."""
    for key, tensor in own.items():
        if re.fullmatch(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_\d/query/kernel", key):
            return tensor.shape[1]
    sizes = {numbers[:3]: numbers[3] for numbers in VARIANTS.values()}
    size = fields["width"], fields["depth"], fields["mlp_dim"]
    if size not in sizes:
        what = "{} wide and {} deep with an MLP of {}".format(*size)
        raise ModelError(
            f"{where} holds a model {what}, no published size, and does not tell its heads: name a model that does with --model, "
            "and give this as --weights"
        )
    return sizes[size]


def _grid_side(translated: Translated, class_token: bool, where: str | Path) -> int:
    """Patches along a side; the table of a square image says it."""
    rows = translated.state["pos_embed"].shape[1] if "pos_embed" in translated.state else 0
    class_row = translated.format.class_row
    for own in (1, 0) if class_token and class_row is None else (int(class_token and bool(class_row)),):
        patches = rows - own
        side = round(max(patches, 0) ** 0.5)
        if side and side * side == patches:
            return side
    what = f"its position table has {rows} rows, which is no square" if rows else "it has no position table"
    raise ModelError(
        f"{where} does not tell its image size: {what}; name the architecture with --model and give this as --weights"
    )


def _position(state: State, fields: dict[str, Any], format: Format) -> dict[str, Any]:
    if "pos_embed" not in state:
        return {"position": format.no_table}
    size = fields["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // fields["patch_size"]) * (width // fields["patch_size"])
    return {"class_position": not fields["class_token"] or state["pos_embed"].shape[1] == patches + 1}


# ---- files as models and as weights ------------------------------------------------------------------------------------


def from_file(path: str | Path) -> Checkpoint:
    """A single file as the whole model: one of ours with its config inside, one whose format says all that its names do not, or
    one of Hugging Face's beside its config.json.

    Raises:
        ModelError: not such a file, or one that leaves the architecture open.
    """
    if own := saved_checkpoint(path):
        return own
    found = translate(load_weights(path), path)
    if found.format.name.startswith("Hugging Face") and (Path(path).parent / "config.json").is_file():
        from wordsworth.vit_model.foreign.huggingface import from_folder

        return from_folder(Path(path).parent)
    if not found.format.tells_all:
        names = "timm:NAME or B/16" if found.format.name == "timm" else "timm:NAME"
        raise ModelError(
            f"{path} has the names of {found.format.name}, which do not tell the GELU of the weights: "
            f"name the architecture, --model {names}, and give this file as --weights"
        )
    config = architecture(found, path)
    return checkpoint_of(found, config, _preprocessing_of(found, config), None, path)


def _preprocessing_of(found: Translated, config: ViTConfig) -> Preprocessing:
    """The format's; of some, files of one kind are prepared in another way."""
    usual = found.format.preprocessing or Preprocessing()
    if (
        found.format.name == "big_vision's .npz" and config.pool == "map" and not config.num_classes
    ):  # SigLIP: a tower without a head
        return replace(usual, crop_pct=1.0, crop_mode="squash")
    if found.format.name == "torchvision" and config.image_size != (224, 224):  # those of SWAG
        return replace(usual, interpolation="bicubic", crop_pct=1.0)
    return usual


def weights_for(config: ViTConfig, path: str | Path) -> tuple[ViTConfig, State]:
    """The tensors of a file for a model of this architecture; the switches that its format or a config.json beside it has
    replace the config's.

    Raises:
        ModelError: the file is of another architecture; says which tensors are missing, unexpected or misshapen.
    """
    from wordsworth.vit_model.foreign.huggingface import switches_beside

    found = translate(load_weights(path), path)
    beside = switches_beside(Path(path)) if found.format.name.startswith("Hugging Face") else {}
    config = replace(config, **(found.format.switches | beside))
    return config, fit(config, found.state, path, found.called)


def checkpoint_of(
    translated: Translated, config: ViTConfig, preprocessing: Preprocessing, labels, where: str | Path
) -> Checkpoint:
    """Weights whose config and preprocessing stand in files beside them."""
    state = fit(config, translated.state, where, translated.called)
    return Checkpoint(config, preprocessing, labels, state, _provenance(translated, where))


def _provenance(translated: Translated, where: str | Path) -> dict[str, Any]:
    left = {"left_out": translated.left_out} if translated.left_out else {}
    return {"format": translated.format.name, "weights": Path(where).name, **left}
