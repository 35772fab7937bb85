"""The best epoch as the model, a training that stops early, and what 95 to 5 classes are tried by."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.trainings import request, write_classes
from wordsworth.pipeline.training.model_folder import score
from wordsworth.pipeline.training.news import EpochNews, NoteNews, TrainNews, Validation
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.model_folder import load_folder


@dataclass
class Stopped:
    """A balanced training on 95 to 5 images whose rate is so low that no epoch is better than the first."""

    folder: Path
    news: list[TrainNews]
    last: EpochNews


@pytest.fixture(scope="module")
def stopped(local_ray, tmp_path_factory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    write_classes(folder / "shards", shards=2, images=40, rare=20)
    write_classes(folder / "val", shards=1, images=20, rare=20)
    seen: list[TrainNews] = []
    asked = request(
        folder,
        epochs=9,
        lr=1e-12,
        balance=True,
        keep_best=True,
        patience=2,
        val=(str(folder / "val"),),
        labels=("often", "rare"),
    )
    return Stopped(folder, seen, train(asked, seen.append))


@pytest.mark.ray
def test_a_training_that_gets_no_better_stops_early_and_says_so(stopped):
    epochs = [news.epoch for news in stopped.news if isinstance(news, EpochNews)]
    assert epochs == [1, 2, 3]
    notes = [news.message for news in stopped.news if isinstance(news, NoteNews)]
    assert "stops after epoch 3: on --val none is better since epoch 1 (--patience 2)" in notes


@pytest.mark.ray
def test_the_best_epoch_is_the_model_if_that_is_asked_for(stopped):
    model, best = (load_folder(stopped.folder / "model" / name) for name in ("", "best-epoch-1"))
    assert model.extra["metrics"]["epoch"] == 1 == stopped.last.epoch
    assert all(torch.equal(model.state[name], best.state[name]) for name in model.state)
    assert model.labels == ("often", "rare") and model.extra["settings"]["keep_best"] is True


@pytest.mark.ray
def test_every_epoch_has_the_recall_of_each_class_and_the_balanced_accuracy(stopped):
    lines = (stopped.folder / "model" / "metrics.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
    assert len(epochs) == 3
    for line in epochs:
        recall = line["val_recall"]
        assert len(recall) == 2 and line["val_balanced_accuracy"] == pytest.approx(sum(recall) / 2, abs=1e-4)
        assert line["val_accuracy"] == pytest.approx(0.95 * recall[0] + 0.05 * recall[1], abs=1e-4)
    assert any(
        "class 1 (rare) comes 10 times in an epoch" in news.message
        for news in stopped.news
        if isinstance(news, NoteNews)
    )


@pytest.mark.ray
def test_a_balanced_epoch_has_as_many_steps(stopped):
    first = next(news for news in stopped.news if isinstance(news, EpochNews))
    assert first.step == 80 // 16


def test_epochs_are_compared_by_balanced_accuracy_where_rare_classes_are_to_count(tmp_path):
    tried = Validation(
        means={"loss": 2.0, "accuracy": 0.9, "balanced_accuracy": 0.5}, images=9, errors=0, recall=(1.0, 0.0)
    )
    assert score(request(tmp_path), tried) == 0.9
    assert score(request(tmp_path, balance=True), tried) == 0.5
    assert score(request(tmp_path, class_weights={"often": 0.1}), tried) == 0.5
    assert score(request(tmp_path, objective="mae"), tried) == -2.0
    assert score(request(tmp_path), None) < -1e9
