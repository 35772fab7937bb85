"""Read what deploy/ holds, and start a node as KubeRay would from a manifest."""

import gzip
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
RAYJOBS = ("label", "pretrain")
LAUNCHERS = ("aws", "gcp")
SBATCH = DEPLOY / "slurm" / "wordsworth.sbatch"

Manifest = dict[str, Any]


def rayjob(name: str) -> Manifest:
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())


def launcher(name: str) -> Manifest:
    return yaml.safe_load((DEPLOY / "ray" / f"{name}.yaml").read_text())


def entrypoint(manifest: Manifest) -> list[str]:
    """Return the arguments of the command that a RayJob runs."""
    return shlex.split(manifest["spec"]["entrypoint"])


def options(command: list[str]) -> dict[str, str]:
    """Return the value of every option of a command that has one."""
    return {one: value for one, value in itertools.pairwise(command) if one.startswith("--")}


def groups(manifest: Manifest) -> dict[str, Manifest]:
    """Return the groups of a RayJob's cluster by name, the head's too."""
    cluster = manifest["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]} | workers


def container(group: Manifest) -> Manifest:
    (one,) = group["template"]["spec"]["containers"]
    return one


def environment(group: Manifest) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container(group).get("env", [])}


def ray_start_options(group: Manifest) -> dict[str, str]:
    """Return the options of `ray start` that KubeRay makes of a group: those it names, the CPUs and GPUs of
    its container's limits, and its labels."""
    limits = container(group)["resources"]["limits"]
    made = {"num-cpus": limits["cpu"], "memory": str(byte_count(limits["memory"]))}
    if "nvidia.com/gpu" in limits:
        made["num-gpus"] = str(limits["nvidia.com/gpu"])
    if group.get("labels"):
        made["labels"] = ",".join(f"{key}={value}" for key, value in group["labels"].items())
    return made | group["rayStartParams"]


def byte_count(amount: str) -> int:
    """Return the bytes of an amount of memory as Kubernetes writes it, such as 32Gi."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", amount).groups()
    return int(number) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[unit]


def rayjob_schema() -> dict[str, Any]:
    """Return KubeRay's schema of a RayJob, in which a field that it does not name is an error, as it is for
    `kubectl apply`."""
    packed = (Path(__file__).parent / "kuberay" / "rayjob-v1.json.gz").read_bytes()
    return strict(json.loads(gzip.decompress(packed)))


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    is_closed = isinstance(schema.get("properties"), dict) and "type" in schema
    if is_closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
