"""wordsworth convert, and models from a hub."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers

from tests.support.hub import SHA, hub
from tests.support.parity import images
from wordsworth.jobs.cli import run
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.export import export_model
from wordsworth.vit_model.model_folder import load_folder, save_folder

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def small(tmp_path):
    """A model folder of tanh GELU, three classes, every parameter random."""
    config = ViTConfig(
        image_size=32, patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=3, gelu="tanh"
    )
    checkpoint = random_checkpoint(config, Preprocessing(), 0, ("ant", "bee", "cat"))
    for tensor in checkpoint.state.values():
        tensor.add_(torch.randn(tensor.shape) * 0.1)
    save_folder(tmp_path / "small", checkpoint)
    return checkpoint


@pytest.fixture
def command(capsys):
    """Run the command line in this process, which has imported everything: the exit code, stdout and
    stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_a_model_goes_through_every_form_and_comes_back_bit_identical(command, tmp_path, small):
    chain = [
        ("safetensors", "one.safetensors"),
        ("timm", "timm"),
        ("hf", "hf"),
        ("npz", "w.npz"),
        ("safetensors", "back"),
    ]
    last = tmp_path / "small"
    for format, name in chain:
        code, told, errors = command("convert", last, "--output", tmp_path / name, "--format", format)
        assert code == 0, errors
        assert f"3 classes -> {tmp_path / name} ({format})" in told
        last = tmp_path / name
    back = load_folder(last)
    assert all(torch.equal(back.state[name], tensor) for name, tensor in small.state.items())
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).pretrained_cfg[
        "label_names"
    ] == [
        "ant",
        "bee",
        "cat",
    ]


def test_a_loss_is_refused_in_one_line_and_noted_when_accepted(command, tmp_path):
    save_folder(
        tmp_path / "exact",
        random_checkpoint(
            ViTConfig(image_size=32, patch_size=8, width=32, depth=1, heads=4, mlp_dim=64, num_classes=3),
            Preprocessing(),
            0,
        ),
    )
    arguments = ("convert", tmp_path / "exact", "--output", tmp_path / "w.npz", "--format", "npz")
    code, _, errors = command(*arguments)
    assert code == 1 and errors.count("\n") == 1 and "Traceback" not in errors
    assert "Google's code computes the tanh GELU" in errors and "--lossy" in errors
    assert not (tmp_path / "w.npz").exists()
    code, _, errors = command(*arguments, "--lossy")
    assert code == 0 and "note: Google's code computes the tanh GELU" in errors
    assert "Transformer/encoder_norm/scale" in np.load(tmp_path / "w.npz")


def test_another_image_size_resamples_the_positions(command, tmp_path, small):
    code, told, _ = command(
        "convert", tmp_path / "small", "--output", tmp_path / "large", "--image-size", "64"
    )
    assert code == 0 and "at 64x64" in told
    assert load_folder(tmp_path / "large").fingerprint() == small.resized(64).fingerprint()


def test_a_file_is_not_written_over_a_folder_nor_a_folder_over_a_file(command, tmp_path, small):
    code, _, errors = command(
        "convert", tmp_path / "small", "--output", tmp_path / "small" / "labels.txt", "--format", "timm"
    )
    assert code == 2 and "labels.txt is there and is not a folder, as timm would write it" in errors
    code, _, errors = command(
        "convert", tmp_path / "small", "--output", tmp_path / "small" / "model.safetensors", "--format", "hf"
    )
    assert code == 1 and "the format hf is a folder" in errors


def test_models_come_from_the_hub_in_either_form_without_what_is_not_needed(wordsworth, tmp_path, small):
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZE, intermediate_size=64, num_labels=3)
    )
    theirs.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    for useless in ("pytorch_model.bin", "README.md", "flax_model.msgpack"):
        (tmp_path / "vit" / useless).write_bytes(b"x")
    export_model(small, tmp_path / "timms", "timm")
    with hub({"tiny/vit": tmp_path / "vit", "tiny/timms": tmp_path / "timms"}) as (endpoint, downloaded):
        env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        for name in ("vit", "timms"):
            done = wordsworth("convert", f"hf:tiny/{name}", "--output", tmp_path / f"{name}-ours", env=env)
            assert done.returncode == 0, done.stderr
        missing = wordsworth("convert", "hf:tiny/nothing", "--output", tmp_path / "none", env=env)
    assert set(downloaded) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    ours = load_folder(tmp_path / "vit-ours")
    told = json.loads((tmp_path / "vit-ours" / "config.json").read_text())["extra"]
    assert told["repository"] == "tiny/vit" and told["commit"] == SHA and "revision" not in told
    x = images()
    torch.testing.assert_close(ours.model()(x), theirs.eval()(pixel_values=x).logits, atol=1e-5, rtol=1e-4)
    assert ours.preprocessing.crop_mode == "squash"
    assert all(
        torch.equal(load_folder(tmp_path / "timms-ours").state[name], tensor)
        for name, tensor in small.state.items()
    )
    assert missing.returncode == 1 and "has no repository tiny/nothing, or it is private" in missing.stderr
    assert missing.stderr.count("\n") == 1
