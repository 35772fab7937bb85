"""Training: Ray Train workers write a model folder that the labeler loads, and continue after a failure."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from tests.support.builders import photo, write_tar
from tests.support.trainings import SIZE, request, workers, write_classes
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.news import (
    BeginNews,
    DataNews,
    EpochNews,
    NoteNews,
    TrainNews,
    WaitNews,
)
from wordsworth.pipeline.training.placement import place, with_fitting_batch
from wordsworth.pipeline.training.settings import frozen_settings
from wordsworth.pipeline.training.survey import Survey
from wordsworth.pipeline.training.trainer import train
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.ray


@dataclass
class Trained:
    """A training of two workers, of which one was killed after the first epoch."""

    folder: Path  # model/, shards/, val/
    news: list[TrainNews]
    last: EpochNews

    def told(self, kind: type) -> list:
        return [news for news in self.news if isinstance(news, kind)]

    def logged_epochs(self) -> list[EpochNews]:
        lines = [
            json.loads(line) for line in (self.folder / "model" / "metrics.jsonl").read_text().splitlines()
        ]
        assert all(one["time"] <= other["time"] for one, other in pairwise(lines))
        return [EpochNews.from_json(line) for line in lines if line["kind"] == "epoch"]


@pytest.fixture(scope="module")
def trained(local_ray, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    write_classes(folder / "shards", shards=3, images=64)
    write_tar(folder / "shards" / "broken.tar", {"x.png": b"no image", "x.cls": b"0"})
    write_classes(folder / "val", shards=3, images=11)
    write_tar(folder / "val" / "broken.tar", {"x.png": b"no image", "x.cls": b"0"})
    seen, killed = [], []

    def on_news(news):
        seen.append(news)
        if isinstance(news, EpochNews) and not killed:
            killed.extend(workers()[:1])
            killed[0].kill()

    asked = request(
        folder,
        workers=2,
        epochs=6,
        lr=3e-3,
        labels=("dark", "bright"),
        val=(str(folder / "val"),),
        ema=0.9,
        save_every=3,
    )
    return Trained(folder, seen, train(asked, on_news))


def test_two_workers_of_which_one_is_killed_train_a_model_that_the_labeler_loads(trained):
    steps = [news.step for news in trained.told(BeginNews)]
    assert len(steps) == 2 and 0 < steps[1] < 48, "they go on from a checkpoint"
    checkpoint = load_folder(trained.folder / "model")
    assert checkpoint.labels == ("dark", "bright") and checkpoint.config.num_classes == 2
    assert checkpoint.preprocessing == Preprocessing(crop_pct=1.0)
    assert trained.last.means["accuracy"] > 0.95


def test_an_image_that_cannot_be_decoded_is_counted_in_every_epoch_and_named(trained):
    assert [news.errors for news in trained.logged_epochs()] == [1] * 6
    name = f"{trained.folder}/shards/broken.tar/x (not_an_image)"
    said = f"1 image could not be decoded and is left out: {name}"
    assert [note.message for note in trained.told(NoteNews) if "left out" in note.message][:1] == [said]


def test_what_the_sources_hold_is_told_before_anything_is_trained(trained):
    told = [news for news in trained.news if not isinstance(news, WaitNews)]
    assert told[0] == DataNews(samples=193, shards=4, classes=2, val_samples=34)
    waits = [news.what for news in trained.told(WaitNews)]
    before = ["starting Ray", "counting the images", "starting the workers"]
    each_start = ["building the model", "waiting for the first batch"]
    assert waits == [*before, *each_start, *each_start]


def test_a_killed_worker_makes_no_epoch_come_twice_and_loses_none(trained):
    epochs = trained.logged_epochs()
    assert [news.epoch for news in epochs] == [1, 2, 3, 4, 5, 6] and epochs[-1] == trained.last
    assert trained.last.means["loss"] < epochs[0].means["loss"]


def test_the_rates_of_an_epoch_are_shares_that_can_be(trained):
    rates = trained.last.rates
    assert 0 <= rates.data_wait <= 1 and 0 < rates.mfu < 1.2 and trained.last.lr < 3e-3


def test_a_model_folder_says_where_the_model_comes_from(trained):
    extra = load_folder(trained.folder / "model").extra
    assert extra["objective"] == "supervised" and extra["settings"]["seed"] == 0
    assert extra["data"]["samples"] == 193 and len(extra["data"]["digest"]) == 64
    assert extra["metrics"] == trained.last.figures()


def test_validation_counts_every_image_once_and_scores_the_average_that_is_saved(trained):
    found = trained.last.validation
    assert (found.images, found.errors) == (33, 1), "each once, on workers that have 22 and 12 of them"
    model = load_folder(trained.folder / "model").model()
    right, losses = 0, []
    for pixels, label in validation_images(trained.folder / "val"):
        logits = model(pixels)
        right += int(logits.argmax()) == label
        losses.append(cross_entropy(logits, torch.tensor([label])).item())
    assert found.means["accuracy"] == pytest.approx(right / 33, abs=1e-6)
    assert found.means["loss"] == pytest.approx(np.mean(losses), abs=2e-4)


def test_the_model_of_the_best_epoch_alone_lies_beside_the_last(trained):
    best = max(trained.logged_epochs(), key=lambda news: news.validation.means["accuracy"])
    (kept,) = (trained.folder / "model").glob("best-epoch-*")
    assert kept.name == f"best-epoch-{best.epoch}"
    assert load_folder(kept).extra["metrics"]["epoch"] == best.epoch


def test_curves_and_tensorboards_files_are_written(trained):
    with Image.open(trained.folder / "model" / "curves.png") as curves:
        assert curves.size[0] > 800
    assert list((trained.folder / "model").glob("events.out.tfevents*"))


def test_an_output_that_holds_a_model_is_refused(trained):
    with pytest.raises(UserError, match="holds a model already"):
        train(request(trained.folder), trained.news.append)


def test_too_few_gpus_are_said_and_never_replaced_by_cpus(tmp_path):
    shards = [Shard(kind="tar", uri=f"s{number}.tar", size=1, version="") for number in range(4)]
    rows = dict.fromkeys([shard.name for shard in shards], 64)
    data = Survey(shards=tuple(shards), rows=rows, classes=Counter())
    asked = request(tmp_path, device="auto", workers=4)
    with pytest.raises(
        UserError, match="4 workers need 4 GPUs, Ray has 2: use fewer --workers, or --device cpu"
    ):
        place(asked, data, {"CPU": 64, "GPU": 2})
    assert place(replace(asked, device="cpu"), data, {"CPU": 64, "GPU": 2}) == ("cpu", 4)
    few = replace(asked, workers=(1, 4), batch_size=2)
    assert place(few, data, {"CPU": 64}) == ("cpu", (1, 2)), "an image for each"


@pytest.mark.parametrize(("images", "batch"), [(61, 16), (64, 32), (2, 1), (1, 1), (255, 64), (256, 256)])
def test_a_default_batch_becomes_one_that_fits_twice_and_one_that_was_asked_for_stays(
    tmp_path, images, batch
):
    data = Survey(shards=(), rows={"a": images}, classes=Counter())
    asked = request(tmp_path, batch_size=256)
    assert with_fitting_batch(asked, data) == (asked, None)
    fitting, note = with_fitting_batch(replace(asked, is_batch_asked=False), data)
    assert fitting.batch_size == batch
    assert (note is None) == (batch == 256) and (note is None or note.startswith(f"--batch-size {batch}: "))
    assert "is_batch_asked" not in frozen_settings(fitting, data, None), "the size alone has to be the same"


def validation_images(folder):
    """Yield the images of a folder of shards as a model takes them, and their classes."""
    for path in sorted(folder.glob("[0-9].tar")):
        with tarfile.open(path) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for name in members:
            if name.endswith(".png"):
                with Image.open(io.BytesIO(members[name])) as image:
                    pixels = np.asarray(
                        image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), np.float32
                    )
                yield (
                    torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None],
                    int(members[name[:-3] + "cls"]),
                )


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("changes", "members", "message"),
    [
        ({}, {"a.jpg": photo(1)}, "sample a has no class"),
        ({}, {"a.jpg": photo(1), "a.cls": b"-1"}, "sample a has no class"),
        (
            {"labels": ("one",)},
            {"a.jpg": photo(1), "a.cls": b"1"},
            "class 1 occurs, but there is only 1 label",
        ),
        ({}, {"a.jpg": photo(1), "a.cls": b"1"}, "1 of 2 classes have no sample, first class 0"),
        ({}, {"a.jpg": photo(1), "a.cls": b"0"}, "--batch-size 16 is more than there are images"),
        (
            {"warmup": 10, "batch_size": 1},
            {"a.jpg": photo(1), "a.cls": b"0"},
            "--warmup 10: there are 3 steps in all",
        ),
        ({"device": "cuda", "batch_size": 1}, {"a.jpg": photo(1), "a.cls": b"0"}, "need 1 GPUs, Ray has 0"),
        (
            {"workers": 9, "batch_size": 1},
            {"a.jpg": photo(1), "a.cls": b"0"},
            "--batch-size 1 is less than 9, an image for each worker",
        ),
        (
            {"workers": 3, "batch_size": 3},
            {f"{n}.{k}": d for n in range(3) for k, d in (("jpg", photo(1)), ("cls", b"0"))},
            "3 workers",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_training(tmp_path, changes, members, message):
    write_tar(tmp_path / "shards" / "x.tar", members)
    with pytest.raises(UserError, match=message):
        train(request(tmp_path, **changes), lambda news: None)
    assert not (tmp_path / "model").exists()


@pytest.mark.long  # two trainings; a request that goes on: test_recorded_runs.py
@pytest.mark.usefixtures("local_ray")
def test_a_loss_that_is_not_a_number_stops_with_its_step_and_only_the_same_request_goes_on(tmp_path):
    write_classes(tmp_path / "shards", shards=1, images=64)
    asked = request(tmp_path, optimizer="sgd", lr=1e4, warmup=3, clip=1e9, save_every=1)
    with pytest.raises(
        UserError, match=r"the (loss|gradient norm) is not a number at step \d+ \(epoch \d\); the last good"
    ):
        train(asked, lambda news: None)
    assert not (tmp_path / "model" / "config.json").exists() and list(
        (tmp_path / "model" / "_train").glob("step-*")
    )
    with pytest.raises(
        UserError, match=r"an unfinished training with other settings \(lr 10000.0 there, 0.1 here\)"
    ):
        train(replace(asked, lr=0.1), lambda news: None)
    seen = []
    with pytest.raises(UserError, match=r"is not a number at step \d+"):
        train(asked, seen.append)
    assert next(news for news in seen if isinstance(news, BeginNews)).step > 0, (
        "it goes on from the last good checkpoint"
    )
    write_classes(tmp_path / "shards", shards=2, images=64)
    with pytest.raises(UserError, match=r"other settings .data '"):
        train(asked, lambda news: None)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # the steps: tests/training/test_step.py
@pytest.mark.parametrize("objective", ["supervised", "mae"])
def test_sharded_weights_are_tried_and_saved_whole(tmp_path, objective):
    """On workers with three batches and one batch of --val: with FSDP all of them must compute as often."""
    write_classes(tmp_path / "shards", shards=2, images=32)
    write_classes(tmp_path / "val", shards=1, images=20)
    asked = {
        "workers": 2,
        "val": (str(tmp_path / "val"),),
        "epochs": 2,
        "ema": 0.9,
        "activation_checkpointing": True,
    }
    asked |= {"objective": objective, "decoder": (24, 1, 2)}
    last = {}
    for sharding in ("fsdp", "ddp"):
        last[sharding] = train(
            request(tmp_path, **asked, sharding=sharding, output=str(tmp_path / sharding)), lambda news: None
        )
        assert last[sharding].validation.images == 20
    losses = {name: news.validation.means["loss"] for name, news in last.items()}
    assert losses["fsdp"] == pytest.approx(losses["ddp"], abs=1e-4)
    whole, sharded = (load_folder(tmp_path / name).state for name in ("ddp", "fsdp"))
    assert whole.keys() == sharded.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # the hybrid itself: tests/vit_model; the stream: the test above
def test_a_hybrid_trains_from_the_same_stream_of_patches(tmp_path):
    write_classes(tmp_path / "shards", shards=2, images=16)
    train(request(tmp_path, config=replace(SIZE, resnet=()), epochs=2), lambda news: None)
    saved = load_folder(tmp_path / "model")
    assert saved.config.resnet == () and saved.config.num_classes == 2
    assert "patch_embed.backbone.conv.weight" in saved.state and saved.state["head.weight"].abs().max() > 0


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # two trainings; their parts, above, are not
def test_a_model_that_was_trained_without_classes_is_fine_tuned_on_some(tmp_path):
    """By masked patches; a masked autoencoder goes the same way."""
    write_tar(tmp_path / "shards" / "a.tar", {f"{n}.jpg": photo(n) for n in range(64)})
    seen = []
    asked = request(tmp_path, objective="masked-patch", epochs=8, lr=3e-3, labels=("no", "matter"))
    last = train(asked, seen.append)
    first = next(news for news in seen if isinstance(news, EpochNews))
    assert last.means["loss"] < first.means["loss"], seen
    saved = load_folder(tmp_path / "model")
    assert (
        saved.config.num_classes == 0 and saved.labels is None and saved.extra["objective"] == "masked-patch"
    )
    assert not [name for name in saved.state if name.startswith(("head", "mask", "predict", "encoder"))]

    write_classes(tmp_path / "classes", shards=2, images=48)
    mine = {
        "sources": (str(tmp_path / "classes"),),
        "output": str(tmp_path / "mine"),
        "labels": ("dark", "bright"),
        "epochs": 4,
    }
    last = train(
        request(tmp_path, **mine, start=saved, optimizer="sgd", lr=0.05, weight_decay=0.0), seen.append
    )
    tuned = load_folder(tmp_path / "mine")
    assert last.means["accuracy"] > 0.9, seen
    assert tuned.labels == ("dark", "bright") and tuned.extra["settings"]["optimizer"] == "sgd"
    near = torch.nn.functional.cosine_similarity(
        saved.state["pos_embed"].flatten(), tuned.state["pos_embed"].flatten(), dim=0
    )
    assert near > 0.7, "it began as the other ended: those of chance have nothing to do with each other"
