"""wordsworth report: what a person and a script see."""

import json
from pathlib import Path

import pytest

from tests.support.compacting import counts
from tests.support.compacting import run as compact
from tests.support.report_runs import make_run
from tests.support.samples import encoded, photo, write_tar
from wordsworth.jobs.cli import run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_tar(tmp_path / "in" / "a.tar", [(f"{n}.jpg", encoded(photo(n, 40, 30))) for n in range(6)])
    make_run(tmp_path / "out", tmp_path / "in")
    return tmp_path / "out"


def test_it_says_where_the_page_is_and_what_it_holds(out: Path, capsys):
    assert run(["report", f"{out}/"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.startswith(f"{out}/report.html (6 rows, 6 images, ")
    assert stderr == ""
    assert (out / "report.html").read_bytes().startswith(b"<!doctype html>")


def test_json_and_another_file(out: Path, tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    assert run(["report", str(out), "--output", str(page), "--seed", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["size_bytes"], told["missing"]) == (str(page), page.stat().st_size, [])
    assert "drawn with --seed 7" in page.read_text()
    assert not (out / "report.html").exists()


def test_images_that_are_gone_are_said(out: Path, tmp_path: Path, capsys):
    (tmp_path / "in/a.tar").unlink()
    assert run(["report", str(out)]) == 0
    stdout, stderr = capsys.readouterr()
    assert "6 images are not on the page: " in stderr
    assert "(6 rows, 0 images, " in stdout


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys):
    assert run(["report", str(tmp_path / "x\x1b[31m")]) == 1
    stderr = capsys.readouterr().err
    assert "holds no run" in stderr
    assert "\x1b[31m" not in stderr
    assert stderr.count("\n") == 1


def test_a_report_is_no_part_of_a_run(out: Path, tmp_path: Path, capsys):
    """A page in the folder changes nothing for those who read the run, verify it or compact it."""
    assert run(["report", str(out)]) == 0
    assert counts(out, source=True)[0] == 6
    compact(out)
    large = tmp_path / "out-large"
    assert counts(large, source=True)[0] == 6
    assert not (large / "report.html").exists()
    assert run(["report", str(large)]) == 0
    assert "(6 rows, 6 images, " in capsys.readouterr().out
    assert counts(large, source=True)[0] == 6
