"""The formats that weights are found in, each with what its files do not say but its code does.

A format is recognised by names that only it has. It knows the GELU, the eps and the way its position table is resampled;
formats whose code has several (CLIP), or whose names are anybody's (timm), know none of that.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.foreign import renames
from wordsworth.vit_model.foreign.renames import State, Table

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
META = {"gelu": "exact", "norm_eps": 1e-6, "pos_interp": "hf"}  # DeiT, MAE, DINOv2
GOOGLE = {"gelu": "tanh", "norm_eps": 1e-6, "pos_interp": "google"}
CLIP = {"norm_eps": 1e-5, "pos_interp": "timm"}  # and OpenAI's GELU is another than OpenCLIP's
HF = {"pos_interp": "hf"}  # its config.json says the rest


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Args:
        marks: patterns of names; a file in which each of them is found is of this format.
        table: the renames; what it does not name has our name already.
        prefix: pattern of what may stand in front of a name.
        tower: take only the tensors with the prefix, if there are any: the others are of another tower.
        switches: fields of ViTConfig that hold for all weights in this format.
        class_row: whether the position table has a row for [class]; None: it may.
        no_table: what position a model has whose file holds no table.
        others: pattern of tensors that belong to such files but to no model that labels, such as a decoder.
        finish: what no renaming does.
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
    others: str = r"(?!)"
    finish: Callable[[State], State] = lambda state: state

    @property
    def tells_all(self) -> bool:
        """Whether a file alone is a model: what its names and shapes leave open stands in `switches`."""
        return "gelu" in self.switches

    def own(self, state: State) -> State:
        """The tensors that concern this format, without prefix and in the spelling of its table."""
        prefix = re.compile(self.prefix)
        if self.tower and any(prefix.match(key) for key in state):
            state = {key: tensor for key, tensor in state.items() if prefix.match(key)}
        return {self._spelled(prefix.sub("", key, count=1)): tensor for key, tensor in state.items()}

    def _spelled(self, key: str) -> str:
        for pattern, spelling in self.respelled.items():
            key = re.sub(pattern, spelling, key)
        return key


def distilled(state: State) -> State:
    """DeiT's distillation token, its position and its head in our parts: a register, and a head over both states.

    A register has no position, so its own is added to it for good. The mean of two heads is one head over both states side by side.
    """
    if "dist_token" not in state:
        return state
    state = dict(state)
    pos = state["pos_embed"]  # (1, 2+N, D)
    state["reg_token"] = state.pop("dist_token") + pos[:, 1:2]
    state["pos_embed"] = torch.cat([pos[:, :1], pos[:, 2:]], dim=1)
    if "head_dist.weight" in state:
        state["head.weight"] = (
            torch.cat([state["head.weight"], state.pop("head_dist.weight")], dim=1) / 2
        )  # (K, 2D)
        state["head.bias"] = (state["head.bias"] + state.pop("head_dist.bias")) / 2
    return state


def undistilled(state: State, config: ViTConfig) -> State:
    """The inverse of `distilled`, as far as there is one: a position of zeros, and heads that have the same bias."""
    state, width = dict(state), config.width
    pos = state["pos_embed"]
    state["dist_token"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([pos[:, :1], torch.zeros_like(pos[:, :1]), pos[:, 1:]], dim=1)
    if config.num_classes:
        both = 2 * state["head.weight"]  # (K, 2D)
        state |= {
            "head.weight": both[:, :width].contiguous(),
            "head_dist.weight": both[:, width:].contiguous(),
        }
        state["head_dist.bias"] = state["head.bias"].clone()
    return state


def _without_pooler(state: State) -> State:
    """A classifier of Hugging Face's does not use the pooler that may lie beside it."""
    if "head.weight" not in state:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith("pre_logits.")}


def _split_pool(state: State) -> State:
    """SigLIP's pooling has q, k and v in one tensor, ours has q for itself."""
    state = dict(state)
    for kind in ("weight", "bias"):
        if (fused := state.pop(f"attn_pool.qkv.{kind}", None)) is not None:
            width = len(fused) // 3
            state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = (
                fused[:width].clone(),
                fused[width:].clone(),
            )
    return state


_V5 = {  # transformers 5 renamed its modules; its files keep the old names, state_dict() has the new ones
    r"\battention\.q_proj\b": "attention.attention.query",
    r"\battention\.k_proj\b": "attention.attention.key",
    r"\battention\.v_proj\b": "attention.attention.value",
    r"\battention\.o_proj\b": "attention.output.dense",
    r"^layers\.": "encoder.layer.",
}
_V5_MLP = {r"\bmlp\.fc1\b": "intermediate.dense", r"\bmlp\.fc2\b": "output.dense"}
_LAYER = r"(encoder\.layer|layers)\.0\."
_MASK = r"embeddings\.mask_token"
_SQUASHED = Preprocessing("bilinear", 1.0, HALF, HALF, crop_mode="squash")  # tf.image.resize to a square
_DEIT = Preprocessing("bicubic", 0.875, *IMAGENET)


def _npz(
    name: str, marks: tuple[str, ...], table: Table, preprocessing: Preprocessing = _SQUASHED, **more: Any
) -> Format:
    return Format(
        name, marks, table + renames.NPZ_OTHER_NUMBERS, switches=GOOGLE, preprocessing=preprocessing, **more
    )


FORMATS = (
    _npz("Google's hybrid .npz", ("conv_root/kernel", "block1/.*"), renames.NPZ_HYBRID),
    _npz("Google's hybrid .npz", ("conv_root/kernel",), renames.NPZ_ROOT),
    _npz("Google's .npz", ("embedding/kernel", "Transformer/posembed_input/pos_embedding"), renames.NPZ),
    _npz(
        "big_vision's .npz",
        ("embedding/kernel", "Transformer/encoderblock_0/.*"),
        renames.NPZ_BIG_VISION,
        Preprocessing("bilinear", 0.875, HALF, HALF),
        class_row=False,
        no_table="sincos-2d",
    ),
    Format(
        "Hugging Face DeiT",
        (r"(deit\.)?embeddings\.distillation_token",),
        renames.HF_DEIT,
        r"^deit\.",
        respelled=_V5 | _V5_MLP,
        switches=HF,
        preprocessing=replace(_DEIT, crop_mode="squash"),
        others=_MASK,
        finish=distilled,
    ),
    Format(
        "Hugging Face ViT",
        (r"(vit\.)?" + _LAYER + r"layernorm_before\.weight",),
        renames.HF_VIT,
        r"^vit\.",
        respelled=_V5 | _V5_MLP,
        switches=HF,
        preprocessing=_SQUASHED,
        others=_MASK,
        finish=_without_pooler,
    ),
    Format(
        "Hugging Face DINOv2",
        (r"(dinov2\w*\.)?" + _LAYER + r"layer_scale1\.lambda1",),
        renames.HF_DINOV2,
        r"^dinov2(_with_registers)?\.",
        respelled=_V5,
        switches=META,
        preprocessing=_DEIT,
        others=_MASK,
    ),
    Format(
        "Hugging Face CLIP",
        (r"(vision_model\.)?pre_layrnorm\.weight",),
        renames.HF_CLIP,
        r"^vision_model\.",
        switches=CLIP,
        preprocessing=Preprocessing("bicubic", 1.0, *CLIP_COLOURS),
        others=r"text_model\..*|text_projection\.weight|logit_scale|embeddings\.position_ids",
    ),
    Format(
        "Hugging Face SigLIP",
        (r"(vision_model\.)?head\.probe",),
        renames.HF_SIGLIP,
        r"^vision_model\.",
        switches={"norm_eps": 1e-6, "pos_interp": "hf"},
        preprocessing=Preprocessing("bicubic", 1.0, HALF, HALF, crop_mode="squash"),
        others=r"text_model\..*|logit_(scale|bias)|embeddings\.position_ids",
        finish=_split_pool,
    ),
    Format(
        "OpenAI's or OpenCLIP's CLIP",
        (r"(visual\.)?class_embedding", r"(visual\.)?conv1\.weight"),
        renames.OPEN_CLIP,
        r"^visual\.",
        tower=True,
        switches=CLIP,
    ),
    Format(
        "torchvision",
        (r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",),
        renames.TORCHVISION,
        respelled={
            r"\bmlp\.linear_1\b": "mlp.0",
            r"\bmlp\.linear_2\b": "mlp.3",
        },  # as the files of its own hub have them
        switches=META,
        preprocessing=Preprocessing("bilinear", 0.875, *IMAGENET),
    ),
    Format(
        "MAE",
        (r"decoder_embed\.weight",),
        switches=META,
        preprocessing=_DEIT,
        others=r"decoder_.*|mask_token",
    ),
    Format(
        "DeiT III",
        (r"blocks\.0\.gamma_1",),
        renames.DEIT_III,
        switches=META,
        class_row=False,
        preprocessing=replace(_DEIT, crop_pct=1.0),
    ),
    Format(
        "DINOv2 with registers",
        (r"register_tokens", r"blocks\.0\.ls1\.gamma"),
        renames.DINOV2,
        switches=META | {"pos_interp": "timm"},
        preprocessing=replace(_DEIT, crop_pct=1.0),
        others="mask_token",
    ),
    Format(
        "DINOv2",
        (r"mask_token", r"blocks\.0\.ls1\.gamma"),
        switches=META | {"pos_interp": "dinov2"},
        preprocessing=replace(_DEIT, crop_pct=1.0),
        others="mask_token",
    ),
    Format("distilled DeiT", (r"dist_token",), switches=META, preprocessing=_DEIT, finish=distilled),
    Format("timm", (r"blocks\.0\.attn\.qkv\.weight",), class_row=None),
)
