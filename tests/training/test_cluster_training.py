"""Training on several nodes: a submitted job reads and writes a store, and a lost node changes no bit."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import s3fs
import torch

from tests.faults import servers
from tests.faults.servers import Backend, served
from tests.support.ray_cluster import Node, RayCluster, ray_cluster
from tests.support.trainings import write_classes
from wordsworth.vit_model.model_folder import load_folder

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

NODE = {"num_cpus": 3, "memory": 3 << 30, "object_store_memory": 100 << 20}
SIZE = "--width 32 --depth 2 --heads 2 --patch-size 8 --image-size 32 --batch-size 16"
WAIT_S = 400.0  # seconds for a job, at most


@dataclass
class Place:
    """Hold a cluster of a head without CPUs and two nodes, and the store that its jobs use."""

    cluster: RayCluster
    store: Backend
    folder: Path
    fs: s3fs.S3FileSystem
    jobs: list[subprocess.Popen] = field(default_factory=list)

    def submit(self, name: str, *more: str, workers: str = "2", output: str = "") -> "Job":
        """Submit a training that writes a checkpoint every other step."""
        command = f"pretrain {self.store.root}/classes {SIZE} --device cpu --save-every 2".split()
        command += ["--output", f"{self.store.root}/{output or name}", "--workers", workers, *more]
        ray = str(Path(sys.executable).with_name("ray"))
        submit = [ray, "job", "submit", "--address", self.cluster.jobs, "--submission-id", name, "--"]
        log = self.folder / f"{name}.log"
        with open(log, "w") as out:
            process = subprocess.Popen(
                [*submit, sys.executable, "-m", "wordsworth", *command],
                env=os.environ | self.cluster.env,
                stdout=out,
                stderr=out,
            )
        self.jobs.append(process)
        return Job(self, name, process, log)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """Return the processes that train, by the name of their node: "head", "0", "1", ..."""
        nodes = {"head": self.cluster.head} | {str(at): node for at, node in enumerate(self.cluster.nodes)}
        return {name: found for name, node in nodes.items() if (found := training_processes(node))}

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        local = self.folder / name
        self.fs.get(f"{servers.BUCKET}/{name}/", f"{local}/", recursive=True)
        return load_folder(local).state


def training_processes(node: Node) -> list[psutil.Process]:
    found = []
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            found += [process] if "RayTrainWorker" in " ".join(process.cmdline()) else []
    return found


@dataclass
class Job:
    place: Place
    name: str
    process: subprocess.Popen
    log: Path

    def checkpoints(self) -> set[str]:
        self.place.fs.invalidate_cache()
        return set(self.place.fs.glob(f"{servers.BUCKET}/{self.name}/_train/step-*"))

    def await_checkpoints(self, count: int) -> None:
        end = time.monotonic() + WAIT_S
        while len(self.checkpoints()) < count:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)  # nothing tells when a checkpoint is there

    def await_said(self, words: str) -> None:
        end = time.monotonic() + WAIT_S
        while words not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)  # nothing tells when a line is there

    def said(self) -> str:
        return self.log.read_text()

    def wait(self) -> str:
        """Wait for the job's end, and return what it said."""
        assert self.process.wait(timeout=WAIT_S) == 0, self.said()
        return self.said()

    def metrics(self) -> list[dict]:
        text = self.place.fs.cat_file(f"{servers.BUCKET}/{self.name}/metrics.jsonl").decode()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def store():
    yield from served(servers.moto)


@pytest.fixture(scope="module")
def place(store, tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("training")
    write_classes(folder / "classes", shards=4, images=32)
    fs = s3fs.S3FileSystem(**store.options)
    fs.put(f"{folder}/classes/", f"{servers.BUCKET}/classes/", recursive=True)
    keys = {
        "AWS_ACCESS_KEY_ID": store.options["key"],
        "AWS_SECRET_ACCESS_KEY": store.options["secret"],
        "AWS_ENDPOINT_URL": store.options["endpoint_url"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with ray_cluster([NODE, NODE], head={"num_cpus": 0}, env=keys) as cluster:
        made = Place(cluster, store, folder, fs)
        try:
            yield made
        finally:
            for process in made.jobs:
                process.kill()
                process.wait()


@pytest.mark.long  # the start of two groups of workers
def test_two_nodes_train_from_a_store_into_it_and_go_on_after_one_is_killed(place):
    job = place.submit("killed", "--epochs", "3")
    job.await_checkpoints(2)
    assert set(place.workers()) == {"0", "1"}, "a worker on each node"
    said = _killed(place, job)
    assert "lost: " in said and "2 workers go on from step" in said, said
    epochs = [line["epoch"] for line in job.metrics() if line["kind"] == "epoch"]
    assert epochs == [1, 2, 3], "none twice and none lost"
    assert all(torch.isfinite(weight).all() for weight in place.weights("killed").values())


@pytest.mark.long  # two trainings; that a killed one goes on is above
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_killed_node_changes_no_bit_of_what_two_nodes_learn(place, sharding):
    """Compare weights that are whole on each node, and weights that are divided over the nodes."""
    asked = ("--epochs", "5", "--sharding", sharding)
    whole = place.submit(f"whole-{sharding}", *asked)
    whole.wait()
    again = place.submit(f"again-{sharding}", *asked)
    again.await_checkpoints(2)
    assert "2 workers go on from step" in _killed(place, again)
    one, other = place.weights(whole.name), place.weights(again.name)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _killed(place: Place, job: Job) -> str:
    """Kill a node under a training, add another one, and return what the job said in the end."""
    place.cluster.kill(place.cluster.nodes[0])
    killed = time.time()
    place.cluster.add_node(**NODE)
    said = job.wait()
    behind = next(line for line in job.metrics() if line["time"] > killed)
    print(f"{job.name}: step {behind['step']} was told {behind['time'] - killed:.1f} s after the kill")
    return said


@pytest.mark.long  # three starts of workers
def test_fewer_nodes_go_on_where_that_is_allowed_and_without_nodes_one_line_says_how_to_go_on(place):
    job = place.submit("fewer", "--epochs", "30", "--wait-timeout", "5", workers="1,2")
    job.await_checkpoints(2)
    assert set(place.workers()) == {"0", "1"}, "a worker on each node"
    killed = time.time()
    place.cluster.kill(place.cluster.nodes[0])
    job.await_said("1 worker goes on from step")
    print(f"one worker went on {time.time() - killed:.1f} s after the kill")
    place.cluster.kill(place.cluster.nodes[0])
    assert job.process.wait(timeout=WAIT_S) == 1, job.said()
    # Ray repeats the last line, which begins with the time of day.
    last = {line for line in job.said().splitlines() if re.match(r"(\d\d:\d\d:\d\d )?wordsworth: ", line)}
    assert len(last) == 1 and "no room for 1 worker for 5 s (--wait-timeout): 1 of 3 nodes" in last.pop()
    for _ in range(2):
        place.cluster.add_node(**NODE)
    again = place.submit("fewer-again", "--epochs", "30", output="fewer", workers="1,2")
    assert "2 workers go on from step" in again.wait()
