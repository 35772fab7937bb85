"""Other people's tensors, as ours and back: one table a format, read in both directions.

A line of a table names a tensor of ours (timm's name), the tensor or tensors of theirs that it is made of, and the layout
in which they store it. In the names {i} and {j} stand for a number, {i+1} for that number plus one, {p} for "weight" or
"bias". Nothing here computes: every layout is a permutation, so a table read and written again is bit-identical.

D width, H heads, D_h = D / H, P patch size, N patches, K classes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from wordsworth.vit_model.config import ModelError, ViTConfig

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """How one tensor of theirs becomes ours, and back for a model of this config."""

    read: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    write: Callable[[torch.Tensor, ViTConfig], torch.Tensor] = lambda t, _: t


PLAIN = Layout()
TRANSPOSED = Layout(lambda t: t.T, lambda t, _: t.T)  # flax's Dense (in, out), CLIP's proj
VECTOR = Layout(lambda t: t.reshape(-1))  # a scale or bias that may be stored as (1, 1, 1, C)
TOKEN = Layout(lambda t: t.reshape(1, 1, -1), lambda t, _: t.reshape(-1))  # (D,)
ROWS = Layout(lambda t: t[None], lambda t, _: t[0])  # (N, D)
KERNEL = Layout(lambda t: t.permute(3, 2, 0, 1), lambda t, _: t.permute(2, 3, 1, 0))  # HWIO
HEADS_IN = Layout(
    lambda t: t.flatten(1).T, lambda t, c: t.T.reshape(-1, c.heads, c.width // c.heads)
)  # (D, H, D_h)
HEADS_IN_BIAS = Layout(lambda t: t.reshape(-1), lambda t, c: t.reshape(c.heads, -1))  # (H, D_h)
HEADS_OUT = Layout(lambda t: t.flatten(0, 1).T, lambda t, c: t.T.reshape(c.heads, -1, c.width))  # (H, D_h, D)


@dataclass(frozen=True)
class Rule:
    """One line of a table. Several tensors of theirs are the parts of ours along its first axis, such as q, k and v."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = PLAIN


Table = tuple[Rule, ...]


def lines(names: dict[str, str | tuple[str, ...]], layout: Layout = PLAIN) -> Table:
    """Rules of one layout: {ours: theirs}."""
    return tuple(Rule(o, (t,) if isinstance(t, str) else t, layout) for o, t in names.items())


# ---- the engine ----------------------------------------------------------------------------------------------------


@cache
def _pattern(template: str) -> re.Pattern[str]:
    groups = {
        r"\{i\}": r"(?P<i>\d+)",
        r"\{i\+1\}": r"(?P<i1>\d+)",
        r"\{j\}": r"(?P<j>\d+)",
        r"\{j\+1\}": r"(?P<j1>\d+)",
    }
    pattern = re.escape(template).replace(r"\{p\}", "(?P<p>weight|bias)")
    for escaped, group in groups.items():
        pattern = pattern.replace(escaped, group)
    return re.compile(pattern)


def _filled(template: str, match: re.Match[str]) -> str:
    """The template with what `match` found in the other side's name."""
    words = {name: value for name, value in match.groupdict().items() if value is not None}
    for name in ("i", "j"):  # either side may be the one that counts from 1
        if name in words:
            words[f"{name}+1"] = str(int(words[name]) + 1)
        elif f"{name}1" in words:
            words[name] = str(int(words[f"{name}1"]) - 1)
    for name, value in words.items():
        template = template.replace("{" + name + "}", value)
    return template


def read(state: State, table: Table) -> tuple[State, list[str]]:
    """Their state dict -> ours, and the names that no line of the table knows.

    A tensor of ours of which a part is missing is missing whole.
    """
    known = [(_pattern(name), rule, part) for rule in table for part, name in enumerate(rule.theirs)]
    parts: dict[str, dict[int, torch.Tensor]] = {}
    wanted: dict[str, int] = {}
    unknown = []
    for key, tensor in state.items():
        for pattern, rule, part in known:
            if match := pattern.fullmatch(key):
                ours = _filled(rule.ours, match)
                parts.setdefault(ours, {})[part] = rule.layout.read(tensor)
                wanted[ours] = len(rule.theirs)
                break
        else:
            unknown.append(key)
    whole = {name: found for name, found in parts.items() if len(found) == wanted[name]}
    return {
        name: torch.cat([t for _, t in sorted(found.items())]).contiguous() for name, found in whole.items()
    }, unknown


def their_names(ours: str, table: Table) -> Iterator[str]:
    """What a tensor of ours is called in their files; nothing where the table has no line for it."""
    for rule in table:
        if match := _pattern(rule.ours).fullmatch(ours):
            yield from (_filled(name, match) for name in rule.theirs)
            return


def write(state: State, table: Table, config: ViTConfig, format_name: str) -> State:
    """Our state dict -> theirs: the inverse of `read`. Where two lines have the same name of ours, the first is taken.

    Raises:
        ModelError: the format has no place for a tensor.
    """
    theirs, homeless = {}, []
    for key, tensor in state.items():
        for rule in table:
            if match := _pattern(rule.ours).fullmatch(key):
                for name, part in zip(rule.theirs, tensor.chunk(len(rule.theirs)), strict=True):
                    theirs[_filled(name, match)] = rule.layout.write(part, config).contiguous()
                break
        else:
            homeless.append(key)
    if homeless:
        raise ModelError(f"the format {format_name} has no place for {', '.join(homeless[:3])} of this model")
    return theirs


# ---- torch state dicts ---------------------------------------------------------------------------------------------


def _blocks(prefix: str, names: dict[str, str | tuple[str, ...]]) -> Table:
    """Lines for weight and bias of the parts of every block."""
    tuples = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    return lines(
        {
            f"blocks.{{i}}.{o}.{{p}}": tuple(f"{prefix}{t}.{{p}}" for t in theirs)
            for o, theirs in tuples.items()
        }
    )


def _in_proj(theirs: str, ours: str = "blocks.{i}.attn.qkv") -> Table:
    """nn.MultiheadAttention's."""
    return lines({f"{ours}.{kind}": f"{theirs}in_proj_{kind}" for kind in ("weight", "bias")})


# DeiT III is timm's but for the scales; DINOv2 but for the registers.
DEIT_III = lines({f"blocks.{{i}}.ls{n}.gamma": f"blocks.{{i}}.gamma_{n}" for n in (1, 2)})
DINOV2 = lines({"reg_token": "register_tokens"})

TORCHVISION = (
    *lines({"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}),
    *lines(
        {"patch_embed.proj.{p}": "conv_proj.{p}", "norm.{p}": "encoder.ln.{p}", "head.{p}": "heads.head.{p}"}
    ),
    *lines({"pre_logits.{p}": "heads.pre_logits.{p}"}),
    *_in_proj("encoder.layers.encoder_layer_{i}.self_attention."),
    *_blocks(
        "encoder.layers.encoder_layer_{i}.",
        {
            "norm1": "ln_1",
            "attn.proj": "self_attention.out_proj",
            "norm2": "ln_2",
            "mlp.fc1": "mlp.0",
            "mlp.fc2": "mlp.3",
        },
    ),
)

# The visual tower of OpenAI's CLIP and of OpenCLIP; the projection into the common space stands where a hidden layer would.
OPEN_CLIP = (
    *lines({"cls_token": "class_embedding"}, TOKEN),
    *lines({"pos_embed": "positional_embedding"}, ROWS),
    *lines(
        {"patch_embed.proj.weight": "conv1.weight", "norm_pre.{p}": "ln_pre.{p}", "norm.{p}": "ln_post.{p}"}
    ),
    *lines({"pre_logits.weight": "proj"}, TRANSPOSED),
    *_in_proj("transformer.resblocks.{i}.attn."),
    *_blocks(
        "transformer.resblocks.{i}.",
        {
            "norm1": "ln_1",
            "attn.proj": "attn.out_proj",
            "norm2": "ln_2",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
        },
    ),
)

# ---- Hugging Face: names as they stand in files ----------------------------------------------------------------------

_HF_STEM = lines(
    {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
        "norm.{p}": "layernorm.{p}",
    }
)
_HF_ATTENTION = {
    "attn.qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attn.proj": "attention.output.dense",
}
_HF_MLP = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}

HF_VIT = (
    *_HF_STEM,
    *lines({"pre_logits.{p}": "pooler.dense.{p}", "head.{p}": "classifier.{p}"}),
    *_blocks(
        "encoder.layer.{i}.",
        {"norm1": "layernorm_before", "norm2": "layernorm_after", **_HF_ATTENTION, **_HF_MLP},
    ),
)
# A distilled DeiT has one more token and one more head; `foreign.distilled` makes them ours.
HF_DEIT = (
    *lines({"dist_token": "embeddings.distillation_token"}),
    *lines({"head.{p}": "cls_classifier.{p}", "head_dist.{p}": "distillation_classifier.{p}"}),
    *HF_VIT,  # whose "classifier" is the head of a model that was trained with the token and is used without
)
HF_DINOV2 = (
    *_HF_STEM,
    *lines({"reg_token": "embeddings.register_tokens"}),
    *lines({f"blocks.{{i}}.ls{n}.gamma": f"encoder.layer.{{i}}.layer_scale{n}.lambda1" for n in (1, 2)}),
    *_blocks(
        "encoder.layer.{i}.",
        {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")} | _HF_ATTENTION,
    ),
)
_HF_CLIP_BLOCKS = _blocks(
    "encoder.layers.{i}.",
    {
        "norm1": "layer_norm1",
        "attn.qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"),
        "attn.proj": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
)
_HF_CLIP_STEM = (
    *lines({"pos_embed": "embeddings.position_embedding.weight"}, ROWS),
    *lines({"patch_embed.proj.{p}": "embeddings.patch_embedding.{p}", "norm.{p}": "post_layernorm.{p}"}),
)
HF_CLIP = (
    *lines({"cls_token": "embeddings.class_embedding"}, TOKEN),
    *_HF_CLIP_STEM,
    *lines(
        {"norm_pre.{p}": "pre_layrnorm.{p}", "pre_logits.weight": "visual_projection.weight"}
    ),  # their spelling
    *_HF_CLIP_BLOCKS,
)
HF_SIGLIP = (
    *_HF_CLIP_STEM,
    *_HF_CLIP_BLOCKS,
    *lines({"attn_pool.latent": "head.probe", "attn_pool.proj.{p}": "head.attention.out_proj.{p}"}),
    *_in_proj("head.attention.", "attn_pool.qkv"),  # which formats.py takes apart
    *lines({"attn_pool.norm.{p}": "head.layernorm.{p}", "attn_pool.mlp.fc1.{p}": "head.mlp.fc1.{p}"}),
    *lines({"attn_pool.mlp.fc2.{p}": "head.mlp.fc2.{p}"}),
)

# ---- Google's .npz ---------------------------------------------------------------------------------------------------


def _norm(ours: str, theirs: str) -> Table:
    return lines({f"{ours}.weight": f"{theirs}/scale", f"{ours}.bias": f"{theirs}/bias"}, VECTOR)


def _dense(ours: str, theirs: str) -> Table:
    return (
        Rule(f"{ours}.weight", (f"{theirs}/kernel",), TRANSPOSED),
        Rule(f"{ours}.bias", (f"{theirs}/bias",)),
    )


def _attention(ours: str, theirs: str, parts: tuple[str, ...] = ("query", "key", "value")) -> Table:
    kernels, biases = (tuple(f"{theirs}/{part}/{kind}" for part in parts) for kind in ("kernel", "bias"))
    return (Rule(f"{ours}.weight", kernels, HEADS_IN), Rule(f"{ours}.bias", biases, HEADS_IN_BIAS))


def _projection(ours: str, theirs: str) -> Table:
    return (
        Rule(f"{ours}.weight", (f"{theirs}/out/kernel",), HEADS_OUT),
        Rule(f"{ours}.bias", (f"{theirs}/out/bias",)),
    )


def _encoder(attention: int, norm2: int, mlp: int) -> Table:
    """A block as flax numbers its parts: original code counts all of them together, big_vision each kind by itself."""
    block, ours = "Transformer/encoderblock_{i}", "blocks.{i}"
    return (
        *_norm(f"{ours}.norm1", f"{block}/LayerNorm_0"),
        *_attention(f"{ours}.attn.qkv", f"{block}/MultiHeadDotProductAttention_{attention}"),
        *_projection(f"{ours}.attn.proj", f"{block}/MultiHeadDotProductAttention_{attention}"),
        *_norm(f"{ours}.norm2", f"{block}/LayerNorm_{norm2}"),
        *_dense(f"{ours}.mlp.fc1", f"{block}/MlpBlock_{mlp}/Dense_0"),
        *_dense(f"{ours}.mlp.fc2", f"{block}/MlpBlock_{mlp}/Dense_1"),
    )


_NPZ = (
    *lines({"cls_token": "cls"}),
    Rule("patch_embed.proj.weight", ("embedding/kernel",), KERNEL),
    *lines({"patch_embed.proj.bias": "embedding/bias"}),
    *_norm("norm", "Transformer/encoder_norm"),
    *_dense("pre_logits", "pre_logits"),
    *_dense("head", "head"),
)
_UNIT = "patch_embed.backbone.stages.{i}.blocks.{j}"
_THEIR_UNIT = "block{i+1}/unit{j+1}"
_STAGES = (
    *lines({f"{_UNIT}.conv{n}.weight": f"{_THEIR_UNIT}/conv{n}/kernel" for n in (1, 2, 3)}, KERNEL),
    *lines({f"{_UNIT}.downsample.conv.weight": f"{_THEIR_UNIT}/conv_proj/kernel"}, KERNEL),
    *(rule for n in (1, 2, 3) for rule in _norm(f"{_UNIT}.norm{n}", f"{_THEIR_UNIT}/gn{n}")),
    *_norm(f"{_UNIT}.downsample.norm", f"{_THEIR_UNIT}/gn_proj"),
)


def _root(ours: str) -> Table:
    return (Rule(f"{ours}.conv.weight", ("conv_root/kernel",), KERNEL), *_norm(f"{ours}.norm", "gn_root"))


_ORIGINAL, _BY_KIND = _encoder(attention=1, norm2=2, mlp=3), _encoder(attention=0, norm2=1, mlp=0)
NPZ = (*_NPZ, *lines({"pos_embed": "Transformer/posembed_input/pos_embedding"}), *_ORIGINAL)
NPZ_HYBRID = (*NPZ, *_root("patch_embed.backbone.stem"), *_STAGES)
NPZ_ROOT = (*NPZ, *_root("patch_embed.backbone"))  # R+Ti/16: a root without stages
NPZ_BIG_VISION = (
    *_NPZ,
    *lines({"pos_embed": "pos_embedding", "attn_pool.latent": "MAPHead_0/probe"}),
    *_BY_KIND,
    *_attention("attn_pool.q", "MAPHead_0/MultiHeadDotProductAttention_0", ("query",)),
    *_attention("attn_pool.kv", "MAPHead_0/MultiHeadDotProductAttention_0", ("key", "value")),
    *_projection("attn_pool.proj", "MAPHead_0/MultiHeadDotProductAttention_0"),
    *_norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
    *_dense("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
    *_dense("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
)
# Files of either code have been written with either numbering; their names do not clash, so every table reads both.
NPZ_OTHER_NUMBERS = (*_ORIGINAL, *_BY_KIND)
