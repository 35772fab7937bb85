"""Heads: the kind and the class names that a model's files tell, each against the library that wrote them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers.pipelines.image_classification import ImageClassificationPipeline

from tests.support.parity import images
from tests.support.taggers import TAGGERS, TAGS, tagger
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.config import ModelError, Preprocessing
from wordsworth.vit_model.foreign.class_names import class_names
from wordsworth.vit_model.foreign.export import export_model
from wordsworth.vit_model.foreign.load import from_folder
from wordsworth.vit_model.head import HEAD_FROM, Head
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.model_folder import load_folder, save_folder

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
CLOSE = {"atol": 1e-5, "rtol": 0}


def hugging_face(randomised, folder: Path, **about) -> transformers.ViTForImageClassification:
    config = transformers.ViTConfig(**SIZE, **about)
    theirs = randomised(transformers.ViTForImageClassification(config))
    with torch.no_grad():
        theirs.classifier.weight.mul_(30)  # scores that are not all near a half
    theirs.save_pretrained(folder)
    return theirs


def their_scores(theirs: transformers.ViTForImageClassification, x: torch.Tensor) -> torch.Tensor:
    """Return the scores (B, K) of transformers' own pipeline."""
    pipeline = ImageClassificationPipeline.__new__(ImageClassificationPipeline)
    pipeline.model = theirs
    rows = []
    with torch.no_grad():
        for logits in theirs(pixel_values=x).logits:
            found = pipeline.postprocess({"logits": logits[None]}, top_k=len(logits))
            by_label = {one["label"]: one["score"] for one in found}
            rows.append([by_label[theirs.config.id2label[i]] for i in range(len(logits))])
    return torch.tensor(rows)


SCORES = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "value": lambda logits: logits,
}


@pytest.mark.parametrize(
    ("about", "kind", "wrong"),
    [
        ({"num_labels": 5}, "softmax", "sigmoid"),
        ({"num_labels": 5, "problem_type": "single_label_classification"}, "softmax", "sigmoid"),
        ({"num_labels": 5, "problem_type": "multi_label_classification"}, "sigmoid", "softmax"),
        ({"num_labels": 1}, "sigmoid", "softmax"),
        ({"num_labels": 1, "problem_type": "regression"}, "value", "sigmoid"),
        ({"num_labels": 3, "problem_type": "regression"}, "value", "softmax"),
    ],
)
def test_the_head_of_a_transformers_folder_means_what_their_pipeline_makes_of_it(
    about, kind, wrong, randomised, tmp_path
):
    theirs = hugging_face(randomised, tmp_path, **about)
    found = from_folder(tmp_path)
    assert found.head == Head(kind=kind)
    x = images()
    expected = their_scores(theirs, x)
    with torch.no_grad():
        logits = found.model()(x)
    torch.testing.assert_close(SCORES[kind](logits), expected, **CLOSE)
    assert not torch.allclose(SCORES[wrong](logits), expected, atol=1e-3)


def test_a_problem_that_transformers_does_not_know_is_one_line(randomised, tmp_path):
    hugging_face(randomised, tmp_path, num_labels=5)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"problem_type": "ranking"}))
    with pytest.raises(ModelError, match=r"problem_type is 'ranking'; it must be one of .*regression"):
        from_folder(tmp_path)


def test_a_model_without_a_head_has_no_kind(randomised, tmp_path):
    config = transformers.ViTConfig(**SIZE, problem_type="multi_label_classification", num_labels=5)
    randomised(transformers.ViTModel(config)).save_pretrained(tmp_path)
    found = from_folder(tmp_path)
    assert found.head == Head() and found.labels is None and not found.config.num_classes


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "labels", "note"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ("a", "b", "c"), None),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c"), None),
        ({"id2label": {0: "0", 1: "1", 2: "2"}}, ("0", "1", "2"), None),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, ("a", "b", "c"), "from 1 to 3 for 3 classes"),
        ({"id2label": {"10": "c", "0": "a", "5": "b"}}, ("a", "b", "c"), "from 0 to 10 for 3 classes"),
        ({"id2label": {"0": "a", "2": "c"}}, ("a", "LABEL_1", "c"), "1 of 3 classes have no name"),
        ({"id2label": {"0": "a", "1": None, "2": "c"}}, ("a", "LABEL_1", "c"), None),
        ({"id2label": {"LABEL_0": "a", "LABEL_1": "b", "LABEL_2": "c"}}, ("a", "b", "c"), None),
        ({"id2label": {"a": 0, "b": 1, "c": "2"}}, ("a", "b", "c"), None),
        ({"id2label": ["a", "b", "c"]}, ("a", "b", "c"), None),
        ({"id2label": {"0": 7, "1": 8, "2": 9}}, ("7", "8", "9"), None),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, ("a", "a", "b"), None),
        ({"id2label": {"0": "a\n b", "1": "c\r\nd ", "2": "e  f"}}, ("a b", "c d", "e  f"), None),
        ({"label2id": {"a": 0, "b": "1", "c": 2}}, ("a", "b", "c"), None),
        ({"id2label": {}, "label2id": {"a": 0, "b": 1, "also b": 1, "c": 2}}, ("a", "b", "c"), None),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None, None),
        ({}, None, None),
        ({"id2label": None, "label2id": None}, None, None),
        (
            {"id2label": {"x": "a", "y": "b", "z": "c"}},
            None,
            "its keys are no numbers of classes, such as 'x'",
        ),
        ({"id2label": {"0": "a", "00": "b", "2": "c"}}, None, "no numbers of classes"),
        ({"id2label": {"-1": "a", "0": "b", "1": "c"}}, None, "no numbers of classes, such as '-1'"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}},
            None,
            "names 4 classes from 0 to 3, the head",
        ),
        ({"id2label": {"5": "a", "6": "b"}}, None, "it names 2 classes from 5 to 6, the head has 3"),
        ({"id2label": "cats"}, None, None),
    ],
)
def test_a_name_stands_where_the_file_tells_its_place(about, labels, note):
    found = class_names(about, 3)
    assert found.labels == labels
    assert (found.note is None) == (note is None) and (note or "") in (found.note or "")


def test_names_of_a_folder_that_does_not_count_from_0_are_used_and_said(randomised, tmp_path):
    hugging_face(randomised, tmp_path, num_labels=2)
    about = json.loads((tmp_path / "config.json").read_text())
    about |= {"id2label": {"1": "cat", "2": "dog"}, "label2id": {"cat": 1, "dog": 2}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    found = from_folder(tmp_path)
    assert found.labels == ("cat", "dog")
    assert found.extra["label_note"].startswith("id2label counts from 1 to 2 for 2 classes")


# ---- taggers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TAGGERS)
def test_a_tagger_gives_sigmoids_under_the_names_of_its_table_and_takes_blue_first(
    architecture, randomised, tmp_path
):
    theirs = tagger(tmp_path, randomised, architecture)
    found = from_folder(tmp_path, note=lambda said: None)
    assert found.head == Head(kind="sigmoid") and found.labels == TAGS
    assert found.extra[HEAD_FROM].startswith("selected_tags.csv is beside its config.json; its own code pads")
    x = images()
    with torch.no_grad():
        expected = theirs(x.flip(1)).sigmoid()
        logits = found.model()(x)
        if isinstance(logits, tuple):  # a module gives its embedding too
            logits, _ = logits
    torch.testing.assert_close(logits.sigmoid(), expected, **CLOSE)
    assert not torch.allclose(logits.softmax(-1), expected, atol=1e-3)
    with torch.no_grad():  # the tolerance notices the order of the channels
        assert not torch.allclose(theirs(x).sigmoid(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("tag_id,name\n1,a\n", "has 1 tags, the head has 5 outputs"),
        ("tag_id,tag\n1,a\n", "has no column name, or a row without it"),
        (b"tag_id,name\n1,\xff\xfe\n", "cannot be read as a table of tags"),
    ],
)
def test_a_table_of_tags_that_does_not_fit_is_one_line(table, reason, randomised, tmp_path):
    tagger(tmp_path, randomised)
    (tmp_path / "selected_tags.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ModelError, match=reason) as refusal:
        from_folder(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_converted_tagger_is_turned_round_once(randomised, tmp_path):
    tagger(tmp_path / "tagger", randomised)
    found = from_folder(tmp_path / "tagger")
    for form in ("safetensors", "timm"):
        export_model(found, tmp_path / form, form)
        again = from_folder(tmp_path / form)
        assert (again.head, again.labels) == (found.head, found.labels)
        assert torch.equal(again.state["patch_embed.proj.weight"], found.state["patch_embed.proj.weight"])


# ---- our own folders, and what convert writes -----------------------------------------------------------


@pytest.fixture
def sigmoid(tiny, randomised) -> Checkpoint:
    state = randomised(VisionTransformer(tiny)).state_dict()
    head = Head(kind="sigmoid", threshold=0.3)
    return Checkpoint(config=tiny, preprocessing=Preprocessing(), head=head, state=state)


def test_a_model_folder_keeps_the_head(sigmoid, tmp_path):
    save_folder(tmp_path, sigmoid)
    found = load_folder(tmp_path)
    assert found.head == sigmoid.head and found.fingerprint() == sigmoid.fingerprint()
    assert Checkpoint.from_bytes(sigmoid.to_bytes()).head == sigmoid.head


@pytest.mark.parametrize(("form", "threshold"), [("timm", 0.3), ("hf", 0.5)])
def test_convert_keeps_the_kind_of_the_head(form, threshold, sigmoid, tmp_path):
    notes = export_model(sigmoid, tmp_path / form, form)
    assert from_folder(tmp_path / form).head == Head(kind="sigmoid", threshold=threshold)
    assert [note for note in notes if "sigmoid" in note or "threshold" in note]


def test_transformers_finds_the_kind_that_convert_writes(sigmoid, tmp_path):
    export_model(sigmoid, tmp_path, "hf")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    x = images(sigmoid.config.image_size)
    with torch.no_grad():
        expected = sigmoid.model()(x).sigmoid()
    torch.testing.assert_close(their_scores(theirs, x), expected, **CLOSE)


def test_an_npz_does_not_carry_the_kind_and_says_so(sigmoid, tmp_path):
    notes = export_model(sigmoid, tmp_path / "m.npz", "npz", lossy=True)
    assert "an .npz does not say that the head is a sigmoid: --head sigmoid does" in notes


def test_a_training_with_a_sigmoid_loss_of_an_earlier_version_has_a_sigmoid(sigmoid, tmp_path):
    extra = {"objective": "supervised", "settings": {"loss": "sigmoid"}}
    save_folder(tmp_path, sigmoid)
    about = json.loads((tmp_path / "config.json").read_text())
    del about["head"]
    for loss, kind in (("sigmoid", "sigmoid"), ("softmax", "softmax")):
        extra["settings"]["loss"] = loss
        (tmp_path / "config.json").write_text(json.dumps(about | {"extra": extra}))
        assert load_folder(tmp_path).head.kind == kind


def test_one_class_is_never_a_softmax(tiny, randomised):
    config = replace(tiny, num_classes=1)
    state = randomised(VisionTransformer(config)).state_dict()
    made = {"config": config, "preprocessing": Preprocessing(), "state": state}
    assert Checkpoint(**made).head == Head(kind="sigmoid")
    assert Checkpoint(**made, head=Head(kind="value")).head == Head(kind="value")
