"""No code runs from a model's files, and no file of a model costs more than a line."""

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.support.dual_encoders import save_clip, save_open_clip, save_vit
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.foreign.load import from_folder
from wordsworth.vit_model.model_folder import save_folder

ROOT = Path(__file__).parents[2]
OUR_READERS = {  # the functions of libraries that open a file of weights: who may call each
    "torch.load": {"vit_model/torch_file.py"},
    "safetensors.torch.load_file": {"vit_model/weights.py"},
    "safetensors.safe_open": {"vit_model/model_folder.py"},
    "numpy.load": {"vit_model/weights.py"},
}


class Touch:
    """Make a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-ran"


def refused(model, **options) -> str:
    with pytest.raises((ModelError, UserError)) as error:
        load_model(str(model), note=lambda line: None, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


def change(folder: Path, **about) -> Path:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | about))
    return folder


def save_ours(folder: Path) -> Path:
    config = ViTConfig(
        image_size=(32, 32), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=3
    )
    save_folder(folder, random_checkpoint(config, Preprocessing(), 0))
    return folder


def save_timm(folder: Path, name: str = "test_vit", safe: bool = True) -> Path:
    folder.mkdir()
    timm.models.save_for_hf(timm.create_model(name), folder, safe_serialization=safe)
    return folder


def save_convnext(folder: Path, safe: bool = True) -> Path:
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
    model = transformers.ConvNextForImageClassification(config)
    model.save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 384}).save_pretrained(folder)
    if not safe:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


# ---- no code runs -----------------------------------------------------------------------------------------


def with_pickle(folder: Path, name: str, marker: Path) -> Path:
    """Put a pickle that makes the marker in place of the weights of a folder."""
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"head.weight": Touch(marker)}, folder / name)
    return folder


@pytest.mark.slow
def test_no_container_of_a_model_runs_code(tmp_path, marker):
    clip, open_clip = tmp_path / "clip", tmp_path / "open-clip"
    save_clip(clip)
    save_open_clip(open_clip)
    save_vit(tmp_path / "vit")
    texts = {"classes": "cat,dog"}
    folders = [
        (with_pickle(save_timm(tmp_path / "timm"), "pytorch_model.bin", marker), {}),
        (with_pickle(save_timm(tmp_path / "conv", "test_convnext"), "pytorch_model.bin", marker), {}),
        (with_pickle(save_timm(tmp_path / "model.pth"), "model.pth", marker), {}),
        (with_pickle(save_convnext(tmp_path / "convnext"), "pytorch_model.bin", marker), {}),
        (with_pickle(tmp_path / "vit", "pytorch_model.bin", marker), {}),
        (with_pickle(clip, "pytorch_model.bin", marker), texts),
        (clip, {}),
        (with_pickle(open_clip, "open_clip_pytorch_model.bin", marker), texts),
        (open_clip, {}),
    ]
    for folder, options in folders:
        assert "code that weights do not need" in refused(folder, **options), folder
    for name in ("w.pth", "w.pt", "w.bin", "w.ckpt", "w.pth.tar"):
        torch.save({"head.weight": Touch(marker)}, tmp_path / name)
        assert "code that weights do not need" in refused("S/16", weights=str(tmp_path / name))
    np.savez(tmp_path / "objects.npz", w=np.array([Touch(marker)], dtype=object))
    assert "Object arrays cannot be loaded" in refused("S/16", weights=str(tmp_path / "objects.npz"))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "TorchScript" in refused("S/16", weights=str(tmp_path / "script.pt"))
    for name in ("w.pkl", "w.joblib"):
        (tmp_path / name).write_bytes(pickle.dumps(Touch(marker)))
        assert "is a pickle, which holds code and is never opened" in refused(tmp_path / name)
    assert not marker.exists()
    pickle.loads((tmp_path / "w.pkl").read_bytes())
    assert marker.exists(), "the payload is one"


def test_a_config_cannot_have_a_library_open_weights(tmp_path, marker):
    evil = tmp_path / "evil.pth"
    torch.save({"w": Touch(marker)}, evil)
    args = {"checkpoint_path": str(evil)}
    for name in ("test_vit", "test_convnext"):
        folder = change(save_timm(tmp_path / name, name), model_args=args)
        assert "checkpoint_path" in refused(folder)
    ours = tmp_path / "ours"
    save_folder(ours, from_folder(save_timm(tmp_path / "conv", "test_convnext"), lambda line: None))
    config = json.loads((ours / "config.json").read_text())["config"]
    for arguments in (args, {"pretrained": True}, {"pretrained_cfg": {"file": str(evil)}}):
        folder = change(ours, config=config | {"arguments": arguments})
        assert "which no model folder needs" in refused(folder)
    for architecture in ("hf-hub:a/b", f"local-dir:{tmp_path}"):
        folder = change(ours, config=config | {"architecture": architecture})
        assert "which no model folder needs" in refused(folder)
    assert not marker.exists()


@pytest.mark.slow
def test_code_beside_a_config_or_a_tokenizer_is_neither_run_nor_asked_about(tmp_path, marker, monkeypatch):
    def asked(*_):
        raise AssertionError("a question to the user")

    monkeypatch.setattr("builtins.input", asked)
    clip = tmp_path / "clip"
    save_clip(clip)
    trap = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Trap: pass\n"
    for place in (clip, save_convnext(tmp_path / "convnext"), tmp_path / "open-clip", tmp_path / "text"):
        place.mkdir(exist_ok=True)
        (place / "trap.py").write_text(trap)
    autos = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor")
    auto_map = {name: "trap.Trap" for name in autos}
    load_model(str(change(tmp_path / "convnext", auto_map=auto_map)), note=lambda line: None)
    settings = json.loads((clip / "tokenizer_config.json").read_text())
    told = {"auto_map": {"AutoTokenizer": ["trap.Trap", None]}, "tokenizer_class": "Trap"}
    (clip / "tokenizer_config.json").write_text(json.dumps(settings | told))
    load_model(str(clip), classes="cat,dog", note=lambda line: None)  # tokenizer.json needs no class
    (clip / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused(clip, classes="cat,dog")
    (tmp_path / "tokenizer.json").rename(clip / "tokenizer.json")
    (clip / "tokenizer_config.json").write_text(json.dumps(settings))
    load_model(str(change(clip, auto_map=auto_map)), classes="cat,dog", note=lambda line: None)
    refused(change(clip, model_type="trap"), classes="cat,dog")
    text = tmp_path / "text"
    (text / "config.json").write_text(json.dumps({"model_type": "trap", "auto_map": auto_map}))
    save_open_clip(tmp_path / "open-clip")
    about = json.loads((tmp_path / "open-clip" / "open_clip_config.json").read_text())
    about["model_cfg"]["text_cfg"] = {"hf_model_name": str(text), "hf_tokenizer_name": str(text)}
    (tmp_path / "open-clip" / "open_clip_config.json").write_text(json.dumps(about))
    assert "code that lies beside the weights is never run" in refused(tmp_path / "open-clip", classes="a,b")
    kernels = change(tmp_path / "convnext", _attn_implementation="owner/kernel", use_kernels=True)
    load_model(str(kernels), note=lambda line: None)
    assert not marker.exists()


def watch(monkeypatch, calls: list[tuple[str, str]]) -> None:
    """Note who calls each function that opens a file of weights, in all modules that have its name."""
    for dotted in OUR_READERS:
        module, _, name = dotted.rpartition(".")
        real = getattr(sys.modules[module], name)

        def noting(*arguments, real=real, dotted=dotted, **options):
            caller = Path(sys._getframe(1).f_code.co_filename)
            inside = caller.is_relative_to(ROOT) and ".venv" not in caller.parts
            if (
                dotted != "safetensors.safe_open" or caller.parent.name != "safetensors"
            ):  # of its own load_file
                calls.append((dotted, caller.relative_to(ROOT).as_posix() if inside else str(caller)))
            return real(*arguments, **options)

        for holder in list(sys.modules.values()):
            if holder is not None and vars(holder).get(name) is real:
                monkeypatch.setattr(holder, name, noting)


@pytest.mark.slow
def test_every_file_of_weights_is_opened_by_our_own_reader(tmp_path, monkeypatch):
    clip, open_clip, vit = (tmp_path / name for name in ("clip", "open-clip", "vit"))
    save_clip(clip)
    save_open_clip(open_clip)
    save_vit(vit)
    one = tmp_path / "one.safetensors"
    one.write_bytes(load_model(str(save_ours(tmp_path / "ours"))).to_bytes())
    models = [
        (save_timm(tmp_path / "timm"), {}),
        (save_timm(tmp_path / "timm-bin", safe=False), {}),
        (save_timm(tmp_path / "conv", "test_convnext"), {}),
        (save_timm(tmp_path / "conv-bin", "test_convnext", safe=False), {}),
        (save_convnext(tmp_path / "convnext"), {}),
        (save_convnext(tmp_path / "convnext-bin", safe=False), {}),
        (vit, {}),
        (clip, {}),
        (clip, {"classes": "cat,dog"}),
        (open_clip, {}),
        (open_clip, {"classes": "cat,dog"}),
        (tmp_path / "ours", {}),
        (one, {}),
    ]
    calls: list[tuple[str, str]] = []
    watch(monkeypatch, calls)
    for model, options in models:
        before = len(calls)
        load_model(str(model), note=lambda line: None, **options).model()
        assert len(calls) > before, model
    assert {name for name, _ in calls} >= {"torch.load", "safetensors.torch.load_file"}
    others = {(name, caller) for name, caller in calls if caller not in OUR_READERS[name]}
    assert not others


# ---- bombs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "is not a JSON object"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"depth": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (
            '{"architecture": "test_vit", "model_args": {"depth": 10000000}}',
            "depth is 10,000,000;",
        ),
        ('{"architecture": "test_vit", "model_args": {"img_size": 20000}}', "img_size is 20,000;"),
        (
            '{"architecture": "convnext_tiny", "model_args": {"depths": [1, 1, 1000000, 1]}}',
            "depths is 1,0",
        ),
        ('{"model_type": "vit", "num_hidden_layers": 10000000}', "num_hidden_layers is 10,000,000; it must"),
        (
            '{"config": {"library": "timm", "architecture": "x", "image_size": [99999, 1]}}',
            "image_size is",
        ),
        ('{"config": null}', "cannot be used"),
        ('{"config": {"width": 1e99}, "preprocessing": {}}', "cannot be used"),
        ('{"config": {}, "preprocessing": {"crop_pct": 0.01}}', "crop_pct is 0.01; it must"),
        ('{"config": {}, "preprocessing": {}, "extra": null}', "cannot be used"),
        ("\x00" * 100, "cannot be read"),
    ],
)
def test_a_config_that_is_a_bomb_is_one_line(tmp_path, text, message):
    folder = save_ours(tmp_path / "model")
    (folder / "config.json").write_text(text)
    assert message in refused(folder)


def test_a_small_timm_file_with_the_config_of_a_large_model_is_refused_before_it_is_built(tmp_path):
    folder = change(save_timm(tmp_path / "timm"), model_args={"embed_dim": 8192, "num_heads": 8, "depth": 12})
    assert "numbers, and the config describes a model of" in refused(folder)
    sizes = {"hidden_sizes": [96, 192, 384, 65536], "depths": [1, 1, 1, 3]}
    folder = change(save_convnext(tmp_path / "convnext"), **sizes)
    assert "numbers, and the config describes a model of" in refused(folder)


def test_a_processor_of_a_million_pixels_is_one_line(tmp_path):
    folder = save_convnext(tmp_path / "convnext")
    about = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(about | {"size": {"shortest_edge": 10**6}}))
    assert "shortest_edge is 1,000,000; it must be at most 8,192" in refused(folder)


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def claiming(path: Path, shape: tuple[int, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
        told = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, told)
        member.write(b"1234")
    return path


def test_files_of_weights_that_lie_about_their_size_are_one_line(tmp_path):
    weights = tmp_path / "w.npz"
    np.savez_compressed(weights, w=np.zeros(100_000_000, np.uint8))
    assert "would inflate to 100,000" in refused("S/16", weights=str(weights))
    assert "claims 137,438,953,472 bytes" in refused("S/16", weights=str(claiming(weights, (1 << 35,))))
    header = (100 << 30).to_bytes(8, "little") + b'{"w":1}'
    lying = sparse(tmp_path / "w.safetensors", (100 << 30) + 100, header)
    assert "its header would have 107,374,182,400 bytes" in refused("S/16", weights=str(lying))
    deep = b'{"a":' * 100_000
    lying.write_bytes(len(deep).to_bytes(8, "little") + deep)
    refused("S/16", weights=str(lying))
    refused(lying)
    whole = tmp_path / "whole.pth"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20), "b": torch.zeros(3)}, whole)
    assert "its tensors would take 4,398,046,511,1" in refused("S/16", weights=str(whole))
    torch.save({"w": torch.zeros(30_000_000)}, whole)
    with (
        zipfile.ZipFile(whole) as inner,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as outer,
    ):
        for member in inner.namelist():
            outer.writestr(member, inner.read(member))
    whole.unlink()
    assert "would inflate to 120,000" in refused("S/16", weights=str(tmp_path / "w.pth"))


def test_texts_beside_a_model_are_read_up_to_a_bound(tmp_path):
    folder = save_ours(tmp_path / "model")
    large = sparse(tmp_path / "labels.txt", 1 << 30)
    bound = "more than the 67,108,864"
    assert bound in refused(folder, labels=str(large))
    assert bound in refused(folder, classes=f"@{large}")
    shutil.move(large, folder / "labels.txt")
    assert bound in refused(folder)
    sparse(folder / "config.json", 1 << 30)
    assert bound in refused(folder)


def test_the_file_of_a_tokenizer_is_read_up_to_a_bound(tmp_path):
    save_clip(tmp_path)
    sparse(tmp_path / "tokenizer.json", 1 << 30)
    assert "tokenizer.json has 1,073,741,824 bytes, more than" in refused(tmp_path, classes="a,b")
