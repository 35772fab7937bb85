import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.model_folder import load_folder, save_folder
from wordsworth.vit_model.position import resample
from wordsworth.vit_model.weights import check_weights, load_weights


@pytest.fixture
def checkpoint(tiny, randomised) -> Checkpoint:
    state = randomised(VisionTransformer(tiny)).state_dict()
    return Checkpoint(
        config=tiny,
        preprocessing=Preprocessing(crop_pct=0.875),
        labels=("a", "b", "c", "d", "é, ü"),
        state=state,
        extra={"objective": "supervised"},
    )


def assert_identical(found: Checkpoint, expected: Checkpoint) -> None:
    for name in ("config", "preprocessing", "labels", "extra"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[key], expected.state[key]) for key in expected.state)
    assert found.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("x" * 10_000_000, "has 10,000,000 characters"),
        ("a\ud800", "half of a surrogate pair"),
        ("a\nb", "one line"),
    ],
)
def test_the_name_of_a_class_is_one_line_of_text_of_a_sane_length(tiny, label, message):
    with pytest.raises(ModelError, match=message) as error:
        random_checkpoint(tiny, Preprocessing(), 0, ("a", "b", "c", "d", label))
    assert len(str(error.value)) < 5000


@pytest.mark.slow
def test_a_saved_folder_loads_bit_identical(checkpoint, tmp_path):
    save_folder(tmp_path / "a" / "model", checkpoint)
    assert_identical(load_folder(tmp_path / "a" / "model"), checkpoint)
    assert sorted(os.listdir(tmp_path / "a" / "model")) == ["config.json", "labels.txt", "model.safetensors"]


def test_bytes_round_trip_bit_identical(checkpoint):
    blob = checkpoint.to_bytes()
    assert isinstance(blob, bytes)
    assert_identical(Checkpoint.from_bytes(blob), checkpoint)
    assert_identical(
        Checkpoint.from_bytes(replace(checkpoint, labels=None).to_bytes()), replace(checkpoint, labels=None)
    )


def test_the_model_of_a_checkpoint_computes_what_the_saved_one_did(checkpoint, tmp_path):
    before = checkpoint.model()
    assert not before.training and not any(p.is_meta for p in before.parameters())
    save_folder(tmp_path, checkpoint)
    x = torch.randn(2, 3, *checkpoint.config.image_size)
    assert torch.equal(load_folder(tmp_path).model()(x), before(x))


def test_config_json_names_the_variant_and_the_switches(checkpoint, tmp_path):
    save_folder(tmp_path, replace(checkpoint, config=replace(checkpoint.config, gelu="tanh")))
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["variant"] is None
    assert about["config"]["gelu"] == "tanh" and about["config"]["num_classes"] == 5
    assert about["extra"] == {"objective": "supervised"}


@pytest.mark.slow
def test_saving_over_a_model_with_labels_does_not_leave_its_labels(checkpoint, tmp_path):
    save_folder(tmp_path, checkpoint)
    save_folder(tmp_path, replace(checkpoint, labels=None))
    assert load_folder(tmp_path).labels is None


def test_a_save_that_fails_leaves_no_half_file_and_no_config(checkpoint, tmp_path, monkeypatch):
    def full_disk(fd):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_folder(tmp_path, checkpoint)
    assert os.listdir(tmp_path) == []


def test_the_fingerprint_is_stable_and_ignores_names_of_classes_and_provenance(checkpoint):
    again = replace(checkpoint, labels=None, extra={}, state=dict(reversed(checkpoint.state.items())))
    assert again.fingerprint() == checkpoint.fingerprint()
    assert len(checkpoint.fingerprint()) == 64


def test_the_fingerprint_of_a_fixed_model_never_changes(tiny):
    config = replace(tiny, depth=1)
    state = {k: torch.zeros(v.shape) for k, v in VisionTransformer(config).state_dict().items()}
    # Another value here means that no run of an earlier version can be resumed.
    expected = "316a52910e076aa72725653c76ed1526346d5eaa44a094a8b34841f72453870a"
    assert (
        Checkpoint(config=config, preprocessing=Preprocessing(), labels=None, state=state).fingerprint()
        == expected
    )


def test_any_change_of_weights_config_or_preprocessing_changes_the_fingerprint(checkpoint):
    seen = {checkpoint.fingerprint()}
    for key, tensor in checkpoint.state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] = torch.nextafter(
            changed.view(-1)[-1], torch.tensor(9.0)
        )  # the smallest change there is
        seen.add(replace(checkpoint, state=checkpoint.state | {key: changed}).fingerprint())
    for change in ({"gelu": "tanh"}, {"norm_eps": 1e-5}, {"heads": 8}, {"image_size": (48, 32)}):
        seen.add(replace(checkpoint, config=replace(checkpoint.config, **change)).fingerprint())
    for change in (
        {"crop_pct": 1.0},
        {"interpolation": "bilinear"},
        {"exif": "ignore"},
        {"mean": (0.5, 0.5, 0.4)},
    ):
        preprocessing = replace(checkpoint.preprocessing, **change)
        seen.add(replace(checkpoint, preprocessing=preprocessing).fingerprint())
    assert len(seen) == 1 + len(checkpoint.state) + 4 + 4


def test_a_random_model_depends_on_its_seed_alone(tiny):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (random_checkpoint(tiny, Preprocessing(), seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()


def test_resizing_changes_only_the_position_table(checkpoint):
    bigger = checkpoint.resized((64, 32))
    assert bigger.config == replace(checkpoint.config, image_size=(64, 32))
    table = checkpoint.state["pos_embed"]
    assert torch.equal(bigger.state.pop("pos_embed"), resample(table, (4, 6), (8, 4), 1))
    assert all(bigger.state[key] is checkpoint.state[key] for key in bigger.state)


def test_a_misfitting_file_names_its_keys_in_one_line(checkpoint):
    state = checkpoint.state | {"head.weight": torch.zeros(10, 32), "head_dist.weight": torch.zeros(10, 32)}
    for key in [key for key in state if key.startswith("blocks.1.")]:
        del state[key]
    with pytest.raises(ModelError) as error:
        check_weights(checkpoint.config, state, "w.pth")
    assert str(error.value) == (
        "w.pth does not fit the model: "
        "12 missing (blocks.1.norm1.weight, blocks.1.norm1.bias, blocks.1.attn.qkv.weight and 9 more); "
        "1 unexpected (head_dist.weight); "
        "1 misfitting (head.weight is (10, 32) in the file, (5, 32) in the model)"
    )


def test_half_precision_weights_become_float32_and_whole_numbers_are_refused(checkpoint):
    half = {key: tensor.half() for key, tensor in checkpoint.state.items()}
    assert {tensor.dtype for tensor in check_weights(checkpoint.config, half, "w").values()} == {
        torch.float32
    }
    with pytest.raises(ModelError, match=r"1 misfitting \(norm.bias is torch.int64"):
        check_weights(checkpoint.config, half | {"norm.bias": torch.zeros(32, dtype=torch.int64)}, "w")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}]
)
def test_torch_files_of_tensors_load_wrapped_or_not(checkpoint, tmp_path, wrap):
    torch.save(wrap(checkpoint.state), tmp_path / "w.pth")
    save_file(checkpoint.state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = load_weights(tmp_path / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in checkpoint.state.items())


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "was run"
    torch.save({"model": Trap(str(mark))}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth names posix\.mkdir, code.*state_dict alone") as error:
        load_weights(tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    assert not mark.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the trap is real
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.txt", b"", "must be a file that ends in .safetensors, .npz, .pth"),
        ("w.npz", b"", "is empty"),
        ("w.npz", b"PK\x03\x04 a broken zip", "is cut off"),
        ("w.safetensors", b"not safetensors", "is no safetensors file"),
        ("w.safetensors", b"12345678{}", "is cut off"),
        ("w.safetensors", b"\2" + bytes(7) + b"{]", "cannot be read as weights"),
        ("w.pth", b"plain text", "not a torch file"),
        ("w.pth", b"PK\x03\x04 a broken zip", "is cut off"),
        ("w.bin", None, "no such file"),
    ],
)
def test_what_is_not_a_file_of_weights_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        load_weights(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_holds_something_else_than_named_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "w.pt")
    with pytest.raises(ModelError, match="not a dictionary of named tensors"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.slow
def test_a_broken_model_folder_says_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        load_folder(tmp_path)
    save_folder(tmp_path, checkpoint)
    good = (tmp_path / "config.json").read_text()
    for broken, message in [
        (good[:-20], "config.json cannot be used: JSONDecodeError"),
        (good.replace('"gelu"', '"gello"'), "no field 'gello'; nearest: 'gelu'"),
        (good.replace('"preprocessing"', '"x"'), "KeyError: 'preprocessing'"),
        (good.replace('"depth": 2', '"depth": 3'), "12 missing"),
        ("[]", "cannot be used"),
    ]:
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ModelError, match=message):
            load_folder(tmp_path)
    (tmp_path / "config.json").write_text(good)
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(ModelError, match="2 labels for 5 classes"):
        load_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        load_folder(tmp_path)


def test_a_label_that_is_not_one_line_is_refused(checkpoint):
    with pytest.raises(ModelError, match="not one line"):
        replace(checkpoint, labels=("a", "b", "c", "d", "two\nlines"))
