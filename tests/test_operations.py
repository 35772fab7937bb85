"""The page for operators, the alerts and the dashboard belong together."""

import json
import re
from pathlib import Path

import pytest
import yaml

from wordsworth.pipeline.cluster.metrics import COUNTERS, GAUGES, RunMetrics, run_tag

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "wordsworth.json").read_text())
EXPRESSIONS = [rule["expr"] for rule in RULES]
for _panel in DASHBOARD["panels"]:
    EXPRESSIONS += [target["expr"] for target in _panel.get("targets", [])]
OURS = {f"ray_wordsworth_{name}_total" for name in COUNTERS} | {f"ray_wordsworth_{name}" for name in GAUGES}
LABELS = {"run", "command"}


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_a_section_that_says_what_to_do(rule):
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/operations.md" and anchor in anchors(PAGE)
    section = PAGE[PAGE.lower().index(f"### {anchor.replace('-', ' ')}") :].split("\n### ")[0]
    assert len(section.split()) > 25, "it says what to do"
    kind = {"page": "*A page.*", "ticket": "*A ticket.*"}[rule["labels"]["severity"]]
    assert kind in section


def test_every_alert_of_the_page_is_a_rule():
    told = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (alerts,) = [part for part in told if part.startswith("Alerts")]
    found = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in RULES}
    assert found == anchors(alerts.replace("Alerts", "", 1))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_metrics_and_labels_that_exist(expression):
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    asked = set(re.findall(r"\bray_\w+", expression))
    assert asked and {name for name in asked if "wordsworth" in name} <= OURS
    for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        tags = LABELS | {"instance", "GpuIndex"}
        for name in asked & OURS:
            _, more = (COUNTERS | GAUGES)[name.removeprefix("ray_wordsworth_").removesuffix("_total")]
            tags |= set(more)
        assert {label.strip() for label in labels.split(",")} <= tags


def test_the_page_and_the_dashboard_name_every_metric():
    page = PAGE.replace("`_train", "`ray_wordsworth_train")
    assert {name for name in OURS if f"`{name}`" not in page} == set()
    shown = " ".join(EXPRESSIONS)
    assert {name for name in OURS if name not in shown} == set()


def test_panels_are_one_beside_the_other():
    places = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not places & cells, panel["title"]
        places |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    ("output", "tag"),
    [
        ("s3://bucket/runs/cats", r"cats-[0-9a-f]{6}"),
        ("s3://bucket/runs/cats/", r"cats-[0-9a-f]{6}"),
        ("/home/someone/My Runs ü/", r"My-Runs--[0-9a-f]{6}"),
        ("x" * 300, r"x{40}-[0-9a-f]{6}"),
    ],
)
def test_a_run_has_a_short_tag_without_its_place(output, tag):
    assert re.fullmatch(tag, run_tag(output)), run_tag(output)


def test_two_runs_of_one_name_have_two_tags():
    assert run_tag("s3://a/out") != run_tag("s3://b/out")
    assert run_tag("s3://a/out") == run_tag("s3://a/out/")


def test_a_total_is_told_once(monkeypatch):
    metrics = RunMetrics("s3://a/out", "label")
    told = []
    monkeypatch.setattr(metrics, "add", lambda name, amount, **tags: told.append(amount))
    for total in (3, 3, 5, 4, 9):
        metrics.add_up_to("store_retries", total, store="x")
    assert told == [3, 0, 2, -1, 4], "an amount that is not above 0 is passed over by `add`"


def test_the_events_of_a_json_log_stand_on_the_page():
    table = PAGE[PAGE.index("| event | further fields |") :].split("\n\n")[0]
    told = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines())))
    sources = "".join(path.read_text() for path in ROOT.joinpath("jobs").glob("*.py"))
    sources += "".join(path.read_text() for path in ROOT.joinpath("pipeline").rglob("*.py"))
    written = set(re.findall(r'event="(\w+)"', sources)) - {"output"}
    written |= {"note", *re.findall(r'kind: ClassVar\[str\] = "(\w+)"', sources)}
    assert told == written
