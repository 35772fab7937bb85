"""`wordsworth show`: rows and images of a run, on the terminal, as a sheet and as files."""

import gzip
import json
import os

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.builders import photo, write_tar
from tests.support.counting_store import CountingStore
from tests.support.report_runs import Made, make_run
from tests.support.tables import write_csv
from wordsworth.jobs.cli import run
from wordsworth.pipeline.images.sandbox import close_process_sandbox

ESC = "\x1b]0;owned\x07"


@pytest.fixture(scope="module", autouse=True)
def one_sandbox():
    yield
    close_process_sandbox()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run with 8 images and an error, and hostile keys and labels."""
    folder = tmp_path_factory.mktemp("show")
    members = {f"k{number}.jpg": photo(number) for number in range(7)}
    members |= {f"[red]{ESC}.jpg": photo(7), "bad.jpg": b"no image"}
    write_tar(folder / "a.tar", members)
    return make_run(folder / "out", folder / "a.tar", labels=("ant", f"[bold]b{ESC}", "cat", "dog", "elk"))


def shown(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert run(["show", *map(str, arguments)]) == code, capsys.readouterr()
    return tuple(capsys.readouterr())


def test_without_an_output_rows_are_a_table_or_lines_of_json(out, capsys):
    told, notes = shown(capsys, out, "--label", "cat")
    assert told.split()[:4] == ["key", "label", "score", "error"]
    assert "k2" in told and "cat" in told and "0.52" in told and notes == ""
    told, _ = shown(capsys, out, "--label", "cat", "--json")
    rows = [json.loads(line) for line in told.splitlines()]
    assert [row["key"] for row in rows] == ["k2", "k5"] and rows[0]["shard"].endswith("a.tar")
    assert rows[0]["offset"] > 0 and rows[0]["label"] == "cat" and "embedding" not in rows[0]


def test_hostile_names_are_text_on_the_terminal(out, capsys):
    told, _ = shown(capsys, out)
    assert "[red]\\x1b]0;owned\\x07" in told and "[bold]b\\x1b" in told
    assert "\x1b" not in told and "\x07" not in told
    told, _ = shown(capsys, out, "--json")
    assert "\x1b" not in told and json.loads(told.splitlines()[7])["key"] == f"[red]{ESC}"


def test_a_sheet_and_what_it_lacks_are_told(out, capsys, tmp_path):
    told, notes = shown(capsys, out, "--output", tmp_path / "sheet.png")
    assert told == ""
    assert notes.splitlines() == [
        f"{tmp_path}/sheet.png: 8 of 9 images",
        "1 without an image: not_an_image",
    ]
    assert Image.open(tmp_path / "sheet.png").size[0] > 4 * 224
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_a_folder_has_the_files_and_json_names_them(out, capsys, tmp_path):
    told, _ = shown(capsys, out, "--nearest", "k3", "--limit", 2, "--output", tmp_path / "f", "--json")
    rows = [json.loads(line) for line in told.splitlines()]
    assert rows[0]["key"] == "k3" and rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert (tmp_path / "f" / rows[0]["file"]).read_bytes() == photo(3) and rows[0]["reason"] is None
    shown(capsys, out, "--errors", "--output", tmp_path / "e")
    assert (tmp_path / "e" / "00000-bad.bin").read_bytes() == b"no image"


def test_a_select_without_a_place_is_a_table_alone(out, capsys, tmp_path):
    sql = "select count(*) as n, error from rows group by error order by n"
    told, _ = shown(capsys, out, "--sql", sql)
    assert [line.split() for line in told.splitlines()] == [["n", "error"], ["1", "not_an_image"], ["8"]]
    _, notes = shown(capsys, out, "--sql", sql, "--output", tmp_path / "s.png", code=2)
    assert "--output needs the columns shard, index, offset, size, key" in notes


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--errors", "--label", "cat"], 2, "--errors and --label exclude each other"),
        (["--nearest", "nobody"], 1, "no row of"),
        (["--sql", "select * from read_text('/etc/hostname')"], 2, "--sql: Permission Error"),
        (["--limit", "0"], 2, "--limit"),
        (["--key", "nobody", "--output", "s.png"], 1, "has no row with the key nobody"),
        (["--key", "nobody"], 1, "has no row with the key nobody"),
        (["--label", "yak", "--output", "s.png"], 1, "no row of"),
        (["--output", "sheet.pdf"], 2, "a sheet ends in .png"),
    ],
)
def test_what_is_wrong_is_one_line(out, capsys, arguments, code, told):
    output, notes = shown(capsys, out, *arguments, code=code)
    assert told in notes and notes.count("\n") == 1 and output == ""


def test_rows_over_the_limit_are_said(out, capsys):
    told, notes = shown(capsys, out, "--limit", 2)
    assert len(told.splitlines()) == 3 and notes == "2 of 9 rows; --limit N shows more\n"
    told, notes = shown(capsys, out, "--limit", 1, "--label", "cat", "--json")
    assert len(told.splitlines()) == 1 and notes == "the first 1 row; --limit N shows more\n"
    assert shown(capsys, out, "--limit", 9)[1] == "" == shown(capsys, out, "--limit", 2, "--label", "cat")[1]


def test_a_class_without_a_name_is_called_by_its_number(capsys, tmp_path):
    source = write_tar(tmp_path / "a.tar", {"a.jpg": photo(1), "bad.jpg": b"-"})
    out = make_run(
        tmp_path / "out", source, labels=(), num_labels=5, answer=lambda n: Made(3, 0.5, (1, 0, 0, 0))
    )
    told = shown(capsys, out)[0].splitlines()
    assert told[1].split()[:3] == ["a", "class", "3"] and told[2].split() == ["bad", "not_an_image"]


def test_rows_that_are_not_there_are_said(out, capsys, tmp_path):
    assert shown(capsys, out, "--label", "yak") == ("", f"no row of {out} matches: label yak\n")
    _, notes = shown(capsys, tmp_path, code=1)
    assert "holds no run" in notes


# ---- odd runs ---------------------------------------------------------------------------------------------


def test_a_run_of_one_row_and_a_run_of_errors_alone_are_shown(capsys, tmp_path):
    one = make_run(tmp_path / "one", write_tar(tmp_path / "a.tar", {"a.jpg": photo(1)}))
    assert shown(capsys, one, "--output", tmp_path / "one.png")[1].endswith("1 of 1 image\n")
    bad = make_run(tmp_path / "bad", write_tar(tmp_path / "b.tar", {f"{n}.jpg": b"-" for n in range(3)}))
    notes = shown(capsys, bad, "--errors", "--output", tmp_path / "bad.png")[1]
    assert notes.splitlines()[0].endswith("0 of 3 images")
    assert "not_an_image" in shown(capsys, bad)[0]
    assert "has no embedding, but the error" in shown(capsys, bad, "--nearest", "0", code=1)[1]


def test_a_label_among_20000_is_found(capsys, tmp_path):
    labels = tuple(f"class {number}" for number in range(20_000))
    source = write_tar(tmp_path / "a.tar", {f"{n}.jpg": photo(n, (16, 16)) for n in range(5)})
    out = make_run(
        tmp_path / "out", source, labels=labels, answer=lambda n: Made(19_990 + n, 0.5, (1, 0, 0, 0))
    )
    assert "class 19993" in shown(capsys, out, "--label", "class 19993")[0]
    assert len(shown(capsys, out, "--label", "class 19993", "--json")[0].splitlines()) == 1


def test_images_of_compressed_tars_and_of_tables_with_uris_are_shown(capsys, tmp_path):
    plain = write_tar(tmp_path / "in" / "a.tar", {f"t{n}.jpg": photo(n) for n in range(3)})
    (tmp_path / "in" / "a.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    (tmp_path / "in" / "i").mkdir()
    for number in range(3):
        (tmp_path / "in" / "i" / f"{number}.jpg").write_bytes(photo(10 + number))
    table = write_csv(tmp_path / "in" / "t.csv", [{"url": f"i/{n}.jpg"} for n in range(3)])
    for name, source in (("tar", tmp_path / "in" / "a.tar.gz"), ("table", table)):
        out = make_run(tmp_path / name, source)
        notes = shown(capsys, out, "--output", tmp_path / f"{name}.png")[1]
        assert notes.endswith("3 of 3 images\n"), notes
    (tmp_path / "in" / "i" / "1.jpg").unlink()
    notes = shown(capsys, out, "--output", tmp_path / "again.png")[1]
    assert "2 of 3 images" in notes and "1 without an image: not_found" in notes
    assert len(shown(capsys, out, "--key", "i/2.jpg", "--output", tmp_path / "files")[1].splitlines()) == 1
    index = pq.read_table(tmp_path / "files" / "index.parquet").to_pylist()
    assert (tmp_path / "files" / index[0]["file"]).read_bytes() == photo(12)


def test_of_a_run_in_a_store_only_the_byte_ranges_that_are_shown_are_fetched(capsys, tmp_path):
    """The run lies in the bucket, too: it is written there by this test, as the store is read only."""
    source = tmp_path / "bucket" / "in" / "a.tar"
    write_tar(source, {f"k{number}.jpg": photo(number, (800, 600), "BMP") for number in range(8)})
    with CountingStore(tmp_path).serving() as store:
        options = {"key": "k", "secret": "CANARY", "endpoint_url": store.url}
        out = make_run(tmp_path / "bucket" / "out", "s3://bucket/in/a.tar", options=options)
        store.requests.clear()
        arguments = ("--key", "k5", "--output", tmp_path / "s.png", "--storage-options", json.dumps(options))
        told = shown(capsys, "s3://bucket/out", *arguments)
        assert told[1].endswith("1 of 1 image\n") and "CANARY" not in "".join(told)
        rows = {
            row["key"]: row
            for file in (out / "predictions").iterdir()
            for row in pq.read_table(file).to_pylist()
        }
        begin, size = rows["k5"]["offset"], rows["k5"]["size"]
        ranges = [r.headers.get("range") for r in store.requests if r.path == "bucket/in/a.tar"]
        assert ranges == [f"bytes={begin}-{begin + size - 1}"]
