"""ray_internals: with a Ray that nobody tried the program runs on Ray's public interface, and changes
nothing in Ray."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import ray

from tests.support.builders import write_shards
from tests.support.trainings import write_classes
from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.cluster.ray_internals import STOCK, TRIED_VERSIONS, ray_is_known
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.ray

CLOSED = {STOCK: "1"}  # the environment that closes the gate
TINY = ("--width", "32", "--depth", "2", "--heads", "2", "--patch-size", "8", "--image-size", "32")

# What is replaced in Ray, looked at before, in and after a session.
LOOK = """
import json
from wordsworth.pipeline.cluster.session import abandoned, ray_session
from ray._private import auto_init_hook, node, parameter, services, utils, worker
from ray.data import DataContext
from ray.data._internal import stats
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator

def looked():
    seen = {name: getattr(stats._StatsManager, name) for name in vars(stats._StatsManager) if name[0] != "_"}
    for owner, names in {
        auto_init_hook: ["enable_auto_connect"],
        node.Node: ["start_api_server"],
        parameter: ["RayParams"],
        services: ["resolve_ip_for_localhost"],
        utils: ["get_entrypoint_name"],
        worker: ["print_to_stdstream"],
        streaming_executor: ["create_cluster_autoscaler"],
        actor_pool_map_operator: ["get_or_create_actor_location_tracker", "get_actor_locations"],
    }.items():
        seen |= {name: getattr(owner, name) for name in names}
    return seen

before = looked()
with ray_session():
    within = looked()
after = looked()
changed = [name for name in before if within[name] != before[name]]
left = [name for name in before if after[name] != before[name]]
print(json.dumps({"changed": changed, "left": left, "abandoned": abandoned()}))
"""


def test_the_gate_is_open_for_versions_that_were_tried_and_closed_for_all_others(monkeypatch):
    monkeypatch.delenv(STOCK, raising=False)
    monkeypatch.setattr(ray, "__version__", TRIED_VERSIONS[-1])
    assert ray_is_known()
    monkeypatch.setenv(STOCK, "1")
    assert not ray_is_known()
    monkeypatch.delenv(STOCK)
    for version in ("2.61.0", "2.60.1", "3.0.0.dev0"):
        monkeypatch.setattr(ray, "__version__", version)
        assert not ray_is_known()


def test_the_installed_ray_is_one_that_was_tried():
    """Or its patches were never tested, and none of them is applied."""
    assert ray.__version__ in TRIED_VERSIONS


def test_with_the_gate_closed_nothing_private_is_asked(monkeypatch):
    monkeypatch.setenv(STOCK, "1")
    assert ray_internals.holdings() == []
    assert ray_internals.autoscaler_state() is None
    ray_internals.leave_note(b"key", "text")
    assert ray_internals.find_notes(b"key") == {}


@pytest.mark.ray
@pytest.mark.parametrize("env", [{}, CLOSED])
def test_after_a_session_everything_in_ray_is_what_it_was(env, monkeypatch):
    for name, value in {STOCK: "", **env}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["left"] == [] and not seen["abandoned"]
    assert ("Ray listens on every interface" in done.stderr) is bool(env)
    if env:
        assert seen["changed"] == []
    else:
        assert {"enable_auto_connect", "print_to_stdstream", "create_cluster_autoscaler"} <= set(
            seen["changed"]
        )


@pytest.mark.long  # what the gate does: the tests beside
@pytest.mark.ray
def test_labelling_runs_on_stock_ray(tmp_path, small_model, wordsworth):
    keys = write_shards(tmp_path / "shards", shards=2, images=5)
    done = wordsworth(
        "label", tmp_path / "shards", "--output", tmp_path / "out", "--model", small_model, env=CLOSED
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(keys)
    assert all(row["error"] is None and row["label"] for row in rows)


@pytest.mark.long
def test_training_runs_on_stock_ray(tmp_path, wordsworth):
    write_classes(tmp_path / "shards", shards=1, images=16)
    model = tmp_path / "model"
    options = ("--epochs", "1", "--batch-size", "8", "--target", "cls")
    done = wordsworth("pretrain", tmp_path / "shards", "--output", model, *TINY, *options, env=CLOSED)
    assert done.returncode == 0, done.stderr
    assert load_folder(model).config.num_classes == 2
