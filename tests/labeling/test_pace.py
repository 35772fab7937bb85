"""pace: images count while they are worked on, and what is shown never goes back and never passes the end."""

import itertools
import random
from types import SimpleNamespace

import pytest

from wordsworth.pipeline.cluster.signs import UnitSign
from wordsworth.pipeline.labeling.pace import Pace
from wordsworth.pipeline.output.records import Receipt

ROWS = 500
BYTES = 5_000_000


def sign(number: int, stage: str, share: float, seconds: float = 1.0) -> UnitSign:
    unit = f"shard-{number:05d}"
    return UnitSign(stage=stage, unit=unit, share=share, rows=ROWS, size_bytes=BYTES, seconds=seconds)


def receipt(number: int, last: bool = False, **given) -> Receipt:
    seconds = {"read": 1.0, "decode": 2.0, "predict": 18.0, "write": 0.1}
    told = {"rows": ROWS, "errors": {}, "bytes_read": BYTES, "fault": None, "seconds": seconds} | given
    end = "-end" if last else ""
    return Receipt(
        shard="s3://b/x.tar",
        file=f"shard-{number:05d}{end}.parquet",
        written=True,
        twin=False,
        last=last,
        prediction=None,
        **told,
    )


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def pace(clock):
    made = Pace(clock=lambda: clock.now)
    made.total = 4 * BYTES
    return made


def test_a_small_run_is_not_at_0_percent_until_it_is_over(pace, clock):
    pace.total = BYTES
    shares, images = [], []
    for step in range(1, 10):
        clock.now += 10
        pace.signs(
            [(b"decoder", sign(0, "decode", 1.0)), (b"actor", sign(0, "predict", step / 10, 10 * step))]
        )
        figures = pace.figures()
        assert step > 3 or figures.images_per_second is None, "30 s, where no file is written yet"
        shares.append(figures.share)
        images.append(figures.images)
    assert shares == sorted(shares) and 0.05 < shares[0] < 0.3 and 0.85 < shares[-1] < 1
    assert images == sorted(images) and images[-1] < ROWS and figures.written == 0
    assert figures.images_per_second == pytest.approx(5, rel=0.1)
    assert figures.seconds_left == pytest.approx(10, abs=3)
    pace.receipt(receipt(0, last=True))
    assert (pace.figures().share, pace.figures().images) == (1.0, ROWS)


def test_before_the_model_begins_no_rate_is_told(pace, clock):
    shares = []
    for share in (0.1, 0.5, 1.0):
        clock.now += 5
        pace.signs([(b"decoder", sign(0, "decode", share))])
        shares.append(pace.figures().share)
    assert 0 < shares[0] < shares[1] < shares[2], "the bar moves with each image that is decoded"
    figures = pace.figures()
    assert figures.start_seconds is None and figures.predicted == 0
    assert figures.decoded == ROWS and figures.images_per_second is None and figures.seconds_left is None


def test_two_files_give_no_rate_and_no_time_left_and_three_in_five_seconds_do(clock):
    """A rate from two files is chance, and so is one from the first seconds of many small ones."""
    for every_s, told_at in ((4.0, 3), (0.5, 10)):  # seconds between two files, the file that gives a rate
        pace = Pace(clock=lambda: clock.now)
        pace.total = 40 * BYTES
        begin, seconds = clock.now, {"read": 0.1, "decode": 0.2, "predict": every_s, "write": 0.0}
        for number in range(1, told_at + 1):
            clock.now = begin + number * every_s
            pace.receipt(receipt(number, seconds=seconds))
            figures = pace.figures()
            assert (figures.images_per_second is not None) == (number == told_at), (every_s, number)
            assert (figures.seconds_left is not None) == (number == told_at), (every_s, number)
        assert figures.images_per_second == pytest.approx(ROWS / every_s)


def test_the_start_ends_where_the_model_begins_and_is_no_part_of_the_rate(clock):
    """The first file takes 20 s, of which the model has two."""
    pace = Pace(clock=lambda: clock.now)
    pace.total, pace.command_began = 40 * BYTES, clock.now - 8
    seconds = {"read": 1.0, "decode": 1.0, "predict": 2.0, "write": 0.0}
    clock.now += 20
    for number in range(5):
        pace.receipt(receipt(number, seconds=seconds))
        figures = pace.figures()
        clock.now += 2
    assert figures.start_seconds == pytest.approx(8 + 20 - 2)
    assert figures.images_per_second == pytest.approx(ROWS / 2)


def test_a_sign_that_is_seen_after_the_receipt_counts_no_image_twice(pace):
    pace.receipt(receipt(0))
    pace.signs([(b"actor", sign(0, "predict", 0.9))])
    assert pace.figures().images == ROWS


def test_an_old_sign_of_a_worker_that_died_is_no_news(pace, clock):
    pace.signs([(b"actor", sign(0, "predict", 0.5))])
    shown = pace.figures().images
    clock.now += 1000
    pace.signs([(b"actor", sign(0, "predict", 0.5))])
    assert pace._work(clock.now)[1] == 0, "a unit without a sign for a quarter of an hour counts no more"
    assert pace.figures().images == shown > 0, "and what was shown stays"


def test_a_shard_that_the_store_did_not_give_is_no_unit(pace):
    pace.receipt(receipt(0, rows=0, bytes_read=0, fault="unreadable: x", seconds={}))
    assert (pace.figures().units, pace.figures().images) == (0, 0)


def test_the_first_images_of_a_limited_run_are_all_there_is(pace, clock):
    pace.rows_left = 1500
    for number in range(3):
        pace.receipt(receipt(number))
        clock.now += 10
    assert pace.figures().share == 1.0 and pace.figures().seconds_left == 0


def test_what_was_done_before_makes_no_command_faster(clock):
    """A run that continues at 75% has a quarter left, at the rate of this command."""
    pace = Pace(clock=lambda: clock.now)
    pace.total, pace.base = 40 * BYTES, 30 * BYTES
    for number in range(5):
        clock.now += 10
        pace.receipt(receipt(number))
        figures = pace.figures()
    assert figures.share == pytest.approx(0.875)
    assert figures.seconds_left == pytest.approx(50, rel=0.05)
    assert figures.images_per_second == pytest.approx(50, rel=0.05)


def test_the_time_left_of_slow_loose_images_does_not_grow(clock):
    """A page of 4,096 images is one shard with units that take minutes each."""
    pace = Pace(clock=lambda: clock.now)
    pace.total = 8 * BYTES
    left = []
    for second in range(1, 8 * 100):
        clock.now += 1
        number, step = divmod(second, 100)
        if step == 0:
            pace.receipt(receipt(number - 1))
        else:
            predicted = sign(number, "predict", step / 100, step)
            pace.signs([(b"d", sign(number, "decode", 1.0)), (b"a", predicted)])
        left.append(pace.figures().seconds_left)
    left = left[30:]
    longest = run = 0
    for earlier, later in itertools.pairwise(left):
        run = run + 1 if later > earlier else 0
        longest = max(longest, run)
    assert longest < 15, "seconds in a row in which the time left grew"
    assert left[-1] < 10 and 500 < left[0] < 1200


def test_whatever_comes_the_share_never_goes_back_and_never_passes_1(clock):
    """Retried units, lost workers, listings that grow, signs in any order."""
    rng = random.Random(5)
    for _ in range(30):
        pace = Pace(clock=lambda: clock.now)
        pace.total = 3 * BYTES
        shown = []
        for number in rng.choices(range(12), k=300):
            clock.now += rng.expovariate(0.5)
            if rng.random() < 0.15:
                pace.receipt(receipt(number, errors={"truncated": 1}))
            else:
                stage = rng.choice(["decode", "predict"])
                pace.signs(
                    [(str(rng.randrange(5)).encode(), sign(number, stage, rng.random(), rng.random()))]
                )
            pace.total = min(12 * BYTES, pace.total + rng.choice([0, 0, 0, BYTES]))
            shown.append(pace.figures())
        shares = [figures.share for figures in shown]
        assert shares == sorted(shares) and shares[-1] <= 1
        images = [figures.images for figures in shown]
        assert images == sorted(images)
