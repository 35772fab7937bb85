"""Prometheus sees a run on a real cluster, and the dashboard and the alerts ask for what is there."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.builders import photo, write_tar
from tests.support.ray_cluster import RayCluster, ray_cluster
from wordsworth.pipeline.cluster.metrics import COUNTERS, GAUGES, run_tag

pytestmark = [pytest.mark.ray, pytest.mark.long]

IMAGES = 600
SHOWN = re.compile(r"wordsworth|^ray_node_(cpu|mem)")  # what the dashboard shows, without GPUs
REPORTS = {"RAY_metrics_report_interval_ms": "3000"}  # so that a test does not wait for ten seconds
# A driver that records what no quick run has: steps of a training, and faults.
OTHERS = """
import contextlib, json, sys, time
from wordsworth.pipeline.cluster.metrics import RunMetrics
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session import is_local, ray_session
from wordsworth.pipeline.cluster.signs import find_signs, place_on_cluster
from wordsworth.pipeline.errors import UserError, worker_of
from wordsworth.pipeline.training import train_watch
from wordsworth.pipeline.training.news import BeginNews, EpochNews, Probe, ProbeNews, Rates
from wordsworth.pipeline.training.news import StepNews, Validation

def fail():
    raise ZeroDivisionError("in a worker")

means = {"loss": 2.5, "accuracy": 0.5, "gradient_norm": 2.0}
rates = Rates(images_per_second=100.0, mfu=0.4, data_wait=0.1)
tried = Validation(means={"loss": 1.5, "accuracy": 0.6}, images=8, errors=0)
train_watch.TICK_S = 1.0
with ray_session(ClusterRequest(address=sys.argv[1], insecure=True)):
    import ray
    metrics = RunMetrics("s3://bucket/faults", "label")
    watch = train_watch.TrainWatch("s3://bucket/some model", "supervised", print)
    with contextlib.suppress(UserError), watch:
        size = {"steps": 50, "epochs": 2, "images": 64, "workers": 2, "device": "cpu", "batch": 32}
        watch.on_news(BeginNews(step=10, epoch=0, **size))
        figures = {"epoch": 1, "lr": 1e-3, "means": means, "rates": rates}
        watch.on_news(ProbeNews(probe=Probe(linear=0.5, knn=0.25, images=8, errors=0)))
        watch.on_news(StepNews(step=15, steps=50, **figures))
        watch.on_news(EpochNews(step=20, errors=0, validation=tried, **figures))
        metrics.add("shard_faults", 1)
        metrics.add_up_to("store_retries", 5, store="http://127.0.0.1:9000")
        metrics.add_up_to("failed_tasks", 2, stage="decode")
        metrics.add("actor_restarts", 1)
        place = ray.get(ray.remote(place_on_cluster).remote())
        try:
            ray.get(ray.remote(fail).remote())
        except ZeroDivisionError as error:
            worker = worker_of(error)
        time.sleep(10)  # for the figures to reach Ray's agent, which nothing tells
        raise UserError("the loss is not a number at step 21")
    print(json.dumps({"place": place, "worker": worker, "is_local": is_local(), "signs": len(find_signs())}))
"""


def scrape(cluster: RayCluster, token: str | None) -> str:
    """Return what all targets give of ours: those that Ray's own file for Prometheus names."""
    lines = []
    (found,) = json.loads((cluster.folder / "prom_metrics_service_discovery.json").read_text())
    for target in found["targets"]:
        request = urllib.request.Request(f"http://{target}/metrics")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines += [line for line in answer.read().decode().splitlines() if SHOWN.search(line)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def seen(tmp_path_factory, small_model) -> Iterator[SimpleNamespace]:
    """Run a labelling on a cluster of one node, and gather what Prometheus would see meanwhile."""
    place = tmp_path_factory.mktemp("metrics")
    photos = [photo(seed, size=(1600, 1200)) for seed in range(20)]  # of which decoding takes its time
    for shard in range(3):
        members = {f"{n:04d}.jpg": photos[n % 20] for n in range(IMAGES // 3)}
        members["0007.jpg"] = b"no image"
        write_tar(place / "shards" / f"{shard}.tar", members)
    root = Path(__file__).parents[2]
    with ray_cluster(head={"num_cpus": 6, "memory": 6 << 30}, env=REPORTS) as cluster:
        env = os.environ | cluster.env | {"PYTHONPATH": str(root)}
        label = [sys.executable, "-m", "wordsworth", "label", place / "shards", "--output", place / "out"]
        label += ["--model", small_model, "--address", cluster.address, "--log-format", "json"]
        label += ["--unit-rows", 40]
        with open(place / "out.log", "w") as log, open(place / "others.log", "w") as others:
            run = subprocess.Popen(
                [*map(str, label)], env=env, stdout=subprocess.DEVNULL, stderr=log, cwd=root
            )
            other = subprocess.Popen(
                [sys.executable, "-c", OTHERS, cluster.address], env=env, stdout=others, cwd=root
            )
            texts = []
            deadline = time.monotonic() + 150
            while run.poll() is None or other.poll() is None:
                assert time.monotonic() < deadline, (place / "out.log").read_text()
                time.sleep(1)  # as Prometheus asks, now and then
                texts.append(scrape(cluster, cluster.token))
            texts.append(scrape(cluster, cluster.token))
        yield SimpleNamespace(
            cluster=cluster,
            texts=texts,
            codes=(run.returncode, other.returncode),
            log=(place / "out.log").read_text(),
            others=(place / "others.log").read_text(),
            output=str(place / "out"),
        )


def value(text: str, name: str, **labels: str) -> float:
    """Return the value of the one series of a metric that has these labels."""
    found = []
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{told}"' in line for key, told in labels.items()):
            found.append(float(line.rsplit(" ", 1)[1]))
    (only,) = found
    return only


def test_the_counters_of_a_run_are_its_rows_in_the_end(seen):
    assert seen.codes == (0, 0), (seen.log, seen.others)
    last, run = seen.texts[-1], run_tag(seen.output)
    assert value(last, "ray_wordsworth_images_total", run=run, command="label") == IMAGES
    assert value(last, "ray_wordsworth_errors_total", run=run, code="not_an_image") == 3
    assert value(last, "ray_wordsworth_units_total", run=run) >= 3
    for stage in ("read", "decode", "predict", "write"):
        assert value(last, "ray_wordsworth_stage_seconds_total", run=run, stage=stage) > 0


def test_prometheus_sees_every_metric_by_the_name_that_dashboard_and_alerts_use(seen):
    wanted = {f"ray_wordsworth_{name}_total" for name in COUNTERS} | {
        f"ray_wordsworth_{name}" for name in GAUGES
    }
    text = "\n".join(seen.texts)
    found = set(re.findall(r"^(ray_wordsworth_\w+)\{", text, re.MULTILINE))
    quick = {"ray_wordsworth_model_busy"}  # a run of half a minute is too short for it
    assert found - quick == wanted - quick
    told = {
        name: (COUNTERS | GAUGES)[name.removeprefix("ray_wordsworth_").removesuffix("_total")]
        for name in found
    }
    for line in text.splitlines():
        if line.startswith("ray_wordsworth_"):
            _, tags = told[line.partition("{")[0]]
            assert all(f'{tag}="' in line for tag in ("run", "command", *tags)), line


def test_a_loss_that_ends_a_training_is_counted_though_the_command_is_gone(seen):
    last = seen.texts[-1]
    assert value(last, "ray_wordsworth_train_bad_losses_total", command="supervised") == 1
    assert value(last, "ray_wordsworth_train_steps_total", command="supervised") == 10
    assert value(last, "ray_wordsworth_train_images_total", command="supervised") == 320


def test_a_gauge_of_a_command_that_ended_disappears(seen):
    running = re.compile(r"^ray_wordsworth_running\{", re.MULTILINE)
    assert any(running.search(text) for text in seen.texts)
    deadline = time.monotonic() + 20
    while running.search(scrape(seen.cluster, seen.cluster.token)):
        assert time.monotonic() < deadline
        time.sleep(0.5)  # until Ray forgets it


def test_no_metric_says_where_a_run_lies(seen):
    text = "\n".join(seen.texts)
    assert seen.output not in text and "s3://bucket" not in text and "some model" not in text


def test_prometheus_needs_no_token_for_rays_figures(seen):
    """Ray asks for none there, so the page tells to keep the port inside: it names runs and stores."""
    assert "ray_wordsworth_images_total" in scrape(seen.cluster, None)


def test_a_command_on_a_cluster_says_what_it_waits_for_and_ends_its_json_log(seen):
    objects = [json.loads(line) for line in seen.log.splitlines()]
    events = [one["event"] for one in objects]
    assert "plan" in events and "wait" in events and events[-1] == "end"
    assert any(one["message"].startswith("joining the Ray cluster") for one in objects)


def test_what_happens_in_a_worker_is_told_with_node_and_pid(seen):
    (line,) = [line for line in seen.others.splitlines() if line.startswith('{"place"')]
    told = json.loads(line)
    assert re.fullmatch(r" \(node \S+, pid \d+\)", told["place"])
    address, pid = told["worker"]
    assert re.fullmatch(r"[\d.]+", address) and pid > 1
    assert not told["is_local"] and told["signs"] == 0
