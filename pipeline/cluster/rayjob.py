"""Make the RayJob that runs one command on Kubernetes: KubeRay starts a cluster for it and removes it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wordsworth.pipeline.errors import UserError

RETRIES = 2  # further clusters after a failed attempt
DEADLINE_S = 48 * 3600  # of all attempts together
KEEP_S = 600  # in which a cluster that has ended can be looked at
DRAIN_S = 80  # at least, for a node that is told to end: longer than a unit takes
EXTRA_S = 20  # that each layer waits longer than the one inside it
GPU = "nvidia.com/gpu"
OBJECTS_SHARE = 1 / 4  # of a worker's memory, for Ray's object store
TASKS_SHARE = 5 / 8  # of a worker's memory, for tasks; Ray would count what is left over twice
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
UNITS = {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
POD = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# The head has the only copy of what the cluster knows: no autoscaler of machines moves it.
STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}

JsonObject = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KubeRayJob:
    """Hold a command and the cluster that it wants.

    Attributes:
        name: of the RayJob: lower case letters, digits and dashes.
        tokens: the command and its arguments.
        image: that has the package.
        ray_version: of the image.
        secret: name of a Secret whose entries become variables of every pod; None for none.
        env: further variables of the head and the workers, none of them a secret.
        worker: resources of a worker by Kubernetes' names, such as {"cpu": "8", "memory": "32Gi"}.
        workers: at most; one is there from the beginning, unless the command waits for nodes itself.
        grace: seconds in which the command ends when it is told to.
    """

    name: str
    tokens: Sequence[str]
    image: str
    ray_version: str
    secret: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    worker: Mapping[str, str] = field(default_factory=lambda: {"cpu": "8", "memory": "32Gi"})
    workers: int = 4
    grace: float = 0.0


def rayjob(job: KubeRayJob) -> JsonObject:
    """Return the manifest of a RayJob.

    KubeRay tries a failed attempt again with a new cluster, whatever its exit code was. That is safe, because
    the same command continues what is there; it is bounded, because wrong usage (2) and too many errors (3)
    would fail again: they cost the start of a head, and no work.

    In KubeRay's K8sJobMode a shell of the submitter's pod reads the command before the cluster's shell does.
    So a command with characters of a shell is sent by the operator itself (HTTPMode).
    """
    line = shlex.join(["wordsworth", *job.tokens])
    is_plain = line == " ".join(["wordsworth", *job.tokens])
    spec: JsonObject = {
        "entrypoint": line,
        "submissionMode": "K8sJobMode" if is_plain else "HTTPMode",
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": DEADLINE_S,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_S,
        "rayClusterSpec": _cluster(job),
    }
    if is_plain:
        submitter = _container(job, "ray-job-submitter", {"cpu": "500m", "memory": "1Gi"}, {})
        del submitter["envFrom"], submitter["env"]
        pod = {"restartPolicy": "Never", "securityContext": POD, "containers": [submitter]}
        spec |= {"submitterConfig": {"backoffLimit": RETRIES}, "submitterPodTemplate": {"spec": pod}}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job.name}, "spec": spec}


def _cluster(job: KubeRayJob) -> JsonObject:
    drain = max(DRAIN_S, int(job.grace) + EXTRA_S)
    least = 0 if any(token.startswith("--wait-for") for token in job.tokens) else min(1, job.workers)
    memory = _amount(job.worker["memory"])
    worker = _pod(
        _container(job, "ray-worker", job.worker, {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain)}),
        drain + EXTRA_S,
    )
    worker["spec"]["restartPolicy"] = "Never"
    if GPU in job.worker:
        worker["spec"]["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    head = _pod(
        _container(job, "ray-head", {"cpu": "4", "memory": "16Gi"}, {"RAY_JOB_STOP_WAIT_TIME_S": str(drain)}),
        drain + EXTRA_S,
    )
    head["metadata"] = {"annotations": STAYS}
    small = {"cpu": "500m", "memory": "1Gi"}
    return {
        "rayVersion": job.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "securityContext": CONTAINER,
            "resources": {"requests": small, "limits": small},
        },
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": job.workers,
                "rayStartParams": {
                    "memory": str(int(memory * TASKS_SHARE)),
                    "object-store-memory": str(int(memory * OBJECTS_SHARE)),
                },
                "template": worker,
            }
        ],
    }


def _pod(container: JsonObject, grace_s: int) -> JsonObject:
    return {
        "spec": {"securityContext": POD, "terminationGracePeriodSeconds": grace_s, "containers": [container]}
    }


def _container(
    job: KubeRayJob, name: str, resources: Mapping[str, str], env: Mapping[str, str]
) -> JsonObject:
    variables = {**env, **job.env}
    return {
        "name": name,
        "image": job.image,
        "securityContext": CONTAINER,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "envFrom": [{"secretRef": {"name": job.secret}}] if job.secret else [],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }


def worker_resources(text: str) -> dict[str, str]:
    """Return the resources of a list such as cpu=8,memory=32Gi,nvidia.com/gpu=1.

    Raises:
        UserError: it is no such list, or has no cpu or memory.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        if not name or not QUANTITY.fullmatch(amount):
            raise UserError(f"--worker {text}: {part} is no amount such as memory=32Gi", exit_code=2)
        found[name] = amount
    if not {"cpu", "memory"} <= found.keys():
        raise UserError(f"--worker {text}: give cpu and memory, as in cpu=8,memory=32Gi,{GPU}=1", exit_code=2)
    return found


def _amount(quantity: str) -> float:
    match = QUANTITY.fullmatch(quantity)
    if match is None:
        raise UserError(f"{quantity} is no amount of memory, such as 32Gi", exit_code=2)
    return float(match[1]) * UNITS.get(match[2] or "", 1)
