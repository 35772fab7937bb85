"""Show what a command writes on stderr: lines with the time of day in a log, or a JSON object a line."""

import io
import json
import re
import sys
import time

import pytest

from wordsworth.jobs import live as display
from wordsworth.jobs.cli import run
from wordsworth.jobs.progress import RunProgress
from wordsworth.jobs.terminal import Terminal, asked_log_format, logging_as
from wordsworth.jobs.train_progress import BESIDE_BAR, Forecast, TrainProgress
from wordsworth.pipeline.labeling.pace import RunFigures
from wordsworth.pipeline.storage.patience import tell_trouble
from wordsworth.pipeline.training.news import (
    BeginNews,
    DataNews,
    EpochNews,
    Probe,
    ProbeNews,
    Rates,
    StepNews,
    Validation,
    ValidationNews,
    WaitNews,
)

FIGURES = RunFigures(
    images=1234,
    decoded=200,
    predicted=234,
    written=1000,
    units=3,
    errors={"truncated": 3},
    start_seconds=12.3,
    images_per_second=56.7,
    share=0.4567,
    seconds_left=200.4,
    stage_seconds={"predict": 7.25},
    bytes_read=5_000_000,
    seconds_since_unit=3.0,
)
RATES = Rates(images_per_second=120.0, mfu=0.41, data_wait=0.02)


def objects(text: str) -> list[dict]:
    """Return the lines of a log as objects; a line that is none fails."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def fast(monkeypatch):
    """Let displays print a line every tenth of a second."""
    monkeypatch.setattr(display, "LINE_EVERY", 0.1)
    monkeypatch.setattr(display, "WAIT_TOLD_AFTER", 0.05)
    monkeypatch.setattr(display, "FRAME_S", 0.02)


def shown_until(is_there, timeout_s: float = 5.0) -> None:
    """Wait until a display has printed something: it prints from a thread of its own."""
    deadline = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # nothing tells when a line is printed


def followed(log: io.StringIO) -> None:
    """Run a display through a run: it waits, it works."""
    with RunProgress("labelling") as progress:
        progress.waiting("starting the model's actor")
        shown_until(lambda: "starting the model's actor" in log.getvalue())
        progress.planned(shards=2, shards_done=1, bytes_total=9_000_000, bytes_done=1_000_000)
        progress.working(FIGURES)
        shown_until(lambda: "1,234 images" in log.getvalue())
        progress.note("a store does not answer", level="warning", event="store", node="a1", pid=7)


def test_every_line_of_a_job_log_begins_with_the_time_of_day(monkeypatch, fast):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    followed(log)
    lines = log.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines), lines
    texts = [line[9:] for line in lines]
    assert texts[0] == "starting the model's actor ..."
    assert "labelling 2 shards (9.0 MB), 1 of them done before" in texts
    assert "45%  1,234 images, start 12 s, then 57 images/s, 3 errors, 3 min 20 s left" in texts


def test_a_wait_is_said_once_and_not_every_ten_seconds(monkeypatch, fast):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with RunProgress("labelling") as progress:
        progress.waiting("starting Ray")
        time.sleep(0.5)  # five lines of figures would have come
    assert log.getvalue().count("starting Ray") == 1


def test_a_json_log_is_one_object_a_line_with_time_level_event_and_figures(monkeypatch, fast):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with logging_as("json"):
        followed(log)
        print("x.py:1: UserWarning: a library's warning\n  call()", file=sys.stderr)
        print("12:34:56 ray: 1 node died", file=sys.stderr)
    found = objects(log.getvalue())
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", one["time"]) for one in found)
    assert {one["level"] for one in found} == {"info", "warning"}
    assert {one["event"] for one in found} == {"wait", "plan", "progress", "store", "output"}
    figures = next(one for one in found if one["event"] == "progress")
    assert (figures["images"], figures["percent"], figures["errors"]) == (1234, 45.67, {"truncated": 3})
    assert (figures["images_per_second"], figures["seconds_left"]) == (56.7, 200.4)
    (store,) = [one for one in found if one["event"] == "store"]
    assert (store["node"], store["pid"], store["message"]) == ("a1", 7, "a store does not answer")
    assert any("a library's warning" in one["message"] for one in found)
    assert found[-1]["message"] == "ray: 1 node died"


def test_a_training_says_its_figures_as_json(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    means = {"loss": 2.5, "accuracy": 0.25, "gradient_norm": 1.0}
    begin = BeginNews(step=0, steps=9, epoch=0, epochs=3, images=64, workers=2, device="cpu", batch=32)
    step = StepNews(step=3, steps=9, epoch=1, lr=1e-3, means=means, rates=RATES)
    end = EpochNews(epoch=1, step=3, means=means, lr=1e-3, rates=RATES, errors=1, validation=None)
    with logging_as("json"), TrainProgress("training 5.00 M parameters", 3) as progress:
        for news in (WaitNews(what="starting Ray"), DataNews(samples=64, shards=2, classes=5, val_samples=0)):
            progress.on_news(news)
        for news in (begin, step, end):
            progress.on_news(news)
    found = {one["event"]: one for one in objects(log.getvalue())}
    assert list(found) == ["plan", "wait", "data", "begin", "step", "epoch"]
    assert found["step"]["loss"] == 2.5 and found["step"]["mfu"] == 0.41
    assert found["epoch"]["errors"] == 1 and found["begin"]["workers"] == 2


def test_what_a_probe_gives_is_in_the_lines_of_its_epochs_and_in_their_json(monkeypatch):
    before = ProbeNews(probe=Probe(linear=0.125, knn=0.0625, images=1600, errors=0))
    means = {"loss": 0.5, "explained": 0.25}
    end = EpochNews(
        epoch=1,
        step=3,
        means=means,
        lr=1e-3,
        rates=None,
        errors=0,
        validation=None,
        probe=Probe(linear=0.5, knn=0.375, images=1600, errors=0),
    )
    logs = {}
    for form in ("json", "text"):
        monkeypatch.setattr(sys, "stderr", log := io.StringIO())
        with logging_as(form), TrainProgress("training", 3) as progress:
            progress.on_news(before)
            progress.steps = 9
            progress.on_news(end)
        logs[form] = log.getvalue()
    found = {one["event"]: one for one in objects(logs["json"])}
    assert (found["probe"]["probe_linear"], found["epoch"]["probe_knn"]) == (0.125, 0.375)
    assert "random weights: probe linear 0.125 k-NN 0.062 (1,600 images tried)" in logs["text"]
    assert "explained 0.250  lr 0.001  probe linear 0.500 k-NN 0.375" in logs["text"]


def test_the_time_that_is_left_is_foretold_from_steps_and_not_from_the_start():
    forecast = Forecast(steps=100)
    left = []
    for step, now in ((1, 1040.0), (3, 1042.0), (51, 1090.0)):  # 40 seconds of start and one step
        forecast.step(step, now)
        left.append(forecast.seconds_left(step))
    assert left == [None, 97, 49]
    resumed = Forecast(steps=100)
    resumed.step(60, 5.0)
    assert resumed.seconds_left(60) is None
    resumed.step(70, 25.0)
    assert resumed.seconds_left(70) == 60


@pytest.mark.parametrize("every", [1, 2, 5, 10, 50], ids=lambda every: f"reports after {every} steps")
@pytest.mark.parametrize("pause_s", [0.0, 5.0, 40.0])
def test_the_time_that_is_left_counts_validations_too(every, pause_s):
    """Epochs of 10 steps of a second behind 30 seconds of start; a first guess of 15 s for a validation."""
    epochs, now = 5, 30.0
    forecast = Forecast(steps=50, pauses=epochs, pause_steps=15)
    for epoch in range(epochs):
        for step in range(10 * epoch + 1, 10 * epoch + 11):
            now += 1
            if step % every == 0 and every <= 10:
                forecast.step(step, now)
            if epoch and forecast.seconds_left(step) is not None and every < 10:
                left = epochs * 10 - step + (epochs - epoch) * pause_s
                assert forecast.seconds_left(step) == pytest.approx(left, rel=0.05, abs=1)
        now += pause_s
        forecast.epoch(10 * epoch + 10, now)
        if epoch or every < 10:
            left = (epochs - epoch - 1) * (10 + pause_s)
            assert forecast.seconds_left(10 * epoch + 10) == pytest.approx(left, rel=0.05)


def test_the_first_validation_starts_processes_and_the_others_are_foretold_without_that():
    forecast = Forecast(steps=30, pauses=3)
    for step in range(1, 11):
        forecast.step(step, float(step))
    for share, now in ((0.0, 10.0), (0.2, 41.0), (0.6, 43.0)):  # 30 seconds of start, then 5 of validation
        forecast.validation(share, now)
    forecast.epoch(10, 45.0)
    assert forecast.seconds_left(10) == pytest.approx(20 + 2 * 5)
    forecast.step(20, 55.0)
    forecast.validation(0.5, 58.0)
    forecast.epoch(20, 62.0)  # 7 seconds for the second one
    assert forecast.seconds_left(20) == pytest.approx(10 + 7)


@pytest.mark.parametrize(("width", "has"), [(80, "acc 0.250"), (140, "MFU 41%")])
def test_a_trainings_lines_fit_the_terminal_and_leave_out_what_matters_least(monkeypatch, width, has):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    monkeypatch.setenv("COLUMNS", str(width))
    means = {"loss": 2.5, "accuracy": 0.25, "gradient_norm": 1.0}
    tried = Validation(means={"loss": 2.25, "accuracy": 0.5, "balanced_accuracy": 0.25}, images=64, errors=0)
    begin = BeginNews(step=0, steps=900, epoch=0, epochs=90, images=64, workers=2, device="cpu", batch=32)
    steps = [StepNews(step=n, steps=900, epoch=1, lr=1e-3, means=means, rates=RATES) for n in (1, 400)]
    end = EpochNews(epoch=1, step=500, means=means, lr=1e-3, rates=RATES, errors=0, validation=tried)
    with TrainProgress("training 5.00 M parameters", 90) as progress:
        progress.console = Terminal(file=log, force_terminal=True, width=width)
        for news in (begin, *steps):
            progress.on_news(news)
        line = progress.line()
        assert len(line) + BESIDE_BAR <= width and has in line and progress.share == 400 / 900
        assert "left" in line and "epoch 1/90  loss 2.500  acc 0.250" in line
        progress.on_news(end)
    shown = log.getvalue().splitlines()[-1]
    assert shown.startswith("epoch   1/90  loss 2.500  acc 0.250") and len(shown) <= width
    assert "val loss 2.250 acc 0.500 balanced 0.250" in shown and ("MFU" in shown) == (width == 140)


@pytest.mark.parametrize("width", [60, 80])
def test_an_epoch_with_a_validation_a_probe_and_errors_takes_two_lines_before_one_is_too_long(
    monkeypatch, width
):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    end = EpochNews(
        epoch=100,
        step=500,
        means={"loss": 12.5, "explained": 0.25},
        lr=1e-3,
        rates=RATES,
        errors=12345,
        validation=Validation(means={"loss": 12.25, "explained": 0.5}, images=64, errors=0),
        probe=Probe(linear=0.5, knn=0.375, images=1600, errors=0),
    )
    with TrainProgress("training", 100) as progress:
        progress.console = Terminal(file=log, force_terminal=True, width=width)
        progress.on_news(end)
    lines = log.getvalue().splitlines()[1:]
    assert all(len(line) <= width for line in lines) and len(lines) > 1
    words = " ".join(" ".join(lines).split())
    for part in ("epoch 100/100 loss 12.500", "val loss 12.250", "k-NN 0.375", "12,345 images could not"):
        assert part in words
    assert lines[0].startswith("epoch 100/100  loss 12.500")


@pytest.mark.parametrize(
    ("samples", "images", "said"),
    [
        (1437, 1408, "1 worker on CPU, 22 batches of 64 an epoch; 29 images wait for another epoch"),
        (65, 64, "1 worker on CPU, 1 batch of 64 an epoch; 1 image waits for another epoch"),
        (64, 64, "1 worker on CPU, 1 batch of 64 an epoch"),
    ],
)
def test_a_training_says_its_batches_and_which_images_wait_in_one_line(monkeypatch, samples, images, said):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    begin = BeginNews(step=0, steps=9, epoch=0, epochs=3, images=images, workers=1, device="cpu", batch=64)
    with TrainProgress("training", 3) as progress:
        progress.console = Terminal(file=log, force_terminal=True, width=80)
        progress.on_news(DataNews(samples=samples, shards=2, classes=5, val_samples=0))
        progress.on_news(begin)
    assert said in log.getvalue().splitlines()


def test_a_validation_has_a_bar_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with TrainProgress("training 5.00 M parameters", 3) as progress:
        progress.on_news(ValidationNews(epoch=2, images=50, of_images=200, all_images=400))
        assert progress.line() == "epoch 2/3  validation of 400 images" and progress.share == 0.25
    assert " 25%  epoch 2/3  validation of 400 images" in log.getvalue()


def test_what_a_training_waits_for_is_said_with_its_seconds_also_after_a_step(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    means = {"loss": 2.5, "accuracy": 0.25, "gradient_norm": 1.0}
    with TrainProgress("training 5.00 M parameters", 3) as progress:
        progress.on_news(StepNews(step=3, steps=9, epoch=1, lr=1e-3, means=means, rates=RATES))
        progress.on_news(WaitNews(what="building the model"))
        assert progress.line() == "building the model (0 s)" and progress.share is None


@pytest.mark.parametrize(
    "command", ["label --bogus x", "nothing", "verify {p}", "compact {p} --output {p}/o"]
)
def test_a_command_that_fails_ends_a_json_log_with_its_reason_and_code(command, tmp_path, capsys):
    code = run([*command.format(p=tmp_path).split(), "--log-format", "json"])
    stdout, stderr = capsys.readouterr()
    (end,) = objects(stderr)
    assert (end["event"], end["level"], end["exit_code"]) == ("end", "error", code)
    assert code in (1, 2) and stdout == "" and "wordsworth:" not in end["message"]


def test_a_command_that_ends_well_says_so_in_a_json_log_and_prints_its_result_as_ever(capsys):
    assert run(["models", "--log-format=json"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "Ti/16" in stdout
    assert [(one["event"], one["exit_code"]) for one in objects(stderr)] == [("end", 0)]
    assert Terminal.log_format == "text", "the next command of this process is not changed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["label", "x", "--log-format", "json"], "json"),
        (["label", "--log-format=json", "x"], "json"),
        (["label", "x", "--log-format", "text"], "text"),
        (["submit", "--", "label", "--log-format", "json"], "text"),
        (["label", "x"], "text"),
    ],
)
def test_the_format_is_known_before_the_arguments_are_understood(arguments, expected):
    assert asked_log_format(arguments) == expected


def test_a_store_that_this_process_waits_for_is_said_once_in_ten_seconds(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with logging_as("json"), RunProgress("labelling"):
        for waited_s in (0.5, 7.0, 8.0, 12.0):
            tell_trouble("http://user:password@127.0.0.1:9000", waited_s, OSError("refused"))
    (told,) = objects(log.getvalue())
    assert told["event"] == "store" and told["level"] == "warning" and told["seconds"] == 7
    assert "http://127.0.0.1:9000 does not answer: refused" in told["message"]
    assert "password" not in log.getvalue()


def test_of_two_displays_the_inner_one_is_shown(monkeypatch, fast):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with RunProgress("the session") as outer:
        outer.waiting("the outer one waits")
        with RunProgress("labelling") as inner:
            inner.waiting("the inner one waits")
            shown_until(lambda: "the inner one waits" in log.getvalue())
            time.sleep(0.3)  # time enough for the outer one
            assert "the outer one waits" not in log.getvalue()
        inner_ended = time.monotonic()
        shown_until(lambda: "the outer one waits" in log.getvalue())
        assert outer.since >= inner_ended - 0.1, "its seconds are those since the inner one ended"
