"""A training that is killed goes on: the same weights as if nothing had happened."""

import os
import signal

import pytest
import torch

from tests.support.trainings import request, workers, write_classes
from wordsworth.pipeline.training.news import BeginNews, EpochNews
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.model_folder import load_folder


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # shorter: test_trainer; to the bit: test_stream, test_checkpoints
def test_a_killed_worker_changes_no_bit_of_the_model(tmp_path):
    """In the middle of an epoch: batches, optimizer and all random numbers continue from the checkpoint."""
    write_classes(tmp_path / "shards", shards=4, images=40)
    asked = {
        "epochs": 3,
        "save_every": 3,
        "dropout": 0.1,
        "ema": 0.9,
        "val": (str(tmp_path / "shards" / "0.tar"),),
    }
    train(request(tmp_path, **asked, output=str(tmp_path / "whole")), lambda news: None)
    seen, killed = [], []

    def on_news(news):
        seen.append(news)
        if not killed and isinstance(news, EpochNews):
            killed.extend(workers())
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)

    train(request(tmp_path, **asked, output=str(tmp_path / "again")), on_news)
    assert len(killed) == 1 and len([news for news in seen if isinstance(news, BeginNews)]) == 2
    assert 0 < [news for news in seen if isinstance(news, BeginNews)][1].step < 30
    whole, again = (load_folder(tmp_path / name) for name in ("whole", "again"))
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    assert whole.extra["metrics"]["val_loss"] == again.extra["metrics"]["val_loss"]
    assert whole.extra["metrics"]["loss"] == pytest.approx(again.extra["metrics"]["loss"], abs=2e-4)
