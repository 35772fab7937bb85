"""Run what the manifests run, on a real cluster under a token: their nodes and their commands, with small
sizes, a small model, and a store on loopback in place of the bucket."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from tests.deploy import manifests
from tests.faults import servers
from tests.faults.servers import BUCKET, KEY, SECRET
from tests.support.builders import write_shards
from tests.support.ray_cluster import NODE, RayCluster, ray_cluster
from tests.support.trainings import write_classes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
# What a node has here, in place of the sizes of a machine in a data centre.
SMALL = {"num-cpus": 3, "memory": NODE["memory"], "object-store-memory": NODE["object_store_memory"]}
SIZES = {"GPU=1,CPU=16": "CPU=4", "GPU=2,CPU=16": "CPU=4"}


@dataclasses.dataclass
class Site:
    """Hold the cluster of a manifest, and the store that stands for its bucket."""

    cluster: RayCluster
    store: servers.Backend

    def submit(self, entrypoint: str) -> subprocess.CompletedProcess:
        """Submit a command as KubeRay's submitter does, and return when it is done. The submitter has the
        token and no key of the store."""
        env = {name: value for name, value in self.cluster.env.items() if name.startswith("RAY_")}
        command = [
            BIN / "ray",
            "job",
            "submit",
            "--address",
            self.cluster.jobs,
            "--",
            *shlex.split(entrypoint),
        ]
        return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=500)

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("s3", skip_instance_cache=True, **self.store.options)

    def keys(self, out: str) -> list[str]:
        """Return the keys of all rows of a run, in order."""
        keys = []
        for path in self.files.glob(f"{BUCKET}/{out}/predictions/*.parquet"):
            with self.files.open(path) as file:
                keys += pq.read_table(file, columns=["key"])["key"].to_pylist()
        return sorted(keys)


def node_of(group: manifests.Manifest) -> dict[str, Any]:
    """Return the options of a group's node for `RayCluster`, with the sizes of SMALL and without GPUs."""
    given = manifests.ray_start_options(group)
    made = {name: SMALL.get(name, value) for name, value in given.items() if name != "num-gpus"}
    if given["num-cpus"] == "0":
        made["num-cpus"] = 0
    return {name.replace("-", "_"): value for name, value in made.items()}


def command_of(name: str, changes: dict[str, str]) -> str:
    """Return the command of a RayJob with the names of this site. Each name to change must be there."""
    entrypoint = manifests.rayjob(name)["spec"]["entrypoint"]
    for before, after in changes.items():
        assert before in entrypoint, before
        entrypoint = entrypoint.replace(before, after)
    return entrypoint


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    write_shards(folder / "shards", shards=4, images=8)
    write_classes(folder / "train", shards=8, images=16)
    write_classes(folder / "val", shards=2, images=16)
    head, *workers = [node_of(group) for group in manifests.groups(manifests.rayjob("label")).values()]
    with servers.moto() as store:
        env = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": store.options["endpoint_url"],
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        with ray_cluster(workers, head=head, env=env) as cluster:
            site = Site(cluster, store)
            for name in ("shards", "train", "val"):
                site.files.put(str(folder / name), f"{BUCKET}/{name}", recursive=True)
            yield site


@pytest.mark.long
def test_the_command_of_the_labelling_job_labels_every_image(site, small_model, tmp_path):
    names = {
        "BUCKET": BUCKET,
        "timm:vit_base_patch16_224": str(small_model),
        "GPU=1,CPU=16": SIZES["GPU=1,CPU=16"],
    }
    done = site.submit(command_of("label", names))
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.keys("labels") == write_shards(tmp_path, shards=4, images=8)
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.long
def test_the_command_of_the_training_job_trains(site):
    small = "Ti/16 --image-size 32 --epochs 1 --batch-size 16"
    names = {"BUCKET": BUCKET, "S/16": small, "GPU=2,CPU=16": SIZES["GPU=2,CPU=16"]}
    done = site.submit(command_of("pretrain", names).replace("vit-s16", "model"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.files.exists(f"{BUCKET}/model/model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("name", manifests.LAUNCHERS)
def test_the_nodes_of_the_launcher_are_a_cluster(name):
    """Start nodes by the launcher's own lines. Ray's launcher says by the environment which resources and
    labels a type has; `~/ray_bootstrap_config.yaml` is its own, on a real head."""
    config = manifests.launcher(name)
    head = started(config["head_start_ray_commands"][-1])
    assert head.pop("autoscaling_config") == "~/ray_bootstrap_config.yaml"
    assert head.pop("dashboard_host") == "127.0.0.1"  # RayCluster's heads have that too
    del head["port"]  # one of a machine of its own
    worker = started(config["worker_start_ray_commands"][-1])
    assert worker.pop("address") == "$RAY_HEAD_IP:6379" and worker == {}
    with ray_cluster(head=head) as cluster:
        for kind in ("decode", "predict"):
            given = config["available_node_types"][kind]
            resources = {"CPU": 2} | {
                one: given["resources"][one] for one in given["resources"] if one != "CPU"
            }
            env = {
                "RAY_OVERRIDE_RESOURCES": json.dumps(resources),
                "RAY_OVERRIDE_LABELS": json.dumps(given["labels"]),
            }
            cluster.add_node(env=env)
        assert nodes_of(cluster) == {
            None: {"CPU": 0.0},
            "decode": {"CPU": 2.0},
            "predict": {"CPU": 2.0, "GPU": 1.0},
        }


def started(line: str) -> dict[str, str]:
    """Return the options of the `ray start` at the end of a launcher's line."""
    words = shlex.split(line)
    at = words.index("ray")
    assert words[at + 1] == "start"
    given = [word.removeprefix("--").partition("=") for word in words[at + 2 :]]
    return {option.replace("-", "_"): value for option, _, value in given if option != "head"}


def nodes_of(cluster: RayCluster) -> dict[str | None, dict[str, float]]:
    """Return the CPUs and GPUs of every node by its label `pool`."""
    code = (
        "import json, ray; ray.init(address='auto', logging_level='error')\n"
        "print(json.dumps([[n['Labels'].get('pool'), n['Resources']] for n in ray.nodes()]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | cluster.env | {"RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=True,
    )
    nodes = json.loads(asked.stdout.splitlines()[-1])
    return {
        pool: {"CPU": 0.0} | {one: has[one] for one in ("CPU", "GPU") if one in has} for pool, has in nodes
    }
