"""Run three raylets on this machine, in a process of their own that takes orders: a cluster that can fail.

The module is the handle. As a program (`python -m tests.faults.machines`) this file holds the cluster, and
prints an answer, one JSON a line, to every order that it reads, one JSON a line.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

TOKEN = "0" * 64
ENV = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
NODE = {"num_cpus": 2, "memory": 1700 << 20, "object_store_memory": 150 << 20}


class Machines:
    """Hold a head and `nodes` more nodes.

    Attributes:
        address: the address that a command joins.
        env: the environment that a command needs to join.
    """

    def __init__(self, nodes: int = 2, env: dict[str, str] | None = None, **node_args: Any):
        self.env = {**ENV, **(env or {})}
        self.node_args = NODE | node_args
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.machines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.env,
        )
        head = self._order("head", **self.node_args)
        self.address, self.gcs, self.head = head["address"], head["gcs"], head["raylet"]
        self.nodes = [self.add() for _ in range(nodes)]

    def _order(self, what: str, **arguments: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"order": what, **arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the cluster's process ended with {self._process.wait()} at the order {what}")

    def add(self) -> dict[str, Any]:
        """Add a raylet, and return its process id and its node id."""
        return self._order("add", **self.node_args)

    def drain(self, node: dict[str, Any], seconds: float) -> bool:
        """Announce that a node will be taken away, as a cloud does before it preempts a node. Return
        whether Ray agreed."""
        return self._order("drain", id=node["id"], seconds=seconds)["accepted"]

    def machine(self, node: dict[str, Any]) -> list[psutil.Process]:
        """Return all processes of a node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet = psutil.Process(node["raylet"])
            return [raylet, *raylet.children(recursive=True)]
        return []

    def send(self, node: dict[str, Any], what: signal.Signals) -> None:
        """Send a signal to all processes of a node at once: SIGKILL is a machine without power, SIGSTOP a
        machine that hangs."""
        for process in self.machine(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)

    def kill_node(self, node: dict[str, Any]) -> None:
        self.send(node, signal.SIGKILL)
        self.nodes = [other for other in self.nodes if other is not node]

    def workers(self) -> Iterator[tuple[psutil.Process, str]]:
        """Return Ray's workers on all nodes with their titles, such as `ray::MapBatches(decode_stage)`."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                yield process, " ".join(process.cmdline()).strip()

    def find(self, *words: str, chance: random.Random | None = None) -> psutil.Process | None:
        """Return a process whose command line has one of the words."""
        found = [process for process, line in self.workers() if any(word in line for word in words)]
        return (chance or random).choice(found) if found else None

    def close(self) -> None:
        """End the cluster by its process ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._process.pid)
            for process in [*whole.children(recursive=True), whole]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def machines(*arguments: Any, **options: Any) -> Iterator[Machines]:
    made = Machines(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


# ---- the program -------------------------------------------------------------------------------------------


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


class _Holder:
    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()

    def _machine(self, **arguments: Any) -> Any:
        from wordsworth.pipeline.cluster.ray_internals import without_services

        with without_services():
            return self.cluster.add_node(**arguments)

    def head(self, **arguments: Any) -> dict[str, Any]:
        node = self._machine(include_dashboard=False, **arguments)
        gcs = node.all_processes["gcs_server"][0].process.pid
        return {"address": self.cluster.address, "gcs": gcs, "raylet": _raylet(node), "id": node.node_id}

    def add(self, **arguments: Any) -> dict[str, Any]:
        node = self._machine(**arguments)
        return {"raylet": _raylet(node), "id": node.node_id}

    def drain(self, id: str, seconds: float) -> dict[str, Any]:
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, _ = GcsClient(address=self.cluster.address).drain_node(
            id, reason, "", int((time.time() + seconds) * 1000)
        )
        return {"accepted": accepted}


def main() -> None:
    holder = _Holder()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(holder, order.pop("order"))(**order)), flush=True)


if __name__ == "__main__":
    main()
