"""sharing: jobs of one cluster plan one after the other; a job with its actors lets the next one in."""

from types import SimpleNamespace

import pytest

from wordsworth.pipeline.cluster import sharing
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.sharing import PATIENCE_S, REGISTERED_S, Seat, take_seat

JOINED = ClusterRequest(address="10.0.0.1:6379")


@pytest.fixture
def cluster(monkeypatch):
    """Stand for Ray's names: who has the seat, and when another job gives it back."""
    import ray

    seen = SimpleNamespace(second=0.0, holder=None, free_at=None, killed=[], notes=[])

    class Remote:
        def options(self, **given):
            assert given["num_cpus"] == 0 and given["name"] and given["namespace"]
            return self

        def remote(self):
            if seen.free_at is not None and seen.second >= seen.free_at:
                seen.holder = None
            if seen.holder is not None:
                raise ValueError("the name is already taken")
            seen.holder = SimpleNamespace(of="us")
            return seen.holder

    def kill(actor):
        seen.killed.append(actor)
        seen.holder = None

    def sleep(seconds):
        seen.second += seconds

    monkeypatch.setattr(ray, "remote", lambda _: Remote())
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(monotonic=lambda: seen.second, sleep=sleep))
    monkeypatch.setattr(sharing, "ray_is_known", lambda: True)
    monkeypatch.setattr(Seat, "taken", None)
    return seen


def test_a_job_alone_takes_the_seat_and_gives_it_back_when_its_actors_are_known(cluster):
    take_seat(JOINED, cluster.notes.append)
    assert Seat.taken is cluster.holder is not None and cluster.notes == []
    seat = Seat()
    seat.before_execution_starts(None)
    seat.on_execution_step(None)
    assert cluster.killed == [], "Ray does not know its actors yet"
    cluster.second += REGISTERED_S + 0.1
    seat.on_execution_step(None)
    seat.on_execution_step(None)
    assert len(cluster.killed) == 1 and Seat.taken is None


def test_a_job_under_way_keeps_the_seat_until_its_further_actors_are_known(cluster):
    cluster.second = 500.0
    take_seat(JOINED, cluster.notes.append)
    seat = Seat()
    seat.on_execution_step(None)
    assert cluster.killed == []
    cluster.second += REGISTERED_S + 0.1
    seat.on_execution_step(None)
    assert len(cluster.killed) == 1


def test_a_job_waits_while_another_one_starts_and_says_so_once(cluster):
    cluster.holder, cluster.free_at = SimpleNamespace(of="others"), 7
    take_seat(JOINED, cluster.notes.append)
    assert cluster.second == 7 and Seat.taken.of == "us"
    assert cluster.notes == ["another job is starting on this cluster: waits for its actors (60 s)"]


def test_a_job_that_never_gets_its_actors_holds_nobody_for_ever(cluster):
    cluster.holder = SimpleNamespace(of="others")
    take_seat(JOINED, cluster.notes.append)
    assert cluster.second == PATIENCE_S and Seat.taken is None


def test_a_job_that_plans_again_does_not_wait_for_itself(cluster):
    take_seat(JOINED, cluster.notes.append)
    take_seat(JOINED, cluster.notes.append)
    assert cluster.second == 0 and len(cluster.killed) == 1


def test_a_local_ray_has_no_seat(cluster, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    take_seat(ClusterRequest(), cluster.notes.append)
    assert Seat.taken is None and cluster.holder is None
