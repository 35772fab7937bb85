"""session: a Ray that is started here answers this user alone, even where its first start failed."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

# A session whose first start fails late, as on a busy machine: Ray's processes run already.
SESSION = """
import json, os, subprocess, sys
import psutil
from ray._private import services
from ray._private.state import state
from wordsworth.pipeline.cluster.session import ray_session

real = services.get_node
calls = []

def get_node(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 1:
        raise Exception("The current node timed out during startup.")
    return real(*arguments, **options)

services.get_node = get_node

def ask(**env):
    script = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).get_all_node_info()"
    command = [sys.executable, "-c", script, ray.get_runtime_context().gcs_address]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | env
    return subprocess.run(command, env=env, capture_output=True).returncode == 0

with ray_session():
    import ray

    @ray.remote
    def work():
        return 1

    assert ray.get(work.remote()) == 1
    token = os.environ["RAY_AUTH_TOKEN"]
    folder = os.environ["RAY_TMPDIR"]
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    seen = {
        "listening": [c.laddr.ip for p in tree for c in p.net_connections("inet") if not c.raddr],
        "listening agents": [
            c.laddr.port
            for p in tree
            for c in p.net_connections("inet")
            if p.name() == "ray::DashboardAgent" and not c.raddr
        ],
        "agent": [len(p.net_connections("inet")) for p in tree if p.name() == "ray::DashboardAgent"],
        "raylets": [p.name() for p in tree].count("raylet"),
        "mode": oct(os.stat(folder).st_mode & 0o777),
        "sockets": [path for path in files if path.endswith(("raylet", "plasma_store"))],
        "files with the token": [
            path for path in files if os.path.isfile(path) and token in open(path, errors="replace").read()
        ],
        "arguments with the token": [p.cmdline() for p in tree if token in " ".join(p.cmdline())],
        "jobs": [job["Entrypoint"] for job in state.job_table()],
        "with the token": ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
        "with another token": ask(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="1" * 64),
        "without a token": ask(RAY_AUTH_MODE="disabled"),
    }
print(json.dumps({**seen, "folder is left": os.path.exists(folder)}))
"""


@pytest.fixture(scope="module")
def seen() -> dict:
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_local_ray_listens_on_loopback_alone(seen):
    assert len(seen["listening"]) >= 5  # this process, the head, two of the raylet, a worker
    assert {ip.removeprefix("::ffff:") for ip in seen["listening"]} <= {"127.0.0.1", "::1"}


def test_the_agent_of_a_local_ray_listens_nowhere_though_its_packages_are_installed(seen):
    """With the extra `cluster` Ray's agent would serve metrics and logs."""
    pytest.importorskip("opencensus", reason="the packages of Ray's dashboard are not installed")
    assert len(seen["agent"]) == 1 and seen["agent"] != [0], "it has its connections to the head"
    assert not seen["listening agents"]


def test_a_local_ray_answers_nobody_without_its_token(seen):
    assert seen["with the token"]
    assert not seen["with another token"] and not seen["without a token"]


def test_the_token_of_a_local_ray_stands_in_no_file_and_no_arguments(seen):
    assert seen["files with the token"] == [] and seen["arguments with the token"] == []


def test_ray_tells_nobody_the_arguments_of_a_command(seen):
    """A key may stand in them."""
    assert seen["jobs"] == ["wordsworth"]


def test_what_a_local_ray_writes_is_closed_to_others_and_removed(seen):
    assert seen["mode"] == "0o700" and len(seen["sockets"]) >= 2
    assert not seen["folder is left"]


def test_a_start_that_failed_leaves_no_process(seen):
    assert seen["raylets"] == 1
