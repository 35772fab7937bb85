"""resources: the stages share what there is so that every one of them can always run, or the plan is
refused."""

import itertools
import math
import random

import pytest

from wordsworth.pipeline.cluster.claims import GiB, MiB, ModelNeeds, NoRoom, WorkEstimate
from wordsworth.pipeline.cluster.nodes import Node, Room
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.resources import StageResources, plan_resources

WEIGHTS, UNIT = 23 * MiB, 96 * MiB  # Ti/16 in fp32
EPSILON = 1e-6


def room(*nodes: dict, other_jobs: int = 0, **asked) -> Room:
    """A cluster of these nodes, and what a command asks of it."""
    made = [Node(node_id=f"{number}", **{"cpus": 0.0} | node) for number, node in enumerate(nodes)]
    return Room(nodes=tuple(made), cluster=ClusterRequest(**asked), other_jobs=other_jobs)


def plan(
    cluster: Room,
    device: str = "cpu",
    weights: int = WEIGHTS,
    gpus_per_actor: float = 1.0,
    work: WorkEstimate | None = None,
) -> StageResources:
    needs = ModelNeeds(device=device, weight_bytes=weights, unit_bytes=UNIT, gpus_per_actor=gpus_per_actor)
    return plan_resources(cluster, needs, work)


def tasks(stages: StageResources) -> list[dict]:
    return [stages.listing, stages.read, stages.decode, stages.write]


def held_for_good(stages: StageResources) -> tuple[float, float]:
    """CPUs and memory that are gone for good: the actors', and those of read tasks that wait for their
    readers."""
    cpus = stages.predictors * stages.predict["num_cpus"] + stages.read_tasks * stages.read["num_cpus"]
    return cpus, stages.predictors * stages.predict["memory"] + stages.read_tasks * stages.read["memory"]


# ---- wherever Ray puts what stays, tasks find their claims -------------------------------------------------


def finds_no_stop(cluster: Room, jobs: list[StageResources], chance: random.Random) -> bool:
    """Place the actors and the waiting readers of all jobs in some order, on nodes as Ray may choose them,
    and return whether a task of every kind finds its claim on a node."""
    left = {node.node_id: [node.cpus, node.gpus, node.memory] for node in cluster.nodes}
    labels = {node.node_id: node for node in cluster.nodes}
    parts = []
    for stages in jobs:
        parts += [stages.predict] * stages.predictors + [stages.read] * stages.read_tasks
    chance.shuffle(parts)
    if chance.random() < 0.5:
        parts.sort(key=lambda claim: claim["num_cpus"], reverse=True)
    pack = chance.random() < 0.5  # or spread
    for claim in parts:
        fitting = [name for name in left if fits(left[name], claim, labels[name])]
        assert fitting, f"{claim} finds no place"
        fitting.sort(key=lambda name: left[name][0], reverse=not pack)
        place = left[fitting[0] if chance.random() < 0.7 else chance.choice(fitting)]
        for at, name in enumerate(("num_cpus", "num_gpus", "memory")):
            place[at] -= claim.get(name, 0)
    return all(
        any(fits(left[name], claim, labels[name]) for name in left)
        for stages in jobs
        for claim in tasks(stages)
    )


def fits(left: list[float], claim: dict, node: Node) -> bool:
    wanted = [claim["num_cpus"], claim.get("num_gpus", 0), claim.get("memory", 0)]
    enough = all(has >= needs - EPSILON for has, needs in zip(left, wanted, strict=True))
    return enough and node.has(claim.get("label_selector", {}))


SHAPES = {
    "a laptop": [{"cpus": 4.0, "cores": 2.0, "memory": 3.0 * GiB}],
    "one CPU": [{"cpus": 1.0}],
    "two CPUs": [{"cpus": 2.0}],
    "three CPUs": [{"cpus": 3.0}],
    "a head without CPUs": [{}, {"cpus": 4.0}],
    "nodes of one CPU": [{"cpus": 1.0}] * 8,
    "two nodes of one CPU": [{"cpus": 1.0}] * 2,
    "nodes of one CPU and a large one": [{"cpus": 1.0}] * 7 + [{"cpus": 4.0}],
    "nodes with little memory": [{"cpus": 4.0, "memory": 2.0 * GiB}] * 4,
    "a large cluster": [{"cpus": 64.0, "memory": 256.0 * GiB}] * 16,
    "a GPU and a CPU": [{"cpus": 1.0, "gpus": 1.0}],
    "GPU nodes of one CPU": [{"cpus": 1.0, "gpus": 1.0}] * 3,
    "many GPU nodes of one CPU": [{"cpus": 1.0, "gpus": 1.0}] * 16,
    "GPU nodes of one CPU and CPU nodes": [{"cpus": 1.0, "gpus": 1.0}] * 4 + [{"cpus": 8.0}] * 2,
    "GPU nodes without a CPU and CPU nodes": [{"gpus": 4.0}] * 2 + [{"cpus": 8.0}] * 2,
    "eight GPUs and a CPU": [{"cpus": 1.0, "gpus": 8.0}],
    "seven slices of a GPU": [{"cpus": 6.0, "gpus": 7.0}],
    "GPUs of two sizes of node": [{"cpus": 4.0, "gpus": 8.0}, {"cpus": 96.0, "gpus": 1.0}, {"cpus": 2.0}],
    "a part of a GPU": [{"cpus": 4.0, "gpus": 0.5}],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gpus_per_actor", [1.0, 0.5, 0.4, 0.3, 0.07])
def test_no_shape_of_a_cluster_lets_a_run_stand_still(shape, gpus_per_actor):
    cluster = room(*SHAPES[shape])
    gpus = cluster.total("GPU")
    device = "cuda" if gpus else "cpu"
    if gpus and gpus < gpus_per_actor:
        with pytest.raises(NoRoom, match=r"Ray sees 0\.5 GPUs and no node with room"):
            plan(cluster, device, gpus_per_actor=gpus_per_actor)
        return
    if not gpus and gpus_per_actor < 1:
        return  # the same plan
    if cluster.total("CPU") == 1 and gpus / gpus_per_actor > 30:
        with pytest.raises(NoRoom, match="leave no node with a CPU to read and decode"):
            plan(cluster, device, gpus_per_actor=gpus_per_actor)
        return
    stages = plan(cluster, device, gpus_per_actor=gpus_per_actor)
    assert stages.predictors >= 1 and stages.read_tasks >= 1 and stages.decode_tasks >= 1
    for seed in range(12):
        assert finds_no_stop(cluster, [stages], random.Random(seed))


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("one CPU", "a part of a GPU")])
def test_two_jobs_that_take_a_share_each_do_not_stand_still(shape):
    cluster = room(*SHAPES[shape], share=0.5)
    device = "cuda" if cluster.total("GPU") else "cpu"
    try:
        half = plan(cluster, device)
    except NoRoom as refusal:
        assert "--share 0.5 of this cluster is less than one model actor" in str(refusal)
        assert plan(room(*SHAPES[shape]), device).predictors == 1
        return
    whole = plan(room(*SHAPES[shape]), device)
    assert half.predictors == max(1, whole.predictors // 2)
    for seed in range(12):
        assert finds_no_stop(cluster, [half, half], random.Random(seed))


@pytest.mark.parametrize("cpus", [3.0, 4.0, 6.0, 8.0, 16.0, 64.0])
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_job_that_comes_later_takes_of_what_the_first_leaves(cpus, num_nodes):
    first = plan(room(*[{"cpus": cpus}] * num_nodes))
    for seed in range(8):
        chance = random.Random(seed)
        left = [cpus] * num_nodes
        for _ in range(first.predictors):
            node = chance.choice([at for at in range(num_nodes) if left[at] >= first.predict["num_cpus"]])
            left[node] -= first.predict["num_cpus"]
        rest = room(*[{"cpus": amount} for amount in left], other_jobs=1)
        try:
            second = plan(rest)
        except NoRoom:
            assert num_nodes == 1 and cpus < 4, "it has to wait until the first is done"
            continue
        readers = StageResources(**{**vars(first), "predictors": 0})
        assert finds_no_stop(rest, [second, readers], chance)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_number_of_cpus_is_claimed_whole_by_actors_and_readers(device):
    planned = 0
    for tenths in range(1, 641):
        cluster = room({"cpus": tenths / 10, "gpus": 1.0 + tenths // 100})
        try:
            stages = plan(cluster, device)
        except NoRoom:
            assert tenths < 10  # one CPU is always enough
            continue
        planned += 1
        held, _ = held_for_good(stages)
        for task in tasks(stages):
            assert held + task["num_cpus"] <= tenths / 10 + EPSILON
        assert stages.predictors >= 1 and stages.read_tasks >= 1
    assert planned > 600


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_memory_is_claimed_whole_by_actors_and_readers(device):
    planned = 0
    for cpus, gib, weights in itertools.product(
        (2, 4, 16, 64), (1, 2, 3, 4, 6, 8, 16, 64, 512), (23 * MiB, 344 * MiB, 2528 * MiB)
    ):
        try:
            cluster = room({"cpus": float(cpus), "gpus": 1.0, "memory": gib * 1.0 * GiB})
            stages = plan(cluster, device, weights)
        except NoRoom as refusal:
            assert "memory" in str(refusal) and gib * GiB < 2 * GiB + 2 * weights + 6 * UNIT
            continue
        planned += 1
        _, held = held_for_good(stages)
        assert held + max(stages.decode["memory"], stages.write["memory"]) <= gib * GiB
    assert planned > 60


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_claims_of_all_stages_differ_so_that_ray_fuses_none(device):
    stages = plan(room({"cpus": 16.0, "gpus": 2.0, "memory": 64.0 * GiB}), device)
    seen = [(claim["num_cpus"], claim.get("num_gpus", 0)) for claim in [*tasks(stages), stages.predict]]
    assert len(set(seen)) == 5
    assert all(claim["memory"] > 0 for claim in [*tasks(stages)[1:], stages.predict])


# ---- how many ----------------------------------------------------------------------------------------------


def test_predictors_are_bounded_by_cpus_gpus_and_memory():
    def predictors(device="cpu", weights=WEIGHTS, **node):
        return plan(room({"cpus": 100.0, **node}), device, weights).predictors

    assert predictors() == 100 and predictors(cpus=2.0) == 1 and predictors(cpus=4.0) == 4
    assert predictors(cpus=4.0, cores=2.0) == 2, "a local Ray counts more CPUs than there are cores"
    assert predictors("cuda", gpus=8.0) == 8
    few, fewer = (predictors(memory=24.0 * GiB, weights=weights) for weights in (WEIGHTS, 1200 * MiB))
    assert 1 <= fewer < few < 100
    hundred = room({"cpus": 100.0})
    for work, actors in ((0.0, 1), (1.0, 1), (25.0, 3), (1e4, 100), (math.inf, 100)):
        assert plan(hundred, work=WorkEstimate(work)).predictors == actors, "little work, few actors"
    for work, count in ((0.0, 1), (4.0, 1), (11.0, 3), (1e4, 20)):
        stages = plan(room({"cpus": 64.0, "cores": 40.0}), work=WorkEstimate(decode=work))
        assert (stages.decode_tasks, stages.read_tasks) == (count, max(1, count // 2)), (
            "little work, few processes"
        )
    for memory in (math.inf, 1e15):
        assert predictors(memory=memory) == 100


@pytest.mark.parametrize(
    ("nodes", "share", "actors", "claim", "gpus"),
    [
        ([(16, 1)], 1.0, 1, 0.5, 1.0),
        ([(16, 2)], 0.5, 4, 0.5, 0.5),
        ([(16, 2)], 0.4, 4, 0.5, 0.5),  # Ray gives no actor parts of two GPUs, so nothing is left of one
        ([(16, 1)], 0.3, 3, 0.5, 0.3333),
        ([(16, 7)], 1.0, 7, 0.5, 1.0),  # the slices of a GPU are GPUs to Ray
        ([(1, 1)], 1.0, 1, 0.35, 1.0),  # what is left lets one task of every kind run
        ([(4, 8)], 1.0, 8, 0.25, 1.0),
        ([(1, 8)], 1.0, 8, 0.0437, 1.0),
        ([(2, 1), (64, 0)], 1.0, 1, 0.5, 1.0),
        ([(1, 1), (64, 0)], 1.0, 1, 0.5, 1.0),  # tasks run on the other node
        ([(1, 1), (1, 1), (1, 1)], 1.0, 3, 0.35, 1.0),  # a half of each is left, and a reader may wait there
        ([(0, 1), (8, 1)], 1.0, 2, 0.0, 1.0),  # a node without a CPU takes an actor that claims none
        ([(16, 0.5)], 0.5, 1, 0.5, 0.5),  # another program has the other half
    ],
)
def test_a_gpus_actors_leave_every_node_half_its_cpus(nodes, share, actors, claim, gpus):
    cluster = room(*({"cpus": float(cpus), "gpus": float(gpus)} for cpus, gpus in nodes))
    stages = plan(cluster, "cuda", gpus_per_actor=share)
    assert (stages.predictors, stages.predict["num_gpus"]) == (actors, gpus)
    assert stages.predict["num_cpus"] == pytest.approx(claim, abs=1e-4)


@pytest.mark.parametrize(
    ("nodes", "claim"), [([1.0], 0.35), ([1.0] * 8, 0.35), ([2.0], 0.6), ([1.0, 4.0], 0.6), ([1.5], 0.6)]
)
def test_an_actor_claims_less_where_every_node_has_one_cpu(nodes, claim):
    stages = plan(room(*({"cpus": cpus} for cpus in nodes)))
    assert stages.predict["num_cpus"] == pytest.approx(claim)
    assert stages.predictors == max(1, int(sum(nodes)) - (nodes == [2.0]))


def test_a_job_takes_its_share_and_no_more_actors_than_it_may():
    gpus = [{"cpus": 16.0, "gpus": 4.0}] * 2
    for share, actors in ((1.0, 8), (0.5, 4), (0.4, 3), (0.125, 1)):
        assert plan(room(*gpus, share=share), "cuda").predictors == actors
    assert plan(room({"cpus": 64.0}, share=0.25)).predictors == 16
    assert plan(room({"cpus": 64.0}, max_actors=3)).predictors == 3
    assert plan(room(*gpus, max_actors=3), "cuda").predictors == 3
    assert plan(room(*gpus, share=0.5, max_actors=99), "cuda").predictors == 4
    whole, half = (plan(room(*gpus, share=share), "cuda") for share in (1.0, 0.5))
    assert half.decode_tasks == whole.decode_tasks // 2 and half.read_tasks <= whole.read_tasks // 2


@pytest.mark.parametrize(
    ("nodes", "device", "share", "said"),
    [
        ([{"cpus": 8.0, "gpus": 1.0}], "cuda", 0.5, "it has room for 1: give a larger share, or a smaller"),
        ([{"cpus": 1.0}], "cpu", 0.5, "it has room for 1: give a larger share"),
    ],
)
def test_a_share_of_less_than_an_actor_is_refused(nodes, device, share, said):
    with pytest.raises(NoRoom, match=said):
        plan(room(*nodes, share=share), device)


# ---- on which nodes ----------------------------------------------------------------------------------------

POOLS = [{"cpus": 8.0, "labels": {"pool": "decode"}}] * 2 + [
    {"cpus": 2.0, "gpus": 1.0, "labels": {"pool": "gpu", "gpu": "a100"}}
] * 3


def test_stages_are_pinned_to_the_nodes_with_their_labels():
    stages = plan(room(*POOLS, decode_on={"pool": "decode"}, predict_on={"pool": "gpu"}), "cuda")
    assert stages.predictors == 3 and stages.decode_tasks == 16, "the model takes none of their CPUs"
    assert all(task["label_selector"] == {"pool": "decode"} for task in tasks(stages))
    assert stages.predict["label_selector"] == {"pool": "gpu"}
    assert "label_selector" not in plan(room(*POOLS), "cuda").predict


@pytest.mark.parametrize(
    ("predict_on", "actors"),
    [({"pool": "gpu"}, 3), ({"pool": "decode"}, 16), ({"gpu": "!a100"}, 16), ({"pool": "in(gpu, other)"}, 3)],
)
def test_only_nodes_with_the_labels_count(predict_on, actors):
    cluster = room(*POOLS, decode_on={"pool": "decode"}, predict_on=predict_on)
    stages = plan(cluster)
    assert stages.predictors == min(actors, 16 if predict_on != {"pool": "gpu"} else 6) or actors == 3
    for seed in range(8):
        assert finds_no_stop(cluster, [stages], random.Random(seed))


@pytest.mark.parametrize("option", ["decode_on", "predict_on"])
def test_labels_that_no_node_has_are_refused_in_one_line(option):
    with pytest.raises(NoRoom) as refusal:
        plan(room(*POOLS, **{option: {"pool": "spare", "zone": "a"}}))
    name = f"--{option.replace('_', '-')}"
    assert str(refusal.value).startswith(
        f"{name} pool=spare,zone=a: no node of this cluster has these labels"
    )
    assert "\n" not in str(refusal.value)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "device", "said"),
    [
        (
            [{"cpus": 0.8}],
            "cpu",
            "1 model actors would take 0.2 of 0.8 CPUs and leave no node with a CPU to read and decode: "
            "start Ray with more CPUs",
        ),
        ([{}], "cpu", "of 0 CPUs"),
        ([], "cpu", "of 0 CPUs"),
        ([{"cpus": 0.5, "gpus": 1.0}], "cuda", "1 model actors would take 0.01 of 0.5 CPUs"),
        (
            [{"cpus": 16.0}],
            "cuda",
            "this run is for GPUs (--device cuda, or planned where there was one) "
            "and Ray sees no GPU: start Ray",
        ),
        (
            [{"cpus": 16.0, "gpus": 0.5}],
            "cuda",
            "Ray sees 0.5 GPUs and no node with room for an actor of 1 GPUs",
        ),
        ([{"cpus": 16.0, "memory": 1.0 * GiB}], "cpu", "of 1.0 GiB of memory"),
        (
            [{"cpus": 8.0, "memory": 1.0 * GiB}] * 8,
            "cpu",
            "of 8.0 GiB of memory on 8 nodes, of at most 1.0 GiB each,",
        ),
        (
            [{"cpus": 64.0, "gpus": 8.0, "memory": 9.0 * GiB}],
            "cuda",
            "8 model actors would take 9.9 of 9.0 GiB of memory",
        ),
    ],
)
def test_a_plan_that_would_starve_is_refused_and_says_what_to_do(nodes, device, said):
    with pytest.raises(NoRoom) as refusal:
        plan(room(*nodes), device)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
