"""bottleneck: the stage that holds a run back is named, with what to change."""

import pytest

from wordsworth.pipeline.labeling.bottleneck import MIN_UNITS_PER_ACTOR, BottleneckFinder
from wordsworth.pipeline.output.records import RECEIPT, Receipt


def after(
    device: str = "cpu", actors: int = 2, units: int = 41, every: float = 1.0, **seconds: float | None
) -> BottleneckFinder:
    """A run that wrote a unit `every` second, of whose stages each took so many seconds for a unit."""
    now = 0.0
    finder = BottleneckFinder(actors, device, clock=lambda: now)
    row = dict.fromkeys(RECEIPT.names) | {"errors": "{}", "bytes_read": 5_000_000, "rows": 10} | seconds
    for _ in range(units):
        now += every
        finder.add(Receipt.from_row(row))
    return finder


def test_a_model_that_is_busy_all_the_time_is_what_holds_a_run_back():
    finder = after(decode=0.2, predict=1.9)
    assert finder.busy == {"read": 0.0, "decode": 0.2, "predict": 1.9, "write": 0.0}
    assert finder.model_share == 0.95
    assert finder.images_per_second == 10.0
    assert finder.advice() == "the model, its 2 actors busy 95%: more cores make it faster"
    assert (
        after("cuda", 1, decode=7.0, predict=0.9).advice()
        == "the model, its GPU busy 90%: more GPUs make it faster"
    )


def test_actors_that_come_and_go_count_while_they_live():
    now = 0.0
    alive = 0
    finder = BottleneckFinder(1, "cpu", clock=lambda: now, count_actors=lambda: alive)
    row = dict.fromkeys(RECEIPT.names) | {"errors": "{}", "bytes_read": 1, "rows": 10, "predict": 1.9}
    for number in range(41):
        now += 1.0
        alive = 1 if number <= 20 else 3  # two nodes join, with an actor each
        finder.add(Receipt.from_row(row))
    assert finder.model_share == 0.95
    assert finder.advice() == "the model, its 2 actors busy 95%: more cores make it faster"


def test_a_model_that_waits_for_pictures_gets_as_many_more_cores_as_it_needs():
    finder = after("cuda", 1, decode=15.0, predict=0.62)
    assert (
        finder.advice() == "decoding, the model was busy 62%: 10 more cores to decode would keep it busy"
    )  # 15 / 0.62 - 15


def test_a_model_that_waits_for_the_store_is_told_what_the_store_gave():
    advice = after(read=3.0, decode=0.5, predict=0.4).advice()
    assert advice.startswith("reading, the model was busy 20%: the source gave 5 MB/s;")


@pytest.mark.parametrize("units", [0, 1, 2 * MIN_UNITS_PER_ACTOR])
def test_of_a_few_units_nothing_is_said(units):
    finder = after(units=units, every=9.0, decode=0.2, predict=1.9)
    assert finder.busy == {} and finder.advice() is None and (finder.images_per_second is None) == (units < 3)


def test_of_a_few_seconds_nothing_is_said():
    assert after(units=100, every=0.1, decode=0.2, predict=0.01).advice() is None
    assert after(units=100, every=0.04, decode=0.2, predict=0.01).images_per_second is None


def test_receipts_of_a_retry_that_know_no_seconds_count_as_none():
    assert after(decode=None, predict=1.9).busy["decode"] == 0.0
