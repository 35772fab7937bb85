"""head_columns: what a command's rows have from the head, and one line where they cannot."""

from dataclasses import replace

import pytest

from tests.support.runs import made_up_plan
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.head_columns import HeadColumns, as_begun, head_columns
from wordsworth.pipeline.labeling.plan import asked_for, refuse_another_run
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.vit_model.checkpoint import Checkpoint, random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig
from wordsworth.vit_model.head import Head


def model(num_classes: int, head: Head) -> Checkpoint:
    config = ViTConfig(
        image_size=(32, 32), patch_size=8, width=32, depth=1, heads=4, mlp_dim=64, num_classes=num_classes
    )
    return replace(random_checkpoint(config, Preprocessing(), 0), head=head)


def request(**changes) -> LabelRequest:
    given = {"command": "label", "sources": ("/in",), "output": "/out", "model": "m"}
    return LabelRequest(**given | changes)


SOFTMAX, SIGMOID, VALUE = Head(), Head(kind="sigmoid", threshold=0.3), Head(kind="value")


@pytest.mark.parametrize(
    ("num_classes", "head", "asked", "columns"),
    [
        (7, SOFTMAX, {}, HeadColumns(top_k=5)),
        (3, SOFTMAX, {"threshold": 0.0}, HeadColumns(top_k=3, threshold=0.0)),
        (7, SIGMOID, {}, HeadColumns(top_k=5, threshold=0.3)),
        (7, SIGMOID, {"threshold": 0.9, "top_k": 0}, HeadColumns(top_k=0, threshold=0.9)),
        (1, SOFTMAX, {}, HeadColumns(top_k=1, threshold=0.5)),
        (1, VALUE, {}, HeadColumns(top_k=0, value=True)),
        (7, SIGMOID, {"command": "embed", "top_k": 0}, HeadColumns(top_k=0)),
        (3, VALUE, {"command": "embed", "top_k": 0}, HeadColumns(top_k=0)),
        (0, SIGMOID, {"embedding": "float16"}, HeadColumns(top_k=0)),
    ],
)
def test_the_columns_follow_from_the_head_and_the_command(num_classes, head, asked, columns):
    assert head_columns(request(**asked), model(num_classes, head)) == columns


@pytest.mark.parametrize(
    ("num_classes", "head", "asked", "reason"),
    [
        (3, VALUE, {}, "3 numbers an image and no classes.*wordsworth embed.*--head sigmoid says so"),
        (1, VALUE, {"threshold": 0.5}, "--threshold 0.5 is a score of classes"),
        (3, SIGMOID, {"threshold": 1.5}, "--threshold 1.5: a score is from 0 to 1"),
        (3, SIGMOID, {"threshold": float("nan")}, "--threshold nan: a score is from 0 to 1"),
        (
            0,
            SOFTMAX,
            {"threshold": 0.5, "embedding": "float16"},
            "this model has no classes; wordsworth embed",
        ),
        (0, SOFTMAX, {}, "has no classes to label with: .*wordsworth embed gives the vectors"),
    ],
)
def test_what_the_head_does_not_have_is_one_line(num_classes, head, asked, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        head_columns(request(**asked), model(num_classes, head))
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)


def test_plan_json_names_head_and_threshold_where_they_are_not_what_they_were():
    plain = asked_for(request(), model(7, SOFTMAX))
    assert "head" not in plain and "threshold" not in plain
    multi = asked_for(request(), model(7, SIGMOID))
    assert (multi["head"], multi["threshold"]) == ("sigmoid", 0.3)
    assert asked_for(request(threshold=0.3), model(7, SIGMOID)) == multi
    assert asked_for(request(), model(1, VALUE))["head"] == "value"
    different = {name for name in multi if multi[name] != plain.get(name)}
    assert different == {"model fingerprint", "head", "threshold"}


def test_a_column_of_the_head_is_no_name_for_a_kept_one():
    with pytest.raises(UserError, match="every row has a column labels already"):
        asked_for(request(keep=("labels",)), model(7, SIGMOID))
    with pytest.raises(UserError, match="every row has a column value already"):
        asked_for(request(keep=("value",)), model(1, VALUE))
    assert asked_for(request(keep=("labels", "value")), model(7, SOFTMAX))["keep"] == ["labels", "value"]


def begun_as_softmax(num_classes: int, **asked) -> dict:
    """Return the part of plan.json that an earlier version wrote for a model whose head is no softmax."""
    older = model(num_classes, SOFTMAX)
    older.head = SOFTMAX
    return asked_for(request(**asked), older)


def test_a_run_that_was_begun_with_a_softmax_goes_on_so_and_says_it(tmp_path):
    notes = []
    plan = made_up_plan(begun_as_softmax(7))
    found = as_begun(plan, model(7, SIGMOID), request(), notes.append)
    assert found.head == SOFTMAX and len(notes) == 1 and "softmax" in notes[0]
    refuse_another_run(RunFolder(str(tmp_path)), plan, asked_for(request(), found))
    embedding = {"command": "embed", "top_k": 0, "embedding": "float16"}
    notes.clear()
    plan = made_up_plan(begun_as_softmax(1, **embedding))
    found = as_begun(plan, model(1, SIGMOID), request(**embedding), notes.append)
    refuse_another_run(RunFolder(str(tmp_path)), plan, asked_for(request(**embedding), found))
    assert not notes


def test_a_run_of_one_output_or_of_another_model_does_not_go_on_with_a_softmax(tmp_path):
    notes = []
    plan = made_up_plan({**begun_as_softmax(7), "model fingerprint": "0" * 16})
    assert as_begun(plan, model(7, SIGMOID), request(), notes.append).head == SIGMOID
    multi = made_up_plan(asked_for(request(), model(7, SIGMOID)))
    assert as_begun(multi, model(7, SIGMOID), request(), notes.append).head == SIGMOID
    older = model(1, SOFTMAX)
    older.head = SOFTMAX
    one = made_up_plan({"model fingerprint": older.fingerprint()[:16], "command": "label"})
    found = as_begun(one, model(1, SOFTMAX), request(), notes.append)
    assert found.head.kind == "sigmoid" and not notes
    with pytest.raises(UserError, match=r"--head was softmax and is sigmoid; .*weights of model .* differ"):
        refuse_another_run(RunFolder(str(tmp_path)), one, asked_for(request(), found))
