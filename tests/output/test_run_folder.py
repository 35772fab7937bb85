"""output: a file is what is promised, appears once, is met again as one's own, and says what is done."""

import json
import os
import pickle
import tracemalloc
import weakref
from dataclasses import replace
from itertools import permutations

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from tests.support.runs import made_up_plan
from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output import commit as commits
from wordsworth.pipeline.output.commit import commit, read_footer
from wordsworth.pipeline.output.committed import CommittedUnits, ShardUnits, unit_file
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_schema, prediction_table
from wordsworth.pipeline.output.records import FOOTER_KEY, MANIFEST, Provenance, Receipt, RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.unit import SAMPLE, Unit

D = 4
LABELS = ("ant", "bee", "cat", "dog", "elk")
PROVENANCE = Provenance(
    run_id="r" * 16,
    fingerprint="f" * 64,
    model="timm:vit",
    package_version="1",
    schema_version=1,
    preprocessing={"mean": [0.5]},
    decoder="simplejpeg 1",
    dtype="fp32",
)


def settings(output, **changes) -> WriteSettings:
    fields = {
        "output": str(output),
        "provenance": PROVENANCE,
        "labels": LABELS,
        "top_k": 2,
        "embedding": "float16",
        "width": D,
        "keep": ("json", "txt"),
    }
    return WriteSettings(**fields | changes)


def columns(**changes) -> pa.Schema:
    given = settings("", **changes)
    return prediction_schema(given.top_k, given.embedding, given.width, given.keep)


def predicted(
    good: list[bool] = (True, False, True), number: int = 0, last: bool = False, first: int = 0, **changes
) -> Unit:
    """A unit as the predict stage leaves it."""
    rows = [
        {
            "key": f"d/{n}",
            "index": first + n,
            "offset": 512 * n,
            "size": 9,
            "sidecars": [f'{{"n": {n}}}', None],
            "error": None,
        }
        if ok
        else {
            "key": f"d/{n}",
            "index": first + n,
            "sidecars": [None, "kept"],
            "error": "truncated",
            "error_detail": "cut",
        }
        for n, ok in enumerate(good)
    ]
    samples = pa.Table.from_pylist(rows, schema=SAMPLE)
    columns = {
        "width": (pa.int32(), 640),
        "height": (pa.int32(), 480),
        "topk_ids": (pa.list_(pa.int32()), [3, 1]),
        "topk_scores": (pa.list_(pa.float32()), [0.75, 0.25]),
        "embedding": (pa.list_(pa.float16(), D), np.arange(D).astype(np.float16)),
    }
    for name, (kind, value) in columns.items():
        samples = samples.append_column(name, pa.array([value if ok else None for ok in good], kind))
    given = {
        "shard_uri": "s3://key:canary@bucket/a.tar",
        "shard_name": "a-0123456789ab",
        "number": number,
        "last": last,
        "next_offset": 4096,
        "next_index": first + len(good),
        "bytes_read": 4000,
        "samples": samples,
        "payload": np.empty(0, np.uint8),
        "seconds": {"read": 0.5, "decode": 0.25, "predict": 1.5},
    }
    return Unit(**given | changes)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def bucket():
    with s3_bucket() as made:
        yield made


# ---- the rows ---------------------------------------------------------------------------------------------


def test_the_schema_is_the_promised_one(out):
    entry = pa.struct([("label_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])
    place = [("key", pa.string()), ("shard", pa.dictionary(pa.int32(), pa.string())), ("index", pa.int32())]
    image = [("offset", pa.int64()), ("size", pa.int64()), ("width", pa.int32()), ("height", pa.int32())]
    best = [
        ("label_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("topk", pa.list_(entry)),
    ]
    kept = [("embedding", pa.list_(pa.float16(), D)), ("json", pa.string()), ("txt", pa.string())]
    promised = pa.schema(
        [*place, *image, *best, *kept, ("error", pa.string()), ("error_detail", pa.string())]
    )
    assert columns() == promised
    table = prediction_table(predicted(), settings(out))
    assert table.schema == promised
    commit(predicted(), settings(out))
    (path,) = (out / "predictions").iterdir()
    assert pq.read_schema(path).remove_metadata() == promised
    few = columns(top_k=0, embedding="float32", keep=()).names
    assert few == [
        "key",
        "shard",
        "index",
        "offset",
        "size",
        "width",
        "height",
        "embedding",
        "error",
        "error_detail",
    ]


def test_rows_say_what_was_predicted_and_a_bad_image_keeps_its_key_and_place(out):
    good, bad, _ = prediction_table(predicted(first=5), settings(out)).to_pylist()
    assert good == {
        "key": "d/0",
        "shard": "s3://bucket/a.tar",
        "index": 5,
        "offset": 0,
        "size": 9,
        "width": 640,
        "height": 480,
        "label_id": 3,
        "label": "dog",
        "score": 0.75,
        "topk": [
            {"label_id": 3, "label": "dog", "score": 0.75},
            {"label_id": 1, "label": "bee", "score": 0.25},
        ],
        "embedding": [0.0, 1.0, 2.0, 3.0],
        "json": '{"n": 0}',
        "txt": None,
        "error": None,
        "error_detail": None,
    }
    said = {
        "key": "d/1",
        "shard": "s3://bucket/a.tar",
        "index": 6,
        "txt": "kept",
        "error": "truncated",
        "error_detail": "cut",
    }
    assert bad == dict.fromkeys(good) | said


def test_chosen_classes_and_a_value_have_columns_of_their_own(out):
    unit = predicted([True, False, True, True])
    more = {
        "label_ids": pa.array([[3, 0], None, [], [4]], pa.list_(pa.int32())),
        "label_scores": pa.array([[0.75, 0.5], None, [], [0.625]], pa.list_(pa.float32())),
        "value": pa.array([0.5, None, 1.5, -2], pa.float32()),
    }
    for name, column in more.items():
        unit.samples = unit.samples.append_column(name, column)
    table = prediction_table(unit, settings(out, chosen=True, value=True))
    names = columns().names
    place = names.index("topk") + 1
    assert table.schema.names == [*names[:place], "labels", "value", *names[place:]]
    assert table.schema.field("labels").type == table.schema.field("topk").type
    assert table.schema.field("value").type == pa.float32()
    rows = table.to_pylist()
    assert [row["value"] for row in rows] == [0.5, None, 1.5, -2]
    assert [row["labels"] for row in rows] == [
        [{"label_id": 3, "label": "dog", "score": 0.75}, {"label_id": 0, "label": "ant", "score": 0.5}],
        None,
        [],
        [{"label_id": 4, "label": "elk", "score": 0.625}],
    ]
    commit(unit, settings(out, chosen=True, value=True))
    asked = (
        "select key, len(labels), list_transform(labels, lambda x: x.label) from '{}/*.parquet' order by key"
    )
    found = duckdb.sql(asked.format(out / "predictions")).fetchall()
    assert found == [("d/0", 2, ["dog", "ant"]), ("d/1", None, None), ("d/2", 0, []), ("d/3", 1, ["elk"])]


def test_a_footer_names_head_and_threshold_where_they_are_not_what_they_were(out):
    assert "head" not in PROVENANCE.to_dict() and "threshold" not in PROVENANCE.to_dict()
    multi = replace(PROVENANCE, head="sigmoid", threshold=0.0)
    assert multi.to_dict() == PROVENANCE.to_dict() | {"head": "sigmoid", "threshold": 0.0}
    receipt = commit(predicted(), settings(out, provenance=multi))
    footer = read_footer(open_filesystem(str(out))[0], str(out / "predictions" / receipt.file))
    assert footer.provenance == multi
    assert Provenance.from_dict(PROVENANCE.to_dict()) == PROVENANCE


@pytest.mark.parametrize("good", [[], [False, False], [True], [False, True, False, False, True]])
def test_every_mix_of_good_and_bad_has_as_many_rows_as_samples(out, good):
    rows = prediction_table(predicted(good), settings(out)).to_pylist()
    assert [row["label"] for row in rows] == ["dog" if ok else None for ok in good]
    assert [row["topk"] and len(row["topk"]) for row in rows] == [2 if ok else None for ok in good]
    assert [row["embedding"] is not None for row in rows] == good


def test_a_model_without_label_names_gives_ids(out):
    row, *_ = prediction_table(predicted(), settings(out, labels=None)).to_pylist()
    assert (row["label_id"], row["label"], row["topk"][1]) == (
        3,
        None,
        {"label_id": 1, "label": None, "score": 0.25},
    )


@pytest.mark.parametrize(("kind", "arrow"), [("float16", pa.float16()), ("float32", pa.float32())])
def test_every_reader_opens_the_files(out, kind, arrow):
    unit = predicted()
    place = unit.samples.schema.get_field_index("embedding")
    unit.samples = unit.samples.set_column(
        place, "embedding", unit.samples["embedding"].combine_chunks().cast(pa.list_(arrow, D))
    )
    for number, last in ((0, False), (1, True)):
        unit.number, unit.last = number, last
        commit(unit, settings(out, embedding=kind))
    (out / "predictions" / "_tmp-left-behind").write_bytes(b"a killed writer's")
    folder, expected = out / "predictions", [[0.0, 1.0, 2.0, 3.0], None, [0.0, 1.0, 2.0, 3.0]] * 2

    table = pds.dataset(folder).to_table()
    assert (
        table.schema.field("embedding").type == pa.list_(arrow, D)
        and table["embedding"].to_pylist() == expected
    )

    duck = duckdb.sql(
        f"select key, label, topk[1].score as best, embedding::FLOAT[{D}] as v from '{folder}/*.parquet'"
    )
    assert str(duck.types[3]) == f"FLOAT[{D}]"
    assert [None if row[3] is None else list(row[3]) for row in duck.fetchall()] == expected
    near = duckdb.sql(
        f"select array_distance(embedding::FLOAT[{D}], [0,1,2,4]::FLOAT[{D}]) "
        f"from '{folder}/*.parquet' where error is null"
    )
    assert near.fetchall() == [(1.0,)] * 4

    frame = pl.read_parquet(folder / "*.parquet")
    assert isinstance(frame.schema["embedding"], pl.Array) and frame.schema["embedding"].shape == (D,)
    assert frame["embedding"].to_list() == expected and frame["label"].to_list() == ["dog", None, "dog"] * 2

    panda = pd.read_parquet(sorted(folder.glob("*.parquet"))[0])
    assert [None if v is None else v.tolist() for v in panda["embedding"]] == expected[:3]
    assert panda["shard"].dtype == "category" and panda["label_id"].tolist()[0] == 3


# ---- commits ----------------------------------------------------------------------------------------------


def test_a_file_is_named_by_shard_and_number_and_its_footer_says_what_it_is(out):
    receipt = commit(predicted(number=3, last=True), settings(out))
    name = "a-0123456789ab-00003-end.parquet"
    assert os.listdir(out / "predictions") == [name] == [unit_file("a-0123456789ab", 3, True)]
    footer = json.loads(pq.read_schema(out / "predictions" / name).metadata[FOOTER_KEY])
    seconds = footer.pop("seconds")
    assert list(footer)[:8] == list(PROVENANCE.to_dict())
    assert footer == PROVENANCE.to_dict() | {
        "job": "",
        "shard": "s3://bucket/a.tar",
        "shard_name": "a-0123456789ab",
        "unit": 3,
        "last": True,
        "rows": 3,
        "errors": {"truncated": 1},
        "skipped": {},
        "bytes_read": 4000,
        "next_offset": 4096,
        "next_index": 3,
    }
    assert seconds == {"read": 0.5, "decode": 0.25, "predict": 1.5}
    assert (receipt.file, receipt.rows, receipt.errors) == (name, 3, {"truncated": 1})
    assert receipt.written and receipt.last and receipt.fault is None and receipt.bytes_read == 4000
    row = receipt.to_arrow().to_pylist()[0]
    assert row["errors"] == '{"truncated": 1}' and row["predict"] == 1.5 and row["write"] > 0
    assert Receipt.from_row(row) == receipt
    assert "canary" not in json.dumps(row) and b"canary" not in (out / "predictions" / name).read_bytes()


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_unit_that_runs_twice_meets_its_own_file(out, bucket, where):
    at = settings(out if where == "disk" else "s3://b/out")
    fs, root = open_filesystem(at.output)
    path = f"{root}/predictions/{unit_file('a-0123456789ab', 0, False)}"
    assert commit(predicted(), at).written is True
    before = fs.cat_file(path)
    again = commit(predicted(seconds={"read": 99.0}), at)
    assert again.written is False and again.rows == 3 and again.errors == {"truncated": 1}
    assert fs.cat_file(path) == before and len(fs.find(root)) == 1
    assert (again.twin, commit(predicted(), replace(at, job="another")).twin) == (False, True)
    bucket.late = True  # an acknowledgement that is lost is a commit like any other
    assert commit(predicted(number=1), at).rows == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"run_id": "another"}, "run_id"),
        ({"rows": 4}, "rows"),
        ({"shard_name": "b"}, "shard_name"),
        ({"last": True, "unit": 9}, "unit, last"),
    ],
)
def test_another_runs_file_under_the_name_is_no_success(out, change, named):
    commit(predicted(), settings(out))
    (path,) = (out / "predictions").iterdir()
    footer = json.loads(read_footer(*open_filesystem(str(path))).to_json()) | change
    pq.write_table(pq.read_table(path).replace_schema_metadata({FOOTER_KEY: json.dumps(footer)}), path)
    with pytest.raises(UserError, match=rf"written by another run \({named} differ\): use another --output"):
        commit(predicted(), settings(out))


@pytest.mark.parametrize(
    "content", [b"", b"PAR1 is not enough", None], ids=["empty", "no parquet", "no footer"]
)
def test_a_foreign_file_under_the_name_is_no_success(out, content):
    path = out / "predictions" / unit_file("a-0123456789ab", 0, False)
    path.parent.mkdir(parents=True)
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"00000.parquet is not a file of this run .*: move it away"):
        commit(predicted(), settings(out))
    assert path.read_bytes() == before


def test_a_unit_with_a_fault_writes_nothing(out):
    receipt = commit(predicted([], fault="OSError: 503"), settings(out))
    assert (receipt.fault, receipt.written, receipt.rows) == ("OSError: 503", False, 0)
    assert not out.exists()


def test_a_row_that_got_lost_on_the_way_stops_the_commit(out, monkeypatch):
    monkeypatch.setattr(commits, "prediction_table", lambda unit, at: prediction_table(unit, at).slice(1))
    with pytest.raises(AssertionError, match="3 samples became 2 rows"):
        commit(predicted(), settings(out))
    assert not out.exists()


def test_pages_carry_checksums_so_that_one_flipped_bit_is_found(out):
    commit(predicted([True] * 200), settings(out))
    (path,) = (out / "predictions").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError):
        pq.read_table(path, page_checksum_verification=True)


def test_a_file_of_many_tables_holds_no_more_than_a_row_group_of_them(monkeypatch):
    monkeypatch.setattr(commits, "GROUP_ROWS", 1000)
    given, alive = [], []

    def tables():
        for begin in range(0, 20_050, 100):
            table = pa.table({"n": range(begin, min(begin + 100, 20_050))})
            given.append(weakref.ref(table))
            alive.append(sum(one() is not None for one in given))
            yield table

    file = pq.ParquetFile(
        commits.parquet_bytes_of(tables(), pa.schema([("n", pa.int64())])), page_checksum_verification=True
    )
    assert max(alive) <= 12 and file.num_row_groups == 21
    assert file.read()["n"].to_pylist() == list(range(20_050))
    assert pq.ParquetFile(commits.parquet_bytes_of([], MANIFEST)).read().schema.equals(MANIFEST)


# ---- the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "ended", "complete", "contiguous"),
    [
        ({0}, True, True, 1),
        ({0, 1, 2}, True, True, 3),
        ({0, 1, 2}, False, False, 3),
        ({0, 2}, True, False, 1),
        ({1, 2}, True, False, 0),
        ({2}, True, False, 0),
        (set(), False, False, 0),
    ],
)
def test_a_shard_is_complete_when_its_end_is_there_and_no_gap(units, ended, complete, contiguous):
    for order in permutations(units):
        have = ShardUnits()
        for number in order:
            have.add(number, ended and number == max(units))
        assert (have.complete, have.contiguous, have.after_gap) == (
            complete,
            contiguous,
            {number for number in units if number > contiguous},
        )


def unit_files(shards: dict[str, list[str]]) -> list[str]:
    return [f"{shard}-{unit}.parquet" for shard, units in shards.items() for unit in units]


def test_what_is_committed_is_read_from_the_names_alone(out):
    assert len(RunFolder(str(out)).committed()) == 0
    for number, last in ((0, False), (2, False), (3, True)):
        commit(predicted(number=number, last=last), settings(out))
    for name in (
        "_tmp-0123",
        "notes.txt",
        "part-0.parquet",
        "a-0123456789ab-1.parquet",
        "a-0123456789ab-00001.parquet.tmp",
    ):
        (out / "predictions" / name).write_bytes(b"")
    (out / "predictions" / "b-end-00007-abcdefabcdef-100000-end.parquet").write_bytes(b"")
    (out / "predictions" / "c-abcdefabcdef-00000-end.parquet").write_bytes(b"")
    done = RunFolder(str(out)).committed()
    assert len(done) == 3
    assert done["a-0123456789ab"] == ShardUnits(1, {2, 3}, True)
    assert done["b-end-00007-abcdefabcdef"] == ShardUnits(0, {100_000}, True)
    assert done["c-abcdefabcdef"] == ShardUnits(1, set(), True)
    assert done["d-abcdefabcdef"] == ShardUnits()
    assert done.complete(["c-abcdefabcdef", "a-0123456789ab", "d-abcdefabcdef"]).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("units", "have"),
    [
        (["00000", "00001-end"], ShardUnits(2, set(), True)),
        (["00000", "00001", "00001-end"], ShardUnits(2, set(), True)),  # two names of a unit
        (["00000", "00001-end", "00002"], ShardUnits(3, set(), True)),  # a unit behind the end
        (["00000", "00001-end", "00007"], ShardUnits(2, {7}, True)),
        (["00000-end", "00001-end", "00003-end", "00005"], ShardUnits(2, {3, 5}, True)),
    ],
)
def test_what_is_committed_is_the_same_in_any_order_of_the_names(units, have):
    others = unit_files({f"part-{n}-0123456789ab": ["00000-end"] for n in range(50)})
    for order in permutations(unit_files({"a-0123456789ab": units})):
        for files in ([*order, *others], [*others, *order], [*order[:1], *others, *order[1:]]):
            done = CommittedUnits(files)
            assert done["a-0123456789ab"] == have and len(done) == 51
            assert done.complete(["a-0123456789ab"]).tolist() == [have.complete]


@pytest.mark.slow
def test_what_is_committed_takes_few_bytes_a_unit_in_memory_and_on_the_way_to_a_task():
    """One unit a shard is the most shards, many units a shard the most units."""
    many, big = 50_000, 200
    for shards, units in ((many, 1), (big, many // big)):
        tracemalloc.start()
        done = CommittedUnits(
            f"part-{shard:07d}-{shard:012x}-{unit:05d}{'-end' * (unit == units - 1)}.parquet"
            for shard in range(shards)
            for unit in range(units)
        )
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (
            done.complete([f"part-{shard:07d}-{shard:012x}" for shard in range(shards)]).all()
            and len(done) == shards
        )
        assert held < 48 * shards + 20_000 and most < 120 * shards + 100_000
        assert len(pickle.dumps(done, 5)) < 24 * shards + 2000


def plan(run_id: str) -> RunPlan:
    return made_up_plan({}, run_id)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_the_first_plan_stays(out, bucket, where):
    run = RunFolder(str(out) if where == "disk" else "s3://b/out")
    assert run.plan() is None
    assert run.create(plan("first")) == plan("first")
    commit(predicted(), settings(run.uri))  # a twin that was a moment faster is at work already
    assert run.create(plan("second")) == run.plan() == plan("first")


@pytest.mark.parametrize("name", ["thesis.doc", "predictions/old.parquet"])
def test_a_folder_with_something_else_in_it_is_refused(out, name):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"precious")
    with pytest.raises(UserError, match="is not empty and holds no run: choose a new folder as --output"):
        RunFolder(str(out)).create(plan("first"))
    assert not (out / "_run").exists()


DAMAGES = pytest.mark.parametrize(
    "text", ['{"run_id": ', "[]", '{"run_id": "first"}'], ids=["cut", "list", "fields"]
)


@DAMAGES
def test_a_damaged_plan_says_which_file(out, text):
    refuses_damaged(out, "plan", text)


@DAMAGES
def test_a_damaged_summary_says_which_file(out, text):
    refuses_damaged(out, "summary", text)


def refuses_damaged(out, name: str, text: str) -> None:
    run = RunFolder(str(out))
    run.create(plan("first"))
    (out / "_run" / f"{name}.json").write_text(text)
    with pytest.raises(UserError, match=rf"_run/{name}.json is damaged \(.*restore it") as told:
        getattr(run, name)()
    assert "\n" not in str(told.value)


def test_a_folder_with_an_unfinished_compaction_is_refused(out):
    (out / "_run" / "compacted").mkdir(parents=True)
    (out / "_run" / "compacted" / "00000-plan.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="holds a compaction that is not complete: run the same `wordsworth"):
        RunFolder(str(out)).create(plan("first"))
    assert not (out / "_run" / "plan.json").exists()


def test_leftovers_of_killed_writers_go_once_they_are_old(out):
    for folder in ("predictions", "_run/shards"):
        (out / folder).mkdir(parents=True)
        (out / folder / "_tmp-old").touch()
        (out / folder / "_tmp-new").touch()
        os.utime(out / folder / "_tmp-old", (0, 0))
    commit(predicted(), settings(out))
    RunFolder(str(out)).sweep()
    left = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert left == ["_tmp-new", "_tmp-new", "a-0123456789ab-00000.parquet"]
