"""checkpoints of trainings: what --weights and --weights-key make of them, and what is said."""

import json

import pytest
import timm
import torch

from tests.prediction.test_load_model import make, refused
from tests.support.stores import s3_bucket
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ViTConfig
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.weights import load_weights

TIMM = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def small() -> BaseCheckpoint:
    return make(
        ViTConfig(image_size=(32, 32), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=3)
    )


@pytest.fixture
def folder(small, tmp_path):
    save_folder(tmp_path / "model", small)
    return str(tmp_path / "model")


def shifted(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def saved(path, content) -> str:
    torch.save(content, path)
    return str(path)


def same_tensors(found, state) -> bool:
    return all(torch.equal(found.state[name], tensor) for name, tensor in state.items())


# ---- which weights ---------------------------------------------------------------------------------------


def test_the_average_is_taken_and_said_and_a_key_takes_the_others_in_silence(folder, small, tmp_path):
    file = saved(tmp_path / "w.pth.tar", {"state_dict": small.state, "state_dict_ema": shifted(small.state)})
    notes = []
    found = load_model(folder, weights=file, note=notes.append)
    assert same_tensors(found, shifted(small.state))
    assert notes == [
        "w.pth.tar: takes state_dict_ema, the averaged weights; --weights-key state_dict takes the others"
    ]
    assert found.extra["weights_key"] == "state_dict_ema"
    notes.clear()
    found = load_model(folder, weights=file, weights_key="state_dict", note=notes.append)
    assert same_tensors(found, small.state) and notes == []
    assert found.extra["weights_key"] == "state_dict"


def test_the_key_is_in_the_config_json_that_convert_writes(folder, small, tmp_path):
    file = saved(tmp_path / "w.pth", {"model": small.state, "model_ema": shifted(small.state)})
    save_folder(tmp_path / "out", load_model(folder, weights=file))
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["extra"]["weights_key"] == "model_ema" and about["extra"]["other_weights"] == ["model"]


def test_a_plain_file_says_and_records_no_key(folder, small, tmp_path):
    notes = []
    found = load_model(folder, weights=saved(tmp_path / "w.pth", {"model": small.state}), note=notes.append)
    assert notes == [] and not {"weights_key", "other_weights", "left_out"} & set(found.extra)


def test_a_wrong_key_and_a_key_without_a_file_are_one_line(folder, small, tmp_path):
    file = saved(tmp_path / "w.pth", {"model": small.state, "model_ema": small.state})
    assert (
        "has no --weights-key ema; its keys are model, model_ema"
        in refused(folder, weights=file, weights_key="ema")[0]
    )
    for model in (folder, TIMM, "S/16", "hf:a/b"):
        message, code = refused(model, weights_key="model")
        assert code == 2 and message.endswith("in a file: give the file, --weights FILE")
    (tmp_path / "one.safetensors").write_bytes(small.to_bytes())
    message, _ = refused(str(tmp_path / "one.safetensors"), weights_key="model")
    assert "is a whole model with one set of tensors" in message


def test_a_teacher_behind_a_prefix_is_said_with_what_is_beside_it(folder, small, tmp_path):
    state = {f"teacher.backbone.{name}": tensor for name, tensor in shifted(small.state).items()}
    state |= {f"student.backbone.{name}": tensor for name, tensor in small.state.items()}
    file = saved(tmp_path / "last.ckpt", {"state_dict": state | {"dino_loss.center": torch.ones(3)}})
    notes = []
    found = load_model(folder, weights=file, note=notes.append)
    assert same_tensors(found, shifted(small.state))
    choice = "takes teacher.backbone, the averaged weights; --weights-key student.backbone takes the others"
    assert notes[0] == f"last.ckpt: {choice}"
    assert notes[1].startswith(f"{len(small.state) + 1} tensors of last.ckpt are no part of the model")
    assert same_tensors(load_model(folder, weights=file, weights_key="student.backbone"), small.state)
    assert same_tensors(load_model(folder, weights=file, weights_key="student"), small.state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_precisions_become_float32(folder, small, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in small.state.items()}
    state["norm.bias"] = small.state["norm.bias"]  # mixed
    found = load_model(folder, weights=saved(tmp_path / "w.pth", state))
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    assert same_tensors(found, {name: tensor.float() for name, tensor in state.items()})


def test_weights_on_a_store_may_be_a_checkpoint_too(folder, small, tmp_path):
    saved(tmp_path / "w.pth.tar", {"state_dict": small.state})
    with s3_bucket() as bucket:
        bucket.objects["b/w.pth.tar"] = (tmp_path / "w.pth.tar").read_bytes()
        bucket.objects["b/w.onnx"] = b"\x08"
        assert same_tensors(load_model(folder, weights="s3://b/w.pth.tar"), small.state)
        assert "--weights s3://b/w.onnx is an ONNX graph" in refused(folder, weights="s3://b/w.onnx")[0]


# ---- the number of classes -------------------------------------------------------------------------------


def test_the_classes_are_those_of_the_file_and_their_names_go(folder, small, tmp_path):
    state = small.state | {"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)}
    file = saved(tmp_path / "w.pth", state)
    notes = []
    found = load_model(folder, weights=file, note=notes.append)
    assert found.config.num_classes == 5 and found.labels is None and same_tensors(found, state)
    assert notes == ["w.pth has 5 classes, the named model 3: --labels FILE names them"]
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    assert load_model(folder, weights=file, labels=str(tmp_path / "names.txt")).labels == tuple("abcde")


def test_a_file_without_a_head_gives_embeddings(folder, small, tmp_path):
    state = {name: tensor for name, tensor in small.state.items() if not name.startswith("head.")}
    notes = []
    found = load_model(folder, weights=saved(tmp_path / "w.pth", state), note=notes.append)
    assert found.config.num_classes == 0 and found.labels is None and "head.weight" not in found.state
    assert notes == ["w.pth has no head: it gives embeddings and no labels"]


@pytest.mark.slow
def test_a_fine_tuned_timm_model_of_a_lightning_project_labels_its_own_classes(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    torch.nn.init.normal_(theirs.head.weight)
    state = {f"net.{name}": tensor for name, tensor in theirs.state_dict().items()}
    file = saved(tmp_path / "last.ckpt", {"state_dict": state, "epoch": 3, "hyper_parameters": {}})
    notes = []
    found = load_model(TIMM, weights=file, note=notes.append)
    assert found.config.num_classes == 10 and found.labels is None
    assert notes == ["last.ckpt has 10 classes, the named model 1000: --labels FILE names them"]
    x = torch.rand(2, 3, 224, 224)
    torch.testing.assert_close(found.model()(x), theirs(x), atol=1e-5, rtol=1e-4)


# ---- what is no model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            (".metadata", "__0_0.distcp", "progress.json"),
            "is the state of a training between two steps, not a model",
        ),
        ((".metadata", "__0_0.distcp"), "is a checkpoint of torch.distributed; python -m torch.distributed"),
        (("saved_model.pb", "fingerprint.pb"), "is a TensorFlow model"),
        (("model.ckpt.index", "model.ckpt.data-00000-of-00001"), "is a TensorFlow model"),
        (("Manifest.json",), "is a Core ML model"),
        (("notes.txt",), "the folder has no config.json"),
    ],
)
@pytest.mark.parametrize("option", ["model", "weights"])
def test_a_folder_of_another_kind_is_named(folder, tmp_path, names, expected, option):
    other = tmp_path / "other"
    other.mkdir()
    for name in names:
        (other / name).write_bytes(b"")
    message, _ = refused(str(other)) if option == "model" else refused(folder, weights=str(other))
    assert str(other) in message
    if option == "model" or "config.json" not in expected:
        assert expected in message


@pytest.mark.parametrize(
    "name", ["vit.onnx", "vit.h5", "vit.keras", "vit.tflite", "flax_model.msgpack", "vit.engine"]
)
def test_a_file_of_another_kind_is_named_as_a_model_too(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08")
    message, _ = refused(str(tmp_path / name))
    assert f"--model {tmp_path / name} is " in message


def test_a_pointer_and_a_folder_in_the_place_of_a_file_are_named(folder, tmp_path):
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in refused(str(tmp_path / "w.safetensors"))[0]
    assert "is a Git LFS pointer" in refused(folder, weights=str(tmp_path / "w.safetensors"))[0]
    (tmp_path / "dir.pth").mkdir()
    message, code = refused(folder, weights=str(tmp_path / "dir.pth"))
    assert code == 2 and message.endswith("dir.pth is a folder, not a file")


# ---- weights in several files ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_with_torch_files_and_their_index_alone_is_the_whole_model(tmp_path, dtype):
    from transformers import ViTConfig as Config
    from transformers import ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = ViTForImageClassification(Config(**sizes, image_size=32, patch_size=8, num_labels=5)).to(dtype)
    torch.nn.init.normal_(theirs.classifier.weight)
    theirs.save_pretrained(tmp_path)
    state = load_weights(tmp_path / "model.safetensors")  # the names that files have
    (tmp_path / "model.safetensors").unlink()
    names = list(state)
    where = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(where.values()):
        torch.save({name: state[name] for name in names if where[name] == file}, tmp_path / file)
    index = {"metadata": {"total_size": 1, "all_checkpoint_keys": names}, "weight_map": where}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = load_model(str(tmp_path))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.model()(x), theirs.float()(x).logits, atol=1e-5, rtol=1e-4)
    message, _ = refused("S/16", weights=str(tmp_path / "pytorch_model.bin.index.json"))
    assert "is the index of several files; give their folder as --model" in message
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin: no such file" in refused(str(tmp_path))[0]
