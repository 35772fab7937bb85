"""News of a training: one JSON form, and the log that they leave."""

import json

import pytest

from wordsworth.pipeline.training import metrics_log
from wordsworth.pipeline.training.metrics_log import MetricsLog
from wordsworth.pipeline.training.news import BeginNews, EpochNews, Rates, StepNews, Validation

BEGIN = BeginNews(step=0, steps=4, epoch=0, epochs=2, images=8, workers=1, device="cpu", batch=4)
RATES = Rates(images_per_second=9.5, mfu=0.25, data_wait=0.0)
TRIED = Validation(means={"loss": 0.25, "explained": 0.5}, images=7, errors=1)
MEANS = {"loss": 0.5, "explained": 0.25, "gradient_norm": 1.5}


def epoch(number: int, rates: Rates | None = RATES, validation: Validation | None = TRIED) -> EpochNews:
    return EpochNews(
        epoch=number, step=2 * number, means=MEANS, lr=0.5, rates=rates, errors=3, validation=validation
    )


def test_an_epoch_is_one_flat_line_of_json():
    assert list(epoch(1).to_json().items()) == [
        ("kind", "epoch"),
        ("epoch", 1),
        ("step", 2),
        ("loss", 0.5),
        ("explained", 0.25),
        ("gradient_norm", 1.5),
        ("lr", 0.5),
        ("images_per_second", 9.5),
        ("mfu", 0.25),
        ("data_wait", 0.0),
        ("errors", 3),
        ("val_loss", 0.25),
        ("val_explained", 0.5),
        ("val_images", 7),
        ("val_errors", 1),
    ]
    step = StepNews(step=3, steps=4, epoch=2, lr=0.5, means={"loss": 0.5}, rates=RATES)
    assert list(step.to_json()) == [
        "kind", "step", "steps", "epoch", "lr", "loss", "images_per_second", "mfu", "data_wait",
    ]  # fmt: skip


CLASSED = Validation(
    means={"loss": 0.25, "accuracy": 0.5, "balanced_accuracy": 0.25},
    images=7,
    errors=1,
    recall=(0.5, None, 0.0),
)


@pytest.mark.parametrize(
    "news",
    [epoch(1), epoch(2, rates=None), epoch(3, validation=None), epoch(4, validation=CLASSED)],
)
def test_an_epoch_is_read_back_from_its_line(news):
    assert EpochNews.from_json(json.loads(json.dumps(news.to_json() | {"time": 1.5}))) == news


@pytest.mark.slow
def test_a_training_that_continues_takes_back_what_lies_behind_its_checkpoint(tmp_path):
    with MetricsLog(str(tmp_path), {}) as log:
        for news in (BEGIN, epoch(1), epoch(2)):
            log.add(news)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "ep')  # a command that was killed while it wrote
    with MetricsLog(str(tmp_path), {}) as log:
        log.add(BeginNews(**(vars(BEGIN) | {"step": 2})))
        log.add(epoch(2))
        assert [line["epoch"] for line in log.lines()] == [1, 2]


def test_without_matplotlib_one_note_says_how_to_get_the_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "find_spec", lambda name: None)
    with MetricsLog(str(tmp_path), {}) as log:
        for news in (BEGIN, epoch(1)):
            log.add(news)
        note = log.draw()
    assert "pip install 'wordsworth[plots]'" in note and "\n" not in note
    assert not (tmp_path / "curves.png").exists()
    assert list(tmp_path.glob("events.out.tfevents*")) and (tmp_path / "metrics.jsonl").exists()
