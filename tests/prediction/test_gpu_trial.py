"""gpu_trial: what a run on several GPUs is, from what each of them can do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from wordsworth.pipeline.cluster.nodes import Node
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction import gpu_trial
from wordsworth.pipeline.prediction.actor import PredictSettings
from wordsworth.pipeline.prediction.gpu import DeviceLost
from wordsworth.pipeline.prediction.gpu_modes import MODES
from wordsworth.pipeline.prediction.gpu_trial import GpuTrial, modes_of, try_gpus
from wordsworth.pipeline.unit import GpuCall

NODES = [Node("a", 4.0, 1.0), Node("b", 4.0, 1.0), Node("no CPU", 0.0, 1.0)]
CALL = GpuCall(gpu="GPU on node a", mode="graphs", batch_size=256, notes=[])
GOOD = GpuTrial(call=CALL, precision="bf16", rate=1000.0)


@pytest.fixture
def trial(monkeypatch):
    """A function that tries GPUs which answer in turn as the lists of answers say; what each attempt was
    told, and the notes."""
    seen = SimpleNamespace(settings=[], nodes=[], notes=[])

    def run(*attempts: list[GpuTrial] | Exception, modes: tuple[str, ...] = MODES):
        answers = iter(attempts)

        def tried(weights, settings, claim, nodes, note, patience_s):
            seen.settings.append(settings)
            seen.nodes.append([node.node_id for node in nodes])
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return iter(answer)

        monkeypatch.setattr(gpu_trial, "_run_trials", tried)
        settings = PredictSettings(precision="auto", device="cuda", batch_size=None, gpu_modes=modes)
        return try_gpus(None, settings, {"num_gpus": 1.0, "num_cpus": 0.5}, NODES, seen.notes.append, 60)

    return run, seen


def test_all_do_what_the_least_of_them_can(trial):
    run, seen = trial
    other = GpuCall(gpu="GPU on node b", mode="overlap", batch_size=64, notes=["why"])
    way = run([GOOD, replace(GOOD, call=other, rate=500.0)])
    assert (way.precision, way.modes, way.batch_size, way.notes) == (
        "bf16",
        ("overlap", "plain"),
        64,
        ("why",),
    )
    assert (
        way.told == "GPU on node a and 1 more: bf16, overlapped batches, batches of 64, "
        "500 images/s of the model alone"
    )
    assert seen.nodes == [["a", "b"]], "a node without a CPU takes no actor"


def test_where_one_computes_no_bf16_all_are_tried_in_fp32(trial):
    run, seen = trial
    smaller = GpuTrial(call=replace(CALL, batch_size=128), precision="fp32", rate=1000.0)
    way = run([GOOD, replace(GOOD, precision="fp32")], [smaller] * 2)
    assert [settings.precision for settings in seen.settings] == ["auto", "fp32"]
    assert (way.precision, way.batch_size) == ("fp32", 128) and "all use fp32" in way.notes[0]


def test_a_way_that_takes_a_gpu_down_is_left_for_the_next_and_the_last_one_ends_it(trial):
    run, seen = trial
    way = run(DeviceLost("GPU on node a is lost: x"), [replace(GOOD, call=replace(CALL, mode="overlap"))])
    assert [settings.gpu_modes for settings in seen.settings] == [MODES, MODES[1:]] and way.modes == MODES[1:]
    assert way.notes == ("GPU on node a is lost: x with --gpu-mode graphs: goes on with overlap",)
    with pytest.raises(
        UserError,
        match=r"lost: x with --gpu-mode plain: look at that GPU \(nvidia-smi, dmesg\), or leave its node out",
    ):
        run(*[DeviceLost("GPU on node a is lost: x")] * 3)
    with pytest.raises(UserError, match="with --gpu-mode graphs: look at that GPU"):
        run(DeviceLost("GPU on node a is lost: x"), modes=modes_of("graphs"))
