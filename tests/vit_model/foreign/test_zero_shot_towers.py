"""Zero-shot labels of models whose image tower another library's module computes, and of NaFlex models."""

import json

import pytest
import torch
import transformers
from PIL import Image

from tests.support.dual_encoders import (
    CLASSES,
    OPEN_TEXT,
    OPEN_VISION,
    SIDE,
    save_naflex,
    save_open_clip,
    save_other,
    save_siglip,
)
from tests.support.parity import images
from tests.vit_model.foreign.test_zero_shot import (
    CLOSE,
    PROMPT,
    PROMPTS,
    logits_of_open_clip,
    logits_of_transformers,
    zero_shot,
)
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import checkpoint_from_bytes, from_folder
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.model_folder import save_folder

pytestmark = pytest.mark.slow

SIGLIP_TEXT = OPEN_TEXT | {"norm_kwargs": {"eps": 1e-6}, "proj_bias": True, "no_causal_mask": True}
# Parts of open_clip_config.json, after those of RN50, convnext_base, ViT-B-16-SigLIP and coca_ViT-B-32.
OPEN_CLIP = {
    "ResNet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}},
    "timm's ConvNeXt": {
        "vision_cfg": {"image_size": SIDE, "timm_model_name": "test_convnext", "timm_pool": ""},
        "custom_text": True,
    },
    "timm's SigLIP": {
        "embed_dim": 64,
        "bias": -2.0,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit2",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT | {"pool_type": "last"},
    },
    "CoCa": {
        "custom_text": True,
        "vision_cfg": OPEN_VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": OPEN_TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"width": 16, "heads": 2, "layers": 1},
    },
    "average pooling": {"vision_cfg": OPEN_VISION | {"pool_type": "avg", "final_ln_after_pool": True}},
}


def logits(checkpoint, x=None) -> torch.Tensor:
    with torch.no_grad():
        found = checkpoint.model()(images() if x is None else x)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_towers_of_openclip_run_in_open_clip(kind, tmp_path):
    theirs = save_open_clip(tmp_path, **OPEN_CLIP[kind])
    notes = []
    ours = zero_shot(tmp_path, prompts=PROMPTS, note=notes.append)
    assert isinstance(ours, ModuleCheckpoint) and ours.config.library == "open_clip"
    assert len(notes) == 1 and "open_clip's own module runs it" in notes[0]
    x = images(ours.config.image_size)
    expected = logits_of_open_clip(theirs, tmp_path, PROMPTS, x)
    torch.testing.assert_close(logits(ours, x), expected, **CLOSE)
    assert expected.std() > 0.1 and ours.macs() > 0
    assert ours.head.kind == ("sigmoid" if "bias" in OPEN_CLIP[kind] else "softmax")
    # As the actors get it, and as a model folder of ours has it.
    sent = checkpoint_from_bytes(ours.to_bytes())
    save_folder(tmp_path / "ours", ours)
    loaded = from_folder(tmp_path / "ours")
    assert sent.fingerprint() == loaded.fingerprint() == ours.fingerprint()
    assert torch.equal(logits(loaded, x), logits(ours, x)) and loaded.labels == CLASSES


def test_a_tower_of_openclip_without_classes_gives_embeddings(tmp_path):
    theirs = save_open_clip(tmp_path, **OPEN_CLIP["timm's ConvNeXt"])
    ours = from_folder(tmp_path)
    with torch.no_grad():
        found, embedding = ours.model()(images())
        expected = theirs.encode_image(images())
    assert found is None and ours.config.num_classes == 0
    torch.testing.assert_close(embedding, expected, **CLOSE)


def test_an_openclip_with_a_text_tower_of_hugging_face(tmp_path):
    """Such a tower pads to the context, and its tokenizer lies in the folder."""
    from tests.support.dual_encoders import TEXT, save_bert

    tokenizer = save_bert(tmp_path)
    config = transformers.BertConfig(**TEXT, vocab_size=len(tokenizer), pad_token_id=1)
    config.save_pretrained(tmp_path / "bert")
    text_cfg = {
        "hf_model_name": str(tmp_path / "bert"),
        "hf_tokenizer_name": "owner/tokens",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 32,
    }
    theirs = save_open_clip(tmp_path, custom_text=True, text_cfg=text_cfg)
    ours = zero_shot(tmp_path)
    expected = logits_of_open_clip(theirs, tmp_path)
    torch.testing.assert_close(logits(ours), expected, **CLOSE)
    assert isinstance(ours, Checkpoint) and expected.std(0).min() > 1e-2


@pytest.mark.parametrize("kind", ["aimv2", "align", "altclip", "chinese_clip", "metaclip_2"])
def test_other_dual_encoders_run_in_transformers(kind, tmp_path):
    theirs = save_other(tmp_path, kind)
    ours = zero_shot(tmp_path)
    expected = logits_of_transformers(theirs, tmp_path)
    assert isinstance(ours, ModuleCheckpoint) and ours.config.library == "transformers"
    torch.testing.assert_close(logits(ours), expected, **CLOSE)
    assert expected.std(1).min() > 1e-2  # between classes


def test_a_siglip_2_of_a_fixed_size(tmp_path):
    theirs = save_siglip(tmp_path, second=True)
    ours = zero_shot(tmp_path)
    expected = logits_of_transformers(theirs, tmp_path, padding="max_length")
    torch.testing.assert_close(logits(ours), expected, **CLOSE)
    assert isinstance(ours, Checkpoint) and expected.std(1).min() > 1e-2


def test_a_naflex_siglip_2_is_ours_at_a_fixed_size(tmp_path):
    theirs = save_naflex(tmp_path)
    notes = []
    ours = zero_shot(tmp_path, note=notes.append)
    assert isinstance(ours, Checkpoint) and ours.config.image_size == (32, 32)
    assert len(notes) == 1 and "NaFlex" in notes[0] and "32x32" in notes[0]
    assert ours.preprocessing.crop_mode == "squash" and ours.preprocessing.interpolation == "bilinear"
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    square = Image.fromarray(torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy())
    made = processor(images=[square], return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        [PROMPT.format(name) for name in CLASSES], padding="max_length", max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(**made, **tokens).logits_per_image
    patches = made["pixel_values"].reshape(1, 4, 4, 8, 8, 3)
    x = patches.permute(0, 5, 1, 3, 2, 4).reshape(1, 3, 32, 32)
    torch.testing.assert_close(logits(ours, x), expected, **CLOSE)
    assert expected.std(1).min() > 1e-2
    # At another size the positions are resampled as theirs are.
    larger = torch.randn(1, 36, 192)
    shape = {"spatial_shapes": torch.tensor([[6, 6]]), "pixel_attention_mask": torch.ones(1, 36).int()}
    with torch.no_grad():
        expected = theirs(pixel_values=larger, **shape, **tokens).logits_per_image
    x = larger.reshape(1, 6, 6, 8, 8, 3).permute(0, 5, 1, 3, 2, 4).reshape(1, 3, 48, 48)
    torch.testing.assert_close(logits(ours.resized(48), x), expected, **CLOSE)


# ---- what can be wrong -----------------------------------------------------------------------------------


def test_towers_of_two_sizes_are_refused(tmp_path):
    save_other(tmp_path, "align", projection_dim=64)
    with pytest.raises(ModelError, match=r"64 numbers a text and its image tower 80.*not of one model"):
        zero_shot(tmp_path)


def test_a_tokenizer_that_reads_nothing_is_refused(tmp_path):
    save_naflex(tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # of what is left, transformers makes a tokenizer without words
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ModelError, match=r"reads all classes as one text|tokenizer cannot be read"):
        zero_shot(tmp_path)


def test_weights_that_do_not_fit_openclips_tower_are_one_line(tmp_path):
    save_open_clip(tmp_path, **OPEN_CLIP["ResNet"])
    about = json.loads((tmp_path / "open_clip_config.json").read_text())
    about["model_cfg"]["vision_cfg"]["layers"] = [1, 1, 2, 1]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="the weights do not fit ResNet 1-1-2-1") as error:
        from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_timm_model_that_is_not_there_is_one_line(tmp_path):
    save_open_clip(tmp_path, **OPEN_CLIP["timm's ConvNeXt"])
    text = (tmp_path / "open_clip_config.json").read_text().replace("test_convnext", "no_such_model")
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ModelError, match="does not build no_such_model"):
        from_folder(tmp_path)


def test_the_module_needs_open_clip(tmp_path, monkeypatch):
    import sys

    save_open_clip(tmp_path, **OPEN_CLIP["ResNet"])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"pip install 'wordsworth\[zeroshot\]'"):
        from_folder(tmp_path)
