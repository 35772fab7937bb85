"""gpu_batches and gpu_modes: the ways in which a GPU works off a unit.

The device is a stand-in whose queues run as late as they may, or in any order that streams and events allow.
On a machine with a GPU the same tests run there.
"""

import contextlib
import threading

import numpy as np
import pytest
import torch

from tests.support.standin.device import POLICIES, standin
from tests.support.standin.queues import DEVICE
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction import gpu_batches as batches
from wordsworth.pipeline.prediction.gpu import DeviceLost
from wordsworth.pipeline.prediction.gpu_batches import UNITS_IN_FLIGHT, OverlappedBatches, SequentialBatches
from wordsworth.pipeline.prediction.gpu_modes import MODES, GpuBatches

SHAPE = (6, 12)  # N patches of P*P*3 values
CPU = torch.device("cpu")


@pytest.fixture(params=[*POLICIES, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with standin(policy=request.param) as made:
        yield made


@pytest.fixture
def late():
    """The stand-in alone, whose queues run when somebody waits."""
    with standin(policy="late") as made:
        yield made


def answer(patches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return something of every row that no other row has."""
    values = patches.float().flatten(1)
    return {"first": values[:, 0] + 1, "moments": torch.stack([values.mean(1), values.std(1)], 1)}


def unit(rows: int, seed: int = 0) -> np.ndarray:
    patches = np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    patches.flags.writeable = False  # as it comes from the object store
    return patches


def same(found: dict[str, np.ndarray], patches: np.ndarray) -> bool:
    wanted = answer(torch.from_numpy(patches.copy()))
    return found.keys() == wanted.keys() and all(
        np.allclose(found[name], wanted[name], rtol=1e-5) for name in wanted
    )


# ---- answers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 47])
def test_every_row_gets_its_own_answer_in_order(device, mode, rows):
    """Short last batches too: what an earlier batch left in the buffers is in no answer."""
    ladder = GpuBatches(answer, SHAPE, device, 8, (mode,))
    for seed in range(3):
        assert same(ladder(unit(rows, seed)), unit(rows, seed))
    assert ladder.mode == mode and not ladder.notes


@pytest.mark.parametrize("mode", MODES)
def test_no_rows_are_no_answer(device, mode):
    assert SequentialBatches(answer, SHAPE, CPU, 8)(unit(0)) == {}
    assert GpuBatches(answer, SHAPE, device, 8, (mode,))(unit(0)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_units_of_several_threads_do_not_mix(device, mode):
    ladder = GpuBatches(answer, SHAPE, device, 4, (mode,))
    wrong = in_threads(lambda seed: same(ladder(unit(21, seed)), unit(21, seed)))
    assert not wrong and not ladder.notes


def in_threads(right, count: int = 30) -> list[int]:
    """Call `right` with 0 to count - 1 from UNITS_IN_FLIGHT threads that start together; those for which
    it was not so."""
    wrong, start = [], threading.Barrier(UNITS_IN_FLIGHT)

    def work(thread: int) -> None:
        start.wait()
        wrong.extend(seed for seed in range(thread, count, UNITS_IN_FLIGHT) if not right(seed))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(UNITS_IN_FLIGHT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return wrong


@pytest.mark.parametrize("mode", ["graphs", "overlap"])
def test_a_batch_is_begun_before_the_one_before_it_is_waited_for(late, mode):
    """Or the GPU would stand still while a batch is brought and taken."""
    ladder = GpuBatches(answer, SHAPE, late, 4, (mode,))
    begun, waits = [], DEVICE.waits
    start = batches.BatchSlot.start

    def counting(lane, copies):
        begun.append(DEVICE.waits - waits)
        start(lane, copies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches.BatchSlot, "start", counting)
        assert same(ladder(unit(20)), unit(20))
    assert begun == [0, 0, 1, 2, 3], "two batches are under way"


def test_batches_of_graphs_compute_without_a_launch_for_every_kernel(late):
    calls = []

    def counted(patches):
        calls.append(len(patches))
        return answer(patches)

    ladder = GpuBatches(counted, SHAPE, late, 4, ("graphs",))
    made = len(calls)
    assert same(ladder(unit(40)), unit(40)) and len(calls) == made


# ---- memory ------------------------------------------------------------------------------------------------


def small(most: int):
    """A model whose memory is enough for so many images at a time; the sizes that were tried."""
    tried = []

    def limited(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        tried.append(len(patches))
        if len(patches) > most:
            raise torch.OutOfMemoryError("out of memory")
        return answer(patches)

    return limited, tried


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_for_which_memory_is_too_small_is_halved_until_it_fits(late, mode):
    limited, tried = small(most=5)
    ladder = GpuBatches(limited, SHAPE, late, 32, (mode,))
    assert ladder.batch_size == 4 and list(dict.fromkeys(tried)) == [32, 16, 8, 4]
    assert same(ladder(unit(11)), unit(11))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["overlap", "plain"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_memory_that_becomes_too_small_later_costs_no_row(late, mode, error):
    full = threading.Event()

    def later(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        if full.is_set() and len(patches) > 4:
            raise error
        return answer(patches)

    ladder = GpuBatches(later, SHAPE, late, 16, (mode,))
    assert same(ladder(unit(40)), unit(40)) and ladder.batch_size == 16
    full.set()
    assert not in_threads(lambda seed: same(ladder(unit(40, seed)), unit(40, seed)), count=6)
    assert ladder.batch_size == 4, "remembered"
    assert ladder.notes == [f"{ladder.name}: memory became too small for batches of 16: 4 from then on"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graphs", "overlap"])
def test_the_bound_of_the_devices_own_allocator_is_kept_and_what_is_given_up_is_free_again(late, mode):
    """The larger buffers are given back before smaller ones are made: both at once would not fit."""
    need = GpuBatches(answer, SHAPE, late, 64, (mode,))
    DEVICE.faults.memory = DEVICE.peak - 1
    need.current.close()
    del need
    assert DEVICE.allocated == 0, "nothing of a way that was closed is left on the device"
    ladder = GpuBatches(answer, SHAPE, late, 64, (mode,))
    assert ladder.batch_size == 32 and same(ladder(unit(70)), unit(70))


@pytest.mark.slow
def test_larger_buffers_are_given_back_before_smaller_ones_are_made(late):
    """In the middle of a run, when another process has taken what was free: both at once would not fit."""
    ladder = GpuBatches(answer, SHAPE, late, 64, ("overlap",))
    DEVICE.faults.memory = DEVICE.allocated
    assert same(ladder(unit(70)), unit(70)) and ladder.batch_size == 32


@pytest.mark.long
@pytest.mark.slow
def test_a_model_that_fits_with_no_batch_says_what_to_do(late):
    said = (
        r"Stand-in GPU on node .*: the model does not fit into its memory with a batch of one image .*: "
        r"use --precision bf16"
    )
    with pytest.raises(UserError, match=said):
        GpuBatches(small(most=0)[0], SHAPE, late, 8)


@pytest.mark.long
@pytest.mark.slow
def test_memory_that_others_hold_is_named():
    with (
        standin(memory=1 << 33) as device,
        pytest.raises(UserError, match=r"16.0 GiB in all, 8.0 GiB are held by other processes"),
    ):
        GpuBatches(small(most=0)[0], SHAPE, device, 8)


@pytest.mark.slow
def test_a_way_with_less_buffers_is_tried_before_the_model_is_said_not_to_fit(late):
    patches = np.zeros((1, *SHAPE), np.uint8)
    plain = GpuBatches(answer, SHAPE, late, 1, ("plain",))
    DEVICE.peak = DEVICE.allocated
    plain(patches)
    DEVICE.faults.memory = DEVICE.peak
    ladder = GpuBatches(answer, SHAPE, late, 4)
    assert (ladder.mode, ladder.batch_size) == ("plain", 1) and same(ladder(unit(9)), unit(9))


# ---- the size ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_size_that_is_found_is_the_smallest_beyond_which_nothing_is_won(late, monkeypatch):
    rates = {64: 100.0, 128: 150.0, 256: 190.0, 512: 191.0}
    monkeypatch.setattr(OverlappedBatches, "rate", lambda lanes: rates[lanes.batch_size])
    assert GpuBatches(answer, SHAPE, late).batch_size == 256
    assert GpuBatches(answer, SHAPE, late, largest_batch=200).batch_size == 128, "a unit has no more"
    assert GpuBatches(answer, SHAPE, late, largest_batch=50).batch_size == 50
    assert GpuBatches(small(most=200)[0], SHAPE, late).batch_size == 128
    assert GpuBatches(small(most=40)[0], SHAPE, late).batch_size == 32
    monkeypatch.setattr("wordsworth.pipeline.prediction.gpu_modes.SEARCH_SECONDS", 0.0)
    assert GpuBatches(answer, SHAPE, late).batch_size == 64, "a slow device is not searched for minutes"


@pytest.mark.slow
def test_a_search_that_fails_keeps_what_it_has_and_says_why(late, monkeypatch):
    def rate(lanes):
        if lanes.batch_size > 64:
            raise RuntimeError("no timer")
        return 1.0

    monkeypatch.setattr(OverlappedBatches, "rate", rate)
    ladder = GpuBatches(answer, SHAPE, late)
    assert (ladder.mode, ladder.batch_size) == ("graphs", 64) and same(ladder(unit(70)), unit(70))
    assert ladder.notes == [
        f"{ladder.name}: batches of 128 could not be tried (RuntimeError: no timer): 64 stays"
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_rate_is_measured(device, mode):
    assert GpuBatches(answer, SHAPE, device, 8, (mode,)).rate() > 0


# ---- the ladder down ---------------------------------------------------------------------------------------

FALLS = [
    (
        {"capture_fails": "error"},
        "overlap",
        ["graphs does not work here (RuntimeError: standin error: operation failed"],
    ),
    (
        {"pinning_fails": True},
        "plain",
        ["graphs does not work here (", "overlap does not work here (RuntimeError: standin error: res"],
    ),
    (
        {"streams_fail": True},
        "plain",
        ["graphs does not work here (", "overlap does not work here (RuntimeError: standin error: no st"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "mode", "notes"), FALLS)
def test_what_does_not_work_makes_room_for_the_next_simpler_way(faults, mode, notes):
    with standin(**faults) as device:
        ladder = GpuBatches(answer, SHAPE, device, 8)
        assert ladder.mode == mode and same(ladder(unit(30)), unit(30))
    assert len(ladder.notes) == len(notes)
    for note, part in zip(ladder.notes, notes, strict=True):
        assert (
            note.startswith(f"{ladder.name}: --gpu-mode {part}")
            and "goes on with" in note
            and "\n" not in note
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "mode"), [({"capture_fails": "error"}, "graphs"), ({"pinning_fails": True}, "overlap")]
)
def test_a_way_that_was_asked_for_is_taken_or_refused(faults, mode):
    said = f"the model does not run there by --gpu-mode {mode} .*: use --gpu-mode auto"
    with standin(**faults) as device, pytest.raises(UserError, match=said):
        GpuBatches(answer, SHAPE, device, 8, (mode,))


@pytest.mark.slow
def test_what_a_capture_may_not_do_is_found_there_and_not_in_a_wrong_answer(late):
    """A model that looks at a value on the host cannot be captured; it runs all the same."""

    def looking(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        return answer(patches) if patches.float().sum().item() >= 0 else {}

    ladder = GpuBatches(looking, SHAPE, late, 8)
    assert ladder.mode == "overlap" and "not permitted when stream is capturing" in ladder.notes[0]
    assert same(ladder(unit(30)), unit(30))


@pytest.mark.slow
def test_a_way_that_fails_in_the_middle_does_the_unit_again_by_the_next(late):
    broken = threading.Event()

    def later(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        if (
            broken.is_set()
            and torch.get_device_module("standin").current_stream() is DEVICE.default
            and DEVICE.graph is None
        ):
            broken.clear()
            raise RuntimeError("no kernel for this")
        return answer(patches)

    ladder = GpuBatches(later, SHAPE, late, 8, ("overlap", "plain"))
    broken.set()
    assert not in_threads(lambda seed: same(ladder(unit(40, seed)), unit(40, seed)), count=8)
    assert ladder.mode == "plain" and ladder.notes[0].endswith(
        "(RuntimeError: no kernel for this): goes on with plain"
    )


@pytest.mark.slow
def test_a_fault_of_the_model_itself_is_told_when_no_way_is_left(late):
    def wrong(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        raise ValueError("no such layer")

    with pytest.raises(UserError, match=r"by --gpu-mode plain .ValueError: no such layer"):
        GpuBatches(wrong, SHAPE, late, 8)


@pytest.mark.slow
def test_a_device_that_is_lost_is_not_a_way_that_does_not_work():
    with standin(lost_at=12) as device:
        with contextlib.suppress(DeviceLost):
            ladder = GpuBatches(answer, SHAPE, device, 4)
            for seed in range(50):
                ladder(unit(9, seed))
            pytest.fail("it was never lost")
        assert DEVICE.lost
        with pytest.raises(
            DeviceLost, match=r"Stand-in GPU on node .* is lost: AcceleratorError: standin error"
        ):
            GpuBatches(answer, SHAPE, device, 4)
