"""Show that the columns which stand in a table's path are columns like all others."""

import pytest

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tables import write_csv, write_jsonl, write_parquet
from wordsworth.pipeline.sources.path_columns import path_columns
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.survey import survey_shard


def test_columns_and_values_of_a_path_are_unescaped_and_the_default_is_null():
    path = "t=1/label=a%2Fb c/day=__HIVE_DEFAULT_PARTITION__/x%3Dy=%C3%A4/t=2/=3/label/empty=/part=0.parquet"
    assert path_columns(path) == {"t": "2", "label": "a/b c", "day": None, "x=y": "ä", "empty": ""}


def write(folder, form: str, rows: list[dict]):
    if form == "parquet":
        return write_parquet(folder / "p.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    writer = write_csv if form == "csv" else write_jsonl
    return writer(folder / f"p.{form}", rows)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_column_of_the_path_is_kept_and_is_a_key(tmp_path, form):
    for label in ("cat", "dog"):
        folder = tmp_path / f"label={label}" / "day=__HIVE_DEFAULT_PARTITION__"
        path = write(folder, form, [{"url": "a.jpg", "n": str(n)} for n in range(2)])
        (path.parent / "a.jpg").write_bytes(b"abc")
        rows = rows_of(units_of(path, keep=("label", "n", "day")))
        assert [row["sidecars"] for row in rows] == [[label, "0", None], [label, "1", None]]
        assert [row["key"] for row in rows_of(units_of(path, key="label"))] == [label, label]
        assert [row["key"] for row in rows_of(units_of(path, key="day"))] == ["0", "1"]


def test_a_column_of_the_file_comes_before_one_of_the_path(tmp_path):
    path = write_parquet(tmp_path / "label=dog" / "p.parquet", {"image": [b"1"], "label": ["cat"]})
    assert rows_of(units_of(path, keep=("label",)))[0]["sidecars"] == ["cat"]


def test_a_column_that_is_nowhere_is_a_fault_that_names_those_of_the_path_too(tmp_path):
    path = write_parquet(tmp_path / "label=dog" / "p.parquet", {"image": [b"1"]})
    (unit,) = units_of(path, keep=("labels",))
    assert "has no column labels, which --keep names (it has image, label)" in unit.fault


def test_the_class_of_a_training_may_stand_in_the_path(tmp_path):
    for label in ("cat", "dog"):
        path = write_parquet(tmp_path / f"label={label}" / "p.parquet", {"image": [b"1"] * 3})
        reading = ReadSettings(unit_rows=4, keep=("label",))
        assert survey_shard(shard_of(path), reading, "label") == (3, {label: 3})
