"""Rows that a person asks for: by label, error, key, nearness and SQL, alone and together."""

import sys

import numpy as np
import pyarrow as pa
import pytest

from tests.support.builders import photo, write_tar
from tests.support.report_runs import Made, by_number, make_run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.query import Query, choose_rows
from wordsworth.pipeline.report.rows import RunRows

IMAGES = 20  # of each of two tars; the last one of each is no image


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("query")
    for tar in "ab":
        members = {f"{tar}{number:02d}.jpg": photo(number, (24, 16)) for number in range(IMAGES - 1)}
        write_tar(folder / "in" / f"{tar}.tar", {**members, f"{tar}zz.jpg": b"no image"})
    return make_run(folder / "out", folder / "in")


@pytest.fixture(scope="module")
def run(out):
    return RunRows.open(str(out))


def keys(run: RunRows, **asked) -> list[str]:
    return choose_rows(run, Query(**asked))["key"].to_pylist()


def rows_where(run: RunRows, holds) -> list[str]:
    rows = pa.Table.from_batches(run.batches()).to_pylist()
    return [row["key"] for row in rows if holds(row)]


def test_without_a_condition_the_first_rows_come(run):
    assert keys(run) == rows_where(run, lambda row: True)[:20]
    assert keys(run, limit=3) == ["a00", "a01", "a02"]


def test_a_label_an_error_and_a_key_choose_rows(run):
    assert keys(run, label="bee") == rows_where(run, lambda row: row["label"] == "bee")
    assert keys(run, errors=True) == ["azz", "bzz"]
    assert keys(run, key="b07") == ["b07"]
    assert keys(run, label="yak") == keys(run, key="nothing") == []
    rows = choose_rows(run, Query(errors=True)).to_pylist()
    assert {row["error"] for row in rows} == {"not_an_image"} and rows[0]["label"] is None


def test_conditions_hold_together(run):
    both = rows_where(run, lambda row: row["label"] == "cat" and row["score"] > 0.7)
    assert len(both) > 0 and keys(run, label="cat", sql="score > 0.7") == both
    assert keys(run, label="cat", key=both[0]) == [both[0]]
    assert keys(run, label="ant", key=both[0]) == []
    assert keys(run, errors=True, sql="key like 'b%'") == ["bzz"]
    nearest = keys(run, label="cat", nearest="a03", limit=100)
    assert sorted(nearest) == sorted(rows_where(run, lambda row: row["label"] == "cat"))


def test_what_cannot_hold_together_is_told(run):
    for asked in ({"label": "bee"}, {"nearest": "a00"}):
        with pytest.raises(
            UserError, match=r"--errors and --\w+ exclude each other: a row with an error has"
        ):
            choose_rows(run, Query(errors=True, **asked))
    with pytest.raises(UserError, match="--seed and --nearest exclude each other"):
        choose_rows(run, Query(nearest="a00", seed=1))


def test_the_nearest_rows_are_those_with_the_largest_cosine(run):
    rows = pa.Table.from_batches(run.batches()).to_pylist()
    vectors = {row["key"]: np.array(row["embedding"]) for row in rows if row["embedding"] is not None}
    target = vectors["b05"]
    cosines = {
        key: float(vector @ target / np.linalg.norm(vector) / np.linalg.norm(target))
        for key, vector in vectors.items()
    }
    found = choose_rows(run, Query(nearest="b05", limit=7))
    assert found["key"][0].as_py() == "b05"
    expected = sorted(cosines.values(), reverse=True)[:7]
    assert np.allclose(found["similarity"].to_numpy(), expected, atol=1e-3)
    assert [cosines[key] for key in found["key"].to_pylist()] == pytest.approx(expected, abs=1e-3)


def test_what_has_no_embedding_is_told(run, tmp_path):
    with pytest.raises(UserError, match=r"the image 'azz' has no embedding, but the error not_an_image"):
        choose_rows(run, Query(nearest="azz"))
    with pytest.raises(UserError, match=r"no row of .* has the key 'nobody'"):
        choose_rows(run, Query(nearest="nobody"))
    write_tar(tmp_path / "a.tar", {"a.jpg": photo(1)})
    bare = make_run(tmp_path / "out", tmp_path / "a.tar", embedding=None)
    with pytest.raises(UserError, match=r"has no embeddings: `wordsworth embed` or"):
        choose_rows(RunRows.open(str(bare)), Query(nearest="a"))


def test_a_seed_draws_the_same_rows_again_and_all_rows_have_their_chance(run):
    assert keys(run, seed=1, limit=5) == keys(run, seed=1, limit=5) != keys(run, seed=2, limit=5)
    drawn = [key for seed in range(60) for key in keys(run, seed=seed, limit=10)]
    assert set(drawn) == set(rows_where(run, lambda row: True))
    assert set(keys(run, seed=4, limit=100, label="bee")) == set(keys(run, label="bee", limit=100))


def test_a_model_without_class_names_has_labels_by_number(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": photo(number, (16, 16)) for number in range(6)})
    out = make_run(
        tmp_path / "out",
        tmp_path / "a.tar",
        labels=(),
        num_labels=3,
        answer=lambda n: Made(n % 3, 0.9, (1,) * 4),
    )
    assert keys(RunRows.open(str(out)), label="2") == ["2", "5"]


# ---- SQL --------------------------------------------------------------------------------------------------


def test_a_condition_of_sql_chooses_rows(run):
    assert keys(run, sql="score between 0.6 and 0.65 or error is not null", limit=100) == rows_where(
        run, lambda row: row["error"] is not None or 0.6 <= row["score"] <= 0.65
    )
    assert keys(run, sql='"offset" = (select max("offset") from rows) and key like \'a%\'')[0] == "azz"
    near = "list_cosine_similarity(embedding::FLOAT[], [1, 0, 0, 0]::FLOAT[]) > 0.9"
    near = f"case when error is null then {near} end"
    assert 0 < len(keys(run, sql=near)) < 20
    assert keys(run, sql="-- a comment\nkey = 'a03' -- another") == ["a03"]


def test_a_select_gives_its_own_columns(run):
    counts = choose_rows(
        run, Query(sql="select label, count(*) as n from rows group by label order by n, label")
    )
    assert counts.column_names == ["label", "n"] and sum(counts["n"].to_pylist()) == 2 * IMAGES
    lowest = choose_rows(run, Query(sql="FROM rows WHERE error IS NULL ORDER BY score LIMIT 3"))
    assert len(lowest) == 3 and "embedding" in lowest.column_names
    restricted = choose_rows(run, Query(sql="select distinct label from rows", label="bee"))
    assert restricted["label"].to_pylist() == ["bee"]
    assert len(choose_rows(run, Query(sql="select * from rows", limit=4))) == 4


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/hostname')",
        "select * from '/etc/hostname'",
        "select * from glob('/*')",
        "select * from run",
        "select * from secret_of_this_process",
        "attach 'x.db'",
        "copy (select 1) to 'copied.csv'",
        "1=1); drop view rows; select (1",
        "set enable_external_access=true",
        "install httpfs",
        "lable = 'x'",
        "score <",
        "",
    ],
)
def test_sql_reaches_nothing_but_the_rows_and_a_wrong_one_is_one_line(run, sql):
    secret_of_this_process = pa.table({"secret": [1]})
    with pytest.raises(UserError) as refused:
        choose_rows(run, Query(sql=sql))
    assert refused.value.exit_code == 2 and str(refused.value).startswith("--sql")
    assert "\n" not in str(refused.value) and secret_of_this_process.num_rows == 1


def test_where_duckdb_is_not_installed_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match=r"--sql needs DuckDB: pip install 'wordsworth\[sql\]'"):
        choose_rows(run, Query(sql="score > 0"))


def test_a_query_says_what_it_asks_for():
    assert str(Query()) == "all rows"
    asked = Query(label="cat", key="k", sql="score\n> 0", nearest="n")
    assert str(asked) == "label cat, key k, score > 0, nearest to n"
    assert str(Query(errors=True, seed=3)) == "errors, drawn with seed 3"
    assert by_number(0).label_id == 0


def test_a_fault_while_sql_runs_is_one_line(run):
    with pytest.raises(UserError, match=r"^--sql: "):
        choose_rows(run, Query(sql="cast(key as integer) > 3"))


def test_an_embedding_that_is_missing_is_null_in_sql(run):
    assert keys(run, sql="embedding is null") == ["azz", "bzz"]
