"""Make folders of tiny models of images and texts, with random weights and tokenizers, all by code."""

import io
import json
import string
from pathlib import Path

import torch
from torch import nn

CLASSES = ("cat", "dog", "red car", "owl")
SIDE = 32  # pixels
WORDS = "a photo of the cat dog red car owl this is an image bird blue green circle square"


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter random: zero biases and norms of one would hide a wrong mapping."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("logit_", "temperature")):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


# ---- transformers ----------------------------------------------------------------------------------------

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_clip(folder: Path, projection_dim: int = 16, **options) -> nn.Module:
    """Write a CLIP with its tokenizer, and return transformers' module."""
    import transformers

    tokenizer = save_bpe(folder)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = TEXT | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=projection_dim, **options
    )
    return _save(transformers.CLIPModel(config), folder, transformers.CLIPImageProcessor())


def save_siglip(folder: Path, second: bool = False, patch_size: int = 8) -> nn.Module:
    """Write a SigLIP with its tokenizer, and return transformers' module.

    Args:
        folder: for the files.
        second: a SigLIP 2 of a fixed size, which has another tokenizer.
        patch_size: pixels along a side of a patch.
    """
    import transformers

    tokenizer = save_gemma(folder, transformers.GemmaTokenizer) if second else save_sentencepiece(folder)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = transformers.SiglipConfig(
        text_config=text | {"projection_size": 32}, vision_config=VISION | {"patch_size": patch_size}
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    return _save(model, folder, transformers.SiglipImageProcessor())


def save_naflex(folder: Path) -> nn.Module:
    """Write a SigLIP 2 that takes images of any aspect ratio, with its tokenizer."""
    import transformers

    tokenizer = save_gemma(folder, transformers.Siglip2Tokenizer)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
    model = transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    processor.save_pretrained(folder)
    randomise(model).save_pretrained(folder)
    return model


def save_other(folder: Path, kind: str, projection_dim: int | None = None) -> nn.Module:
    """Write a dual encoder whose image tower transformers runs, with a tokenizer."""
    import transformers as hf

    tokenizer = save_bert(folder)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 48, "pad_token_id": 1}
    text |= {"bos_token_id": 2, "eos_token_id": 3}
    small = {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.2}
    both = {"text_config": text, "vision_config": VISION, "projection_dim": 16}
    makers = {
        "aimv2": lambda: hf.Aimv2Model(hf.Aimv2Config(**both)),
        "align": lambda: hf.AlignModel(
            hf.AlignConfig(text_config=text, vision_config=small, projection_dim=projection_dim or 80)
        ),
        "altclip": lambda: hf.AltCLIPModel(
            hf.AltCLIPConfig(**both | {"text_config": text | {"project_dim": 16}})
        ),
        "chinese_clip": lambda: hf.ChineseCLIPModel(hf.ChineseCLIPConfig(**both)),
        "metaclip_2": lambda: hf.MetaClip2Model(hf.MetaClip2Config(**both)),
    }
    model = makers[kind]()
    if kind == "align":
        model.temperature.data.fill_(0.02)
    return _save(model, folder, hf.CLIPImageProcessor())


def _save(model: nn.Module, folder: Path, processor) -> nn.Module:
    randomise(model).save_pretrained(folder)
    size = {"shortest_edge": SIDE} if "shortest_edge" in processor.size else {"height": SIDE, "width": SIDE}
    processor.size = size
    if getattr(processor, "crop_size", None):
        processor.crop_size = {"height": SIDE, "width": SIDE}
    processor.save_pretrained(folder)
    return model


def save_gemma(folder: Path, kind):
    """Write the tokenizer of a SigLIP 2 whose words are letters."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*specials, "\u2581", *string.ascii_lowercase]  # the lower one eighth block is a space
    tokenizer = kind(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bert(folder: Path):
    """Write a tokenizer of letters as BERT has it."""
    from transformers import BertTokenizer

    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    tokens = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bpe(folder: Path):
    """Write the tokenizer of a CLIP whose words are letters and a few pairs of letters."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    merges = ["c a", "o g</w>", "p h"]
    pairs = [merge.replace(" ", "") for merge in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *pairs, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_sentencepiece(folder: Path):
    """Write the tokenizer of a SigLIP, trained on a few words."""
    import sentencepiece
    from transformers import SiglipTokenizer

    model = io.BytesIO()
    words = WORDS.split()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[i:] + words[:i]) for i in range(len(words))]),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"))
    tokenizer.save_pretrained(folder)
    return tokenizer


# ---- open_clip -------------------------------------------------------------------------------------------

OPEN_VISION = {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
OPEN_TEXT = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def save_open_clip(folder: Path, bias: float | None = None, **model_cfg) -> nn.Module:
    """Write the files of an OpenCLIP repository, and return open_clip's module.

    Args:
        folder: for the files.
        bias: of the scores, which are sigmoids then.
        model_cfg: parts of the config in place of those of a plain CLIP.
    """
    import open_clip

    cfg = {"embed_dim": 16, "vision_cfg": OPEN_VISION, "text_cfg": OPEN_TEXT} | model_cfg
    if bias is not None:
        cfg["init_logit_bias"] = bias
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": cfg, "preprocess_cfg": {"size": [SIDE, SIDE]}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    torch.save(randomise(model).state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


# ---- no dual encoder -------------------------------------------------------------------------------------


def save_vit(folder: Path) -> nn.Module:
    """Write a classifier of transformers, which has no text tower."""
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))
    return _save(model, folder, transformers.ViTImageProcessor())
