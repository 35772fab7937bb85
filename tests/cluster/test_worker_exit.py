"""worker_exit: an actor whose process would hang at its exit is gone all the same."""

import atexit
import os
import time

import psutil
import pytest

from wordsworth.pipeline.cluster.worker_exit import leave_at_exit

pytestmark = pytest.mark.ray

HANGS_S = 120.0


class Hanging:
    """Stand for libraries whose end hangs."""

    def __init__(self, leaves: bool):
        atexit.register(time.sleep, HANGS_S)
        if leaves:
            leave_at_exit()

    def pid(self) -> int:
        return os.getpid()


def test_an_actor_that_would_hang_at_its_exit_leaves(local_ray):
    import ray

    actors = [ray.remote(num_cpus=0.1)(Hanging).remote(leaves) for leaves in (True, False)]
    leaving, hanging = (psutil.Process(pid) for pid in ray.get([actor.pid.remote() for actor in actors]))
    del actors
    leaving.wait(30)
    assert hanging.is_running(), "without it the process stays, or this test proves nothing"
    hanging.kill()


def test_a_process_that_is_no_actor_ends_as_ever(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    leave_at_exit()
    assert not registered
