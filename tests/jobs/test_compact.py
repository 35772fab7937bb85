"""wordsworth compact: what a person and a script see."""

import json
import re

import pytest

from tests.support.runs import whole_run
from wordsworth.jobs.cli import run


@pytest.fixture
def out(tmp_path):
    return whole_run(tmp_path).out


@pytest.fixture
def large(out):
    return out.with_name("large")


def test_it_says_what_it_merged_and_what_is_left_to_do(out, large, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["compact", str(out), "--output", f"{large}/"]) == 0
    stdout, stderr = capsys.readouterr()
    assert re.search(r" merging 4 files \(\d\d\.\d kB\) into 1$", stderr.splitlines()[0])
    shown = {name: value.strip() for name, value in (line.split(maxsplit=1) for line in stdout.splitlines())}
    assert shown["rows"].startswith("13 of 4 small files, in 1 file (")
    assert shown["merged"].startswith("4 small files into 1 in ")
    assert shown["read"] == f"{large}/[a-z]*/*.parquet from now on"
    assert shown["next"] == f"wordsworth verify {large}; once it is clean, {out} can be deleted"
    assert run(["compact", str(out), "--output", str(large)]) == 0
    stdout, stderr = capsys.readouterr()
    assert "nothing to merge" in stderr and "merged   " not in stdout
    for folder in (out, large):
        assert run(["verify", str(folder), "--source"]) == 0


def test_json_is_all_that_stdout_has_and_a_target_size_is_kept(out, large, capsys):
    largest = max(path.stat().st_size for path in (out / "predictions").iterdir())
    size = f"{2 * largest / 1000:.3f}KB"
    assert run(["compact", str(out), "--output", str(large), "--target-size", size, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["units"], told["files"]) == (13, 4, 2)
    assert told["last_command"].items() >= {"units": 4, "files": 2}.items()
    assert told["bytes"] == sum(path.stat().st_size for path in (large / "compacted").iterdir())


@pytest.mark.parametrize("size", ["much", "0", "-5MB", "5XB", "MB"])
def test_a_target_size_that_is_none_is_wrong_usage(out, large, capsys, size):
    assert run(["compact", str(out), "--output", str(large), f"--target-size={size}"]) == 2
    assert f"--target-size {size}: give a size such as 256MB or 1GiB" in capsys.readouterr().err
    assert not large.exists()


def test_a_run_that_is_not_complete_is_one_line(out, large, capsys):
    (out / "_run" / "summary.json").unlink()
    assert run(["compact", str(out), "--output", str(large)]) == 1
    stdout, stderr = capsys.readouterr()
    assert (
        stdout == ""
        and len(stderr.splitlines()) == 1
        and "is not complete: run its label command to the end first" in stderr
    )


def test_interrupted_it_says_how_to_go_on(out, large, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wordsworth.pipeline.compaction.compactor.merge", interrupted)
    assert run(["compact", str(out), "--output", str(large)]) == 130
    assert "what is done is kept, run the same command again to continue" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(["compact", str(out), "--output", str(large)]) == run(["verify", str(large)]) == 0
