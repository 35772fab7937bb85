"""waiting, sharing: a run begins on a cluster scaled to zero, with the nodes that its autoscaler adds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.autoscaling import autoscaling_cluster
from tests.support.builders import write_shards
from tests.support.standin.cluster import plugged

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MEMORY = {"object_store_memory": 100 << 20}
TYPES = {
    "cpu": {"resources": {"CPU": 4} | MEMORY, "max_workers": 1, "labels": {"pool": "decode"}},
    "gpu": {"resources": {"CPU": 1, "GPU": 1} | MEMORY, "max_workers": 1, "labels": {"pool": "gpu"}},
}
BATCH = ("--batch-size", "4")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs, whose autoscaler, the second one, adds a node of CPUs and one with a GPU and one
    CPU. The GPU is the stand-in device."""
    env = plugged(tmp_path_factory.mktemp("gpu"))
    with autoscaling_cluster(TYPES, v2=True, env=env) as cluster:
        yield cluster


@pytest.fixture
def begin(cluster):
    """Start a command of ours on the cluster, and end it with the test."""
    begun = []

    def start(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-m", "wordsworth", *map(str, arguments), "--address", cluster.address]
        begun.append(
            subprocess.Popen(
                command,
                env=os.environ | cluster.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen, timeout: float = 400) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def keys_of(out: Path) -> list[str]:
    rows = pq.read_table(out / "predictions").to_pylist()
    assert all(row["error"] is None for row in rows)
    return sorted(row["key"] for row in rows)


def device_of(out: Path) -> str:
    return json.loads((out / "_run" / "plan.json").read_text())["resolved"]["device"]


@pytest.mark.long
def test_two_jobs_begin_at_once_on_a_cluster_that_is_scaled_to_zero(tmp_path, small_model, begin):
    """One takes the CPUs that it asks for, the other waits for the GPU that --device auto means where the
    autoscaler has one to add. Both are exact."""
    keys = sorted(write_shards(tmp_path / "in", shards=3, images=8))
    label = ("label", tmp_path / "in", "--model", small_model, *BATCH)
    pinned = ("--decode-on", "pool=decode", "--predict-on", "pool=gpu")
    on_gpu = begin(*label, "--output", tmp_path / "gpu", *pinned)
    on_cpu = begin(*label, "--output", tmp_path / "cpu", "--device", "cpu", "--wait-for", "CPU=4")
    code, said = ended(on_cpu)
    assert code == 0, said
    assert "waiting for CPU=4: " in said
    code, said = ended(on_gpu)
    assert code == 0, said
    assert keys_of(tmp_path / "gpu") == keys_of(tmp_path / "cpu") == keys
    assert (device_of(tmp_path / "gpu"), device_of(tmp_path / "cpu")) == ("cuda", "cpu")


def test_what_never_comes_is_refused_in_one_line_and_leaves_no_output(tmp_path, small_model, begin):
    write_shards(tmp_path / "in", shards=1, images=2)
    label = ("label", tmp_path / "in", "--model", small_model, "--output", tmp_path / "out")
    code, said = ended(begin(*label, "--wait-for", "GPU=64,CPU=1", "--wait-timeout", "4"))
    assert code == 1
    assert "waiting for GPU=64, CPU=1: " in said
    last = said.splitlines()[-1]
    assert (
        " of 64 GPU and " in last and "(--wait-timeout), and its autoscaler says that it cannot add" in last
    )
    assert not (tmp_path / "out").exists()


def test_a_killed_command_asks_for_nothing_any_more(tmp_path, small_model, begin, cluster):
    write_shards(tmp_path / "in", shards=1, images=2)
    label = ("label", tmp_path / "in", "--model", small_model, "--output", tmp_path / "out")
    waiting = begin(*label, "--wait-for", "GPU=63")
    for line in waiting.stderr:
        if "waiting for GPU=63" in line:
            break
    assert asked_for(cluster, {"GPU": 1.0}), "the autoscaler was asked"
    waiting.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while asked_for(cluster, {"GPU": 1.0}) and time.monotonic() < deadline:
        time.sleep(0.5)  # Ray ends what a driver left within seconds, and tells nobody
    assert not asked_for(cluster, {"GPU": 1.0})
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_plan_measures_on_the_cluster_and_counts_its_cores(tmp_path, small_model, begin):
    write_shards(tmp_path / "in", shards=1, images=8)
    options = ("--device", "cpu", "--wait-for", "CPU=4", "--seconds", "0.1", "--json")
    planning = begin("plan", tmp_path / "in", "--model", small_model, *options)
    out, err = planning.communicate(timeout=400)
    assert planning.returncode == 0, err
    told = json.loads(out)
    assert told["measured"]["images"] == 8 and told["measured"]["device"] == "cpu"
    assert told["cores"] in (4, 5) and told["gpus"] == 0, "the node with the GPU may still be there"


@pytest.mark.long  # how they divide a cluster: test_resources
@pytest.mark.parametrize("share", [(), ("--share", "0.5")])
def test_two_jobs_of_cpus_begin_at_once_and_both_are_exact(tmp_path, small_model, begin, share):
    """Without a share the first one takes what it can use, and the other one what is left."""
    keys = sorted(write_shards(tmp_path / "in", shards=4, images=8))
    label = ("label", tmp_path / "in", "--model", small_model, "--device", "cpu", *BATCH, *share)
    jobs = [begin(*label, "--output", tmp_path / name, "--wait-for", "CPU=4") for name in ("one", "two")]
    for job in jobs:
        code, said = ended(job)
        assert code == 0, said
    assert keys_of(tmp_path / "one") == keys_of(tmp_path / "two") == keys


def asked_for(cluster, bundle: dict) -> bool:
    """Whether something that waits on this cluster wants a bundle."""
    code = (
        "import json, sys; from ray._raylet import GcsClient\n"
        "from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply as Reply\n"
        "state = Reply.FromString(GcsClient(address=sys.argv[1]).get_cluster_resource_state())\n"
        "groups = state.cluster_resource_state.pending_gang_resource_requests\n"
        "requests = [one for group in groups for one in group.requests]\n"
        "requests += [r for g in groups for part in g.bundle_selectors for r in part.resource_requests]\n"
        "print(json.dumps([dict(one.resources_bundle) for one in requests]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, cluster.address],
        env=os.environ | cluster.env,
        capture_output=True,
        text=True,
        check=True,
    )
    return bundle in json.loads(asked.stdout)
