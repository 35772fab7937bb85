"""names of models: what is understood without a prefix, and the spelling that is shown for what is not."""

import pytest

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.model_names import understood


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(model: str) -> str:
    with pytest.raises(UserError) as refusal:
        understood(model)
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("vit_base_patch16_224", "timm:vit_base_patch16_224"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_base_patch16_224.a_tag@v1", "timm:vit_base_patch16_224.a_tag@v1"),
        ("resnet50", "timm:resnet50"),
        ("google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("openai/clip-vit-base-patch32@refs/pr/1", "hf:openai/clip-vit-base-patch32@refs/pr/1"),
        (
            "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
            "hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        ),
        ("b/16", "B/16"),
        ("TI/16", "Ti/16"),
    ],
)
def test_a_name_without_prefix_that_means_one_model_is_taken_and_said(model, name):
    notes: list[str] = []
    assert understood(model, note=notes.append) == name
    assert notes == [f"{model} is no file or folder here: taken as --model {name}"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("https://huggingface.co/google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("https://huggingface.co/google/vit/tree/v1.0", "hf:google/vit@v1.0"),
        ("https://huggingface.co/google/vit/blob/main/model.safetensors?x=1", "hf:google/vit@main"),
        ("huggingface.co/google/vit/", "hf:google/vit"),
        ("hf:https://hf.co/google/vit", "hf:google/vit"),
        ("hf-hub:timm/vit_tiny@abc1234", "hf:timm/vit_tiny@abc1234"),
        ("timm:hf-hub:timm/vit_tiny", "hf:timm/vit_tiny"),
        ("timm:hf_hub:timm/vit_tiny", "hf:timm/vit_tiny"),
        ("hf:google/vit@v1", "hf:google/vit@v1"),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("hf://buckets/google/vit", "hf://buckets/google/vit"),
        ("s3://bucket/vit_tiny_patch16_224", "s3://bucket/vit_tiny_patch16_224"),
        ("https://example.org/w.npz", "https://example.org/w.npz"),
        ("R50+B/16", "R50+B/16"),
        ("So400m/14", "So400m/14"),
        ("nowhere/w.safetensors", "nowhere/w.safetensors"),
    ],
)
def test_a_name_that_says_where_its_model_is_is_taken_without_a_word(model, name):
    notes: list[str] = []
    assert understood(model, note=notes.append) == name and notes == []


@pytest.mark.parametrize("model", ["google/vit", "B/16", "vit_tiny_patch16_224", "vit_b_16", "w.npz"])
def test_what_is_on_this_disk_wins(model, empty_folder):
    before = understood(model, has_weights=True, note=lambda _: None)
    folder = empty_folder / model
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert understood(model) in (model, f"./{model}")
    assert before in ("hf:google/vit", "B/16", "timm:vit_tiny_patch16_224", "w.npz")
    assert not understood(model).startswith(("hf:", "timm:")) and understood(model) != "B/16"


@pytest.mark.parametrize("model", ["vit-b/16", "ViT-B/16", "ViT_B_16", "vit_b_16", "ViT-B-16", "vitb16"])
def test_an_architecture_is_taken_where_weights_are_given_and_else_its_meanings_are_shown(model):
    notes: list[str] = []
    assert understood(model, has_weights=True, note=notes.append) == "B/16" and len(notes) == 1
    assert refused(model) == (
        f"--model {model} names an architecture but no weights: --model B/16 --weights FILE with weights of "
        "your own; timm:vit_base_patch16_clip_quickgelu_224.openai is OpenAI's CLIP; "
        "timm:vit_base_patch16_224 labels ImageNet's classes"
    )


def test_the_large_clip_and_the_two_giants_are_told_apart():
    assert "timm:vit_large_patch14_clip_quickgelu_336.openai is OpenAI's CLIP" in refused("ViT-L/14@336px")
    assert "--model g/14 --weights" in refused("ViT-g-14") and "--model G/14 --weights" in refused("ViT-G/14")


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("dino_vits16", "timm:vit_small_patch16_224.dino"),
        ("dinov2_vitb14", "timm:vit_base_patch14_dinov2.lvd142m"),
        ("dinov2_vitl14_reg", "timm:vit_large_patch14_reg4_dinov2.lvd142m"),
        ("dinov2_vits14_lc", "hf:facebook/dinov2-small-imagenet1k-1-layer"),
        ("dinov3_vits16", "timm:vit_small_patch16_dinov3.lvd1689m"),
        ("vit_base_patch16_244", "nearest: timm:vit_base_patch16_224;"),
        ("vit-base-patch16-224", "nearest: timm:vit_base_patch16_224;"),
        ("resnet5", "nearest: timm:resnet5"),
        ("nothing_like_it", "unknown model nothing_like_it: no such file or folder; known are model folders"),
    ],
)
def test_another_name_gets_the_right_spelling_at_once(model, shown):
    assert shown in refused(model)


def test_an_owner_that_is_a_folder_here_makes_a_path(empty_folder):
    (empty_folder / "runs" / "model-1").mkdir(parents=True)
    (empty_folder / "runs" / "model-1" / "config.json").write_text("{}")
    (empty_folder / "runs" / "logs").mkdir()
    message = refused("runs/modle-1")
    assert (
        "the folder runs has no such model; nearest here: runs/model-1; of the hub it is hf:runs/modle-1"
        in message
    )
