"""The probe of a training without classes: its figures, who computes them, and that nothing else changes."""

import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support.builders import write_tar
from tests.support.trainings import request, workers, write_classes
from tests.training.test_trainer import validation_images
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.checkpoints import TrainingState
from wordsworth.pipeline.training.collectives import Collectives
from wordsworth.pipeline.training.metrics_log import MetricsLog
from wordsworth.pipeline.training.news import (
    BeginNews,
    EpochNews,
    NoteNews,
    Probe,
    ProbeNews,
    TrainNews,
)
from wordsworth.pipeline.training.optimizer import build_optimizer
from wordsworth.pipeline.training.probe import Prober
from wordsworth.pipeline.training.probe_images import ProbeImages, hold_out
from wordsworth.pipeline.training.request import TrainRequest, build_objective
from wordsworth.pipeline.training.step import Step, WeightAverage
from wordsworth.pipeline.training.survey import Survey
from wordsworth.pipeline.training.trainer import train
from wordsworth.pipeline.unit import SAMPLE, Unit
from wordsworth.vit_model.few_shot import best_l2, fit_probe
from wordsworth.vit_model.model_folder import load_folder
from wordsworth.vit_model.neighbours import NearestNeighbours
from wordsworth.vit_model.parallel import parallelize

CPU = torch.device("cpu")
NUM_CLASSES = 4
ROWS = (33, 20, 27)  # images of each shard
TIME_LIMIT = 120  # seconds, for both processes: a collective that waits for ever must not
SHARDS = tuple(Shard(kind="tar", uri=f"/{n}.tar", size=1, version="", first_index=7 * n) for n in range(3))
DECODE = DecodeSettings(preprocessing=request(Path("x")).preprocessing, image_size=(32, 32), patch_size=8)


def images() -> tuple[ProbeImages, np.ndarray]:
    """Return a probe of 80 images, and their patches (80, N, P*P*3): noise over the pattern of a class."""
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(sum(ROWS)) % NUM_CLASSES)
    patterns = rng.integers(0, 120, (NUM_CLASSES, *DECODE.patches_shape))
    patches = patterns[classes] + rng.integers(0, 136, (len(classes), *DECODE.patches_shape))
    rows = dict(zip((shard.name for shard in SHARDS), ROWS, strict=True))
    survey = Survey(shards=SHARDS, rows=rows, classes={})
    held_out = np.arange(len(classes)) % 5 == 0
    chosen = ProbeImages(survey=survey, classes=classes, held_out=held_out, num_found=len(classes))
    return chosen, patches.astype(np.uint8)


def units(shards: list[Shard], lost: tuple[int, ...] = ()) -> list[Unit]:
    """Return units of at most 12 samples of these shards; `lost` are rows that could not be decoded."""
    chosen, patches = images()
    made = []
    for shard, first in zip(SHARDS, chosen.first_rows, strict=True):
        for begin in range(0, chosen.survey.rows[shard.name] if shard in shards else 0, 12):
            places = range(begin, min(begin + 12, chosen.survey.rows[shard.name]))
            columns = {name: pa.nulls(len(places), SAMPLE.field(name).type) for name in SAMPLE.names}
            columns["index"] = pa.array([shard.first_index + place for place in places], pa.int32())
            is_lost = [first + place in lost for place in places]
            columns["error"] = pa.array(["truncated" if one else None for one in is_lost], pa.string())
            good = [first + place for place in places if first + place not in lost]
            at = {"number": begin // 12, "last": places.stop == chosen.survey.rows[shard.name]}
            made.append(
                Unit(
                    shard_uri=shard.uri,
                    shard_name=shard.name,
                    next_offset=0,
                    next_index=0,
                    bytes_read=0,
                    samples=pa.table(columns, schema=SAMPLE),
                    payload=patches[good].reshape(-1),
                    **at,
                )
            )
    return made


def step_of(asked: TrainRequest, rank: int = 0, wrap=lambda objective: objective) -> Step:
    objective = wrap(build_objective(asked))
    return Step(objective, build_optimizer(objective, asked), asked, CPU, rank)


def asked_for(folder: Path, **changes) -> TrainRequest:
    given = {"objective": "mae", "decoder": (24, 1, 2), "dropout": 0.1, "drop_path": 0.2, "seed": 3}
    return request(folder, **(given | changes))


def prober_of(step: Step, rank: int = 0, num_workers: int = 1) -> Prober:
    return Prober(images()[0], DECODE, step, Collectives(rank, num_workers, CPU))


# ---- the figures -----------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_embeddings_that_the_encoder_gives_in_use(tmp_path):
    """By the model itself on float images in one batch, and by probes fitted here."""
    step = step_of(asked_for(tmp_path))
    lost = (0, 5, 41)
    found = prober_of(step).probe(iter(units(list(SHARDS), lost)), 5)
    chosen, patches = images()
    model = step.objective.encoder.eval()
    embeddings = model((torch.from_numpy(patches).float() / 255 - 0.5) / 0.5).detach().numpy()
    there = ~np.isin(np.arange(80), lost)
    learnt, tried = there & ~chosen.held_out, there & chosen.held_out
    x, y = embeddings[learnt], chosen.classes[learnt]
    linear = fit_probe(x, y, best_l2(x, y)).predict(embeddings[tried]).numpy()
    voted = NearestNeighbours(x, y, NUM_CLASSES).predict(embeddings[tried])
    assert found == Probe(
        linear=round(float(np.mean(linear == chosen.classes[tried])), 6),
        knn=round(float(np.mean(voted == chosen.classes[tried])), 6),
        images=14,  # of 16, of which two are lost
        errors=3,
    )
    assert found.linear > 0.5, "the patterns can be told apart"


def test_without_the_classes_the_figures_are_those_of_chance(tmp_path):
    prober = prober_of(step_of(asked_for(tmp_path)))
    right = prober.probe(iter(units(list(SHARDS))), 16)
    shuffled = np.random.default_rng(1).permutation(prober.images.classes)
    prober.images = replace(prober.images, classes=shuffled)
    assert prober.probe(iter(units(list(SHARDS))), 16).linear < 0.5 < right.linear


@pytest.mark.parametrize("objective", ["mae", "masked-patch"])
def test_a_probe_changes_no_bit_of_the_steps_behind_it(tmp_path, objective):
    """Dropout, drop path, masks, the mode of the modules, and the average of the weights."""
    patches = images()[1]
    states = []
    for probed in (False, True):
        step = step_of(asked_for(tmp_path, objective=objective))
        state = TrainingState(step.objective, step.optimizer, WeightAverage(step.objective, 0.9))
        prober, figures = prober_of(step), []
        for number in range(3):
            torch.manual_seed(5)
            if probed:
                with state.averaged():
                    figures.append(prober.probe(iter(units(list(SHARDS))), 16))
            assert probed or step.objective.training
            drawn = torch.rand(3)  # nothing was drawn by the probe
            step([(patches[:16], np.zeros(16, np.int64))], 0.01, number)
            state.average.update()
        states.append((step.objective.state_dict(), state.average.averages, drawn))
    for one, other in zip(states[0][0].values(), states[1][0].values(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(states[0][1], states[1][1], strict=True))
    assert torch.equal(states[0][2], states[1][2]) and len(figures) == 3


def test_every_nth_epoch_is_probed_and_the_first_and_the_last(tmp_path):
    prober = prober_of(step_of(asked_for(tmp_path, epochs=7, probe_every=3)))
    assert [epoch for epoch in range(8) if prober.is_due(epoch, is_last=epoch == 7)] == [0, 3, 6, 7]


def test_embeddings_that_are_no_numbers_and_images_that_are_lost_are_one_line(tmp_path):
    step = step_of(asked_for(tmp_path))
    prober = prober_of(step)
    with pytest.raises(UserError, match="too few images of --probe could be decoded"):
        prober.probe(iter(units(list(SHARDS), tuple(range(0, 80, 5)))), 16)
    nn.init.constant_(step.objective.encoder.norm.weight, float("nan"))
    with pytest.raises(UserError, match="an embedding of --probe is not a number; the last good checkpoint"):
        prober.probe(iter(units(list(SHARDS))), 16)


# ---- several workers -------------------------------------------------------------------------------------


def worker(rank: int, folder: Path) -> None:
    """Probe, make a step of half of a batch and probe again, in each of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    try:
        for name in ("ddp", "fsdp"):
            mesh = init_device_mesh("cpu", (2,))
            wrap = partial(parallelize, mesh=mesh) if name == "fsdp" else DistributedDataParallel
            step = step_of(asked_for(folder, **STEPS), rank, wrap)
            found[name] = probed_steps(step, rank, num_workers=2)
        (folder / f"{rank}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


# Adam makes a step of a rounding error's sign.
STEPS = {"objective": "masked-patch", "optimizer": "sgd"}


def probed_steps(step: Step, rank: int, num_workers: int) -> list[dict]:
    prober = prober_of(step, rank, num_workers)
    state = TrainingState(step.objective, step.optimizer, WeightAverage(step.objective, 0.5))
    patches = np.split(images()[1][:16], num_workers)[rank]
    figures = []
    for number in range(2):
        with state.averaged():
            figures.append(prober.probe(iter(units(prober.shards(), lost=(3,))), 8).figures())
        step([(patches, np.zeros(len(patches), np.int64))], 0.5, number)
    return figures


@pytest.mark.long  # two processes; by Ray and without sharding: the last test
def test_two_workers_give_the_figures_of_one_with_and_without_sharded_weights(tmp_path):
    """The workers have 33 and 47 images: with FSDP one of them passes empty images at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.syspath_prepend(Path(__file__).parents[2])  # the children import this module by its name
        context, end = mp.spawn(worker, (tmp_path,), nprocs=2, join=False), time.monotonic() + TIME_LIMIT
        try:
            while not context.join(timeout=1):
                assert time.monotonic() < end, f"two processes did not finish in {TIME_LIMIT} seconds"
        finally:
            for process in context.processes:
                process.kill()
    expected = probed_steps(step_of(asked_for(tmp_path, **STEPS)), 0, 1)
    assert expected[0]["probe_errors"] == 1 and expected[0]["probe_linear"] > 0.5
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1] and found[0]["ddp"] == found[0]["fsdp"]
    assert found[0]["ddp"][0] == expected[0], "behind the first step they have drawn other masks"


# ---- where the figures go --------------------------------------------------------------------------------


BEFORE = ProbeNews(probe=Probe(linear=0.25, knn=0.125, images=8, errors=1))
BEGIN = BeginNews(step=0, steps=4, epoch=0, epochs=2, images=8, workers=1, device="cpu", batch=4)
EPOCH = EpochNews(
    epoch=1,
    step=2,
    means={"loss": 0.5, "explained": 0.25},
    lr=0.1,
    rates=None,
    errors=0,
    validation=None,
    probe=Probe(linear=0.5, knn=0.375, images=8, errors=1),
)


def test_the_figures_are_flat_in_the_lines_and_are_read_back():
    line = json.loads(json.dumps(EPOCH.to_json() | {"time": 1.0}))
    told = {name: value for name, value in line.items() if name.startswith("probe")}
    assert told == {"probe_linear": 0.5, "probe_knn": 0.375, "probe_images": 8, "probe_errors": 1}
    assert EpochNews.from_json(line) == EPOCH
    assert BEFORE.to_json()["kind"] == "probe" and BEFORE.to_json()["step"] == 0
    assert ProbeNews.from_json(BEFORE.to_json()) == BEFORE


def test_tensorboard_and_the_curves_begin_with_the_random_weights(tmp_path):
    with MetricsLog(str(tmp_path), {}) as log:
        for news in (BEGIN, BEFORE, BEGIN, BEFORE, EPOCH):  # a worker was lost before the first step
            log.add(news)
        assert [line["kind"] for line in log.lines()] == ["probe", "epoch"]
        assert log.draw() is None
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size[0] == 1800, "three figures"
    points = [point for path in tmp_path.glob("events.out*") for point in scalars(path, "epoch/probe_linear")]
    assert sorted(set(points)) == [(0, 0.25), (2, 0.5)]


def scalars(path: Path, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of a tag in a file of TensorBoard's: lengths and checksums around messages."""
    from tensorboardX.proto.event_pb2 import Event

    data, points = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
        data = data[12 + size + 4 :]
    return points


# ---- a whole training ------------------------------------------------------------------------------------


def trained(folder: Path, name: str, kill: bool = False, **changes) -> tuple[dict, list[TrainNews]]:
    seen: list[TrainNews] = []
    killed: list = []

    def on_news(news):
        seen.append(news)
        if kill and not killed and isinstance(news, EpochNews):
            killed.extend(workers())
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)

    given = {"epochs": 3, "save_every": 3, "ema": 0.9, "output": str(folder / name)}
    train(asked_for(folder, **(given | changes)), on_news)
    assert len(killed) == int(kill)
    return load_folder(folder / name).state, seen


@pytest.mark.long  # three trainings; their parts: the tests above
@pytest.mark.usefixtures("local_ray")
def test_a_training_is_the_same_with_a_probe_and_a_killed_one_gives_the_same_figures(tmp_path):
    write_classes(tmp_path / "shards", shards=2, images=40)
    write_classes(tmp_path / "labelled", shards=3, images=20)
    probe = {"probe": (str(tmp_path / "labelled"),), "probe_every": 2}
    plain, _ = trained(tmp_path, "plain")
    whole, news = trained(tmp_path, "whole", **probe)
    again, _ = trained(tmp_path, "again", kill=True, **probe)
    for name in plain:
        assert torch.equal(plain[name], whole[name]) and torch.equal(plain[name], again[name]), name
    notes = [one.message for one in news if isinstance(one, NoteNews)]
    assert "--probe: 60 images of 2 classes; the probes learn from 48 and are tried on 12" in notes
    lines = {}
    for folder in ("whole", "again"):
        text = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in text]
        lines[folder] = [
            (line["epoch"], line["probe_linear"], line["probe_knn"])
            for line in told
            if "probe_linear" in line
        ]
    assert lines["whole"] == lines["again"] and [epoch for epoch, *_ in lines["whole"]] == [0, 2, 3]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["extra"]
    assert config["metrics"]["probe_linear"] == lines["whole"][-1][1]
    assert len(config["settings"]["probe_data"]) == 64
    with pytest.raises(UserError, match="holds a model already"):
        trained(tmp_path, "plain", **probe)


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_the_last_epoch_of_a_training_that_stops_early_is_probed_too(tmp_path):
    write_classes(tmp_path / "shards", shards=2, images=40)
    write_classes(tmp_path / "labelled", shards=3, images=20)
    places = {"probe": (str(tmp_path / "labelled"),), "val": (str(tmp_path / "labelled"),)}
    _, news = trained(tmp_path, "model", epochs=9, lr=1e-12, patience=1, probe_every=5, **places)
    probed = {one.epoch: one.probe is not None for one in news if isinstance(one, EpochNews)}
    assert probed == {1: False, 2: True}


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_training_tells_what_a_probe_of_its_model_gives(tmp_path):
    """Through Ray: shards, centre crops, the average of the weights; against the model that was written."""
    write_classes(tmp_path / "shards", shards=2, images=20)
    rng = np.random.default_rng(0)
    for shard in range(3):
        members = {}
        for number in range(60):
            label = int(rng.integers(3))
            pixels = rng.integers(0, 100, (24, 24, 3)) + 2 * label  # brighter by two levels of 255
            buffer = BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            members |= {f"{shard}-{number}.png": buffer.getvalue(), f"{shard}-{number}.cls": b"%d" % label}
        write_tar(tmp_path / "labelled" / f"{shard}.tar", members)
    _, news = trained(tmp_path, "model", probe=(str(tmp_path / "labelled"),), epochs=1, workers=2)
    (before,) = (one.probe for one in news if isinstance(one, ProbeNews))
    (last,) = (one.probe for one in news if isinstance(one, EpochNews))
    pixels, labels = zip(*validation_images(tmp_path / "labelled"), strict=True)
    classes = np.array(labels)
    chosen = hold_out(classes)
    with torch.no_grad():
        x = load_folder(tmp_path / "model").model()(torch.cat(pixels)).numpy()
    learnt = x[~chosen], classes[~chosen]
    linear = fit_probe(*learnt, best_l2(*learnt)).predict(x[chosen]).numpy() == classes[chosen]
    voted = NearestNeighbours(*learnt, 3).predict(x[chosen]) == classes[chosen]
    assert (last.images, last.errors) == (chosen.sum(), 0)
    one_image = 1.01 / chosen.sum()  # the last bits of an embedding may turn one image
    assert last.linear == pytest.approx(linear.mean(), abs=one_image)
    assert last.knn == pytest.approx(voted.mean(), abs=one_image)
    assert before.images == last.images
