"""A local Ray starts beside what else a command loads: the block waits for it where it needs Ray."""

import contextlib
import threading

import pytest

from wordsworth.pipeline.cluster import session
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session import ray_beside, ray_session
from wordsworth.pipeline.errors import UserError


@pytest.fixture
def told(monkeypatch):
    """Stand for a Ray that takes a while to start, and tell in order what happens to it."""
    events: list[str] = []
    running = threading.Event()
    may_start = threading.Event()

    @contextlib.contextmanager
    def slow(cluster, note):
        starter = threading.current_thread()
        assert starter is not threading.main_thread()
        may_start.wait(10)
        running.set()
        events.append("started")
        try:
            yield
        finally:
            # Linux kills Ray's processes at the end of the thread that has started them.
            assert starter.is_alive() and starter is not threading.current_thread()
            running.clear()
            events.append("ended")

    monkeypatch.setattr(session, "_new_session", slow)
    monkeypatch.setattr("ray.is_initialized", running.is_set)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return events, may_start


def test_the_block_goes_on_while_ray_starts_and_waits_where_it_needs_ray(told):
    events, may_start = told
    with ray_beside(ClusterRequest()):
        events.append("loading")
        may_start.set()
        with ray_session():
            events.append("at work")
        events.append("after")
    assert events in (
        ["loading", "started", "at work", "after", "ended"],
        ["started", "loading", "at work", "after", "ended"],
    )


def test_a_command_that_is_refused_ends_the_ray_that_it_did_not_need(told):
    events, may_start = told
    may_start.set()
    with pytest.raises(UserError, match="no such model"), ray_beside(ClusterRequest()):
        raise UserError("no such model")
    assert events == ["started", "ended"]


@pytest.mark.parametrize("cluster", [ClusterRequest(address="10.0.0.1:6379"), None])
def test_a_cluster_or_a_ray_that_runs_already_is_not_started(told, monkeypatch, cluster):
    events, _ = told
    if cluster is None:
        monkeypatch.setattr("ray.is_initialized", lambda: True)
    with ray_beside(cluster or ClusterRequest()):
        pass
    assert events == []


def test_what_the_start_raises_comes_where_ray_is_needed_and_nowhere_else(monkeypatch, told):
    @contextlib.contextmanager
    def fails(cluster, note):
        raise UserError("cannot make a folder for Ray")
        yield

    monkeypatch.setattr(session, "_new_session", fails)
    with ray_beside(ClusterRequest()):
        pass
    with pytest.raises(UserError, match="cannot make a folder"), ray_beside(ClusterRequest()), ray_session():
        pytest.fail("it went on")
