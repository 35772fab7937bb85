"""List the formats of weights, each with what the code of the format does and its files do not say.

A format is recognised by names of tensors that no other format has. Its code fixes the GELU, the eps and the
way in which the position table is resampled. Formats whose code has several GELUs (CLIP), or whose names are
in use by many (timm), fix less.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import rename_tables
from wordsworth.vit_model.foreign.renames import Table
from wordsworth.vit_model.weights import State

# Mean and std of pixels in [0, 1], RGB.
HALF_COLOURS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET_COLOURS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_COLOURS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
# Fields of ViTConfig that the code of a format fixes.
META_SWITCHES = {"gelu": "exact", "norm_eps": 1e-6, "pos_interp": "hf"}  # DeiT, MAE, DINOv2
GOOGLE_SWITCHES = {"gelu": "tanh", "norm_eps": 1e-6, "pos_interp": "google"}
CLIP_SWITCHES = {"norm_eps": 1e-5, "pos_interp": "timm"}  # OpenAI's GELU is another than OpenCLIP's
HF_SWITCHES = {"pos_interp": "hf"}  # the config.json says the rest


@dataclass(frozen=True, kw_only=True)
class Format:
    """Hold one kind of file.

    Attributes:
        name: the name in messages.
        marks: patterns of names. A file in which each pattern is found is of this format.
        table: the renames. A tensor that the table does not name has our name already.
        prefix: pattern of what may stand in front of a name.
        tower: take only the tensors with the prefix, if there are any: the other tensors belong to another
            tower.
        respelled: {pattern: spelling in the table}, for files that spell a part of a name in another way.
        switches: fields of ViTConfig that hold for all weights in this format.
        class_row: the position table has a row for [class]. None: it may have one.
        no_table: the `position` of a model whose file holds no position table.
        preprocessing: of the images, where all files of the format agree.
        ignored: pattern of tensors that belong to such files but to no model that labels, such as a decoder.
        finish: the changes that no renaming makes.
    """

    name: str
    marks: tuple[str, ...]
    table: Table = ()
    prefix: str = ""
    tower: bool = False
    respelled: dict[str, str] = field(default_factory=dict)
    switches: dict[str, Any] = field(default_factory=dict)
    class_row: bool | None = True
    no_table: str = "none"
    preprocessing: Preprocessing | None = None
    ignored: str = r"(?!)"
    finish: Callable[[State], State] = lambda state: state

    @property
    def tells_all(self) -> bool:
        """Return whether a file alone is a model: `switches` holds what the names and shapes leave open."""
        return "gelu" in self.switches

    @property
    def is_hugging_face(self) -> bool:
        """Return whether such files lie beside a config.json of transformers."""
        return self.name.startswith("Hugging Face")

    def select(self, state: State) -> State:
        """Return the tensors that concern this format, without prefix and in the spelling of the table."""
        prefix = re.compile(self.prefix)
        if self.tower and any(prefix.match(key) for key in state):
            state = {key: tensor for key, tensor in state.items() if prefix.match(key)}
        return {self._spell(prefix.sub("", key, count=1)): tensor for key, tensor in state.items()}

    def _spell(self, key: str) -> str:
        for pattern, spelling in self.respelled.items():
            key = re.sub(pattern, spelling, key)
        return key


# ---- changes that no renaming makes ----


def distilled(state: State) -> State:
    """Turn DeiT's distillation token, position and head into our parts: a register, a head over two states.

    A register has no position, so the position of the token is added to the token for good. The mean of two
    heads is one head over both states side by side.
    """
    if "dist_token" not in state:
        return state
    state = dict(state)
    pos = state["pos_embed"]  # (1, 2+N, D)
    state["reg_token"] = state.pop("dist_token") + pos[:, 1:2]
    state["pos_embed"] = torch.cat([pos[:, :1], pos[:, 2:]], dim=1)
    if "head_dist.weight" in state:
        heads = torch.cat([state["head.weight"], state.pop("head_dist.weight")], dim=1)  # (K, 2D)
        state["head.weight"] = heads / 2
        state["head.bias"] = (state["head.bias"] + state.pop("head_dist.bias")) / 2
    return state


def undistilled(state: State, config: ViTConfig) -> State:
    """Turn our parts back into DeiT's: the token gets a position of zeros, both heads get the same bias."""
    state = dict(state)
    pos = state["pos_embed"]
    state["dist_token"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([pos[:, :1], torch.zeros_like(pos[:, :1]), pos[:, 1:]], dim=1)
    if config.num_classes:
        both = 2 * state["head.weight"]  # (K, 2D)
        state["head.weight"] = both[:, : config.width].contiguous()
        state["head_dist.weight"] = both[:, config.width :].contiguous()
        state["head_dist.bias"] = state["head.bias"].clone()
    return state


def _without_pooler(state: State) -> State:
    """Drop the pooler beside a head: a classifier of Hugging Face's does not use the pooler."""
    if "head.weight" not in state:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith("pre_logits.")}


def _siglip(state: State) -> State:
    """Split SigLIP's tensor of q, k and v in the pooling: ours has q apart from k and v.

    The kernel of a NaFlex model is a matrix (D, P*P*3) over patches, channels fastest.
    """
    state = dict(state)
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 2:
        side = math.isqrt(kernel.shape[1] // 3)
        state["patch_embed.proj.weight"] = (
            kernel.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()
        )
    for kind in ("weight", "bias"):
        fused = state.pop(f"attn_pool.qkv.{kind}", None)
        if fused is not None:
            width = len(fused) // 3
            state[f"attn_pool.q.{kind}"] = fused[:width].clone()
            state[f"attn_pool.kv.{kind}"] = fused[width:].clone()
    return state


# ---- the formats ----

# transformers 5 renamed its modules: its files keep the old names, state_dict() has the new names.
_V5 = {
    r"\battention\.q_proj\b": "attention.attention.query",
    r"\battention\.k_proj\b": "attention.attention.key",
    r"\battention\.v_proj\b": "attention.attention.value",
    r"\battention\.o_proj\b": "attention.output.dense",
    r"^layers\.": "encoder.layer.",
}
_V5_MLP = {r"\bmlp\.fc1\b": "intermediate.dense", r"\bmlp\.fc2\b": "output.dense"}
_LAYER = r"(encoder\.layer|layers)\.0\."
_MASK = r"embeddings\.mask_token"
# tf.image.resize to a square.
_SQUASHED = Preprocessing(interpolation="bilinear", crop_pct=1.0, crop_mode="squash", **HALF_COLOURS)
_DEIT = Preprocessing(interpolation="bicubic", crop_pct=0.875, **IMAGENET_COLOURS)


def _npz(name: str, marks: tuple[str, ...], table: Table, **more: Any) -> Format:
    """Return a format of Google's .npz files."""
    options: dict[str, Any] = {"preprocessing": _SQUASHED, "switches": GOOGLE_SWITCHES} | more
    return Format(name=name, marks=marks, table=table + rename_tables.NPZ_OTHER_NUMBERS, **options)


# In the order of recognition: the first format with all its marks in the file is taken.
WEIGHT_FORMATS = (
    _npz("Google's hybrid .npz", ("conv_root/kernel", "block1/.*"), rename_tables.NPZ_HYBRID),
    _npz("Google's hybrid .npz", ("conv_root/kernel",), rename_tables.NPZ_ROOT),
    _npz(
        "Google's .npz",
        ("embedding/kernel", "Transformer/posembed_input/pos_embedding"),
        rename_tables.NPZ,
    ),
    _npz(
        "big_vision's .npz",
        ("embedding/kernel", "Transformer/encoderblock_0/.*"),
        rename_tables.NPZ_BIG_VISION,
        preprocessing=Preprocessing(interpolation="bilinear", crop_pct=0.875, **HALF_COLOURS),
        class_row=False,
        no_table="sincos-2d",
    ),
    Format(
        name="Hugging Face DeiT",
        marks=(r"(deit\.)?embeddings\.distillation_token",),
        table=rename_tables.HF_DEIT,
        prefix=r"^deit\.",
        respelled=_V5 | _V5_MLP,
        switches=HF_SWITCHES,
        preprocessing=replace(_DEIT, crop_mode="squash"),
        ignored=_MASK,
        finish=distilled,
    ),
    Format(
        name="Hugging Face ViT",
        marks=(r"(vit\.)?" + _LAYER + r"layernorm_before\.weight",),
        table=rename_tables.HF_VIT,
        prefix=r"^vit\.",
        respelled=_V5 | _V5_MLP,
        switches=HF_SWITCHES,
        preprocessing=_SQUASHED,
        ignored=_MASK,
        finish=_without_pooler,
    ),
    Format(
        name="Hugging Face DINOv2",
        marks=(r"(dinov2\w*\.)?" + _LAYER + r"layer_scale1\.lambda1",),
        table=rename_tables.HF_DINOV2,
        prefix=r"^dinov2(_with_registers)?\.",
        respelled=_V5,
        switches=META_SWITCHES,
        preprocessing=_DEIT,
        ignored=_MASK,
    ),
    Format(
        name="Hugging Face CLIP",
        marks=(r"(vision_model\.)?pre_layrnorm\.weight",),
        table=rename_tables.HF_CLIP,
        prefix=r"^vision_model\.",
        switches=CLIP_SWITCHES,
        preprocessing=Preprocessing(interpolation="bicubic", crop_pct=1.0, **CLIP_COLOURS),
        ignored=r"text_model\..*|text_projection\.weight|logit_scale|embeddings\.position_ids",
    ),
    Format(
        name="Hugging Face SigLIP",
        marks=(r"(vision_model\.)?head\.probe",),
        table=rename_tables.HF_SIGLIP,
        prefix=r"^vision_model\.",
        switches={"norm_eps": 1e-6, "pos_interp": "hf"},
        preprocessing=Preprocessing(
            interpolation="bicubic", crop_pct=1.0, crop_mode="squash", **HALF_COLOURS
        ),
        ignored=r"text_model\..*|logit_(scale|bias)|embeddings\.position_ids",
        finish=_siglip,
    ),
    Format(
        name="OpenAI's or OpenCLIP's CLIP",
        marks=(r"(visual\.)?class_embedding", r"(visual\.)?conv1\.weight"),
        table=rename_tables.OPEN_CLIP,
        prefix=r"^visual\.",
        tower=True,
        switches=CLIP_SWITCHES,
    ),
    Format(
        name="torchvision",
        marks=(r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",),
        table=rename_tables.TORCHVISION,
        # The spelling in the files of torchvision's own hub.
        respelled={r"\bmlp\.linear_1\b": "mlp.0", r"\bmlp\.linear_2\b": "mlp.3"},
        switches=META_SWITCHES | {"pos_interp": "torchvision"},
        preprocessing=Preprocessing(interpolation="bilinear", crop_pct=0.875, **IMAGENET_COLOURS),
    ),
    Format(
        name="MAE",
        marks=(r"decoder_embed\.weight",),
        switches=META_SWITCHES,
        preprocessing=_DEIT,
        ignored=r"decoder_.*|mask_token",
    ),
    Format(
        name="DeiT III",
        marks=(r"blocks\.0\.gamma_1",),
        table=rename_tables.DEIT_III,
        switches=META_SWITCHES,
        class_row=False,
        preprocessing=replace(_DEIT, crop_pct=1.0),
    ),
    Format(
        name="DINOv2 with registers",
        marks=(r"register_tokens", r"blocks\.0\.ls1\.gamma"),
        table=rename_tables.DINOV2,
        switches=META_SWITCHES | {"pos_interp": "timm"},
        preprocessing=replace(_DEIT, crop_pct=1.0),
        ignored="mask_token",
    ),
    Format(
        name="DINOv2",
        marks=(r"mask_token", r"blocks\.0\.ls1\.gamma"),
        switches=META_SWITCHES | {"pos_interp": "dinov2"},
        preprocessing=replace(_DEIT, crop_pct=1.0),
        ignored="mask_token",
    ),
    Format(
        name="distilled DeiT",
        marks=(r"dist_token",),
        switches=META_SWITCHES,
        preprocessing=_DEIT,
        finish=distilled,
    ),
    Format(name="timm", marks=(r"blocks\.0\.attn\.qkv\.weight",), class_row=None),
)
