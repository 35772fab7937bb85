"""Ask every node of a cluster, before a run writes anything, whether it can do its part.

A task goes to each node at once. It finds out whether the package and what it needs are there, and what the
node sees of the run's places. What a node lacks ends the command with one line that names the node.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wordsworth.pipeline.cluster import node_probe
from wordsworth.pipeline.cluster.session import on_cluster
from wordsworth.pipeline.errors import UserError

NODE_S = 60.0  # seconds in which a node must answer; a worker process takes 1 to 10 of them to start
SETUP_S = 900.0  # seconds in which a node must answer that may install packages for the job first
NOTE_S = 10.0  # seconds after which the user is told which nodes are waited for
LOOK_S = 1.0  # seconds between two looks whether nodes have died
INSTALLERS = ("pip", "uv", "conda", "image_uri", "container")  # keys of a job's environment that take long
MAX_NAMED = 3  # nodes that a line names
MODULES = ("wordsworth", "torch", "timm", "numpy", "PIL", "pyarrow", "fsspec", "safetensors", "webdataset")

SAME = "install the same on every node, or let `wordsworth submit` bring it"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Hold what every node is asked beside its package.

    Attributes:
        look: called here and on every node: an importable function, or a `functools.partial` of one.
        judge: gets what `look` returned here and on a node, and says what is wrong there, or None.
    """

    look: Callable[[], Any]
    judge: Callable[[Any, Any], str | None]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """Describe a living node.

    Attributes:
        id: Ray's name of it.
        name: address, and the host's name.
    """

    id: str
    name: str


def check_nodes(
    questions: Sequence[Question],
    note: Callable[[str], None],
    modules: Sequence[str] = MODULES,
    only: str | None = None,
) -> None:
    """Ask every node that can work for this command. A local Ray is not asked.

    Args:
        questions: what else the nodes are asked.
        note: gets a line where a node does not answer, and where its libraries differ from those here.
        modules: names of the modules that a node must have.
        only: id of the one node that is asked; None for all.

    Raises:
        UserError: a node cannot do its part, or none answers.
    """
    if not on_cluster():
        return
    nodes = [node for node in living_nodes() if only in (None, node.id)]
    if not nodes:
        return  # an autoscaler may bring some; `pipeline.output.own_run` looks again where a unit is written
    here = [question.look() for question in questions]
    answers = _ask_all(nodes, tuple(modules), questions, note)
    if not answers:
        raise UserError(
            f"no node of the cluster answers within {NODE_S:.0f} s: look at the cluster (ray status), "
            "and run the same command again"
        )
    problems: dict[str, list[str]] = defaultdict(list)
    for node, answer in answers.items():
        problem = _problem(answer, here, questions)
        if problem:
            problems[problem].append(node.name)
    if problems:
        problem, names = max(problems.items(), key=lambda item: len(item[1]))
        raise UserError(f"{_named(names)} {problem}")
    _note_libraries(answers, note)


def living_nodes() -> list[_Node]:
    """Return the nodes on which a task of a stage can run: those with a CPU or a GPU."""
    import ray

    return [
        _Node(id=node["NodeID"], name=_name(node))
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def _name(node: dict[str, Any]) -> str:
    address, host = node["NodeManagerAddress"], node.get("NodeManagerHostname", "")
    return f"{address} ({host})" if host and host != address else address


def _named(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"node {shown}" if len(names) == 1 else f"each of nodes {shown}{more}"


# ---- asking -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Send the probe's code itself to the nodes, and not its name."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(node_probe)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)


def _ask_all(
    nodes: list[_Node],
    modules: tuple[str, ...],
    questions: Sequence[Question],
    note: Callable[[str], None],
) -> dict[_Node, dict[str, Any]]:
    """Return what each node answers; a node that died or is silent is left out, with a line."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    code = node_probe.code_digest()
    looks = tuple(ray.put(question.look) for question in questions)
    with _by_value():
        task = ray.remote(num_cpus=0, max_retries=1)(node_probe.probe)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[task.options(scheduling_strategy=there).remote(modules, looks, code)] = node
        return _gather(asked, note)


def _gather(asked: dict[Any, _Node], note: Callable[[str], None]) -> dict[_Node, dict[str, Any]]:
    import ray

    waiting = list(asked)
    answers: dict[_Node, dict[str, Any]] = {}
    began = time.monotonic()
    patience = SETUP_S if _may_install() else NODE_S
    told = False
    while waiting and time.monotonic() - began < patience:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
        for answered in done:
            answer = _answer(asked[answered], answered, note)
            if answer is not None:
                answers[asked[answered]] = answer
        alive = {node.id for node in living_nodes()} if waiting else set()
        waiting = [one for one in waiting if asked[one].id in alive]
        if waiting and not told and time.monotonic() - began > NOTE_S:
            told = True
            note(f"waiting for {_named([asked[one].name for one in waiting])} to answer")
    for one in waiting:
        note(f"node {asked[one].name} did not answer within {patience:.0f} s, and goes unchecked")
        ray.cancel(one, force=True)
    return answers


def _may_install() -> bool:
    import ray

    return any(key in ray.get_runtime_context().runtime_env for key in INSTALLERS)


def _answer(node: _Node, answered: Any, note: Callable[[str], None]) -> dict[str, Any] | None:
    """Return what a node said; None where it died on the way, with a line.

    Raises:
        UserError: the job's environment cannot be set up there, or the task failed.
    """
    import ray
    from ray.exceptions import RayError, RuntimeEnvSetupError

    try:
        return dict(ray.get(answered))
    except RuntimeEnvSetupError as error:
        raise UserError(
            f"node {node.name} cannot set up the environment of this job: {_last_line(error)}"
        ) from error
    except RayError as error:
        if node.id not in {one.id for one in living_nodes()} or _is_leaving(error):
            note(f"node {node.name} is leaving the cluster, and goes unchecked")
            return None
        raise UserError(f"node {node.name} cannot run a task: {_last_line(error)}") from error


def _is_leaving(error: Exception) -> bool:
    """Tell whether a node takes no tasks any more: it is drained, or its worker was ended with it."""
    from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError

    return isinstance(error, NodeDiedError | TaskUnschedulableError | WorkerCrashedError)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ---- judging ----------------------------------------------------------------------------------------------


def _problem(answer: dict[str, Any], here: list[Any], questions: Sequence[Question]) -> str | None:
    """Say what a node lacks, and what to do; None for a node that can do its part."""
    if answer["missing"]:
        package = node_probe.package_version()
        return (
            f"lacks {', '.join(answer['missing'])}: install wordsworth {package} with its extras there, "
            "or let `wordsworth submit` bring it"
        )
    if "seen" not in answer:
        own = node_probe.package_version()
        theirs = answer["version"] or "of a folder"
        other = f"{theirs}, and this command is {own}" if theirs != own else f"{own} with other code"
        return f"has wordsworth {other}: {SAME}"
    for question, mine, theirs in zip(questions, here, answer["seen"], strict=True):
        problem = question.judge(mine, theirs)
        if problem:
            return problem
    return None


def _note_libraries(answers: dict[_Node, dict[str, Any]], note: Callable[[str], None]) -> None:
    """Tell the user which nodes have other versions of what can alter a number."""
    own = node_probe.numeric_versions()
    others: dict[str, list[str]] = defaultdict(list)
    for node, answer in answers.items():
        versions = [
            f"{name} {version} (here {own[name]})"
            for name, version in answer["numeric"].items()
            if version != own[name]
        ]
        if versions:
            others[", ".join(versions)].append(node.name)
    for told, names in others.items():
        note(f"warning: {_named(names)} has {told}: scores may differ in their last digits")
