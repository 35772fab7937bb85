"""Show that the numbers of a table of Hugging Face get the names that its metadata has for them."""

import json

import pyarrow as pa
import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tables import write_hugging_face, write_parquet
from wordsworth.pipeline.labeling.plan import asked_for, refuse_another_run, with_class_names
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.class_labels import class_labels, labels_by_name

NAMES = ["cat", "dog", "7"]


def table(folder, **columns):
    columns = {"image": [b"1"] * 5, "label": [1, 0, 2, -1, None], "n": [0, 1, 2, 0, 1]} | columns
    return write_hugging_face(folder / "t.parquet", columns, {"label": NAMES})


def test_a_kept_column_of_that_type_holds_names_and_other_columns_numbers(tmp_path):
    units = units_of(table(tmp_path), keep=("label", "n"), class_names=True, rows=9)
    sidecars = [row["sidecars"] for row in rows_of(units)]
    assert sidecars == [["dog", "0"], ["cat", "1"], ["7", "2"], ["-1", "0"], [None, "1"]]
    assert rows_of(units_of(table(tmp_path), keep=("label",)))[0]["sidecars"] == ["1"]


def test_names_stand_in_lists_and_fields_too(tmp_path):
    named = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    fields = {"kind": named, "n": {"_type": "Value"}}
    features = {"tags": {"_type": "Sequence", "feature": named}, "meta": fields}
    metas = [{"kind": 1, "n": 1}, {"kind": None, "n": 0}]
    columns = {"image": [b"1"] * 2, "tags": [[1, 0, -1], None], "meta": metas}
    told = json.dumps({"info": {"features": features}})
    schema = pa.table(columns).schema.with_metadata({"huggingface": told})
    path = write_parquet(tmp_path / "t.parquet", pa.table(columns).cast(schema))
    rows = rows_of(units_of(path, keep=("tags", "meta.kind", "meta.n"), class_names=True))
    assert [row["sidecars"] for row in rows] == [['["dog", "cat", -1]', "dog", "1"], [None, None, "0"]]
    assert labels_by_name(class_labels(schema)) == {"tags": ("cat", "dog"), "meta.kind": ("cat", "dog")}


@pytest.mark.parametrize(
    "told",
    [
        b"no JSON",
        b"[]",
        b"{}",
        json.dumps({"info": {"features": {"label": "x"}}}).encode(),
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": None}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"_type": "Value", "names": ["a"]}}}}).encode(),
    ],
)
def test_metadata_of_another_form_names_nothing(told):
    assert class_labels(pa.schema([("label", pa.int64())], {"huggingface": told})) == {}
    assert class_labels(pa.schema([("label", pa.int64())])) == {}


def test_a_run_is_frozen_with_or_without_the_names_and_continues_as_it_was_begun(tmp_path, small_model):
    from wordsworth.pipeline.labeling.plan import make_plan
    from wordsworth.vit_model.model_folder import load_folder

    model = load_folder(small_model)
    named = shard_of(table(tmp_path / "named"))
    plain = shard_of(write_parquet(tmp_path / "plain" / "t.parquet", {"image": [b"1"], "label": [1]}))
    request = LabelRequest(
        command="label", sources=("a",), output=str(tmp_path), model="m", keep=("label=x",)
    )
    asked = asked_for(request, model)
    assert with_class_names(asked, request, [plain, named]) == asked, "the first table decides"
    frozen = with_class_names(asked, request, [named])
    assert frozen == asked | {"class-names": True}
    for begun in (asked, frozen):
        plan = make_plan(begun, request, model, {"CPU": 4.0})
        for now in (asked, frozen):
            refuse_another_run(RunFolder(str(tmp_path / "out")), plan, now)
    other = LabelRequest(command="label", sources=("a",), output="out", model="m", keep=("n",))
    assert with_class_names(asked, other, [named]) == asked
