"""resources: the stages share what there is so that every one of them can always run, or the plan is
refused."""

import itertools
import math
import os
from types import SimpleNamespace

import pytest

from wordsworth.pipeline.cluster.resources import (
    CORES,
    GiB,
    GpuNode,
    MiB,
    ModelNeeds,
    StageResources,
    WorkEstimate,
    cores,
    plan_resources,
    share_of_cluster,
)
from wordsworth.pipeline.errors import UserError

WEIGHTS, UNIT = 23 * MiB, 96 * MiB  # Ti/16 in fp32
LISTING = {"num_cpus": 0.1}  # what the first stage of the plan claims
EPSILON = 1e-9


def plan(
    available: dict[str, float],
    device: str = "cpu",
    weights: int = WEIGHTS,
    gpus_per_actor: float = 1.0,
    work: WorkEstimate | None = None,
    nodes: list[GpuNode] | None = None,
) -> StageResources:
    needs = ModelNeeds(device=device, weight_bytes=weights, unit_bytes=UNIT, gpus_per_actor=gpus_per_actor)
    return plan_resources(available, needs, work, nodes)


def claims(stages: StageResources) -> list[dict]:
    return [stages.predict, stages.read, stages.decode, stages.write]


def held_for_good(stages: StageResources) -> tuple[float, float]:
    """CPUs and memory that are gone for good: the actors', and those of read tasks that wait for their
    readers."""
    cpus = stages.predictors * stages.predict["num_cpus"] + stages.read_tasks * stages.read["num_cpus"]
    return cpus, stages.predictors * stages.predict["memory"] + stages.read_tasks * stages.read["memory"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_number_of_cpus_is_claimed_whole_by_actors_and_readers(device):
    planned = 0
    for tenths in range(15, 641):
        available = {"CPU": tenths / 10, "GPU": 1.0 + tenths // 100}
        try:
            stages = plan(available, device)
        except UserError:
            assert tenths < 20  # two CPUs are always enough
            continue
        planned += 1
        held, _ = held_for_good(stages)
        for stage in (stages.decode, stages.write, LISTING):
            assert held + stage["num_cpus"] <= available["CPU"] + EPSILON
        assert stages.predictors >= 1 and stages.read_tasks >= 1
    assert planned > 600


def test_a_second_job_leaves_room_for_both(monkeypatch):
    """The first was alone when it planned; the second knows of the first, or both of each other."""
    alone = [{"JobID": "01", "IsDead": False}, {"JobID": "03", "IsDead": True}]
    for cpus in range(5, 65):
        whole = plan(shared(monkeypatch, cpus, alone))
        share = plan(shared(monkeypatch, cpus, [*alone, {"JobID": "02", "IsDead": False}]))
        most = max(stage["num_cpus"] for stage in (share.decode, share.write, LISTING))
        for first in (whole, share):
            assert held_for_good(first)[0] + held_for_good(share)[0] + most <= cpus + EPSILON


def shared(monkeypatch, cpus: int, jobs: list[dict]) -> dict[str, float]:
    """`resources` of job 01 on a cluster with these jobs, of which 01 to 03 label."""
    import ray
    from ray._private import state
    from ray.experimental import internal_kv

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(
        state, "state", SimpleNamespace(job_table=lambda: [*jobs, {"JobID": "09", "IsDead": False}])
    )
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value: None)
    monkeypatch.setattr(
        internal_kv, "_internal_kv_list", lambda prefix: [prefix + name for name in (b"01", b"02", b"03")]
    )
    return share_of_cluster()


def test_a_local_ray_plans_with_the_cores_that_are_behind_its_cpus(monkeypatch):
    import ray

    alone = [{"JobID": "01", "IsDead": False}]
    assert shared(monkeypatch, 4, alone)["cores"] == 4
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, CORES: 2.0})
    assert share_of_cluster() == {"CPU": 4.0, "cores": 2.0}


@pytest.mark.parametrize(
    ("available", "device", "said"),
    [
        (
            {"CPU": 1.0},
            "cpu",
            "1 model actors would take 0.6 of 1 CPUs and leave none to read and decode: "
            "start Ray with more CPUs",
        ),
        ({"CPU": 1.5}, "cpu", "1 model actors would take 0.6 of 1.5 CPUs"),
        ({}, "cpu", "CPUs"),
        ({"CPU": 1.0, "GPU": 8.0}, "cuda", "8 model actors would take 0.4 of 1 CPUs"),
        (
            {"CPU": 16.0},
            "cuda",
            "this run is for GPUs (--device cuda, or planned where there was one) "
            "and Ray sees no GPU: start Ray",
        ),
        (
            {"CPU": 16.0, "GPU": 0.5},
            "cuda",
            "Ray sees 0.5 GPUs and no node with room for an actor of 1 GPUs and a CPU",
        ),
        ({"CPU": 16.0, "memory": 1.0 * GiB}, "cpu", "memory"),
        (
            {"CPU": 64.0, "GPU": 8.0, "memory": 9.0 * GiB},
            "cuda",
            "8 model actors would take 9.9 of 9.0 GiB of memory",
        ),
    ],
)
def test_a_plan_that_would_starve_is_refused_and_says_what_to_do(available, device, said):
    with pytest.raises(UserError) as refusal:
        plan(available, device)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("nodes", "share", "actors", "claim"),
    [
        ([(16, 1)], 1.0, 1, 0.5),
        ([(16, 2)], 0.5, 4, 0.5),
        ([(16, 2)], 0.4, 4, 0.5),  # Ray gives no actor parts of two GPUs
        ([(1, 1)], 1.0, 1, 0.35),  # what is left lets one task of every kind run
        ([(4, 8)], 1.0, 8, 0.25),
        ([(2, 1), (64, 0)], 1.0, 1, 0.5),
        ([(1, 1), (1, 1), (1, 1)], 1.0, 3, 0.5),  # together they have enough
        ([(0, 1), (8, 1)], 1.0, 1, 0.5),  # a node without a CPU takes no actor
    ],
)
def test_a_gpus_actors_leave_every_node_half_its_cpus(nodes, share, actors, claim):
    made = [GpuNode(f"{number}", float(cpus), float(gpus)) for number, (cpus, gpus) in enumerate(nodes)]
    available = {"CPU": float(sum(node.cpus for node in made)), "GPU": float(sum(node.gpus for node in made))}
    stages = plan(available, "cuda", gpus_per_actor=share, nodes=[node for node in made if node.gpus])
    assert (stages.predictors, stages.predict["num_gpus"]) == (actors, share)
    assert stages.predict["num_cpus"] == pytest.approx(claim, abs=1e-4)
    held, _ = held_for_good(stages)
    for stage in (stages.decode, stages.write, LISTING):
        assert held + stage["num_cpus"] <= available["CPU"] + EPSILON


def test_a_job_beside_others_takes_its_share_of_the_gpus():
    nodes = [GpuNode("a", 16.0, 4.0), GpuNode("b", 16.0, 4.0)]
    assert plan({"CPU": 13.3, "GPU": 3.33}, "cuda", nodes=nodes).predictors == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_memory_is_claimed_whole_by_actors_and_readers(device):
    planned = 0
    for cpus, gib, weights in itertools.product(
        (2, 4, 16, 64), (1, 2, 3, 4, 6, 8, 16, 64, 512), (23 * MiB, 344 * MiB, 2528 * MiB)
    ):
        try:
            stages = plan({"CPU": float(cpus), "GPU": 1.0, "memory": gib * 1.0 * GiB}, device, weights)
        except UserError as refusal:
            assert "memory" in str(refusal) and gib * GiB < 2 * GiB + 2 * weights + 6 * UNIT
            continue
        planned += 1
        _, held = held_for_good(stages)
        assert held + max(stages.decode["memory"], stages.write["memory"]) <= gib * GiB
    assert planned > 60


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_claims_of_all_stages_differ_so_that_ray_fuses_none(device):
    stages = plan({"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * GiB}, device)
    seen = [(claim["num_cpus"], claim.get("num_gpus", 0)) for claim in [LISTING, *claims(stages)]]
    assert len(set(seen)) == 5
    assert all(claim["memory"] > 0 for claim in claims(stages))


def test_predictors_are_bounded_by_cpus_gpus_and_memory():
    def predictors(device="cpu", weights=WEIGHTS, **available):
        return plan({"CPU": 100.0, **available}, device, weights).predictors

    assert predictors() == 100 and predictors(CPU=2.0) == 1 and predictors(CPU=4.0) == 4
    assert predictors(CPU=4.0, cores=2.0) == 2, "a local Ray counts more CPUs than there are cores"
    assert predictors("cuda", GPU=8.0) == 8
    few, fewer = (predictors(memory=24.0 * GiB, weights=weights) for weights in (WEIGHTS, 1200 * MiB))
    assert 1 <= fewer < few < 100
    for work, actors in ((0.0, 1), (1.0, 1), (25.0, 3), (1e4, 100), (math.inf, 100)):
        assert plan({"CPU": 100.0}, work=WorkEstimate(work)).predictors == actors, "little work, few actors"
    for work, tasks in ((0.0, 1), (4.0, 1), (11.0, 3), (1e4, 20)):
        stages = plan({"CPU": 64.0, "cores": 40.0}, work=WorkEstimate(decode=work))
        assert (stages.decode_tasks, stages.read_tasks) == (tasks, max(1, tasks // 2)), (
            "little work, few processes"
        )
    for memory in (math.inf, 1e15):
        assert predictors(memory=memory) == 100


def test_cores_are_those_this_process_may_use():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not tell which cores a process may use")
    whole = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(whole)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, whole)
