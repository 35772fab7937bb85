"""weights: which tensors of a file are taken, and that no file runs code or is misread in silence."""

import argparse
import datetime
import functools
import os
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.weights import load_weights


def tensors(value: float) -> dict[str, torch.Tensor]:
    """Return a tiny state_dict, told apart by its values."""
    return {"norm.weight": torch.full((4,), float(value)), "norm.bias": torch.full((4,), float(value))}


def saved(path, content):
    torch.save(content, path)
    return path


def value(state) -> float:
    return state["norm.weight"][0].item()


def refused(path, key=None) -> str:
    with pytest.raises(ModelError) as refusal:
        load_weights(path, key)
    message = str(refusal.value)
    assert "\n" not in message and message.count(str(path)) == 1 and len(message) < 600
    return message


# ---- the choice among several sets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": tensors(1), "state_dict_ema": tensors(2)}, "state_dict_ema"),
        ({"model": tensors(1), "model_ema": tensors(2)}, "model_ema"),
        ({"model": tensors(1), "ema": tensors(2), "epoch": 3}, "ema"),
        ({"model": tensors(1), "ema_state_dict": tensors(2)}, "ema_state_dict"),
        ({"model": tensors(1), "model_ema": {"module": tensors(2), "decay": 0.9}}, "model_ema.module"),
        ({"student": tensors(1), "teacher": tensors(2), "dino_loss": {"center": torch.ones(1)}}, "teacher"),
        (
            {"encoder": tensors(1), "target_encoder": tensors(2), "opt": {"a": torch.ones(1)}},
            "target_encoder",
        ),
        ({"state_dict": tensors(1), "callbacks": {"EMA": {"ema_state_dict": tensors(2)}}}, None),
    ],
)
def test_the_averaged_weights_come_before_the_others_as_in_timm(tmp_path, content, key):
    state = load_weights(saved(tmp_path / "w.pth", content))
    assert value(state) == 2 and set(state) == {"norm.weight", "norm.bias"}
    assert state.key == (key or "callbacks.EMA.ema_state_dict") and len(state.others) >= 1


def test_timm_itself_takes_the_same_of_its_own_files(tmp_path):
    from timm.models import load_state_dict

    for ema in (tensors(2), None):
        path = saved(tmp_path / "w.pth", {"state_dict": tensors(1), "state_dict_ema": ema})
        assert value(load_weights(path)) == value(load_state_dict(str(path), use_ema=True))


def test_a_file_with_one_set_has_no_choice_to_tell(tmp_path):
    for content in (tensors(1), {"model": tensors(1)}, {"state_dict": tensors(1), "state_dict_ema": None}):
        state = load_weights(saved(tmp_path / "w.pth", content))
        assert value(state) == 1 and state.key is None and state.others == ()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("state_dict", 1),
        ("state_dict_ema", 2),
        ("nested.deep", 3),
        ("nested", 3),
        ("both.student", 4),
        ("both.teacher", 5),
        ("student", 4),
    ],
)
def test_a_key_takes_a_set_or_the_beginning_of_names(tmp_path, key, expected):
    both = {f"student.{name}": tensor for name, tensor in tensors(4).items()}
    both |= {f"teacher.{name}": tensor for name, tensor in tensors(5).items()}
    content = {
        "state_dict": tensors(1),
        "state_dict_ema": tensors(2),
        "nested": {"deep": tensors(3)},
        "both": both,
    }
    state = load_weights(saved(tmp_path / "w.pth", content), key)
    assert value(state) == expected and len(state) == 2 and key in state.key


def test_a_key_works_in_a_safetensors_file_too(tmp_path):
    state = {f"student.{name}": tensor for name, tensor in tensors(4).items()}
    state |= {f"teacher.{name}": tensor for name, tensor in tensors(5).items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert value(load_weights(tmp_path / "w.safetensors", "teacher")) == 5


def test_a_wrong_key_lists_the_keys_that_there_are(tmp_path):
    path = saved(tmp_path / "w.pth", {"state_dict": tensors(1), "state_dict_ema": tensors(2), "epoch": 1})
    assert refused(path, "model").endswith(
        "has no --weights-key model; its keys are state_dict, state_dict_ema"
    )
    path = saved(tmp_path / "flat.pth", tensors(1))
    assert refused(path, "model").endswith("has no --weights-key model; its keys are norm")


def test_several_sets_of_which_none_is_known_ask_for_a_key(tmp_path):
    path = saved(tmp_path / "w.pth", {"backbone": tensors(1), "head": tensors(2)})
    message = refused(path)
    assert "several sets of tensors: backbone, head; --weights-key KEY takes one" in message
    assert value(load_weights(path, "backbone")) == 1
    path = saved(
        tmp_path / "w.pth", {"teacher": {"backbone": tensors(1), "head": tensors(2)}, "student": tensors(3)}
    )
    assert "teacher.backbone, teacher.head, student" in refused(path)


def test_the_moments_of_an_optimizer_are_no_weights(tmp_path):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moments = {"state": {name: {"exp_avg": torch.ones(3)} for name in model.state_dict()}}
    content = {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "optim": moments}
    state = load_weights(saved(tmp_path / "w.pth", content))
    assert set(state) == {"weight", "bias"} and state.others == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_types_stay_as_they_are_in_the_file(tmp_path, dtype):
    content = tensors(1) | {"other": torch.ones(3, dtype=dtype), "bn.num_batches_tracked": torch.tensor(7)}
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        torch.save(content, path) if name == "w.pth" else safetensors.torch.save_file(content, path)
        state = load_weights(path)
        assert state["other"].dtype == dtype and state["norm.bias"].dtype == torch.float32
        assert state["bn.num_batches_tracked"] == 7


def test_parameters_come_without_a_gradient(tmp_path):
    module = nn.Linear(2, 2)
    path = saved(tmp_path / "w.pth", dict(module.named_parameters()))
    assert not any(tensor.requires_grad for tensor in load_weights(path).values())


# ---- files of trainers -----------------------------------------------------------------------------------


class Settings:
    """A class of somebody's project."""

    def __init__(self) -> None:
        self.width = 3


class Names(dict):
    """A dictionary of somebody's project."""


class List(list):
    """A list of somebody's project."""


def lightning(state) -> dict:
    """Return what Lightning's ModelCheckpoint saves, with the settings of a Hydra project."""
    settings = Settings()
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val/acc'}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [{"base_lrs": [0.1], "_last_lr": [np.float64(0.1)]}],
        "hyper_parameters": {
            "optimizer": functools.partial(torch.optim.AdamW, lr=0.1),
            "net": nn.Linear(2, 2),
            "settings": settings,
            "again": settings,
            "names": Names(a=1),
            "list": List([1, 2]),
            "more": defaultdict(list, a=[1]),
        },
    }


@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar", ".pth", ".pt", ".bin"])
def test_a_lightning_checkpoint_is_read_whatever_its_settings_are(tmp_path, suffix):
    state = load_weights(saved(tmp_path / f"w{suffix}", lightning(tensors(7))))
    assert value(state) == 7 and len(state) == 2


def test_a_checkpoint_of_timms_own_saver_is_read(tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = nn.Linear(3, 2)
    ema = ModelEmaV3(model)
    for parameter in ema.module.parameters():
        parameter.data.fill_(2.0)
    args = argparse.Namespace(
        model="vit", lr=np.float64(0.1), out=pathlib.Path("x"), when=datetime.date(2026, 1, 1)
    )
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters()),
        args,
        ema,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=np.float32(0.5))
    state = load_weights(tmp_path / "model_best.pth.tar")
    assert (state.key, state.others) == ("state_dict_ema", ("state_dict",))
    assert torch.equal(state["weight"], torch.full((2, 3), 2.0))
    assert torch.equal(load_weights(tmp_path / "last.pth.tar", "state_dict")["weight"], model.weight)


def test_a_checkpoint_in_torchs_older_form_is_read_with_its_arguments(tmp_path):
    content = {"model": tensors(3), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert value(load_weights(tmp_path / "old.pth")) == 3
    content["settings"] = Settings()
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert f"names {Settings.__module__}.Settings" in refused(tmp_path / "old.pth")


def test_a_model_that_was_saved_whole_gives_its_tensors_and_runs_none_of_its_code(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 2), nn.GELU()))
    model.register_buffer("scratch", torch.ones(1), persistent=False)
    path = saved(tmp_path / "model.pt", {"epoch": 1, "model": model})
    state = load_weights(path)
    expected = model.state_dict()
    assert list(state) == list(expected) and all(
        torch.equal(state[name], expected[name]) for name in expected
    )
    assert load_weights(saved(tmp_path / "model.pt", model)).keys() == expected.keys()


class Payload:
    """Make a file where it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("where", ["weights", "args"])
@pytest.mark.parametrize("name", ["system", "open", "eval", "touch", "getattr"])
def test_a_pickle_that_would_make_a_file_is_refused_by_its_name_or_inert(tmp_path, name, where, old):
    victim = tmp_path / "victim"
    payload = {
        "system": Payload(os.system, f"touch {victim}"),
        "open": Payload(open, str(victim), "w"),
        "eval": Payload(eval, f"open({str(victim)!r}, 'w')"),
        "touch": Payload(pathlib.Path.touch, victim),
        "getattr": Payload(getattr, victim, "touch"),
    }[name]
    content = {"model": tensors(1)}
    content["model" if where == "weights" else "args"] = {"payload": payload} | tensors(1)
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old)
    message = refused(tmp_path / "evil.pth")
    assert not victim.exists() and "code that weights do not need, and was not opened" in message
    assert pickle.loads(pickle.dumps(payload)) is not None or victim.exists()  # it would have made the file
    assert victim.exists() or name == "getattr"


def test_a_class_of_nobody_known_is_never_imported(tmp_path, monkeypatch):
    module = tmp_path / "trap.py"
    module.write_text("class Trap:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import trap

    saved(tmp_path / "w.pth", {"model": tensors(1), "settings": trap.Trap()})
    module.write_text(f"open({str(tmp_path / 'victim')!r}, 'w')\n")
    monkeypatch.delitem(os.sys.modules, "trap")
    assert value(load_weights(tmp_path / "w.pth")) == 1
    assert "trap" not in os.sys.modules and not (tmp_path / "victim").exists()


def test_an_object_in_the_place_of_a_tensor_is_named(tmp_path):
    message = refused(saved(tmp_path / "w.pth", tensors(1) | {"head.weight": Settings()}))
    assert f"holds head.weight as {Settings.__module__}.Settings; save" in message
    for tensor, kind in (
        (torch.ones(4, 4).to_sparse(), "sparse_coo"),
        (torch.ones(4, device="meta"), "meta device"),
    ):
        assert kind in refused(saved(tmp_path / "w.pth", tensors(1) | {"head.weight": tensor}))


def test_the_list_of_safe_names_is_as_it_was_after_a_file(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_weights(saved(tmp_path / "w.pth", lightning(tensors(1))))
    refused(saved(tmp_path / "e.pth", Payload(eval, "1")))
    assert set(torch.serialization.get_safe_globals()) == before


# ---- what is no file of weights --------------------------------------------------------------------------


def zipped(*names: str) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


WHOLE = safetensors.torch.save(tensors(1))
OTHERS = {
    "vit.h5": (b"\x89HDF\r\n\x1a\n", "is a Keras model"),
    "vit.keras": (zipped("config.json", "model.weights.h5"), "is a Keras model"),
    "keras.pth": (zipped("config.json", "model.weights.h5"), "is a Keras model"),
    "hdf5.bin": (b"\x89HDF\r\n\x1a\n....", "is a Keras model"),
    "saved_model.pb": (b"\x08\x01", "is a TensorFlow model"),
    "model.ckpt.index": (b"\0", "is a TensorFlow model"),
    "model.ckpt-1000.data-00000-of-00001": (b"\0", "is a TensorFlow model"),
    "vit.tflite": (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
    "tflite.bin": (b"\x1c\0\0\0TFL3....", "is a TensorFlow Lite model"),
    "vit.onnx": (b"\x08\x08", "is an ONNX graph"),
    "vit.mlmodel": (b"\x08\x08", "is a Core ML model"),
    "vit.engine": (b"ptrt", "is a TensorRT engine"),
    "vit.plan": (b"ftrt", "is a TensorRT engine"),
    "flax_model.msgpack": (b"\x81", "is a checkpoint of Flax"),
    "vit.gguf": (b"GGUF", "is a GGUF file"),
    "vit.pkl": (pickle.dumps({}), "is a pickle, which holds code"),
    "vit.npy": (b"\x93NUMPY", "is one array without a name"),
    "__0_0.distcp": (b"x", "is a part of a checkpoint of torch.distributed"),
    "model.safetensors.index.json": (b"{}", "is the index of several files; give their folder"),
    "vit.tar": (b"x", "is an archive; unpack it"),
    "vit.pth.gz": (b"\x1f\x8b", "is an archive; unpack it"),
    "gz.pth": (b"\x1f\x8b\x08", "is compressed with gzip"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    "page.pth": (b"\n<!DOCTYPE html><html>", "is a web page or a server's answer"),
    "denied.safetensors": (b"<?xml version='1.0'?><Error>", "is a web page or a server's answer"),
    "empty.pth": (b"", "is empty; download or copy it again"),
    "empty.ckpt": (b"", "is empty; download or copy it again"),
    "cut.safetensors": (WHOLE[:-5], f"is cut off: it has {len(WHOLE) - 5} of {len(WHOLE)} bytes"),
    "header.safetensors": (WHOLE[:20], "is cut off: it has 20 of"),
    "torch.safetensors": (zipped("archive/data.pkl"), "is a torch file with the name of a safetensors file"),
    "noise.safetensors": (struct.pack("<Q", 1 << 60) + b"noise", "is no safetensors file"),
    "docs.pth": (zipped("a.txt", "b.txt"), "is an archive of a.txt, b.txt and not of tensors"),
    "weights.txt": (b"x", "weights must be a file that ends in .safetensors, .npz"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_file_is_named_with_what_to_do(tmp_path, name):
    content, expected = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert expected in message


def test_a_torch_file_that_was_cut_off_says_so(tmp_path):
    saved(tmp_path / "w.pth", tensors(1))
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    assert "is cut off: the end of the archive is missing; download or copy it again" in refused(
        tmp_path / "w.pth"
    )


@pytest.mark.parametrize("content", [None, [torch.ones(2)], torch.ones(2), {"a": 1}, {0: torch.ones(2)}, {}])
def test_a_torch_file_without_named_tensors_is_one_line(tmp_path, content):
    assert "is not a dictionary of named tensors" in refused(saved(tmp_path / "w.pth", content))


def test_a_file_that_holds_itself_is_read_to_its_end(tmp_path):
    content = {"model": tensors(1)}
    content["again"] = content
    part = content
    for _ in range(30):  # 2^30 paths lead to the last one
        part["left"] = part["right"] = {}
        part = part["left"]
    assert value(load_weights(saved(tmp_path / "w.pth", content))) == 1
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    module._modules["more"] = module
    assert torch.equal(load_weights(saved(tmp_path / "m.pt", module))["0.weight"], module[0].weight)
