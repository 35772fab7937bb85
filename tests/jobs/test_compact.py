"""wordsworth compact: what a person and a script see of it."""

import json

import pytest

from tests.support.runs import whole_run
from wordsworth.jobs.cli import run


@pytest.fixture
def out(tmp_path):
    return whole_run(tmp_path).out


def test_it_says_what_it_merged_and_what_is_left_to_do(out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["compact", str(out)]) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr.startswith("merging 4 files (0.0 MB) into 1\n")
    shown = {name: value.strip() for name, value in (line.split(maxsplit=1) for line in stdout.splitlines())}
    assert shown["rows"].startswith("13 of 4 units, in 1 file (") and shown["merged"].startswith(
        "4 files into 1 in "
    )
    assert shown["compacted"] == f"{out}/compacted/*.parquet" and shown["next"] == f"wordsworth verify {out}"
    assert (
        shown["predictions"]
        == "4 small files are still there, with the same rows: --delete-small removes them"
    )
    assert run(["compact", str(out), "--delete-small"]) == 0
    stdout, stderr = capsys.readouterr()
    assert (
        "nothing to merge" in stderr
        and f"4 files of {out}/predictions" in stdout
        and "still there" not in stdout
    )
    assert run(["verify", str(out), "--source"]) == 0


def test_json_is_all_that_stdout_has_and_a_target_size_is_kept(out, capsys):
    largest = max(path.stat().st_size for path in (out / "predictions").iterdir())
    assert run(["compact", str(out), "--target-size", f"{2 * largest / 1000:.3f}KB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["units"], told["files"], told["small_files"], told["generations"]) == (
        13,
        4,
        2,
        4,
        1,
    )
    assert told["last_command"].items() >= {"units": 4, "files": 2, "removed": 0}.items()
    assert told["bytes"] == sum(path.stat().st_size for path in (out / "compacted").iterdir())


@pytest.mark.parametrize("size", ["much", "0", "-5MB", "5XB", "MB"])
def test_a_target_size_that_is_none_is_wrong_usage(out, capsys, size):
    assert run(["compact", str(out), f"--target-size={size}"]) == 2
    assert f"--target-size {size}: give a size such as 256MB or 1GiB" in capsys.readouterr().err
    assert not (out / "compacted").exists()


def test_a_run_that_is_not_complete_is_one_line(out, capsys):
    (out / "_run" / "summary.json").unlink()
    assert run(["compact", str(out)]) == 1
    stdout, stderr = capsys.readouterr()
    assert (
        stdout == ""
        and len(stderr.splitlines()) == 1
        and "is not complete: run its label command to the end first" in stderr
    )


def test_interrupted_it_says_how_to_go_on(out, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wordsworth.pipeline.compaction.compactor.merge", interrupted)
    assert run(["compact", str(out)]) == 130
    assert "what is done is kept, run the same command again to continue" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(["compact", str(out)]) == run(["verify", str(out)]) == 0
