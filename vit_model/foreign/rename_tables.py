"""List the names of tensors in other people's files: one table for each format, explained in renames.py."""

from wordsworth.vit_model.foreign.renames import (
    HEADS_IN,
    HEADS_IN_BIAS,
    HEADS_OUT,
    KERNEL,
    ROWS,
    TOKEN,
    TRANSPOSED,
    VECTOR,
    Names,
    Rule,
    Table,
    block_lines,
    lines,
)

# ---- torch state dicts -----------------------------------------------------------------------------------


def _in_proj(theirs: str, ours: str = "blocks.{i}.attn.qkv") -> Table:
    """Return the rules for the fused projection of an nn.MultiheadAttention."""
    return lines({f"{ours}.weight": f"{theirs}in_proj_weight", f"{ours}.bias": f"{theirs}in_proj_bias"})


def _layer_scale(theirs: str) -> Table:
    """Return the rules for the two scales of every block; {n} in their name is 1 or 2."""
    return lines({f"blocks.{{i}}.ls{n}.gamma": theirs.replace("{n}", n) for n in "12"})


# DeiT III has timm's names but for the scales, DINOv2 has timm's names but for the registers.
DEIT_III = _layer_scale("blocks.{i}.gamma_{n}")
DINOV2 = lines({"reg_token": "register_tokens"})

TORCHVISION = (
    *lines({"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}),
    *lines(
        {"patch_embed.proj.{p}": "conv_proj.{p}", "norm.{p}": "encoder.ln.{p}", "head.{p}": "heads.head.{p}"}
    ),
    *lines({"pre_logits.{p}": "heads.pre_logits.{p}"}),
    *_in_proj("encoder.layers.encoder_layer_{i}.self_attention."),
    *block_lines(
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

# The visual tower of OpenAI's CLIP and of OpenCLIP. The projection into the common space is our hidden layer
# of the head.
OPEN_CLIP = (
    *lines({"cls_token": "class_embedding"}, TOKEN),
    *lines({"pos_embed": "positional_embedding"}, ROWS),
    *lines(
        {"patch_embed.proj.weight": "conv1.weight", "norm_pre.{p}": "ln_pre.{p}", "norm.{p}": "ln_post.{p}"}
    ),
    *lines({"pre_logits.weight": "proj"}, TRANSPOSED),
    *_in_proj("transformer.resblocks.{i}.attn."),
    *block_lines(
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

# ---- Hugging Face: names as they stand in files ----------------------------------------------------------

_HF_STEM = lines(
    {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
        "norm.{p}": "layernorm.{p}",
    }
)
_HF_ATTENTION: Names = {
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": "attention.output.dense",
}
_HF_MLP: Names = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}

HF_VIT = (
    *_HF_STEM,
    *lines({"pre_logits.{p}": "pooler.dense.{p}", "head.{p}": "classifier.{p}"}),
    *block_lines(
        "encoder.layer.{i}.",
        {"norm1": "layernorm_before", "norm2": "layernorm_after", **_HF_ATTENTION, **_HF_MLP},
    ),
)
# A distilled DeiT has one more token and one more head; `formats.distilled` turns both into our parts.
HF_DEIT = (
    *lines({"dist_token": "embeddings.distillation_token"}),
    *lines({"head.{p}": "cls_classifier.{p}", "head_dist.{p}": "distillation_classifier.{p}"}),
    *HF_VIT,  # "classifier" there: the head of a model that was trained with the token and is used without
)
HF_DINOV2 = (
    *_HF_STEM,
    *lines({"reg_token": "embeddings.register_tokens"}),
    *_layer_scale("encoder.layer.{i}.layer_scale{n}.lambda1"),
    *block_lines(
        "encoder.layer.{i}.",
        {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", **_HF_ATTENTION},
    ),
)
_HF_CLIP_BLOCKS = block_lines(
    "encoder.layers.{i}.",
    {
        "norm1": "layer_norm1",
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
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
    *lines({"norm_pre.{p}": "pre_layrnorm.{p}"}),  # their spelling
    *lines({"pre_logits.weight": "visual_projection.weight"}),
    *_HF_CLIP_BLOCKS,
)
HF_SIGLIP = (
    *_HF_CLIP_STEM,
    *_HF_CLIP_BLOCKS,
    *lines({"attn_pool.latent": "head.probe", "attn_pool.proj.{p}": "head.attention.out_proj.{p}"}),
    *_in_proj("head.attention.", "attn_pool.qkv"),  # formats.py takes the three apart
    *lines({"attn_pool.norm.{p}": "head.layernorm.{p}", "attn_pool.mlp.fc1.{p}": "head.mlp.fc1.{p}"}),
    *lines({"attn_pool.mlp.fc2.{p}": "head.mlp.fc2.{p}"}),
)

# ---- Google's .npz ---------------------------------------------------------------------------------------


def _norm(ours: str, theirs: str) -> Table:
    return lines({f"{ours}.weight": f"{theirs}/scale", f"{ours}.bias": f"{theirs}/bias"}, VECTOR)


def _dense(ours: str, theirs: str) -> Table:
    return (
        Rule(f"{ours}.weight", (f"{theirs}/kernel",), TRANSPOSED),
        Rule(f"{ours}.bias", (f"{theirs}/bias",)),
    )


def _attention(ours: str, theirs: str, parts: tuple[str, ...] = ("query", "key", "value")) -> Table:
    kernels = tuple(f"{theirs}/{part}/kernel" for part in parts)
    biases = tuple(f"{theirs}/{part}/bias" for part in parts)
    return (Rule(f"{ours}.weight", kernels, HEADS_IN), Rule(f"{ours}.bias", biases, HEADS_IN_BIAS))


def _projection(ours: str, theirs: str) -> Table:
    return (
        Rule(f"{ours}.weight", (f"{theirs}/out/kernel",), HEADS_OUT),
        Rule(f"{ours}.bias", (f"{theirs}/out/bias",)),
    )


def _encoder(attention: int, norm2: int, mlp: int) -> Table:
    """Return the rules for a block, with the numbers that flax gives to attention, second norm and MLP."""
    block = "Transformer/encoderblock_{i}"
    ours = "blocks.{i}"
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
# A bottleneck of a hybrid's ResNet.
_UNIT = "patch_embed.backbone.stages.{i}.blocks.{j}"
_THEIR_UNIT = "block{i+1}/unit{j+1}"
_STAGES = (
    *lines({f"{_UNIT}.conv{n}.weight": f"{_THEIR_UNIT}/conv{n}/kernel" for n in (1, 2, 3)}, KERNEL),
    *lines({f"{_UNIT}.downsample.conv.weight": f"{_THEIR_UNIT}/conv_proj/kernel"}, KERNEL),
    *_norm(f"{_UNIT}.norm1", f"{_THEIR_UNIT}/gn1"),
    *_norm(f"{_UNIT}.norm2", f"{_THEIR_UNIT}/gn2"),
    *_norm(f"{_UNIT}.norm3", f"{_THEIR_UNIT}/gn3"),
    *_norm(f"{_UNIT}.downsample.norm", f"{_THEIR_UNIT}/gn_proj"),
)


def _root(ours: str) -> Table:
    """Return the rules for the root of a hybrid's ResNet."""
    return (Rule(f"{ours}.conv.weight", ("conv_root/kernel",), KERNEL), *_norm(f"{ours}.norm", "gn_root"))


_ORIGINAL = _encoder(attention=1, norm2=2, mlp=3)  # the original code counts all parts of a block together
_BY_KIND = _encoder(attention=0, norm2=1, mlp=0)  # big_vision counts each kind of part by itself
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
# Both codes have written files with both numberings. The names do not clash, so every table reads both
# numberings.
NPZ_OTHER_NUMBERS = (*_ORIGINAL, *_BY_KIND)
