"""Training on a cluster with declared GPUs, as far as the stand-in carries it: one worker.

Tested are its place, its device, autocast, pinned batches and checkpoints. Several workers exchange gradients
by NCCL, which only GPUs have.
"""

import contextlib
import json
from dataclasses import asdict

import pytest

from tests.support.standin.cluster import GpuCluster
from tests.support.trainings import SIZE, write_classes
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory):
    with contextlib.closing(GpuCluster(tmp_path_factory.mktemp("gpu"))) as cluster:
        yield cluster


def train(cluster, tmp_path, name: str, **changes) -> dict:
    asked = {
        "epochs": 1,
        "batch_size": 16,
        "precision": "fp32",
        "workers": 1,
        "config": asdict(SIZE),
        "seed": 3,
    }
    return cluster.train(tmp_path / name, tmp_path / "shards", **(asked | changes))


@pytest.mark.long  # two trainings; the step itself: test_step.py, the placement: the tests below
def test_a_worker_of_a_gpu_learns_what_one_of_a_cpu_learns(tmp_path, one_gpu):
    """And what it saves is what labelling and fine-tuning on a GPU begin with."""
    write_classes(tmp_path / "shards", shards=2, images=40)
    found = {device: train(one_gpu, tmp_path, device, device=device) for device in ("cpu", "auto")}
    for device, name in (("cpu", "cpu"), ("auto", "standin")):
        assert "error" not in found[device], found[device]
        (begin,) = (news for news in found[device]["heard"] if news["kind"] == "begin")
        assert (begin["device"], begin["workers"]) == (name, 1)
        assert (
            json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[-1])[
                "images_per_second"
            ]
            > 0
        )
    assert found["auto"]["last"]["loss"] == pytest.approx(found["cpu"]["last"]["loss"], abs=1e-3)
    assert load_folder(tmp_path / "auto").config.num_classes == 2

    tuned = train(one_gpu, tmp_path, "tuned", start=str(tmp_path / "auto"), precision="auto", compile=True)
    assert "error" not in tuned, tuned
    assert tuned["last"]["loss"] < found["auto"]["last"]["loss"] + 0.1
    (note,) = (news["message"] for news in tuned["heard"] if news["kind"] == "note")
    assert note.startswith("--compile does not work here (") and note.endswith("): goes on without")


@pytest.mark.long  # of the labeler: tests/labeling/test_gpu_plan.py
def test_a_gpu_that_torch_cannot_use_is_named_and_its_cpu_does_not_train_in_its_place(tmp_path, one_gpu):
    write_classes(tmp_path / "shards", shards=2, images=40)
    one_gpu.set_faults(
        present=False, why_absent="The NVIDIA driver on your system is too old (found version 11040)."
    )
    refused = train(one_gpu, tmp_path, "model")
    assert (
        "cannot use the GPU that Ray has here (RuntimeError: The NVIDIA driver on your system is too old"
        in refused["error"]
    )
    one_gpu.set_faults(memory=150_000)
    refused = train(one_gpu, tmp_path, "model")
    assert ": its memory is too small for 16 images at a time: use a larger --accumulate" in refused["error"]
