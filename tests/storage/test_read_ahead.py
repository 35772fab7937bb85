"""read_ahead: what comes next is on its way, in order and in bounded memory, and no thread stays behind."""

import io
import threading
import time
from types import SimpleNamespace

import pytest
from fsspec.asyn import AsyncFileSystem

from tests.support.faulty import FaultyFileSystem, multi_format_tar, places
from wordsworth.pipeline.sources.tar_groups import read_samples
from wordsworth.pipeline.storage import read_ahead
from wordsworth.pipeline.storage.read_ahead import (
    OBJECTS_AHEAD,
    RANGES_AHEAD,
    ReadAhead,
    fetched_ahead,
)
from wordsworth.pipeline.storage.streams import ObjectStream

SHARD = multi_format_tar()
SAMPLES = list(read_samples(io.BytesIO(SHARD)))
DATA = bytes(range(251)) * 400
RANGE = 1000  # bytes of a range in these tests


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(read_ahead, "RANGE_BYTES", RANGE)
    return waited


@pytest.fixture
def begun():
    """Return the threads that were begun since the test began, and live."""
    before = set(threading.enumerate())
    return lambda: [one for one in threading.enumerate() if one not in before and one.name != "fsspecIO"]


class FaultyStore(FaultyFileSystem, AsyncFileSystem):
    """Hold one object. The range with byte `fail_at` gives what is before it, and then one error."""

    def cat_file(self, path, start=None, end=None, **kwargs):
        with self.open(path) as file:
            file.seek(start)
            return file.read(end - start)


def once(call):
    return call()


# ---- ranges of an object -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [700, 5_000, 8 << 20])
def test_a_read_error_at_any_place_of_any_range_leaves_the_samples_exact(num_bytes, waits, monkeypatch):
    monkeypatch.setattr(read_ahead, "RANGE_BYTES", num_bytes)
    for place in places(SHARD):
        fs = FaultyStore(SHARD, place)
        with io.BufferedReader(ObjectStream(fs, "s.tar", len(SHARD), 0), 512) as stream:
            samples = list(read_samples(stream, 0))
        assert samples == SAMPLES and fs.failed, f"the read error at byte {place} changed what was read"
    assert len(waits) == len(places(SHARD))


@pytest.mark.parametrize("start", [0, 1, 999, 1000, len(DATA) - 1])
def test_a_reading_may_begin_at_any_byte(start):
    with ObjectStream(FaultyStore(DATA, -1), "x", len(DATA), start) as stream:
        assert stream.readall() == DATA[start:] and stream.read(1) == b""


def test_a_range_that_fails_is_raised_in_its_place_and_asked_for_anew_by_the_next_read():
    left = [3]

    def read(begin, end):
        if begin == 2 * RANGE and left[0]:
            left[0] -= 1
            raise OSError("reset")
        return DATA[begin:end]

    ahead = ReadAhead(read, once, len(DATA), 0)
    assert bytes(ahead.read(RANGE)) + bytes(ahead.read(RANGE)) == DATA[: 2 * RANGE]
    for _ in range(3):
        with pytest.raises(OSError, match="reset"):
            ahead.read(RANGE)
    rest = b""
    while data := ahead.read(RANGE):
        rest += bytes(data)
    assert rest == DATA[2 * RANGE :]
    ahead.close()


def test_a_store_that_gives_nothing_is_a_fault_and_no_end():
    ahead = ReadAhead(lambda begin, end: DATA[begin : min(end, 1500)][:600], once, len(DATA), 0)
    assert bytes(ahead.read(RANGE)) == DATA[:RANGE]  # of two answers
    with pytest.raises(OSError, match=f"gave nothing at byte 1500 of {len(DATA)}"):
        ahead.read(RANGE)
    ahead.close()


def test_of_a_stream_two_ranges_wait_for_their_reader_and_no_more():
    asked = []

    def read(begin, end):
        asked.append(begin)
        return DATA[begin:end]

    ahead = ReadAhead(read, once, len(DATA), 0)
    taken = len(ahead.read(10))
    time.sleep(0.02)
    assert asked == [0]  # who reads only the beginning asks for one range
    while data := ahead.read(300):
        taken += len(data)
        held = -(-taken // RANGE) * RANGE  # up to the end of the range that is read
        assert max(asked) < held + RANGES_AHEAD * RANGE
    assert taken == len(DATA) and sorted(asked) == list(range(0, len(DATA), RANGE))
    ahead.close()


def test_the_next_ranges_come_while_one_is_worked_on():
    def read(begin, end):
        time.sleep(0.05)
        return DATA[begin:end]

    ahead = ReadAhead(read, once, 3 * RANGE, 0)
    ahead.read(1), ahead.read(1)
    time.sleep(0.2)  # the work
    begin = time.perf_counter()
    while ahead.read(RANGE):
        pass
    assert time.perf_counter() - begin < 0.04
    ahead.close()


def test_no_thread_is_left_after_a_stream_is_closed_early_and_failed_requests_are_not_made_again(begun):
    calls = []
    is_closing = threading.Event()

    def read(begin, end):
        calls.append(begin)
        if begin:
            is_closing.wait(5)
            raise OSError("503")
        return DATA[:RANGE]

    def again(call):
        while True:
            try:
                return call()
            except OSError:
                continue

    ahead = ReadAhead(read, again, len(DATA), 0)
    ahead.read(1), ahead.read(1)
    while len(calls) < 3:
        time.sleep(0.001)
    assert len(begun()) == RANGES_AHEAD
    threading.Timer(0.02, is_closing.set).start()
    ahead.close()
    assert [one for one in begun() if one.name.startswith("read-ahead")] == []
    assert sorted(calls) == [0, RANGE, 2 * RANGE]


# ---- many objects ------------------------------------------------------------------------------------------


def test_objects_come_in_order_however_long_each_takes():
    def fetch(number):
        time.sleep(number * 7 % 5 / 1000)
        return number * number

    made = list(fetched_ahead(range(200), fetch, lambda number: 1))
    assert made == [(number, number * number) for number in range(200)]


class Counted:
    """Fetch numbers, and count how many are under way or wait."""

    def __init__(self):
        self.begun, self.most, self.taken, self.lock = 0, 0, 0, threading.Lock()

    def __call__(self, number):
        with self.lock:
            self.begun += 1
            self.most = max(self.most, self.begun - self.taken)
        time.sleep(0.001)
        return number

    def read(self, *arguments):
        for pair in fetched_ahead(range(150), self, *arguments):
            self.taken += 1
            yield pair


def test_objects_under_way_are_bounded_by_their_number_and_by_their_bytes(monkeypatch):
    monkeypatch.setattr(read_ahead, "HELD_BYTES", 1000)
    for size, most in ((1, OBJECTS_AHEAD), (100, 10), (400, 2), (5000, 1)):
        counted = Counted()
        assert len(list(counted.read(lambda number, size=size: size))) == 150
        assert counted.most == most, size


def test_a_store_that_gives_nothing_is_asked_for_one_object_at_a_time():
    counted = Counted()
    list(counted.read(lambda number: 1, lambda result: False))
    assert counted.most == 1


def test_an_error_is_raised_where_its_object_would_come_and_no_thread_is_left(begun):
    def fetch(number):
        if number == 40:
            raise OSError("503")
        return number

    taken = []
    with pytest.raises(OSError, match="503"):
        for number, _ in fetched_ahead(range(10**9), fetch, lambda number: 1):
            taken.append(number)
    assert taken == list(range(40)) and begun() == []
    reading = fetched_ahead(range(10**9), fetch, lambda number: 1)
    assert [next(reading)[0] for _ in range(9)] == list(range(9)) and begun()
    reading.close()
    assert begun() == []
