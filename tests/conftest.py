"""Fixtures that more than one package's tests use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import servers
from tests.support.builders import make_model

os.environ.setdefault("RAY_AUTH_MODE", "token")


RAY_FIXTURES = {"local_ray", "wordsworth"}  # a test that uses one of them starts Ray
SERVER_FIXTURES = {"ceph", "azurite"}  # a test that uses one of them needs a server
SERVERS = "faults"  # the folder whose tests start servers, machines and jobs
# Folders whose tests are many and short. They come last, so that two processes end at about the same time.
SHORT = ("sources", "storage", "output", "images", "verification")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test-fast` leaves out, and put short tests last."""
    for item in items:
        if RAY_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.ray)
        needs_server = SERVER_FIXTURES & set(getattr(item, "fixturenames", ()))
        if item.path.parent.name == SERVERS or needs_server:
            item.add_marker(pytest.mark.server)
    items.sort(key=lambda item: item.path.parent.name in SHORT)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A model folder of 32x32 pixels, 5 classes, every parameter random."""
    return make_model(
        tmp_path_factory.mktemp("small") / "model",
        image_size=32,
        patch_size=8,
        width=32,
        depth=2,
        heads=2,
        mlp_dim=64,
    )


@pytest.fixture(scope="session")
def ceph():
    """A Ceph with its S3 gateway, of all tests of this process; its bucket is `servers.BUCKET`."""
    yield from servers.served(servers.ceph)


@pytest.fixture(scope="session")
def azurite():
    """A store for az://, of all tests of this process; its container is `servers.BUCKET`."""
    yield from servers.served(servers.azurite)


@pytest.fixture(scope="session")
def wordsworth():
    """Run the command line in a process of its own; the finished process, its output captured as text."""

    def run(
        *arguments, env: dict | None = None, timeout: float = 240, cwd: Path | None = None
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "wordsworth", *map(str, arguments)]
        env = {**os.environ, **(env or {})}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def local_ray():
    """A local Ray for tests that call the pipeline in this process."""
    import wordsworth.pipeline  # noqa: F401  (its environment variables stand before Ray is imported)

    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    import ray

    from wordsworth.pipeline.cluster.ray_internals import (
        auth_mode,
        on_loopback,
        without_cluster_actors,
        without_services,
    )
    from wordsworth.pipeline.cluster.session_folder import session_folder

    # 3 GiB to claim are one model actor instead of two: half of what a run here takes is the actors' start.
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # A test before may have left Ray with the mode of another cluster.
    with session_folder(), auth_mode("token"):
        with without_services(), on_loopback() as where:
            options = {"num_cpus": 4, "_memory": 3 << 30, "object_store_memory": 300 << 20, **where, **quiet}
            ray.init(address="local", **options)
        with without_cluster_actors():
            yield
        ray.shutdown()
