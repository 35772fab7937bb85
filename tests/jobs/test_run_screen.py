"""Show what a person sees of a labelling: lines that fit, figures that are known, and a run's own end."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.test_log import FIGURES, shown_until
from wordsworth.jobs import live
from wordsworth.jobs.label import report
from wordsworth.jobs.options import RunOptions, SourceOptions
from wordsworth.jobs.progress import RunProgress
from wordsworth.jobs.terminal import Terminal
from wordsworth.pipeline.output.records import LastCommand, StageUse, Summary

COLUMNS = 80
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LARGE = replace(
    FIGURES, images=123_456_789, errors={"truncated": 1_234_567}, images_per_second=12345.6, seconds_left=4e5
)
SMALL = replace(FIGURES, images=12, images_per_second=None, seconds_left=None)
DECODED = replace(SMALL, images=3, decoded=61, predicted=0, written=0, start_seconds=None)
STEADY = StageUse(steady_images_per_second=132.6, busy={}, bottleneck=None)
SUMMARY = Summary(
    run_id="r",
    model="m",
    fingerprint="f",
    shards=8,
    files=24,
    rows=3000,
    errors={"truncated": 2},
    skipped_members={},
    ignored={},
    bytes_read=1,
    bytes_written=1,
    stage_seconds={"decode": 12.0, "predict": 69.0},
    last_command=LastCommand(
        images=3000,
        seconds=35.2,
        images_per_second=85.2,
        stages=STEADY,
        start_seconds=12.1,
        finished="2026-01-02T03:04:05+00:00",
    ),
)


def screen(**options) -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=True, width=COLUMNS, color_system=None, **options)


def lines_of(terminal: Terminal) -> list[str]:
    return [line for line in re.split(r"[\r\n]", ESCAPES.sub("", terminal.file.getvalue())) if line.strip()]


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (FIGURES, "1,234 images, 57 images/s, 3 errors, 3 min 20 s left"),
        (replace(FIGURES, errors={}), "1,234 images, start 12 s, then 57 images/s, 3 min 20 s left"),
        (replace(FIGURES, seconds_left=None), "1,234 images, start 12 s, then 57 images/s, 3 errors"),
        (LARGE, "123,456,789 images, 12,346 images/s, 111 h 6 min left"),
        (SMALL, "12 images, start 12 s, 3 errors"),
        (DECODED, "61 images decoded, the model starts"),
    ],
)
def test_the_line_beside_the_bar_fits_80_columns_and_is_never_cut(monkeypatch, figures, told):
    monkeypatch.setattr(live, "BAR_AFTER_S", 0.01)
    progress = RunProgress("labelling")
    progress.console = screen()
    with progress:
        progress.working(figures)
        shown_until(lambda: told in progress.console.file.getvalue())
    lines = lines_of(progress.console)
    assert lines and max(map(len, lines)) <= COLUMNS
    assert not any("…" in line for line in lines)
    assert all("\u2501" in line for line in lines if told in line), "with its bar"


def test_a_run_that_is_told_to_end_says_how_long_that_takes_in_place_of_the_time_left(monkeypatch):
    monkeypatch.setattr(live, "BAR_AFTER_S", 0.01)
    progress = RunProgress("labelling")
    progress.console = screen()
    with progress:
        progress.working(FIGURES)
        progress.note("told to end", event="ending", seconds=30.4)
        shown_until(lambda: "1,234 images, finishing files" in progress.console.file.getvalue())
    assert "30 s at most" in lines_of(progress.console)[-1]


def test_what_is_waited_for_has_its_seconds_and_fits_with_a_long_name_of_a_model(monkeypatch):
    monkeypatch.setattr(live, "BAR_AFTER_S", 0.01)
    progress = RunProgress("labelling")
    progress.console = screen()
    from wordsworth.jobs.label import _short_name

    with progress:
        progress.waiting(f"loading {_short_name('timm:' + 'vit_large_patch14_reg4_dinov2' * 3)}")
        shown_until(lambda: "_dinov2 (" in progress.console.file.getvalue())
    assert max(map(len, lines_of(progress.console))) <= COLUMNS
    assert "_dinov2 (0 s)" in lines_of(progress.console)[-1]


def test_no_store_is_named_where_all_places_are_on_this_disk():
    assert live.first_wait(["photos/", "/data/model"]) == "looking at the images"
    assert live.first_wait(["photos/", "s3://bucket/model"]) == "asking the stores"


def test_a_long_line_is_broken_between_words_on_a_screen_and_a_path_is_not():
    path = "/data/" + "a" * 100
    terminal = screen()
    terminal.say(f"{path} " + "has samples with several images " * 5)
    first, *others = lines_of(terminal)
    assert first == path and len(others) > 1 and max(map(len, others)) <= COLUMNS
    terminal = screen()
    terminal.print_facts({"held back by": "the model, " * 20, "predictions": f"{path} {path}"})
    *facts, last = lines_of(terminal)
    assert len(facts) > 2 and max(map(len, facts)) <= COLUMNS and last.endswith(f"{path} {path}")
    assert facts[0].startswith(" held back by  the") and facts[1].startswith(" " * 15 + "the")


def ended(summary: Summary, capsys, tmp_path: Path) -> dict[str, str]:
    """Return what a command says of a run at its end, by the names of the facts."""
    assert report(summary, str(tmp_path), RunOptions(), SourceOptions()) == 0
    facts = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, value = line.strip().partition("  ")
        facts[name] = value.strip()
    return facts


def test_a_run_says_how_long_its_start_took_and_its_rate_behind_that(capsys, tmp_path):
    told = ended(SUMMARY, capsys, tmp_path)
    assert told["speed"] == "start 12 s, then 133 images/s (3,000 images in 35 s)"
    assert told["finished"].startswith("2026-01-0")


def test_a_run_with_errors_names_the_command_that_shows_them_first(capsys, tmp_path):
    told = ended(SUMMARY, capsys, tmp_path)
    assert list(told)[-3:] == ["see errors", "next", "see it"]
    assert told["see errors"] == f"wordsworth show {tmp_path} --errors"
    assert "see errors" not in ended(replace(SUMMARY, errors={}), capsys, tmp_path)


def test_a_run_of_few_files_tells_no_rate(capsys, tmp_path):
    stages = replace(STEADY, steady_images_per_second=None)
    few = replace(SUMMARY, last_command=replace(SUMMARY.last_command, stages=stages))
    assert ended(few, capsys, tmp_path)["speed"] == "3,000 images in 35 s"


def test_a_finished_run_shows_its_own_figures_and_the_last_command_by_that_name(capsys, tmp_path):
    last = replace(SUMMARY.last_command, images=7, seconds=9.0)
    told = ended(replace(SUMMARY, last_command=last), capsys, tmp_path)
    assert "speed" not in told, "of 7 images it would be no speed of the run"
    assert told["rows"] == "3,000 from 8 shards" and told["errors"] == "2 truncated"
    assert told["worker time"] == "of all commands together: decoding 12 s, the model 1 min 9 s"
    assert told["last command"] == "start 12 s, then 133 images/s (7 images in 9 s)"


def test_what_an_earlier_version_wrote_is_told_as_far_as_it_goes(capsys, tmp_path):
    written = SUMMARY.to_dict()
    del written["last_command"]["finished"], written["last_command"]["start_seconds"]
    told = ended(Summary.from_dict(written), capsys, tmp_path)
    assert told["speed"] == "3,000 images in 35 s" and "finished" not in told
    assert Summary.from_dict(SUMMARY.to_dict()) == SUMMARY
