"""batches: as a GPU takes them, of one shape and several at a time. On a CPU its streams do nothing; the rest is the same code."""

import threading

import numpy as np
import pytest
import torch

from pipeline import batches
from pipeline.batches import InTurn, Overlapped
from pipeline.errors import UserError

SHAPE = (6, 12)  # N patches of P*P*3 values
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def answer(patches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every row something that no other row has."""
    values = patches.float().flatten(1)
    return {"first": values[:, 0], "moments": torch.stack([values.mean(1), values.std(1)], 1)}


def unit(rows: int, seed: int = 0) -> np.ndarray:
    patches = np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    patches.flags.writeable = False  # as it comes from the object store
    return patches


def same(found: dict[str, np.ndarray], patches: np.ndarray) -> bool:
    wanted = answer(torch.from_numpy(patches.copy()))
    return found.keys() == wanted.keys() and all(np.allclose(found[name], wanted[name], rtol=1e-5) for name in wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 47])
def test_every_row_gets_its_own_answer_in_order(device, rows):
    """Short last batches too: what an earlier batch left in the buffers is in no answer."""
    overlapped = Overlapped(answer, SHAPE, device, 8)
    for seed in range(3):
        assert same(overlapped(unit(rows, seed)), unit(rows, seed))


def test_no_rows_are_no_answer():
    assert InTurn(answer, SHAPE, "cpu", 8)(unit(0)) == Overlapped(answer, SHAPE, "cpu", 8)(unit(0)) == {}


@pytest.mark.parametrize("device", DEVICES)
def test_units_of_several_threads_do_not_mix(device):
    overlapped, wrong, start = Overlapped(answer, SHAPE, device, 4), [], threading.Barrier(batches.UNITS)

    def work(thread: int) -> None:
        start.wait()
        for seed in range(thread, 60, batches.UNITS):
            if not same(overlapped(unit(21, seed)), unit(21, seed)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(batches.UNITS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def small(most: int):
    """A device whose memory is enough for so many images at a time; the sizes that were tried."""
    tried = []

    def limited(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        tried.append(len(patches))
        if len(patches) > most:
            raise torch.OutOfMemoryError("out of memory")
        return answer(patches)

    return limited, tried


def test_a_batch_for_which_memory_is_too_small_is_halved_until_it_fits():
    limited, tried = small(most=5)
    overlapped = Overlapped(limited, SHAPE, "cpu", 32)
    assert overlapped.batch_size == 4 and list(dict.fromkeys(tried)) == [32, 16, 8, 4]
    assert same(overlapped(unit(11)), unit(11))


def test_memory_that_becomes_too_small_later_costs_no_row():
    full = threading.Event()

    def later(patches: torch.Tensor) -> dict[str, torch.Tensor]:
        if full.is_set() and len(patches) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return answer(patches)

    overlapped = Overlapped(later, SHAPE, "cpu", 16)
    assert same(overlapped(unit(40)), unit(40)) and overlapped.batch_size == 16
    full.set()
    assert same(overlapped(unit(40)), unit(40)) and overlapped.batch_size == 4, "remembered"


def test_a_model_that_fits_with_no_batch_says_what_to_do():
    with pytest.raises(UserError, match="does not fit into the memory of this cpu with a batch of one image: use"):
        Overlapped(small(most=0)[0], SHAPE, "cpu", 8)


def test_the_size_that_is_found_is_the_smallest_beyond_which_nothing_is_won(monkeypatch):
    rates = {64: 100.0, 128: 150.0, 256: 190.0, 512: 191.0}
    monkeypatch.setattr(batches.Lanes, "rate", lambda lanes: rates[lanes.size])
    assert Overlapped(answer, SHAPE, "cpu", None).batch_size == 256
    assert Overlapped(small(most=200)[0], SHAPE, "cpu", None).batch_size == 128
    assert Overlapped(small(most=40)[0], SHAPE, "cpu", None).batch_size == 32


def test_a_rate_is_measured():
    assert batches.Lanes(answer, SHAPE, torch.device("cpu"), 8).rate() > 0
