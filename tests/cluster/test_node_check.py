"""node_check: a node that cannot do its part ends a command with one line that names it, in time."""

import functools
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError

from wordsworth.pipeline.cluster import node_check, node_probe
from wordsworth.pipeline.cluster.node_check import Question, check_nodes
from wordsworth.pipeline.errors import UserError

GOOD = {
    "missing": [],
    "version": node_probe.package_version(),
    "numeric": node_probe.numeric_versions(),
    "seen": [],
}


@dataclass
class Cluster:
    """Stand for the nodes of a cluster. Each answers with an entry of `answers`, an exception, or never."""

    answers: dict[str, Any] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": name,
                "Alive": name not in self.gone,
                "NodeManagerAddress": name,
                "NodeManagerHostname": f"host-{name}",
                "Resources": {} if name == "head" else {"CPU": 2.0},
            }
            for name in [*self.answers, "head"]
        ]

    def wait(self, refs, num_returns, timeout):
        done = [ref for ref in refs if self.answers[ref] is not None]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref):
        if isinstance(self.answers[ref], Exception):
            raise self.answers[ref]
        return self.answers[ref]

    def check(self, *questions: Question) -> list[str]:
        check_nodes(questions, self.notes.append)
        return self.notes

    def refusal(self, *questions: Question) -> str:
        with pytest.raises(UserError) as caught:
            self.check(*questions)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(node_check, "on_cluster", lambda: True)
    monkeypatch.setattr(node_check, "NODE_S", 0.3)
    monkeypatch.setattr(node_check, "NOTE_S", 0.1)
    monkeypatch.setattr(
        node_check,
        "_ask_all",
        lambda nodes, modules, questions, note: node_check._gather({node.id: node for node in nodes}, note),
    )
    monkeypatch.setattr(node_check, "_may_install", lambda: False)
    for name in ("nodes", "wait", "get"):
        monkeypatch.setattr(ray, name, getattr(made, name))
    monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)
    return made


def test_nodes_that_can_do_their_part_are_passed_without_a_line(cluster):
    cluster.answers = {"n1": GOOD, "n2": GOOD}
    assert cluster.check() == []


def test_a_local_ray_is_not_asked(monkeypatch):
    monkeypatch.setattr(node_check, "on_cluster", lambda: False)
    monkeypatch.setattr(node_check, "living_nodes", lambda: pytest.fail("it was asked"))
    check_nodes([], print)


def test_a_node_without_cpus_and_gpus_is_not_asked(cluster):
    cluster.answers = {"n1": GOOD}
    assert [node.id for node in node_check.living_nodes()] == ["n1"]


def test_a_cluster_scaled_to_zero_is_no_failure(cluster):
    assert cluster.check() == []


def test_a_node_that_lacks_the_package_is_named_with_the_cure(cluster):
    cluster.answers = {"n1": GOOD, "n2": GOOD | {"missing": ["wordsworth", "timm"]}}
    line = cluster.refusal()
    assert line.startswith("node n2 (host-n2) lacks wordsworth, timm: install wordsworth ")
    assert line.endswith("or let `wordsworth submit` bring it")


def test_many_nodes_with_one_fault_are_one_line(cluster):
    cluster.answers = {f"n{number}": GOOD | {"missing": ["torch"]} for number in range(100)}
    assert cluster.refusal().startswith(
        "each of nodes n0 (host-n0), n1 (host-n1), n10 (host-n10) and 97 more lacks torch: install"
    )


def test_another_version_and_other_code_of_the_same_version_are_told_apart(cluster):
    other = {name: value for name, value in GOOD.items() if name != "seen"}
    cluster.answers = {"n1": other | {"version": "0.0.1"}}
    own = node_probe.package_version()
    assert f"node n1 (host-n1) has wordsworth 0.0.1, and this command is {own}: " in cluster.refusal()
    cluster.answers = {"n1": other}
    assert f"has wordsworth {own} with other code: install the same on every node" in cluster.refusal()


def test_other_versions_of_what_can_alter_a_number_are_a_warning(cluster):
    cluster.answers = {"n1": GOOD | {"numeric": {**GOOD["numeric"], "torch": "1.0"}}}
    (line,) = cluster.check()
    assert line.startswith("warning: node n1 (host-n1) has torch 1.0 (here ") and "last digits" in line


def test_what_a_node_sees_otherwise_is_told_by_its_question(cluster):
    question = Question(
        look=lambda: "this", judge=lambda here, there: None if here == there else f"sees {there}, not {here}"
    )
    cluster.answers = {"n1": GOOD | {"seen": ["this"]}, "n2": GOOD | {"seen": ["that"]}}
    assert cluster.refusal(question) == "node n2 (host-n2) sees that, not this"


def test_a_silent_node_costs_a_line_and_not_the_run(cluster):
    cluster.answers = {"n1": GOOD, "n2": None}
    assert cluster.check() == [
        "waiting for node n2 (host-n2) to answer",
        "node n2 (host-n2) did not answer within 0 s, and goes unchecked",
    ]


def test_a_cluster_of_silent_nodes_ends_the_command(cluster):
    cluster.answers = {"n1": None}
    assert cluster.refusal().startswith("no node of the cluster answers within")


@pytest.mark.parametrize("error", [NodeDiedError("gone"), TaskUnschedulableError("drained")])
def test_a_node_that_leaves_meanwhile_costs_a_line_and_not_the_run(cluster, error):
    cluster.answers = {"n1": GOOD, "n2": error}
    assert cluster.check() == ["node n2 (host-n2) is leaving the cluster, and goes unchecked"]


def test_a_node_that_died_is_not_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(node_check, "NODE_S", 60.0)
    cluster.answers = {"n1": GOOD, "n2": None}
    asked = node_check.living_nodes()
    looks = iter([asked, asked[:1]])  # n2 dies after it was asked
    monkeypatch.setattr(node_check, "living_nodes", lambda: next(looks))
    assert cluster.check() == []


def test_an_environment_that_cannot_be_set_up_is_told_with_its_node(cluster):
    cluster.answers = {"n1": ray.exceptions.RuntimeEnvSetupError("Failed to set up\npip: no such version")}
    assert "node n1 (host-n1) cannot set up the environment of this job: " in cluster.refusal()


# ---- the probe ----


def test_the_probe_imports_nothing_of_this_package_at_its_top():
    """It runs on nodes that do not have the package."""
    own = [
        name
        for name, value in vars(node_probe).items()
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in sys.stdlib_module_names
    ]
    assert own == []


def test_the_probe_says_what_is_missing_and_looks_at_nothing_then():
    look = functools.partial(pytest.fail, "it looked")
    found = node_probe.probe(("wordsworth", "no_such_module"), (look,), "")
    assert found["missing"] == ["no_such_module"] and "seen" not in found


def test_the_probe_looks_only_with_the_code_of_the_command(monkeypatch):
    look = functools.partial(str, "seen")
    monkeypatch.setattr("ray.get", lambda references: references)
    assert node_probe.probe(("wordsworth",), (look,), node_probe.code_digest())["seen"] == ["seen"]
    assert "seen" not in node_probe.probe(("wordsworth",), (look,), "another")


def test_one_byte_of_code_makes_another_digest(tmp_path, monkeypatch):
    module = tmp_path / "pipeline" / "room" / "file.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    package = types.SimpleNamespace(__path__=["/nowhere", str(tmp_path)])
    monkeypatch.setattr(node_probe.importlib, "import_module", lambda _: package)
    first = node_probe.code_digest()
    (module.parent / "__pycache__").mkdir()
    (module.parent / "__pycache__" / "file.py").write_text("b = 1\n")
    assert node_probe.code_digest() == first
    module.write_text("a = 2\n")
    assert node_probe.code_digest() != first
