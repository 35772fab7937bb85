"""waiting: a run waits for what can come, says so, and ends with what is missing; what other jobs hold is
theirs."""

import math
from types import SimpleNamespace

import pytest

from wordsworth.jobs.cluster_options import labels, resources
from wordsworth.pipeline.cluster import nodes, waiting
from wordsworth.pipeline.cluster.claims import GiB, NoRoom
from wordsworth.pipeline.cluster.nodes import Node, Room, see_room
from wordsworth.pipeline.cluster.ray_internals import AutoscalerState, Holding
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.cluster.waiting import (
    missing_bundles,
    scales_to_gpus,
    wait_for_room,
    wait_for_shape,
)
from wordsworth.pipeline.errors import UserError

JOINED = {"address": "10.0.0.1:6379"}


@pytest.fixture
def cluster(monkeypatch):
    """Stand for a cluster: what it has at each second, its autoscaler, and what was asked of it."""
    import ray

    seen = SimpleNamespace(
        second=0.0, resources=[{}], state=None, room=[Room(nodes=())], asked=[], released=0, notes=[]
    )

    def at(values):
        return values[min(int(seen.second), len(values) - 1)]

    def sleep(seconds):
        seen.second += seconds

    class Asked:
        def __init__(self, bundles, selector=None):
            seen.asked.append((list(bundles), dict(selector or {})))

        def __enter__(self):
            pass

        def __exit__(self, *_):
            seen.released += 1

    clock = SimpleNamespace(monotonic=lambda: seen.second, sleep=sleep)
    monkeypatch.setattr(waiting, "time", clock)
    monkeypatch.setattr(waiting, "asked_for", Asked)
    monkeypatch.setattr(waiting, "autoscaler_state", lambda: seen.state)
    monkeypatch.setattr(waiting, "see_room", lambda cluster: at(seen.room))
    monkeypatch.setattr(ray, "cluster_resources", lambda: at(seen.resources))
    monkeypatch.setattr(ray, "available_resources", lambda: at(seen.resources))
    return seen


# ---- --wait-for --------------------------------------------------------------------------------------------


def test_a_command_waits_for_the_resources_that_it_names(cluster):
    cluster.resources = [{"CPU": 4.0}] * 12 + [{"CPU": 4.0, "GPU": 3.0}] * 12 + [{"CPU": 4.0, "GPU": 8.0}]
    cluster.state = AutoscalerState(1, 2, [])
    wait_for_shape(ClusterRequest(wait_for={"GPU": 8.0, "CPU": 4.0}, **JOINED), cluster.notes.append)
    assert cluster.notes == [
        "waiting for GPU=8, CPU=4: 0 of 8 GPU and 4 of 4 CPU, and its autoscaler starts 2 nodes (0 of 600 s)",
        "waiting for GPU=8, CPU=4: 0 of 8 GPU and 4 of 4 CPU, and its autoscaler starts 2 nodes "
        "(10 of 600 s)",
        "waiting for GPU=8, CPU=4: 3 of 8 GPU and 4 of 4 CPU, and its autoscaler starts 2 nodes "
        "(20 of 600 s)",
        "it is there after 24 s",
    ]
    assert cluster.asked == [([{"GPU": 1.0}] * 8, {})] and cluster.released == 1


def test_what_is_there_is_not_waited_for(cluster):
    cluster.resources = [{"CPU": 64.0, "GPU": 8.0}]
    wait_for_shape(ClusterRequest(wait_for={"GPU": 8.0}, **JOINED), cluster.notes.append)
    wait_for_shape(ClusterRequest(**JOINED), cluster.notes.append)
    assert (cluster.notes, cluster.asked) == ([], [])


def test_a_head_without_cpus_waits_for_its_workers_by_itself(cluster):
    cluster.resources = [{"memory": 1.0}] * 5 + [{"CPU": 2.0}]
    wait_for_shape(ClusterRequest(**JOINED), cluster.notes.append)
    assert cluster.notes[0].startswith("waiting for CPU=1: 0 of 1 CPU, and this cluster has no autoscaler")
    assert cluster.asked == [([{"CPU": 1.0}], {})]


def test_the_end_of_the_patience_says_what_is_missing_and_withdraws_the_request(cluster):
    cluster.resources = [{"CPU": 8.0, "GPU": 3.0}]
    cluster.state = AutoscalerState(1, 0, [{"GPU": 1.0}])
    request = ClusterRequest(wait_for={"GPU": 8.0}, wait_timeout=25, **JOINED)
    with pytest.raises(UserError) as refusal:
        wait_for_shape(request, cluster.notes.append)
    assert str(refusal.value) == (
        "the cluster has 3 of 8 GPU after 26 s (--wait-timeout), and its autoscaler says that it cannot add "
        "it: start more nodes, look at ray status, or ask for less with --wait-for"
    )
    assert "and its autoscaler says that it cannot add it" in cluster.notes[0]
    assert cluster.released == 1


@pytest.mark.parametrize(
    ("wanted", "there", "free", "bundles"),
    [
        ({"GPU": 8.0}, {"GPU": 0.0}, {"GPU": 0.0}, [{"GPU": 1.0}] * 8),
        # what is free would meet the request first
        ({"GPU": 8.0}, {"GPU": 3.0}, {"GPU": 2.0}, [{"GPU": 1.0}] * 7),
        ({"GPU": 8.0}, {"GPU": 3.0}, {"GPU": 0.0}, [{"GPU": 1.0}] * 5),
        ({"CPU": 2.5}, {"CPU": 0.0}, {"CPU": 0.0}, [{"CPU": 1.0}] * 2 + [{"CPU": 0.5}]),
        ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 0.0}, {"CPU": 8.0, "GPU": 0.0}, [{"GPU": 1.0}]),
        ({"memory": 3.0 * GiB}, {"memory": 1.0 * GiB}, {"memory": 0.0}, [{"memory": GiB}] * 2),
        ({"CPU": 10_000.0}, {"CPU": 0.0}, {"CPU": 0.0}, [{"CPU": 10.0}] * 1000),
        ({"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 0.0}, []),
    ],
)
def test_as_much_is_asked_for_as_is_missing(wanted, there, free, bundles):
    assert missing_bundles(wanted, there, free) == bundles


def test_waiting_for_nodes_of_a_local_ray_is_a_wrong_usage(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have a local Ray
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    waiting_alone = ray_session(ClusterRequest(wait_for={"GPU": 1.0}))
    with pytest.raises(UserError, match="give its --address") as refusal, waiting_alone:
        pytest.fail("it went on")
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("text", ["GPU", "GPU=", "GPU=-1", "GPU=0", "=3", "GPU=a", "GPU 8", "GPU=8;CPU=3"])
def test_resources_that_cannot_be_read_are_a_wrong_usage(text):
    with pytest.raises(UserError, match="give resources such as GPU=8,CPU=64") as refusal:
        resources(text)
    assert refusal.value.exit_code == 2


def test_resources_and_labels_are_read():
    assert resources("GPU=8, CPU=64.5,my_pool=1") == {"GPU": 8, "CPU": 64.5, "my_pool": 1}
    assert resources("") == {}
    assert labels("--decode-on", "a=b, ray.io/zone=!in(x, y),c=d") == {
        "a": "b",
        "ray.io/zone": "!in(x, y)",
        "c": "d",
    }
    for text in ("a", "a=", "=b"):
        with pytest.raises(UserError, match="give labels of nodes") as refusal:
            labels("--decode-on", text)
        assert refusal.value.exit_code == 2


# ---- room for a plan ---------------------------------------------------------------------------------------

CPUS = Node(node_id="a", cpus=4.0)
GPUS = Node(node_id="b", cpus=1.0, gpus=1.0)


def needs_a_gpu(room: Room) -> str:
    if not any(node.gpus for node in room.nodes):
        raise NoRoom("no GPU here: do this", lacking="a GPU", wanted=[{"GPU": 1}], selector={"p": "g"})
    return f"on {len(room.nodes)} nodes"


def asked(**given) -> ClusterRequest:
    return ClusterRequest(**{**JOINED, **given})


def test_a_run_waits_until_the_autoscaler_has_added_what_it_needs(cluster):
    cluster.room = [Room(nodes=(CPUS,), cluster=asked())] * 12 + [Room(nodes=(CPUS, GPUS), cluster=asked())]
    cluster.state = AutoscalerState(7, 0, [])
    assert wait_for_room(needs_a_gpu, asked(), cluster.notes.append) == "on 2 nodes"
    assert cluster.notes == [
        "waiting for a GPU: 1 node has 4 CPUs and 0 GPUs, and its autoscaler was asked (0 of 600 s)",
        "waiting for a GPU: 1 node has 4 CPUs and 0 GPUs, and its autoscaler was asked (10 of 600 s)",
        "it is there after 12 s",
    ]
    assert cluster.asked == [([{"GPU": 1}], {"p": "g"})] and cluster.released == 1


def test_a_run_waits_for_the_end_of_other_jobs_and_then_says_why_it_could_not_begin(cluster):
    held = Room(nodes=(CPUS, GPUS._replace(gpus=0.0)), cluster=asked(), other_jobs=1, held={"GPU": 1.0})
    cluster.room = [held]
    with pytest.raises(NoRoom) as refusal:
        wait_for_room(needs_a_gpu, asked(wait_timeout=15), cluster.notes.append)
    assert (
        str(refusal.value)
        == "no GPU here: do this (waited 16 s, --wait-timeout, and this cluster has no autoscaler)"
    )
    assert cluster.notes[0] == (
        "waiting for a GPU: other jobs hold 1 of 1 GPUs, and this cluster has no autoscaler (0 of 15 s)"
    )
    assert cluster.released == 1


@pytest.mark.parametrize(
    ("room", "joined", "waits"),
    [
        (Room(nodes=(CPUS,)), {}, False),  # a local Ray gets no other nodes
        (Room(nodes=()), {}, False),
        (Room(nodes=(CPUS,)), JOINED, True),  # a cluster without a GPU: one may come
        (Room(nodes=()), JOINED, True),  # a head without CPUs
    ],
)
def test_a_run_waits_only_where_something_can_come(cluster, monkeypatch, room, joined, waits):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    request = ClusterRequest(wait_timeout=5, **joined)
    cluster.room = [Room(nodes=room.nodes, cluster=request)]
    with pytest.raises(NoRoom):
        wait_for_room(needs_a_gpu, request, cluster.notes.append)
    assert bool(cluster.notes) is waits


def test_a_cluster_that_nobody_scales_is_too_small_at_once(cluster):
    cluster.room = [Room(nodes=(CPUS,), cluster=asked())]

    def plan(room):
        raise NoRoom("too small", lacking="CPUs")

    with pytest.raises(NoRoom, match=r"^too small$"):
        wait_for_room(plan, asked(), cluster.notes.append)
    assert cluster.notes == [] and cluster.asked == []


def test_a_job_beside_others_says_that_it_plans_with_the_rest(cluster):
    cluster.room = [Room(nodes=(CPUS,), cluster=asked(), other_jobs=1, held={"CPU": 2.4})]
    assert wait_for_room(lambda room: "planned", asked(), cluster.notes.append) == "planned"
    assert cluster.notes == [
        "other jobs hold 2.4 of 6.4 CPUs of this cluster: this run plans with the rest "
        "(--share 0.5 of each job divides a cluster)"
    ]


# ---- the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "adds", "seconds"),
    [
        (None, None, False, 0),  # no autoscaler
        (AutoscalerState(4, 0, []), AutoscalerState(6, 1, []), True, 1),
        (AutoscalerState(4, 0, []), AutoscalerState(6, 1, [{"GPU": 1.0}]), False, 1),
        (AutoscalerState(4, 0, []), AutoscalerState(5, 0, []), False, 20),  # it says nothing
        (AutoscalerState(0, 1, []), AutoscalerState(0, 2, []), True, 1),  # the first autoscaler
        (AutoscalerState(0, 1, []), AutoscalerState(0, 1, []), False, 20),
    ],
)
def test_an_autoscaler_is_asked_whether_it_adds_gpus(cluster, monkeypatch, before, after, adds, seconds):
    monkeypatch.setattr(waiting, "autoscaler_state", lambda: after if cluster.asked else before)
    assert scales_to_gpus(asked(predict_on={"pool": "gpu"}), cluster.notes.append) is adds
    assert cluster.second == seconds
    assert cluster.asked == ([([{"GPU": 1}], {"pool": "gpu"})] if before else [])
    assert cluster.released == len(cluster.asked)


# ---- what other jobs hold ----------------------------------------------------------------------------------


@pytest.fixture
def raylets(monkeypatch):
    """Two living nodes and a dead one; what is held is to be set."""
    import ray

    found = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 8.0, "memory": 64.0}, "Labels": {"pool": "x"}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}, "Labels": {}},
        {"NodeID": "c", "Alive": False, "Resources": {}, "Labels": {}},
    ]
    held: list[Holding] = []
    context = SimpleNamespace(get_job_id=lambda: "own")
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(nodes, "holdings", lambda: held)
    return held


def test_what_other_jobs_hold_is_theirs(raylets):
    raylets += [
        Holding("own", "a", {"CPU": 5.0}),
        Holding("02", "a", {"CPU": 0.6, "memory": 10.0}),
        Holding("02", "b", {"GPU": 1.0}),
        Holding("03", "", {"CPU": 0.6}),  # it waits for a place, and comes to the roomiest node
        Holding("03", "c", {"CPU": 0.6}),  # its node is gone
    ]
    room = see_room(asked())
    assert [(node.node_id, node.cpus, node.gpus, node.memory) for node in room.nodes] == [
        ("a", pytest.approx(6.8), 0.0, 54.0),
        ("b", 4.0, 1.0, math.inf),
    ]
    assert room.other_jobs == 2 and room.held == {"CPU": pytest.approx(1.2), "memory": 10.0, "GPU": 1.0}
    assert room.taken == "1.2 of 12 CPUs and 1 of 2 GPUs"
    assert (room.total("CPU"), room.total("GPU")) == (pytest.approx(12.0), 2.0)
    assert [node.node_id for node in see_room(asked(), without={"a"}).nodes] == ["b"]


def test_nobody_shares_a_local_ray(raylets, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(nodes, "holdings", lambda: pytest.fail("it was asked"))
    assert see_room(ClusterRequest()).other_jobs == 0


@pytest.mark.parametrize(
    ("selector", "has"),
    [
        ({}, True),
        ({"pool": "x"}, True),
        ({"pool": "y"}, False),
        ({"pool": "!y"}, True),
        ({"pool": "in(y, x)"}, True),
        ({"pool": "!in(y,x)"}, False),
        ({"zone": "a"}, False),
        ({"zone": "!a"}, True),
        ({"pool": "x", "zone": "a"}, False),
    ],
)
def test_labels_are_understood_as_ray_understands_them(selector, has):
    assert Node(node_id="a", cpus=1.0, labels={"pool": "x"}).has(selector) is has
