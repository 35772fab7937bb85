"""Zero-shot labels against the zero-shot code of transformers and of open_clip, every parameter random."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.support.dual_encoders import (
    CLASSES,
    SIDE,
    save_clip,
    save_open_clip,
    save_siglip,
    save_vit,
)
from tests.support.parity import images
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.load import from_folder
from wordsworth.vit_model.foreign.zero_shot import ZeroShot, published_classes, published_prompts
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.model_folder import load_folder, save_folder

pytestmark = pytest.mark.slow
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPT = "a photo of a {}"
PROMPTS = (PROMPT, "the {}.", "an image of the {} this is")


def zero_shot(folder: Path, classes=CLASSES, prompts=(PROMPT,), note=print) -> BaseCheckpoint:
    return from_folder(folder, note, ZeroShot(classes=tuple(classes), prompts=tuple(prompts)))


def logits(checkpoint: BaseCheckpoint) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.model()(images())


def logits_of_transformers(model, folder: Path, prompt: str = PROMPT, padding=True) -> torch.Tensor:
    """Return what the whole model gives, image and texts in."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [prompt.format(name) for name in CLASSES]
    tokens = tokenizer(texts, padding=padding, max_length=64, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=images(), **tokens).logits_per_image


def logits_of_open_clip(model, folder: Path, prompts=(PROMPT,), x=None) -> torch.Tensor:
    """Return what open_clip's own zero-shot classifier gives."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSES, prompts)  # (D, K)
    x = images() if x is None else x
    with torch.no_grad():
        found = model.logit_scale.exp() * model.encode_image(x, normalize=True) @ classifier
    bias = getattr(model, "logit_bias", None)
    return found if bias is None else found + bias.detach()


# ---- the scores are the library's ------------------------------------------------------------------------


def test_a_clip_of_transformers(tmp_path):
    theirs = save_clip(tmp_path)
    ours = zero_shot(tmp_path)
    expected = logits_of_transformers(theirs, tmp_path)
    torch.testing.assert_close(logits(ours), expected, **CLOSE)
    assert expected.std() > 0.1 and ours.head == Head() and ours.labels == CLASSES
    assert ours.extra["zero_shot"] == {"classes": 4, "prompts": [PROMPT]}
    with_exact_gelu = replace(ours, config=replace(ours.config, gelu="exact"))
    assert (logits(with_exact_gelu) - expected).abs().max() > 1e-4
    never = replace(ours, config=replace(ours.config, normalize=False))
    assert (logits(never) - expected).abs().max() > 1e-2
    model = ours.model()
    with torch.no_grad():
        pooled = model.pool(model.forward_features(images()))
        before = model.head(model.pre_logits(F.normalize(pooled, dim=-1)))  # the projection comes too late
    assert (before - expected).abs().max() > 1e-2


def test_a_siglip_of_transformers(tmp_path):
    theirs = save_siglip(tmp_path)
    ours = zero_shot(tmp_path)
    expected = logits_of_transformers(theirs, tmp_path, padding="max_length")
    torch.testing.assert_close(logits(ours), expected, **CLOSE)
    assert ours.head.kind == "sigmoid"
    unpadded = logits_of_transformers(theirs, tmp_path)  # another text, to a tower that sees its padding
    assert (unpadded - expected).abs().max() > 1e-3
    without_bias = replace(ours, state=ours.state | {"head.bias": torch.zeros(4)})
    assert (logits(without_bias) - expected).abs().max() > 1


def test_a_siglip_whose_patches_leave_out_an_edge_is_run_by_transformers(tmp_path):
    """SigLIP So400m has images of 384 pixels and patches of 14: six pixels are in no patch."""
    theirs = save_siglip(tmp_path, patch_size=12)
    notes = []
    ours = zero_shot(tmp_path, note=notes.append)
    assert any(
        "no whole number of patches of 12: transformers' SiglipModel runs it" in note for note in notes
    )
    found, _ = ours.model()(images())
    torch.testing.assert_close(found, logits_of_transformers(theirs, tmp_path, padding="max_length"), **CLOSE)


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_scores_are_those_of_the_pipeline_of_transformers(save, tmp_path):
    save(tmp_path)
    from PIL import Image

    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8)
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path))
    told = pipeline(
        Image.fromarray(pixels.numpy()), candidate_labels=list(CLASSES), hypothesis_template=PROMPT
    )
    expected = {one["label"]: one["score"] for one in told}
    ours = zero_shot(tmp_path)
    patches = pixels.reshape(4, 8, 4, 8, 3).transpose(1, 2).reshape(1, 16, 192)
    found, _ = ours.for_inference("fp32", "cpu")(patches)
    scores = found.sigmoid() if ours.head.kind == "sigmoid" else found.softmax(-1)
    by_name = dict(zip(CLASSES, scores[0].tolist(), strict=True))
    assert by_name == pytest.approx(expected, abs=1e-5)
    wrong = found.softmax(-1) if ours.head.kind == "sigmoid" else found.sigmoid()
    assert (wrong - scores).abs().max() > 1e-2


@pytest.mark.parametrize("quick", [True, False])
def test_an_openclip_with_one_prompt_and_with_several(quick, tmp_path):
    theirs = save_open_clip(tmp_path, quick_gelu=quick)
    for prompts in ((PROMPT,), PROMPTS):
        ours = zero_shot(tmp_path, prompts=prompts)
        expected = logits_of_open_clip(theirs, tmp_path, prompts)
        torch.testing.assert_close(logits(ours), expected, **CLOSE)
    switched = json.loads((tmp_path / "open_clip_config.json").read_text())
    switched["model_cfg"]["quick_gelu"] = not quick
    (tmp_path / "open_clip_config.json").write_text(json.dumps(switched))
    assert (logits(zero_shot(tmp_path, prompts=PROMPTS)) - expected).abs().max() > 1e-4


def test_a_class_is_the_mean_of_prompts_of_length_one(tmp_path):
    theirs = save_clip(tmp_path)
    ours = zero_shot(tmp_path, prompts=PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        rows = []
        for name in CLASSES:
            tokens = tokenizer([p.format(name) for p in PROMPTS], padding=True, return_tensors="pt")
            rows.append(theirs.get_text_features(**tokens).pooler_output)  # (P, D)
        scale = theirs.logit_scale.exp()
    expected = torch.stack([F.normalize(F.normalize(row, dim=-1).mean(0), dim=-1) for row in rows])
    torch.testing.assert_close(ours.state["head.weight"], scale * expected, **CLOSE)
    unnormalised = torch.stack([F.normalize(row.mean(0), dim=-1) for row in rows])
    assert (scale * unnormalised - ours.state["head.weight"]).abs().max() > 1e-3


def test_the_prompts_of_imagenet_are_those_of_open_clip(tmp_path):
    theirs = save_open_clip(tmp_path)
    prompts = published_prompts("imagenet")
    assert len(prompts) == 80 and len(published_prompts("imagenet-simple")) == 7
    assert len(published_classes()) == 1000 and published_classes()[0] == "tench"
    ours = zero_shot(tmp_path, prompts=prompts)
    expected = logits_of_open_clip(theirs, tmp_path, open_clip.OPENAI_IMAGENET_TEMPLATES)
    torch.testing.assert_close(logits(ours), expected, **CLOSE)


def test_the_head_does_not_depend_on_threads_and_batches(tmp_path):
    save_clip(tmp_path)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = zero_shot(tmp_path)
    finally:
        torch.set_num_threads(num_threads)
    with_others = zero_shot(tmp_path, (*CLASSES, *map(str, range(100))))
    assert torch.equal(with_others.state["head.weight"][:4], one.state["head.weight"])
    assert zero_shot(tmp_path).fingerprint() == one.fingerprint()
    assert zero_shot(tmp_path, prompts=PROMPTS).fingerprint() != one.fingerprint()


def test_in_bfloat16_the_embedding_has_length_one_and_the_head_stays_exact(tmp_path):
    save_clip(tmp_path)
    ours = zero_shot(tmp_path)
    patches = torch.randint(0, 256, (3, 16, 192), dtype=torch.uint8)
    found, embedding = ours.for_inference("bf16", "cpu")(patches)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)
    expected = F.linear(embedding, ours.state["head.weight"], ours.state["head.bias"])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_saved_model_needs_no_text_tower(tmp_path):
    save_siglip(tmp_path / "siglip")
    made = zero_shot(tmp_path / "siglip")
    save_folder(tmp_path / "ours", made)
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == ["config.json", "labels.txt", "model.safetensors"]
    loaded = load_folder(tmp_path / "ours")
    assert loaded.fingerprint() == made.fingerprint() and loaded.labels == made.labels
    assert loaded.head == made.head and loaded.config.normalize
    assert torch.equal(logits(loaded), logits(made))


# ---- what can be wrong -----------------------------------------------------------------------------------


def test_a_text_that_is_cut_is_named(tmp_path):
    theirs = save_clip(tmp_path)
    notes = []
    long = "cat " * 30
    zero_shot(tmp_path, ("dog", long), note=notes.append)
    assert len(notes) == 1 and "reads 32 tokens" in notes[0] and repr(long) in notes[0]
    assert "dog" not in notes[0]
    save_open_clip(tmp_path / "open")
    zero_shot(tmp_path / "open", ("dog", long), note=notes.append)
    assert len(notes) == 2 and "reads 32 tokens" in notes[1]
    assert theirs.config.text_config.max_position_embeddings == 32


def test_classes_that_a_tokenizer_reads_alike_are_named(tmp_path):
    save_open_clip(tmp_path)  # its tokenizer makes every name lower case
    notes = []
    zero_shot(tmp_path, ("cat", "dog", "Cat"), note=notes.append)
    assert notes == ["the text tower reads 'cat' and 'Cat' as one text: their scores are equal"]


def test_one_class_needs_a_sigmoid(tmp_path):
    save_clip(tmp_path / "clip")
    with pytest.raises(ModelError, match=r"'cat' is the only class.*'cat,something else'"):
        zero_shot(tmp_path / "clip", ("cat",))
    save_siglip(tmp_path / "siglip")
    assert zero_shot(tmp_path / "siglip", ("cat",)).config.num_classes == 1


def test_a_model_without_a_text_tower_is_refused(tmp_path):
    save_vit(tmp_path / "vit")
    with pytest.raises(ModelError, match="'vit', which has no text tower: --classes needs a model of images"):
        zero_shot(tmp_path / "vit")
    theirs = save_clip(tmp_path / "clip")
    vision = transformers.CLIPVisionModel(theirs.config.vision_config)
    vision.save_pretrained(tmp_path / "vision")
    with pytest.raises(ModelError, match=r"clip_vision_model.*no text tower"):
        zero_shot(tmp_path / "vision")
    # The config tells of a text tower that the weights do not have.
    (tmp_path / "vision" / "config.json").write_text((tmp_path / "clip" / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "vision" / name).write_text((tmp_path / "clip" / name).read_text())
    with pytest.raises(ModelError, match="no weights for its text tower"):
        zero_shot(tmp_path / "vision")
    save_folder(tmp_path / "ours", zero_shot(tmp_path / "clip"))
    with pytest.raises(ModelError, match="has no text tower"):
        zero_shot(tmp_path / "ours")


def test_towers_of_two_models_are_refused(tmp_path):
    save_open_clip(tmp_path, embed_dim=16)
    path = tmp_path / "open_clip_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"text_projection": state["text_projection"][:, :8]}, path)
    with pytest.raises(ModelError, match="its weights do not fit its text tower"):
        zero_shot(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    save_clip(tmp_path / "clip")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "clip" / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.*tokenizer\.json"):
        zero_shot(tmp_path / "clip")
    save_open_clip(tmp_path / "open", text_cfg={"hf_tokenizer_name": "owner/tokens", "vocab_size": 60})
    with pytest.raises(ModelError, match=r"has no tokenizer.*that of owner/tokens"):
        zero_shot(tmp_path / "open")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save_clip(tmp_path / "clip")
    save_siglip(tmp_path / "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / "siglip" / name).write_bytes((tmp_path / "clip" / name).read_bytes())
    (tmp_path / "siglip" / "spiece.model").unlink()
    with pytest.raises(ModelError, match="the tokenizer is of another model"):
        zero_shot(tmp_path / "siglip")


@pytest.mark.parametrize(
    ("library", "save"), [("transformers", save_clip), ("open_clip", save_open_clip)], ids=["hf", "open_clip"]
)
def test_a_missing_package_is_named(library, save, monkeypatch, tmp_path):
    import sys

    save(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=r"pip install 'wordsworth\[zeroshot\]'"):
        zero_shot(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("a photo", "has no {}"), ("{} or {}", "has {} 2 times"), ("a {name}", "has {name}")],
)
def test_a_prompt_has_one_place_for_the_class(prompt, told):
    with pytest.raises(ModelError, match="where it has one") as error:
        ZeroShot(classes=("cat",), prompts=(PROMPT, prompt))
    assert told in str(error.value) and prompt in str(error.value)
