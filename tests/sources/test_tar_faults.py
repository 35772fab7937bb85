"""Show that a read error at any byte costs nothing, a cut at any byte is a row, and memory stays flat."""

import io
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest

from tests.support.faulty import FaultyFileSystem, multi_format_tar, places, write_holes
from tests.support.samples import rows_of
from tests.support.tars import BLOCK, END, read_until_cut, webdataset
from wordsworth.pipeline.sources import tar_reader
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.tar_groups import read_samples
from wordsworth.pipeline.storage.streams import ObjectStream

SHARD = multi_format_tar()
SAMPLES = list(read_samples(io.BytesIO(SHARD)))
PLACES = places(SHARD)
NEVER = -1


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


def units(monkeypatch, fs: FaultyFileSystem, rows: int = 3) -> list:
    monkeypatch.setattr(tar_reader, "open_exact", lambda uri, options=None: (fs, uri))
    return list(
        read_units(
            Shard(kind="tar", uri="s.tar", size=len(fs.data), version="1"),
            ReadSettings(unit_rows=rows, keep=("json",)),
        )
    )


def test_the_shard_has_every_header_format_and_tarfile_reads_it_alike():
    with tarfile.open(fileobj=io.BytesIO(SHARD)) as archive:
        theirs = [
            (info.name, info.offset, info.offset_data, archive.extractfile(info).read()) for info in archive
        ]
    assert theirs == [
        (m.name, m.start, m.offset, m.data) for sample in SAMPLES for m in sample.fields.values()
    ]
    assert {sample.key.split("/")[0] for sample in SAMPLES} == {"0ustar", "1pax", "2gnu", "3base256"}
    kinds = {SHARD[member.start + 156 :][:1] for sample in SAMPLES for member in sample.fields.values()}
    assert kinds == {b"0", b"x", b"L"} and any(
        SHARD[m.offset - BLOCK + 124] == 0x80 for s in SAMPLES for m in s.fields.values()
    )
    assert {place % BLOCK for place in PLACES} == {0, 1, 256, 511} and len(PLACES) == 4 * len(SHARD) // BLOCK


# ---- read errors -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("buffer", [1, 700, 10_240, 1 << 20])
def test_a_read_error_at_any_place_leaves_the_samples_exact(buffer, waits):
    for place in PLACES:
        fs = FaultyFileSystem(SHARD, place)
        with io.BufferedReader(ObjectStream(fs, "s.tar", len(SHARD), 0), buffer) as stream:
            samples = list(read_samples(stream, 0))
        assert samples == SAMPLES, f"the read error at byte {place} changed what was read"
        assert (fs.failed, fs.opened) == (True, 2), f"byte {place}"
    assert len(waits) == len(PLACES)


def test_a_read_error_leaves_the_units_exact(monkeypatch):
    def content(made):
        return [
            (unit.number, unit.last, unit.next_offset, unit.samples.to_pylist(), unit.payload.tobytes())
            for unit in made
        ]

    whole = content(units(monkeypatch, FaultyFileSystem(SHARD, NEVER)))
    assert [len(unit[3]) for unit in whole] == [3, 3, 2] and [unit[1] for unit in whole] == [
        False,
        False,
        True,
    ]
    for place in PLACES[::5]:  # of each of the four places in a block some
        fs = FaultyFileSystem(SHARD, place)
        assert content(units(monkeypatch, fs)) == whole and fs.failed, f"byte {place}"


def test_every_fault_that_is_planted_is_met_and_stops_a_reader_without_retries():
    for place in PLACES:
        fs = FaultyFileSystem(SHARD, place)
        with pytest.raises(OSError, match="reset by peer"):
            list(read_samples(fs.open("s.tar"), 0))


def retried_on_the_same_stream(stream) -> list[str]:
    """Do what is wrong: after an error begin the tar anew on the same stream, and skip what was yielded."""
    yielded: list[str] = []
    for _ in range(2):
        try:
            for number, entry in enumerate(
                webdataset.tariterators.tar_file_iterator(stream, handler=reraise)
            ):
                if number >= len(yielded):
                    yielded.append(entry["fname"])
            return yielded
        except OSError:
            continue
    raise OSError("twice")


def reraise(error):
    raise error


@pytest.mark.slow
def test_a_retry_on_the_same_stream_loses_samples_in_silence_at_some_of_these_places():
    files = sum(len(sample.fields) for sample in SAMPLES)
    short = 0
    for place in PLACES:
        try:
            seen = retried_on_the_same_stream(FaultyFileSystem(SHARD, place).open("s.tar"))
        except (OSError, tarfile.TarError, ValueError):
            continue
        short += len(seen) < files
    assert short > 10, "the negative control: these places tell a right reader from a wrong one"


# ---- cuts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_at_any_place_is_all_rows_or_whole_rows_and_one_that_says_so(monkeypatch):
    end = SAMPLES[-1].end + len(END)
    cuts = sorted({*range(0, len(SHARD), 97), *PLACES})
    for length in cuts:
        rows = rows_of(units(monkeypatch, FaultyFileSystem(SHARD[:length], NEVER)))
        whole = [row for row in rows if row["error"] != "shard_truncated"]
        assert len(rows) - len(whole) == (length < end), f"cut at {length}"
        assert [row["key"] for row in whole] == [sample.key for sample in SAMPLES[: len(whole)]]
        for row, sample in zip(whole, SAMPLES, strict=False):
            image = sample.fields["jpg"]
            assert (row["error"], row["offset"], row["size"]) == (None, image.offset, image.size)
        torn = [
            s for s in SAMPLES if s.fields["jpg"].offset + -(-s.fields["jpg"].size // BLOCK) * BLOCK <= length
        ]
        assert len(whole) == len(torn), (
            f"cut at {length}: each sample has its row whose image lies whole before the cut"
        )
    assert sum(length < end for length in cuts) > 400


def test_a_cut_while_the_store_also_fails_is_the_same_cut(monkeypatch):
    for length in range(600, len(SHARD), 2003):
        calm = rows_of(units(monkeypatch, FaultyFileSystem(SHARD[:length], NEVER)))
        for place in (0, length // 2, length - 1):
            assert rows_of(units(monkeypatch, FaultyFileSystem(SHARD[:length], place))) == calm
        assert read_until_cut(read_samples(io.BytesIO(SHARD[:length])))[1].offset == calm[-1]["offset"]


# ---- memory ------------------------------------------------------------------------------------------------

READ = """
import io, sys
from fsspec.implementations.local import LocalFileSystem
from wordsworth.pipeline.storage.streams import ObjectStream
from wordsworth.pipeline.sources.tar_groups import read_samples

def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

path, size, hold = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "hold"
before, held, samples, read = peak(), [], 0, 0
for sample in read_samples(io.BufferedReader(ObjectStream(LocalFileSystem(), path, size, 0), 1 << 20)):
    samples += 1
    read += sum(len(member.data) for member in sample.fields.values())
    held += [sample] if hold else []
print(samples, read, peak() - before)
"""


def growth(path, size: int, mode: str = "stream") -> tuple[int, int, int]:
    """Return samples, bytes of their data, and MiB by which a process of its own grew while reading."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak from /proc")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(size), mode], capture_output=True, text=True, check=True
    )
    samples, read, peak = map(int, done.stdout.split())
    return samples, read, peak


@pytest.mark.slow
def test_a_tar_of_300_mb_is_read_in_a_few_and_a_reader_that_keeps_them_is_seen(tmp_path):
    sizes = [1 << 20] * 280 + [16 << 20, 8 << 20]
    size = write_holes(tmp_path / "s.tar", sizes)
    assert size > 300_000_000
    samples, read, peak = growth(tmp_path / "s.tar", size)
    assert (samples, read) == (len(sizes), sum(sizes)) and peak < 60, f"grew by {peak} MiB"
    assert growth(tmp_path / "s.tar", size, "hold")[2] > 250


@pytest.mark.long
def test_a_tar_of_2_gb_is_read_with_a_peak_growth_under_200_mb(tmp_path):
    sizes = [1 << 20] * 1800 + [64 << 20, 32 << 20, 5, 0] + [3 << 20] * 50
    size = write_holes(tmp_path / "s.tar", sizes)
    assert size > 2_000_000_000
    samples, read, peak = growth(tmp_path / "s.tar", size)
    print(f"a tar of {size:,} bytes: {samples:,} samples, {read:,} bytes of data, peak growth {peak} MiB")
    assert (samples, read) == (len(sizes), sum(sizes)) and peak * 2**20 < 200_000_000
