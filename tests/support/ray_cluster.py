"""Start a real Ray cluster here, as an operator does: by `ray start --head` and `ray start --address`.

Every node is a process of its own in the foreground, with a job server on the head; all of them listen on
loopback and end by their process ids.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

TOKEN = "f" * 64
GIVEN_UP = "The current node timed out during startup"  # how Ray says that a node took more than 30 s
START_S = 180.0  # seconds in which a node must have joined, also on a busy machine
ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
NODE = {"num_cpus": 2, "memory": 1700 << 20, "object_store_memory": 100 << 20}


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nobody listened a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Node:
    """Hold one node: the process of its `ray start`, and what it wrote."""

    def __init__(self, start: Callable[[], subprocess.Popen], log: Path):
        self.process = start()
        self.log = log
        self.start = start
        self.starts = 1

    def is_started_again(self) -> bool:
        """Start a node again that Ray gave up, as Ray does after 30 s. Three starts are all."""
        if self.starts == 3 or GIVEN_UP not in self.log.read_text():
            return False
        self.starts += 1
        self.process = self.start()
        return True

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End all processes of the node at once: a machine without power."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class RayCluster:
    """Hold a head and further nodes.

    Attributes:
        address: what `--address` of a command takes.
        jobs: URL of the job server.
        token: what the cluster asks for; None for an open cluster.
        env: what a client needs in its environment.
        head: the head's node.
        nodes: the other nodes.
    """

    def __init__(self, token: str | None = TOKEN, env: dict[str, str] | None = None):
        self.token = token
        self.env = ENV | {"RAY_AUTH_MODE": "token" if token else "disabled"} | (env or {})
        if token:
            self.env["RAY_AUTH_TOKEN"] = token
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # names of sockets must be short
        self.nodes: list[Node] = []

    def start_head(self, **options: Any) -> None:
        gcs, dashboard, client = free_ports(3)
        head = {"port": gcs, "dashboard_port": dashboard, "ray_client_server_port": client} | options
        self.address = f"127.0.0.1:{head['port']}"
        self.jobs = f"http://127.0.0.1:{head['dashboard_port']}"
        self.head = self._start("--head", dashboard_host="127.0.0.1", **head)
        self._wait(self.head, lambda: self._answers("/api/version") and self.alive())

    def add_node(
        self, env: dict[str, str] | None = None, prefix: tuple[str, ...] = (), **options: Any
    ) -> Node:
        """Start a further node, and return it once the head knows it.

        Args:
            env: of the node, beside that of the cluster.
            prefix: command in front of `ray start`, such as ("unshare", "-m").
            options: of `ray start`, with underscores; True is an option without a value.
        """
        before = set(self.alive())  # a node that was killed a moment ago may be among them
        node = self._start(f"--address={self.address}", env=env, prefix=prefix, **options)
        self.nodes.append(node)
        self._wait(node, lambda: set(self.alive()) - before)
        return node

    def kill(self, node: Node) -> None:
        node.kill()
        self.nodes.remove(node)

    def alive(self) -> list[str]:
        """Return the ids of the living nodes, as the head knows them."""
        code = (
            "import sys; from ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()\n"
            "print(*(one.node_id.hex() for one in nodes if one.state == 0))"
        )
        command = [sys.executable, "-c", code, self.address]
        asked = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True)
        return asked.stdout.split()  # none while the head is too busy to answer: the next look may be luckier

    def close(self) -> None:
        """End every process of every node, and remove the cluster's folder."""
        for node in [*self.nodes, *([self.head] if hasattr(self, "head") else [])]:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(
        self, *arguments: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = (), **options: Any
    ) -> Node:
        agent, grpc, metrics, environments = free_ports(4)
        ports = {
            "dashboard_agent_listen_port": agent,
            "dashboard_agent_grpc_port": grpc,
            "metrics_export_port": metrics,
            "runtime_env_agent_port": environments,
        }
        place = {"temp_dir": str(self.folder)} if "--head" in arguments else {}
        command = [*prefix, str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        for name, value in (NODE | ports | place | options).items():
            option = f"--{name.replace('_', '-')}"
            command.append(option if value is True else f"{option}={value}")
        log = self.folder / f"node{len(self.nodes)}{'-head' if '--head' in arguments else ''}.log"

        def start() -> subprocess.Popen:
            with open(log, "wb") as out:
                return subprocess.Popen(
                    command,
                    env=os.environ | self.env | (env or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )

        return Node(start, log)

    def _answers(self, path: str) -> bool:
        request = urllib.request.Request(self.jobs + path)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _wait(self, node: Node, is_there: Callable[[], Any]) -> None:
        deadline = time.monotonic() + START_S
        while not is_there():
            said = node.log.read_text()[-2000:]
            is_up = node.process.poll() is None or node.is_started_again()
            assert is_up, f"the node ended with {node.process.returncode}: {said}"
            assert time.monotonic() < deadline, f"no node after {START_S:.0f} s: {said}"
            time.sleep(0.2)  # nothing tells when a node is there


@contextlib.contextmanager
def ray_cluster(
    nodes: list[dict[str, Any]] | None = None,
    *,
    token: str | None = TOKEN,
    head: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[RayCluster]:
    """Give a block a cluster of a head and one more node for each entry of `nodes`.

    Args:
        nodes: options of `ray start` for each further node, as for `RayCluster.add_node`.
        token: what the cluster asks for; None for an open cluster.
        head: options of `ray start` for the head, such as {"num_cpus": 0}.
        env: environment of every node and client.
    """
    cluster = RayCluster(token, env)
    try:
        cluster.start_head(**(head or {}))
        for options in nodes or []:
            cluster.add_node(**options)
        yield cluster
    finally:
        cluster.close()
