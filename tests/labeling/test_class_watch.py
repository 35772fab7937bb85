"""An evaluation whose images have no class says so after its first unit."""

from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.labelling import Watcher
from wordsworth.pipeline.labeling.class_watch import ClassWatch
from wordsworth.pipeline.output.records import Receipt
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.model_target import model_target

TEXTS = {"none": [None, "-1"], "some": [None, "1"]}


def receipt(file: str, rows: int) -> Receipt:
    given = {field.name: None for field in fields(Receipt)}
    return Receipt(**given | {"shard": "s.tar", "file": file, "rows": rows})


@pytest.mark.parametrize(("first", "notes"), [("none", 1), ("some", 0)])
def test_the_first_unit_without_any_class_is_said_once_and_everything_is_passed_on(tmp_path, first, notes):
    (tmp_path / "predictions").mkdir()
    for name, texts in TEXTS.items():
        table = pa.table({"cls": pa.array(texts, pa.string())})
        pq.write_table(table, tmp_path / "predictions" / f"{name}.parquet")
    display = Watcher()
    watch = ClassWatch(display, RunFolder(str(tmp_path)), model_target("cls", ("ant", "bee"), 2))
    told = [receipt("", 0), receipt(f"{first}.parquet", 2), receipt("none.parquet", 2)]
    for one in told:
        watch.receipt(one)
    said = "none of the first 2 images (s.tar) has a class: --target cls gives none, or -1"
    assert display.receipts == told and display.notes == [said] * notes
    watch.note("a note")
    watch.listed(shards=1, bytes_total=2)
    watch.planned(shards=3, shards_done=0, bytes_total=4, bytes_done=0, listed=True)
    assert display.notes[notes:] == ["a note"] and display.plan["shards"] == 3
