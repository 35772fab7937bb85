"""models: what --model, --weights and --labels mean, and one line for each way in which they do not fit."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import transformers

from tests.support.stores import s3_bucket
from tests.support.taggers import tagger
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.load_model import load_model
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing, ViTConfig
from wordsworth.vit_model.head import Head
from wordsworth.vit_model.model_folder import save_folder
from wordsworth.vit_model.variants import variant

PREPROCESSING = Preprocessing(
    interpolation="bilinear", crop_pct=0.95, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)
LABELS = ("ant", "bee", "cat")


def make(config: ViTConfig, seed: int = 0, labels: tuple[str, ...] | None = LABELS) -> Checkpoint:
    """Every parameter random: zeros would hide that one was not loaded."""
    made = random_checkpoint(config, PREPROCESSING, seed, labels)
    generator = torch.Generator().manual_seed(seed)
    for tensor in made.state.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return made


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return make(
        ViTConfig(image_size=(32, 32), patch_size=8, width=32, depth=2, heads=4, mlp_dim=64, num_classes=3)
    )


@pytest.fixture
def folder(small, tmp_path):
    save_folder(tmp_path / "model", small)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The weights of a Ti/32 of seven classes, and their file."""
    made = make(variant("Ti/32", num_classes=7), labels=None)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.torch.save_file(made.state, path)
    return made, path


def same(found: Checkpoint, made: Checkpoint) -> bool:
    assert found.fingerprint() == made.fingerprint()  # config, preprocessing and every weight
    return found.labels == made.labels


def refused(*arguments, **options) -> tuple[str, int]:
    with pytest.raises((UserError, ModelError)) as refusal:
        load_model(*arguments, **options)
    message = str(refusal.value)
    assert "\n" not in message
    return message, getattr(refusal.value, "exit_code", 1)


def test_weights_that_diverged_are_refused(folder, small, tmp_path):
    state = dict(small.state)
    state["norm.bias"] = torch.full_like(state["norm.bias"], torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    message, _ = refused(str(folder), weights=str(tmp_path / "nan.pth"))
    assert "nan.pth holds NaN in 1 tensors, norm.bias first" in message


# ---- model folders ---------------------------------------------------------------------------------------


def test_a_model_folder_is_loaded_as_it_was_saved(folder, small, monkeypatch):
    assert same(load_model(str(folder)), small) and same(load_model(f"file://{folder}/"), small)
    monkeypatch.chdir(folder.parent)
    assert same(load_model("model"), small)


def test_a_model_folder_may_lie_on_a_store(folder, small):
    with s3_bucket() as bucket:
        bucket.objects.update({f"b/models/one/{path.name}": path.read_bytes() for path in folder.iterdir()})
        bucket.objects["b/w.safetensors"] = (folder / "model.safetensors").read_bytes()
        assert same(load_model("s3://b/models/one"), small)
        assert same(load_model("s3://b/models/one/", weights="s3://b/w.safetensors"), small)
        assert "canary" not in refused("s3://key:canary@b/models/two")[0]


def test_weights_replace_those_of_a_folder_and_nothing_else(folder, small, tmp_path):
    other = replace(small, state=make(small.config, seed=5).state)
    torch.save(other.state, tmp_path / "other.pth")
    assert same(load_model(str(folder), weights=str(tmp_path / "other.pth")), other)
    assert not torch.equal(other.state["head.weight"], small.state["head.weight"])


@pytest.mark.parametrize("name", ["nothing", "ViT-B", "X/16", "s3://b/nothing"])
def test_an_unknown_model_is_a_wrong_command_and_says_what_is_known(name):
    with s3_bucket():
        message, code = refused(name)
    assert code == 2 and f"unknown model {name}" in message
    assert "model folders, files of weights, timm:NAME, hf:OWNER/NAME, and variants (Ti/16, S/16, " in message


def test_an_unknown_patch_size_or_timm_name_shows_the_nearest(tmp_path):
    assert "did you mean 'S/16'" in refused("S/17", allow_random_weights=True)[0]
    (tmp_path / "w.pth").write_bytes(b"")
    message, _ = refused("timm:vit_tinny_patch16_224", weights=str(tmp_path / "w.pth"))
    assert "vit_tinny_patch16_224" in message and "nearest: 'vit_tiny_patch16_224'" in message


@pytest.mark.slow
def test_a_file_in_timms_names_alone_is_no_model(named):
    message, _ = refused(str(named[1]))
    assert "do not tell the GELU" in message and "--model timm:NAME or B/16" in message


def test_a_file_of_ours_alone_is_a_model(small, tmp_path):
    (tmp_path / "one.safetensors").write_bytes(small.to_bytes())
    assert same(load_model(str(tmp_path / "one.safetensors")), small)


def test_weights_of_another_variant_are_refused_by_name(named):
    message, code = refused("S/32", weights=str(named[1]))
    assert code == 2 and message.endswith("holds the weights of Ti/32, not of S/32")


def test_a_damaged_model_folder_names_its_file(folder):
    (folder / "config.json").write_text("{")
    assert str(folder / "config.json") in refused(str(folder))[0]


# ---- variants --------------------------------------------------------------------------------------------


def test_a_variant_without_weights_is_a_wrong_command():
    message, code = refused("Ti/32")
    assert code == 2 and "--model Ti/32 names an architecture but no weights: add --weights FILE" in message


@pytest.mark.slow
def test_random_weights_are_those_of_the_seed_and_are_said_loudly():
    notes = []
    first, again, other = (
        load_model("Ti/32", allow_random_weights=True, seed=seed, note=notes.append) for seed in (1, 1, 2)
    )
    assert notes == ["Ti/32 has RANDOM weights: the labels mean nothing"] * 3
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_a_variant_takes_its_classes_from_the_weights(named):
    made, path = named
    notes = []
    found = load_model("Ti/32", weights=str(path), note=notes.append)
    pooling, preparation = notes
    assert "does not say how it pools: the class token" in pooling
    assert "does not say how images are prepared, so: interpolation bicubic, crop_pct 0.9" in preparation
    assert found.config == made.config and found.config.num_classes == 7 and found.labels is None
    assert all(torch.equal(found.state[name], made.state[name]) for name in made.state)


def test_a_variant_takes_weights_without_a_head(named, tmp_path):
    state = {name: tensor for name, tensor in named[0].state.items() if not name.startswith("head.")}
    safetensors.torch.save_file(state, tmp_path / "headless.safetensors")
    assert load_model("Ti/32", weights=str(tmp_path / "headless.safetensors")).config.num_classes == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("norm.bias"), r"1 missing (norm.bias)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected (extra)"),
        (
            lambda state: state.update({"norm.bias": torch.zeros(5)}),
            "norm.bias is (5,) in the file, (192,) in the model",
        ),
        (
            lambda state: state.update({"norm.bias": torch.zeros(192, dtype=torch.int32)}),
            "norm.bias is torch.int32 in the file",
        ),
        (
            lambda state: state.update(pos_embed=torch.zeros(1, 50, 191)),
            "pos_embed is (1, 50, 191) in the file, (1, 50, 192)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_key_by_key(named, tmp_path, change, complaint):
    state = dict(named[0].state)
    change(state)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    message, _ = refused("Ti/32", weights=str(tmp_path / "w.safetensors"))
    assert f"{tmp_path}/w.safetensors does not fit the model" in message and complaint in message


def test_the_weights_of_another_model_name_some_keys_and_count_the_others(named, folder):
    message, _ = refused(str(folder), weights=str(named[1]))
    assert "120 unexpected (" in message and "31 misfitting (" in message
    assert (
        "cls_token is (1, 1, 192) in the file, (1, 1, 32) in the model" in message
        and " and 28 more)" in message
    )
    assert len(message) < 1500


class Payload:
    def __reduce__(self):
        return print, ("code ran",)


def test_weights_that_would_run_code_are_refused_and_do_not(tmp_path, capsys):
    torch.save({"head.weight": Payload()}, tmp_path / "evil.pth")
    message, _ = refused("Ti/32", weights=str(tmp_path / "evil.pth"))
    assert "names builtins.print, code that weights do not need" in message
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "code"), [("missing.safetensors", 2), ("w.txt", 1), ("empty.safetensors", 1), ("empty.pth", 1)]
)
def test_a_file_that_is_no_weights_is_one_line(tmp_path, name, code):
    for made in ("w.txt", "empty.safetensors", "empty.pth"):
        (tmp_path / made).write_bytes(b"")
    message, exit_code = refused("Ti/32", weights=str(tmp_path / name))
    assert str(tmp_path / name) in message and exit_code == code


# ---- labels and overrides --------------------------------------------------------------------------------


def test_a_labels_file_replaces_the_names(folder, tmp_path):
    (tmp_path / "labels.txt").write_text("eins\nzwei\ndrei, vier\n")
    assert load_model(str(folder), labels=str(tmp_path / "labels.txt")).labels == (
        "eins",
        "zwei",
        "drei, vier",
    )


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a\nb\n", 2), ("a\nb\nc\nd", 4)])
def test_a_labels_file_of_another_length_is_a_wrong_command(folder, tmp_path, text, count):
    (tmp_path / "names.txt").write_text(text)
    message, code = refused(str(folder), labels=str(tmp_path / "names.txt"))
    assert code == 2 and f"names.txt has {count} names, the model has 3 classes" in message


def test_a_labels_file_is_utf_8_and_may_say_so(folder, tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffKäfer\nb\nc".encode())
    assert load_model(str(folder), labels=str(tmp_path / "names.txt")).labels == ("Käfer", "b", "c")
    (tmp_path / "names.txt").write_bytes("Käfer\nb\nc".encode("latin-1"))
    message, code = refused(str(folder), labels=str(tmp_path / "names.txt"))
    assert code == 2 and "names.txt is not UTF-8: invalid continuation byte at byte 1" in message


def test_a_missing_labels_file_is_a_wrong_command(folder, tmp_path):
    message, code = refused(str(folder), labels=str(tmp_path / "nothing.txt"))
    assert code == 2 and f"--labels {tmp_path}/nothing.txt: no such file" in message


def test_overrides_change_the_preprocessing_and_so_the_fingerprint(folder, small):
    found = load_model(str(folder), overrides={"crop_pct": 0.5, "exif": "ignore"})
    assert found.preprocessing == replace(PREPROCESSING, crop_pct=0.5, exif="ignore")
    assert found.fingerprint() != small.fingerprint()
    assert "--crop-pct is 2" in refused(str(folder), overrides={"crop_pct": 2})[0]


def test_a_url_that_is_not_allowed_is_refused_wherever_it_stands(folder):
    for arguments in ({"model": "http://h/m"}, {"model": str(folder), "weights": "http://h/w.pth"}):
        assert "scheme is not one of" in refused(**arguments)[0]
    assert "scheme is not one of" in refused(str(folder), labels="pipe:touch x")[0]


# ---- heads -----------------------------------------------------------------------------------------------


def test_the_head_is_what_is_asked_for_and_is_said(folder, small):
    notes = []
    assert load_model(str(folder), note=notes.append).head == Head() and not notes
    found = load_model(str(folder), head="sigmoid", note=notes.append)
    assert found.head == Head(kind="sigmoid") and found.fingerprint() != small.fingerprint()
    assert notes == ["scores are sigmoids, of each class for itself: --head says so"]
    save_folder(folder, found)
    notes.clear()
    assert load_model(str(folder), note=notes.append).head == Head(kind="sigmoid")
    assert notes == ["scores are sigmoids, of each class for itself: config.json says so"]
    notes.clear()
    assert same(load_model(str(folder), head="softmax", note=notes.append), small) and not notes


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_an_earlier_training_is_what_its_loss_was_unless_the_command_says_otherwise(
    folder, small, loss, tmp_path
):
    extra = {"objective": "supervised", "settings": {"loss": loss}}
    save_folder(folder, replace(small, extra=extra))
    notes = []
    assert load_model(str(folder), note=notes.append).head.kind == loss
    assert notes == ["scores are sigmoids, of each class for itself: it was trained with --loss sigmoid"] * (
        loss == "sigmoid"
    )
    other = load_model(str(folder), head="softmax")
    save_folder(tmp_path / "again", other)
    assert load_model(str(tmp_path / "again")).head == Head()
    (tmp_path / "one.safetensors").write_bytes(replace(small, extra=extra).to_bytes())
    assert load_model(str(tmp_path / "one.safetensors")).head.kind == loss


@pytest.mark.parametrize(
    ("num_classes", "head", "reason"),
    [
        (
            1,
            "softmax",
            "--head softmax: this model has one output, to which a softmax gives 1 for every image",
        ),
        (0, "sigmoid", "--head sigmoid: this model has no head"),
    ],
)
def test_a_head_that_cannot_be_is_a_wrong_command(num_classes, head, reason, small, tmp_path):
    made = make(replace(small.config, num_classes=num_classes), labels=None)
    save_folder(tmp_path / "model", made)
    message, code = refused(str(tmp_path / "model"), head=head)
    assert code == 2 and message.startswith(reason)


def test_a_model_that_compares_texts_is_no_sigmoid(small, tmp_path):
    """A sigmoid of CLIP's scaled cosines is 1 for every class."""
    save_folder(tmp_path / "model", replace(small, extra={"zero_shot": {"classes": 3, "prompts": ["{}"]}}))
    message, code = refused(str(tmp_path / "model"), head="sigmoid")
    assert code == 2 and "trained to compare them by a softmax: leave --head out" in message
    assert load_model(str(tmp_path / "model"), head="softmax").head == Head()


def test_one_output_is_a_sigmoid_and_the_note_names_the_other_way(small, tmp_path):
    save_folder(tmp_path / "model", make(replace(small.config, num_classes=1), labels=None))
    notes = []
    assert load_model(str(tmp_path / "model"), note=notes.append).head.kind == "sigmoid"
    assert notes == [
        "scores are sigmoids, of each class for itself: the model has one output (--head value for a number)"
    ]
    notes.clear()
    assert load_model(str(tmp_path / "model"), head="value", note=notes.append).head.kind == "value"
    assert notes == ["the head gives a number, and no classes: --head says so"]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"kind": "hinge"}, "the kind of the head is 'hinge'"),
        ({"kind": "sigmoid", "threshold": 2}, "the threshold of the head is 2"),
        ({"kind": "sigmoid", "threshold": "high"}, "the threshold of the head is 'high'"),
        ({"kind": "sigmoid", "treshold": 0.5}, "Head has no field 'treshold'; nearest: 'threshold'"),
        ("sigmoid", "Head has no field"),
        (None, "cannot be used"),
        ({"kind": ["sigmoid"]}, "the kind of the head is ['sigmoid']"),
    ],
)
def test_a_head_in_config_json_that_cannot_be_is_one_line(head, reason, folder):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"head": head}))
    assert reason in refused(str(folder))[0]


def test_names_that_cannot_be_placed_are_said_unless_other_names_are_given(tmp_path):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    config = transformers.ViTConfig(**sizes, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    about["id2label"] = {"one": "ant", "two": "bee", "three": "cat"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(about))
    prepared = {"size": {"height": 32, "width": 32}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(prepared))
    notes = []
    found = load_model(str(tmp_path / "model"), note=notes.append)
    assert found.labels is None and "label_note" not in found.extra
    (note,) = notes
    assert "id2label in config.json cannot be used: its keys are no numbers of classes, such as 'one'" in note
    notes.clear()
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    found = load_model(str(tmp_path / "model"), labels=str(tmp_path / "names.txt"), note=notes.append)
    assert found.labels == ("ant", "bee", "cat") and not notes


def test_weights_in_place_of_a_taggers_own_are_refused(tmp_path):
    tagger(tmp_path / "tagger", lambda model: model.eval())
    weights = tmp_path / "tagger" / "model.safetensors"
    message, code = refused(str(tmp_path / "tagger"), weights=str(weights))
    assert code == 2 and "the weights of a tagger take blue first" in message
    found = load_model(str(tmp_path / "tagger"), note=lambda said: None)
    save_folder(tmp_path / "ours", found)
    assert same(
        load_model(str(tmp_path / "ours"), weights=str(tmp_path / "ours" / "model.safetensors")), found
    )
