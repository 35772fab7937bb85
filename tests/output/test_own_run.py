"""own_run: a process writes into the run that its command planned, or not at all."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output import own_run
from wordsworth.pipeline.output.run_folder import RunFolder


@dataclass
class Settings:
    """Stand for the settings of the write stage, as far as they matter here."""

    output: str
    run_id: str
    storage_options: dict = field(default_factory=dict)

    @property
    def provenance(self):
        return SimpleNamespace(run_id=self.run_id)


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """The plans of runs by their folders, with the number of looks; a process that has seen none yet."""
    plans = SimpleNamespace(by_folder={}, looks=0)

    def plan(folder):
        plans.looks += 1
        return plans.by_folder.get(folder.root)

    monkeypatch.setattr(RunFolder, "plan", plan)
    monkeypatch.setattr(own_run, "_seen", set())
    return plans


def test_a_process_that_sees_the_runs_plan_looks_once(plans, tmp_path):
    plans.by_folder[str(tmp_path)] = SimpleNamespace(run_id="this")
    for _ in range(3):
        own_run.refuse_another_store(Settings(str(tmp_path), "this"))
    assert plans.looks == 1


@pytest.mark.parametrize(
    ("plan", "sees"), [(None, "no run"), (SimpleNamespace(run_id="that"), "another run")]
)
def test_a_process_that_would_write_elsewhere_is_refused_with_its_node(plans, tmp_path, plan, sees):
    plans.by_folder[str(tmp_path)] = plan
    for _ in range(2):
        with pytest.raises(
            UserError, match=rf"^node \S+ sees {sees} in {tmp_path}, so it would write elsewhere"
        ):
            own_run.refuse_another_store(Settings(str(tmp_path), "this"))
