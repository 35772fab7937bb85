"""The plan of a GPU cluster, on raylets with declared GPUs: the stages, claims, actors, threads and retries
that a real one gets."""

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.builders import photo, write_shards, write_tar
from tests.support.labelling import run
from tests.support.standin.cluster import GpuCluster
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.gpu_batches import UNITS_IN_FLIGHT
from wordsworth.pipeline.verification.verifier import verify
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.ray

BATCH = {"batch_size": 4, "unit_rows": 8}


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    """A node with two GPUs and four CPUs."""
    with contextlib.closing(GpuCluster(tmp_path_factory.mktemp("gpu"), gpus=2)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def well(request):
    """Before each test the device is well again."""
    if "two_gpus" in request.fixturenames:
        request.getfixturevalue("two_gpus").set_faults()


def rows_of(out: Path) -> dict[str, dict]:
    rows = pq.read_table(out / "predictions").to_pylist()
    assert len(rows) == len({row["key"] for row in rows}), "a row is there twice"
    return {row["key"]: row for row in rows}


def check(done: dict, out: Path, keys: list[str]) -> dict[str, dict]:
    """The rows of a run in which nothing is lost and nothing is twice."""
    assert "error" not in done, done
    rows = rows_of(out)
    assert rows.keys() == set(keys)
    report = verify(str(out), source=True)
    assert report.ok, report.findings
    return rows


def assert_same(found: dict[str, dict], wanted: dict[str, dict]) -> None:
    """Every row with the same classes and scores."""
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert found[key]["error"] == row["error"]
        if "label" in found[key]:
            assert found[key]["label"] == row["label"]
        if found[key].get("topk") is not None:
            scores = [[one["score"] for one in rows[key]["topk"]] for rows in (found, wanted)]
            np.testing.assert_allclose(*scores, atol=1e-5)
        if found[key].get("embedding") is not None:
            np.testing.assert_allclose(found[key]["embedding"], row["embedding"], atol=1e-5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, small_model, two_gpus):
    """Three shards, with bad images among them, as the CPU plan of the same cluster labels them."""
    folder = tmp_path_factory.mktemp("labelled")
    keys = write_shards(folder / "in", shards=3, images=17)
    write_tar(folder / "in" / "bad.tar", {"bad0.jpg": b"no image", "good.jpg": photo(77), "bad1.jpg": b""})
    keys += ["bad0", "good", "bad1"]
    done = two_gpus.label(
        folder / "cpu", small_model, folder / "in", device="cpu", embedding="float32", **BATCH
    )
    return folder / "in", keys, check(done, folder / "cpu", keys)


# ---- the plan ----------------------------------------------------------------------------------------------


def test_a_gpu_clusters_plan_gives_the_rows_of_the_cpu_plan(tmp_path, small_model, two_gpus, labelled):
    """A call gets exactly one unit, which `Unit.from_arrow` asserts: blocks of one row, of which Ray makes
    batches of one row. What the GPUs can do is found before the run begins, and frozen in its plan."""
    source, keys, wanted = labelled
    asked = {"unit_rows": 8, "embedding": "float32", "precision": "auto"}
    two_gpus.set_faults(bf16=False)
    done = two_gpus.label(tmp_path / "out", small_model, source, **asked)
    assert_same(check(done, tmp_path / "out", keys), wanted)
    assert done["summary"]["files"] == 10, "17 samples are units of 8, 8 and 1"
    resolved = json.loads((tmp_path / "out" / "_run" / "plan.json").read_text())["resolved"]
    assert resolved["batch_size"] in (64, 128, 256, 512) and (resolved["device"], resolved["precision"]) == (
        "cuda",
        "fp32",
    )
    gpu = done["summary"]["last_command"]["gpu"]
    assert gpu == {
        "nodes": 1,
        "modes": {"graphs": 10},
        "batch_sizes": {str(resolved["batch_size"]): 10},
        "notes": [],
    }
    assert 1 <= len(two_gpus.actors()) <= 2, "the second one may come when all is done"
    told = f": fp32, CUDA graphs, batches of {resolved['batch_size']}, "
    assert any(note.startswith("Stand-in GPU on node ") and told in note for note in done["notes"])

    two_gpus.set_faults(bf16=True)
    interrupt(tmp_path / "out")
    done = two_gpus.label(tmp_path / "out", small_model, source, **asked)
    assert_same(check(done, tmp_path / "out", keys), wanted)
    assert any(told in note for note in done["notes"]), "a run goes on as it began"


def interrupt(out: Path) -> None:
    """Leave a run as one that was killed before its last unit."""
    (out / "_run" / "summary.json").unlink()
    next((out / "predictions").iterdir()).unlink()


@pytest.mark.long  # how parts are claimed: tests/cluster/test_resources.py
def test_parts_of_a_gpu_take_more_actors_and_each_has_two_units_under_way(
    two_gpus, labelled, tmp_path, small_model
):
    source, keys, wanted = labelled
    two_gpus.set_faults(pace=1.0, in_calls=True)
    done = two_gpus.label(
        tmp_path / "out", small_model, source, gpus_per_actor=0.5, batch_size=2, unit_rows=2
    )
    assert_same(check(done, tmp_path / "out", keys), wanted)
    actors = two_gpus.actors()
    assert 2 <= len(actors) <= 4 and max(actor["together"] for actor in actors) == UNITS_IN_FLIGHT


@pytest.mark.long  # the plan itself: the test of the CPU plan's rows
def test_embed_takes_the_gpu(tmp_path, small_model, two_gpus, labelled):
    source, keys, wanted = labelled
    asked = {"command": "embed", "top_k": 0, "embedding": "float32", "gpu_mode": "plain"}
    done = two_gpus.label(tmp_path / "out", small_model, source, **asked, **BATCH)
    rows = check(done, tmp_path / "out", keys)
    assert_same(rows, wanted)
    assert all((row["embedding"] is None) == (row["error"] is not None) for row in rows.values())
    assert done["summary"]["last_command"]["gpu"]["modes"] == {"plain": 10}


@pytest.mark.long  # the plan itself: the test of the CPU plan's rows
def test_evaluate_takes_the_gpu(tmp_path, small_model, two_gpus):
    names = {f"{number}.jpg": photo(number) for number in range(9)} | {
        f"{number}.cls": b"1" for number in range(9)
    }
    write_tar(tmp_path / "in" / "a.tar", dict(sorted(names.items())))
    figures = two_gpus.evaluate(tmp_path / "out", small_model, tmp_path / "in", target="cls", batch_size=4)[
        "figures"
    ]
    assert figures["images"] == 9 and figures["errors"] == 0
    assert (
        json.loads((tmp_path / "out" / "test" / "_run" / "plan.json").read_text())["resolved"]["device"]
        == "cuda"
    )


@pytest.mark.long  # on CPUs: test_labeler_again.py
def test_errors_are_tried_again_on_the_gpu(tmp_path, small_model, two_gpus):
    write_tar(tmp_path / "in" / "a.tar", {"a.jpg": photo(1), "b.jpg": photo(2), "c.jpg": b"never"})
    asked = {"gpu_mode": "overlap", **BATCH}
    done = two_gpus.label(tmp_path / "out", small_model, tmp_path / "in", limits={"max_pixels": 10}, **asked)
    assert done["summary"]["errors"] == {"too_many_pixels": 2, "not_an_image": 1}
    done = two_gpus.label(tmp_path / "out", small_model, tmp_path / "in", retry_errors=True, **asked)
    assert "error" not in done, done
    rows = rows_of(tmp_path / "out")
    assert [rows[key]["error"] for key in "abc"] == [None, None, "not_an_image"] and rows["a"]["label"]
    assert done["summary"]["last_command"]["gpu"]["modes"] == {"overlap": 1}


@pytest.mark.long  # the plan of two GPUs is above; what fits where is in tests/cluster
@pytest.mark.parametrize(("nodes", "cpus"), [(2, 2), (1, 1)])
def test_nodes_with_few_cpus_have_room_for_every_stage(tmp_path, small_model, labelled, nodes, cpus):
    """Two nodes, each with a GPU; and a node with one GPU and one CPU, of which the stages take turns."""
    source, keys, wanted = labelled
    with contextlib.closing(GpuCluster(tmp_path / "cluster", nodes=nodes, cpus=cpus)) as cluster:
        cluster.set_faults(pace=0.1)
        done = cluster.label(
            tmp_path / "out", small_model, source, stall_timeout=90, batch_size=4, unit_rows=4
        )
        assert_same(check(done, tmp_path / "out", keys), wanted)
        assert 1 <= len(cluster.actors()) <= nodes
        assert any(
            ("a GPU of each of 2 nodes" if nodes == 2 else "the GPU") in note for note in done["notes"]
        )


@pytest.mark.long  # a node of CPUs that joins: tests/cluster/test_nodes_come_and_go.py
def test_a_gpu_that_joins_is_tried_first_and_left_alone_where_it_cannot_be_used(tmp_path, small_model):
    keys = write_shards(tmp_path / "in", shards=12, images=20)
    held = tmp_path / "held"
    held.touch()
    slow = {"pace": 0.1, "in_calls": True, "hold": str(held)}
    with contextlib.closing(GpuCluster(tmp_path / "cluster")) as cluster, ThreadPoolExecutor(1) as pool:
        cluster.set_faults(**slow)
        asked = {"batch_size": 2, "unit_rows": 4, "gpu_mode": "plain"}
        labelling = pool.submit(cluster.label, tmp_path / "out", small_model, tmp_path / "in", **asked)
        wait_until(lambda: cluster.actors() or labelling.done(), "a unit on a GPU")
        (first,) = {actor["node"] for actor in cluster.actors()}
        cluster.set_faults(present=False, why_absent="too old")
        refused = cluster.machines.add()["id"]
        wait_until(lambda: any("is left alone" in note for note in cluster.notes), "a refusal")
        cluster.set_faults(**slow)
        last = cluster.machines.add()["id"]
        wait_until(lambda: last in {actor["node"] for actor in cluster.actors()}, "a unit on the last GPU")
        held.unlink()
        done = labelling.result(timeout=240)
        check(done, tmp_path / "out", keys)
        assert {actor["node"] for actor in cluster.actors()} == {first, last} and refused not in (first, last)
    (left_alone,) = [note for note in done["notes"] if "joined, and is left alone: " in note]
    assert "too old" in left_alone
    (joined,) = [note for note in done["notes"] if "joined: " in note]
    assert joined.endswith("2 model actors now")


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)  # files and notes tell nobody


# ---- the ladder --------------------------------------------------------------------------------------------


def test_what_does_not_work_is_said_once_and_stands_in_the_summary_with_its_reason(
    tmp_path, small_model, two_gpus, labelled
):
    """Graphs that cannot be captured, and memory that becomes too small in the middle: the unit is done again
    by smaller batches."""
    source, keys, wanted = labelled
    two_gpus.set_faults(capture_fails="error", memory_after=[2, 1], in_calls=True)
    done = two_gpus.label(tmp_path / "out", small_model, source, batch_size=4, unit_rows=4)
    assert_same(check(done, tmp_path / "out", keys), wanted)
    gpu = done["summary"]["last_command"]["gpu"]
    (graphs,) = (
        note
        for note in gpu["notes"]
        if "--gpu-mode graphs does not work here (RuntimeError: standin error" in note
    )
    (halved,) = (note for note in gpu["notes"] if "memory became too small for batches of 4: " in note)
    assert done["notes"].count(graphs) == done["notes"].count(halved) == 1
    assert gpu["modes"].keys() == {"overlap"} and set(gpu["batch_sizes"]) & {"1", "2"}


@pytest.mark.long  # the trial itself: tests/prediction/test_gpu_trial.py
def test_a_way_that_takes_the_gpu_down_is_tried_no_more(tmp_path, small_model, two_gpus, labelled):
    """A capture after which the device answers nothing any more: the next way is tried in another process."""
    source, keys, wanted = labelled
    two_gpus.set_faults(capture_fails="lost")
    done = two_gpus.label(tmp_path / "out", small_model, source, **BATCH)
    assert_same(check(done, tmp_path / "out", keys), wanted)
    gpu = done["summary"]["last_command"]["gpu"]
    assert gpu["modes"] == {"overlap": 10} and "is lost: AcceleratorError" in gpu["notes"][0]


def test_a_gpu_that_is_lost_is_started_again_and_its_units_are_done_once(
    tmp_path, small_model, two_gpus, labelled
):
    source, keys, wanted = labelled
    once = tmp_path / "once"
    once.touch()
    two_gpus.set_faults(lost_at=3, once=str(once), in_calls=True)
    done = two_gpus.label(tmp_path / "out", small_model, source, batch_size=4, unit_rows=4)
    assert not once.exists(), "it was never lost"
    assert_same(check(done, tmp_path / "out", keys), wanted)
    (note,) = done["summary"]["last_command"]["gpu"]["notes"]
    assert (
        "is lost: AcceleratorError: standin error: unspecified launch failure; its actor was started again"
        in note
    )


@pytest.mark.long
def test_a_gpu_that_is_lost_again_and_again_ends_the_run_and_is_named(
    tmp_path, small_model, two_gpus, labelled
):
    two_gpus.set_faults(lost_at=1, in_calls=True)
    done = two_gpus.label(tmp_path / "out", small_model, labelled[0], **BATCH)
    assert (
        "is lost: AcceleratorError" in done["error"] and "started 6 times: look at that GPU" in done["error"]
    ), done


# ---- what is refused ---------------------------------------------------------------------------------------

ABSENT = {
    "present": False,
    "why_absent": "The NVIDIA driver on your system is too old (found version 11040).",
}
REFUSED = [
    (
        ABSENT,
        "cannot use the GPU that Ray has here "
        "(RuntimeError: The NVIDIA driver on your system is too old (found version 11040).)",
    ),
    pytest.param({"memory": 5000}, "its memory is too small for the model's weights", marks=pytest.mark.long),
    pytest.param(
        {"memory": 110_000},
        "the model does not fit into its memory with a batch of one image "
        "(16.0 GiB in all, 16.0 GiB are held by",
        marks=pytest.mark.long,
    ),
    pytest.param(
        {"lost_at": 1},
        "cannot use the GPU that Ray has here (AcceleratorError: standin error: unspecified launch failure)",
        marks=pytest.mark.long,
    ),
    pytest.param(
        {"lost_at": 2},
        "is lost: AcceleratorError: standin error: unspecified launch failure "
        "with --gpu-mode plain: look at that GPU",
        marks=pytest.mark.long,
    ),
]


@pytest.mark.parametrize(("faults", "said"), REFUSED)
def test_a_gpu_that_cannot_be_used_is_named_and_the_output_stays_as_it_was(
    tmp_path, small_model, two_gpus, labelled, faults, said
):
    two_gpus.set_faults(**faults)
    done = two_gpus.label(tmp_path / "out", small_model, labelled[0], **BATCH)
    assert (
        said in done["error"]
        and "on node " in done["error"].replace("node vm:", "on node vm")
        and "\n" not in done["error"]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_actor_that_cannot_start_says_why_in_one_line(tmp_path, small_model, two_gpus, labelled):
    """After a trial that went well: another process took the GPU in between."""
    two_gpus.set_faults(to_actors=False, why_absent="no CUDA-capable device is detected")
    done = two_gpus.label(tmp_path / "out", small_model, labelled[0], **BATCH)
    assert (
        "cannot use the GPU that Ray has here (RuntimeError: no CUDA-capable device is detected)"
        in done["error"]
    )
    assert done["error"].startswith("node ") and "\n" not in done["error"]


def test_a_run_of_cpus_says_that_gpus_stay_idle_and_how_to_use_them(
    tmp_path, small_model, two_gpus, labelled, local_ray
):
    source, keys, wanted = labelled
    model = load_folder(small_model)
    run(tmp_path, model, source, **BATCH)
    with pytest.raises(
        UserError, match=r"this run is for GPUs .* and Ray sees no GPU: start Ray where there is one"
    ):
        run(tmp_path / "gpu", model, source, device="cuda", **BATCH)
    assert not (tmp_path / "gpu").exists()
    interrupt(tmp_path / "out")
    done = two_gpus.label(tmp_path / "out", small_model, source, **BATCH)
    assert_same(check(done, tmp_path / "out", keys), wanted)
    (note,) = [note for note in done["notes"] if "begun on CPUs" in note]
    assert "2 GPUs of this cluster stay idle" in note and "label into a new --output" in note
    assert "gpu" not in done["summary"]["last_command"]
