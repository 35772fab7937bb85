"""Tables and compressed tars through the whole plan on a local Ray: a record is a row, resumed, verified."""

import base64
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.sources.test_compressed import squeeze
from tests.support.builders import photo
from tests.support.labelling import Watcher
from tests.support.tables import write_csv, write_jsonl, write_parquet
from tests.support.tars import make_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling import labeler
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.storage.filesystem import ALLOW_URIS
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def model(small_model):
    return load_folder(small_model)


def run(output: Path, model, *sources, **asked):
    watcher = Watcher()
    asked = {"command": "label", "model": "small", "precision": "fp32", "unit_rows": 4} | asked
    request = LabelRequest(sources=tuple(map(str, sources)), output=str(output), **asked)
    return labeler.label(request, model, watcher), watcher


def rows(output: Path) -> list[dict]:
    return pq.read_table(output / "predictions").to_pylist()


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    """Write the same nine images in every form. The CSV misses one and has a refused one; the JSONL has a
    bad line."""
    (tmp_path / "in").mkdir()
    images = [photo(number) for number in range(9)]
    for number, data in enumerate(images):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    names = [f"{number}.jpg" for number in range(9)]
    tar = make_tar(list(zip(names, images, strict=True)))
    for form in ("gz", "zst"):
        (tmp_path / "in" / f"a.tar.{form}").write_bytes(squeeze(tar, form))
    csv_names = [*names[:5], "gone.jpg", "pipe:ls", *names[5:]]
    lines = [{"path": str(tmp_path / "in" / name)} for name in names]
    return [
        write_parquet(tmp_path / "in" / "b.parquet", {"id": names, "picture": images}, rows_in_group=5),
        write_csv(tmp_path / "in" / "c.csv", [{"n": n, "image": name} for n, name in enumerate(csv_names)]),
        write_jsonl(tmp_path / "in" / "d.jsonl", [*lines[:3], "{broken", *lines[3:]]),
        tmp_path / "in" / "a.tar.gz",
        tmp_path / "in" / "a.tar.zst",
    ]


def test_every_record_of_every_form_gets_exactly_one_row_and_the_same_label(tmp_path, model, sources):
    summary, _ = run(tmp_path / "out", model, *sources)
    found = rows(tmp_path / "out")
    by_shard = {path.name: [row for row in found if row["shard"] == str(path)] for path in sources}
    assert {name: len(entries) for name, entries in by_shard.items()} == {
        "b.parquet": 9,
        "c.csv": 11,
        "d.jsonl": 10,
        "a.tar.gz": 9,
        "a.tar.zst": 9,
    }
    assert len({(row["shard"], row["index"]) for row in found}) == 48 == summary.rows
    errors = {"c.csv": {"not_found": "gone.jpg", "refused_uri": "pipe:ls"}, "d.jsonl": {"bad_record": "3"}}
    labels = []
    for name, entries in by_shard.items():
        entries.sort(key=lambda row: row["index"])
        assert {row["error"]: row["key"] for row in entries if row["error"]} == errors.get(name, {})
        assert all(row["offset"] is None for row in entries)
        good = [row for row in entries if not row["error"]]
        labels.append([(row["label"], round(row["score"], 3), row["size"], row["width"]) for row in good])
    assert labels[0][0][0] in model.labels and labels == [labels[0]] * 5, "the same images, however they came"
    assert [row["key"] for row in by_shard["b.parquet"]] == [str(n) for n in range(9)]
    assert Counter(summary.errors) == {"not_found": 1, "refused_uri": 1, "bad_record": 1}
    assert summary.bytes_read == sum(path.stat().st_size for path in sources)
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok and report.recounted == report.rows == 48, report.findings


def test_a_run_over_tables_and_compressed_tars_goes_on_where_it_was_killed(tmp_path, model, sources):
    run(tmp_path / "out", model, *sources)
    whole = sorted(rows(tmp_path / "out"), key=lambda row: (row["shard"], row["index"]))
    files = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    lost = [path for path in files if "-00001" in path.name or path.name.endswith("-end.parquet")]
    for path in lost:
        path.unlink()
    (tmp_path / "out" / "_run" / "summary.json").unlink()
    summary, watcher = run(tmp_path / "out", model, *sources)
    assert (
        sorted(receipt.file for receipt in watcher.receipts) == sorted(path.name for path in lost)
        and len(lost) == 10
    )
    assert sorted(rows(tmp_path / "out"), key=lambda row: (row["shard"], row["index"])) == whole
    assert summary.bytes_read == sum(path.stat().st_size for path in sources)
    assert verify(str(tmp_path / "out"), source=True).ok


@pytest.mark.long  # its parts: the run above that is killed, and tests/sources
def test_a_run_over_lists_of_images_goes_on_within_a_list_and_tries_its_failures_again(tmp_path, model):
    packed = [base64.b64encode(photo(number)).decode() for number in range(5)]
    cells = [packed[:3], [], ["late.jpg", packed[3]], [f"data:image/jpeg;base64,{packed[4]}"]]
    table = write_jsonl(
        tmp_path / "t.jsonl", [{"id": f"k{n}", "images": cell} for n, cell in enumerate(cells)]
    )
    asked = {"key": "id", "unit_rows": 2}
    run(tmp_path / "out", model, table, **asked)
    whole = rows(tmp_path / "out")
    keys = ["k0#0", "k0#1", "k0#2", "k1", "k2#0", "k2#1", "k3#0"]
    assert [row["key"] for row in whole] == keys
    assert [row["error"] for row in whole] == [*[None] * 3, "missing_image", "not_found", None, None]
    files = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    for path in (files[1], files[3]):  # they begin within a list
        path.unlink()
    (tmp_path / "out" / "_run" / "summary.json").unlink()
    _, watcher = run(tmp_path / "out", model, table, **asked)
    assert sorted(receipt.file for receipt in watcher.receipts) == [files[1].name, files[3].name]
    assert rows(tmp_path / "out") == whole
    (tmp_path / "late.jpg").write_bytes(photo(9))
    summary, _ = run(tmp_path / "out", model, table, retry_errors=True, **asked)
    assert summary.errors == {"missing_image": 1}
    after = rows(tmp_path / "out")
    assert [row["key"] for row in after] == keys and after[4]["label"] in model.labels
    assert [row for row in after if row["key"] != "k2#0"] == [row for row in whole if row["key"] != "k2#0"]
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok and report.recounted == 7, report.findings


def test_a_damaged_table_and_a_cut_compressed_tar_say_so_and_verify(tmp_path, model, sources):
    for path in (sources[0], sources[3], sources[4]):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    summary, _ = run(tmp_path / "out", model, sources[0], *sources[3:])
    assert summary.errors == {"shard_truncated": 3}
    assert sum(row["key"] is None for row in rows(tmp_path / "out")) == 3
    report = verify(str(tmp_path / "out"), source=True)
    assert report.ok, report.findings


def test_key_and_image_column_are_part_of_what_makes_two_commands_the_same_run(tmp_path, model, sources):
    run(tmp_path / "out", model, sources[0], key="id", image_column="picture", keep=("id",))
    assert [(row["key"], row["id"]) for row in rows(tmp_path / "out")] == [
        (f"{n}.jpg", f"{n}.jpg") for n in range(9)
    ]
    assert verify(str(tmp_path / "out"), source=True).ok
    with pytest.raises(UserError, match="holds another run: --key was id and is not given"):
        run(tmp_path / "out", model, sources[0], image_column="picture", keep=("id",))
    run(tmp_path / "plain", model, sources[0])
    assert (
        not {"key", "image-column"}
        & json.loads((tmp_path / "plain" / "_run" / "plan.json").read_text())["asked"].keys()
    )
    with pytest.raises(UserError, match="holds another run: --image-column was not given and is picture"):
        run(tmp_path / "plain", model, sources[0], image_column="picture")


def test_a_missing_column_fails_the_run_with_a_line_that_names_it(tmp_path, model, sources):
    with pytest.raises(
        UserError, match=r"b\.parquet has no column nonesuch, which --key names \(it has id, picture\)"
    ):
        run(tmp_path / "out", model, sources[0], key="nonesuch")
    with pytest.raises(UserError, match="--keep label: every row has a column label already"):
        run(tmp_path / "other", model, sources[0], keep=("label",))


@pytest.mark.long  # in this process: the tests above
def test_the_command_line_reads_tables(tmp_path, small_model, sources, wordsworth):
    (tmp_path / "in" / "e.jpg").write_bytes(photo(1))
    command = [
        "label",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--model",
        small_model,
        "--image-column",
        "picture",
    ]
    refused = wordsworth(*command)
    assert refused.returncode == 1 and "say which with --format tar or --format images" in refused.stderr
    for path in sources[1:]:
        path.unlink()
    done = wordsworth(*command, "--format", "table", "--key", "id", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 9, done.stderr
    assert wordsworth("verify", tmp_path / "out", "--source").returncode == 0


def test_refused_images_are_told_with_the_option_that_allows_them_and_fetched_with_it(tmp_path, model):
    write = [photo(number) for number in range(3)]
    for folder, number in (("in", 0), ("elsewhere", 1), ("elsewhere", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{number}.jpg").write_bytes(write[number])
    names = ["0.jpg", "../elsewhere/1.jpg", str(tmp_path / "elsewhere" / "2.jpg"), "no.jpg"]
    table = write_csv(tmp_path / "in" / "t.csv", [{"url": name} for name in names])
    summary, watcher = run(tmp_path / "out", model, table)
    assert summary.errors == {"refused_uri": 2, "not_found": 1}
    option = f"--allow-uris {tmp_path}/elsewhere"
    assert [note for note in watcher.notes if option in note] == [
        f"2 of 4 images of a file are refused, and more may be: {option} allows them, and --retry-errors "
        "with it fetches them"
    ]
    allowed = {ALLOW_URIS: [str(tmp_path / "elsewhere")]}
    summary, watcher = run(tmp_path / "out", model, table, retry_errors=True, storage_options=allowed)
    assert summary.errors == {"not_found": 1} and not any("--allow-uris" in note for note in watcher.notes)
    assert [row["error"] for row in rows(tmp_path / "out")] == [None, None, None, "not_found"]
