"""Show that a compressed tar gives what the tar gives, and one row more if it is cut, damaged or a bomb."""

import gzip
import io
import itertools
import random
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tars import make_tar
from wordsworth.pipeline.sources import compressed, tar_reader
from wordsworth.pipeline.sources.compressed import CompressedCut, Decompressed
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage.streams import ObjectStream

FORMS = ("gz", "zst")


def images(count: int) -> list[tuple[str, bytes]]:
    """Return members that do not compress, as images do not, and a sidecar behind each."""
    generator = random.Random(count)
    pairs = [
        ((f"d/{n:03d}.jpg", generator.randbytes(200 + 90 * n)), (f"d/{n:03d}.json", b"{}"))
        for n in range(count)
    ]
    return [member for pair in pairs for member in pair]


def squeeze(data: bytes, form: str) -> bytes:
    if form == "gz":
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def place(folder, data: bytes, form: str):
    path = folder / f"a.tar.{form}"
    path.write_bytes(data)
    return path


def told(units) -> list[tuple]:
    return [(row["key"], row["index"], row["size"], row["error"]) for row in rows_of(units)]


def content(units) -> list[tuple]:
    return [
        (u.number, u.last, u.next_offset, u.next_index, u.bytes_read, u.samples, u.payload.tobytes())
        for u in units
    ]


# ---- whole tars --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.ZST", "a.tzst"])
def test_a_compressed_tar_gives_the_rows_and_images_of_the_tar(tmp_path, name):
    plain = make_tar(images(11))
    (tmp_path / "plain.tar").write_bytes(plain)
    (tmp_path / name).write_bytes(squeeze(plain, "gz" if "g" in name else "zst"))
    units, wanted = (
        units_of(tmp_path / name, keep=("json",)),
        units_of(tmp_path / "plain.tar", keep=("json",)),
    )
    assert told(units) == told(wanted) and [unit.payload.tobytes() for unit in units] == [
        u.payload.tobytes() for u in wanted
    ]
    assert all(row["offset"] is None and row["sidecars"] == ["{}"] for row in rows_of(units))
    assert sum(unit.bytes_read for unit in units) == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("form", FORMS)
def test_members_and_frames_end_to_end_are_one_stream(tmp_path, form):
    data = make_tar(images(8))
    cuts = [0, 700, 701, 5000, len(data)]
    parts = [squeeze(data[a:b], form) for a, b in itertools.pairwise(cuts)]
    between = b"\0" * 13 if form == "gz" else b"\x50\x2a\x4d\x18\x05\0\0\0hello"  # padding; a skippable frame
    rows = told(units_of(place(tmp_path, between.join(parts) + between, form)))
    assert [key for key, *_ in rows] == [f"d/{n:03d}" for n in range(8)] and not any(
        error for *_, error in rows
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_reading_begun_at_any_unit_makes_the_same_units_and_counts_every_byte_once(tmp_path, form):
    generator = random.Random(1)
    members = [
        (f"{n:03d}.jpg", generator.randbytes(40_000)) for n in range(40)
    ]  # many compressed chunks and pieces
    shard = shard_of(place(tmp_path, squeeze(make_tar(members), form), form))
    settings = ReadSettings(unit_rows=7)
    units = content(list(read_units(shard, settings)))
    assert (
        len(units) == 6
        and sum(unit[4] for unit in units) == shard.size
        and min(unit[4] for unit in units) > 0
    )
    for at, (number, _, position, index, *_) in enumerate(units[:-1], 1):
        assert content(list(read_units(shard, settings, number + 1, position, index))) == units[at:]


# ---- cuts and damage ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_wherever_it_is_cut_all_rows_are_there_or_one_says_what_is_missing(tmp_path, form):
    tar, step = (
        make_tar(images(12)),
        900,
    )  # bytes in a frame or member: zstd gives nothing of a block that it has in part
    whole = b"".join(squeeze(tar[at : at + step], form) for at in range(0, len(tar), step))
    every = told(units_of(place(tmp_path, whole, form)))
    lengths = set()
    for end in [*range(0, len(whole), 97), *range(len(whole) - 12, len(whole))]:
        *good, rest = told(units_of(place(tmp_path, whole[:end], form)))
        assert rest == (None, len(good), None, "shard_truncated"), end
        assert good == every[: len(good)], end
        lengths.add(len(good))
    assert lengths == set(range(13)), "samples before a cut are kept"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_never_makes_fewer_rows_in_silence(tmp_path, form):
    whole = squeeze(make_tar(images(12)), form)
    every = told(units_of(place(tmp_path, whole, form)))
    for at in range(40, len(whole), 211):
        bad = bytearray(whole)
        bad[at] ^= 16
        *good, rest = told(units_of(place(tmp_path, bytes(bad), form)))
        assert rest[3] == "shard_truncated", at  # the checksum at the end sees what nothing else does
        assert [key for key, *_ in good] == [key for key, *_ in every[: len(good)]], at


def test_the_row_says_what_broke_and_at_which_decompressed_byte(tmp_path):
    tar = make_tar(images(6))
    whole = squeeze(tar, "gz")
    *_, rest = rows_of(units_of(place(tmp_path, whole[: len(whole) // 2], "gz")))
    reason, _, place_ = rest["error_detail"].partition(" (byte ")
    assert reason == "the gzip stream ends before its end mark" and rest["offset"] is None
    assert 0 < int(place_.partition(" ")[0]) < len(tar)


@pytest.mark.parametrize(
    ("form", "tail"), [("gz", b"garbage"), ("gz", b"\0\0x"), ("zst", b"garbage"), ("zst", b"\0" * 8)]
)
def test_what_stands_behind_the_end_and_is_no_padding_is_damage(tmp_path, form, tail):
    *good, rest = told(units_of(place(tmp_path, squeeze(make_tar(images(5)), form) + tail, form)))
    assert len(good) == 5 and rest[3] == "shard_truncated"


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_stream_of_a_cut_tar_is_a_cut_tar(tmp_path, form):
    tar = make_tar(images(5))
    content_end = len(tar.rstrip(b"\0"))
    *good, rest = rows_of(units_of(place(tmp_path, squeeze(tar[: content_end + 200], form), form)))
    assert rest["error"] == "shard_truncated" and "decompressed tar" in rest["error_detail"]
    assert told(units_of(tmp_path / f"a.tar.{form}"))[-1][0] is None and len(good) in (4, 5)


def test_the_bytes_before_damage_do_not_depend_on_how_they_are_asked_for():
    data = random.Random(3).randbytes(3000) * 40
    bad = bytearray(gzip.compress(data))
    bad[len(bad) // 2] ^= 255

    def read(size):
        stream, out = Decompressed(io.BytesIO(bytes(bad)), "gzip"), b""
        with pytest.raises(CompressedCut) as damage:
            while piece := stream.read(size):
                out += piece
        assert damage.value.offset == len(out)
        return out

    by_hand, decoder = b"", zlib.decompressobj(31)
    with pytest.raises(zlib.error):
        for byte in bad:
            by_hand += decoder.decompress(bytes([byte]), 1)
            while decoder.unconsumed_tail:
                by_hand += decoder.decompress(decoder.unconsumed_tail, 1)
    assert read(1) == read(1 << 20) and read(7)[: len(by_hand)] == by_hand and len(by_hand) > 1000


# ---- bombs and memory --------------------------------------------------------------------------------------


def zeros(form: str, mib: int) -> bytes:
    """A tar of one huge member of zeros, compressed."""
    out = io.BytesIO()
    level = (
        zlib.compressobj(9, zlib.DEFLATED, 31) if form == "gz" else zstandard.ZstdCompressor().compressobj()
    )
    out.write(level.compress(make_tar([("a.jpg", b"1")])[:1024] + _header(mib << 20)))
    for _ in range(mib):
        out.write(level.compress(bytes(1 << 20)))
    out.write(level.compress(bytes(1024)) + level.flush())
    return out.getvalue()


def _header(size: int) -> bytes:
    import tarfile

    info = tarfile.TarInfo("bomb.jpg")
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_bomb_of_zeros_is_given_up_early(tmp_path, form, monkeypatch):
    monkeypatch.setattr(compressed, "FREE_EXPANSION", 8 << 20)
    *good, rest = rows_of(units_of(place(tmp_path, zeros(form, 192), form)))
    assert [row["key"] for row in good] == ["a"] and rest["error"] == "shard_truncated"
    assert "expands to more than 500 times its size" in rest["error_detail"]
    assert int(rest["error_detail"].split("(byte ")[1].split()[0]) < 150 << 20


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_memory_stays_bounded_on_300_megabytes_that_compress_to_a_few(tmp_path, form):
    generator = random.Random(2)
    level = (
        zlib.compressobj(1, zlib.DEFLATED, 31) if form == "gz" else zstandard.ZstdCompressor().compressobj()
    )
    path = tmp_path / f"a.tar.{form}"
    with open(path, "wb") as file:
        for number in range(300):
            member = make_tar([(f"{number:03d}.jpg", generator.randbytes(10_000) + bytes(1_000_000))])
            file.write(level.compress(member[: 512 + 1_010_176]))
        file.write(level.compress(bytes(1024)) + level.flush())
    assert path.stat().st_size < 10 << 20
    tracemalloc.start()
    seen = 0
    for unit in read_units(shard_of(path), ReadSettings(unit_rows=4)):
        seen += len(unit.samples)
        assert unit.samples["error"].null_count == len(unit.samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 300 and peak < 40 << 20, peak


# ---- the store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_store_that_fails_in_the_middle_is_a_fault_and_no_row(tmp_path, monkeypatch, form):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    generator = random.Random(1)
    data = squeeze(make_tar([(f"{n:03d}.jpg", generator.randbytes(90_000)) for n in range(30)]), form)

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > len(data) // 2:
                raise OSError("503 SlowDown")
            return super().read(min(size, 4096))

    shard = shard_of(place(tmp_path, data, form))
    fs = LocalFileSystem(skip_instance_cache=True)
    monkeypatch.setattr(fs, "open", lambda path, *args, **options: Failing(data))
    monkeypatch.setattr(tar_reader, "open_exact", lambda uri, options=None: (fs, uri))
    *units, fault = read_units(shard, ReadSettings(unit_rows=4))
    assert fault.fault == "OSError: 503 SlowDown" and not fault.last and len(fault.samples) == 0
    assert units and not any(unit.last or unit.samples["error"].null_count < 4 for unit in units)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_that_differ_once_make_no_truncated_row(tmp_path, monkeypatch, form):
    generator = random.Random(1)
    data = squeeze(make_tar([(f"{n:03d}.jpg", generator.randbytes(90_000)) for n in range(30)]), form)
    shard = shard_of(place(tmp_path, data, form))
    whole, readings = told(read_units(shard, ReadSettings(unit_rows=4))), []

    def flipped(fs, path, size, position, check):
        readings.append(1)
        stream = ObjectStream(fs, path, size, position)
        if len(readings) == 1:
            bad = bytearray(data)
            bad[len(bad) // 2 : len(bad) // 2 + 4096] = bytes(4096)
            stream._file = io.BytesIO(bad)
        return stream

    monkeypatch.setattr(tar_reader, "ObjectStream", flipped)
    assert told(read_units(shard, ReadSettings(unit_rows=4))) == whole and len(readings) == 2


def test_compressed_tars_are_found_beside_plain_ones(tmp_path):
    for name in ("a.tar", "b.tar.gz", "c.tgz", "d.tar.zst", "e.gz", "f.zst"):
        (tmp_path / name).write_bytes(b"x")
    listing = find_shards([str(tmp_path)])
    assert [shard.uri.rpartition("/")[2] for shard in listing.shards] == [
        "a.tar",
        "b.tar.gz",
        "c.tgz",
        "d.tar.zst",
    ]
    assert {shard.kind for shard in listing.shards} == {"tar"} and listing.ignored == {".gz": 1, ".zst": 1}
