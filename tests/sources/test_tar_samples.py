"""Show that samples equal webdataset's where it is right, and are loud where it reads short in silence."""

import io
import random
import tarfile

import pytest

from tests.support.tars import (
    END,
    flat,
    header,
    make_samples,
    make_tar,
    octal,
    padded,
    peak_bytes,
    read_members,
    read_until_cut,
    sparse_6_gib,
    webdataset_key,
    webdataset_read,
    write_shard,
)
from wordsworth.pipeline.sources.tar_groups import read_samples
from wordsworth.pipeline.sources.tar_headers import BLOCK
from wordsworth.pipeline.sources.tar_keys import is_skipped, split_key


class Drip(io.RawIOBase):
    """A stream of `data` whose every read returns 1 to 7 bytes, or as many as `most` allows."""

    def __init__(self, data: bytes, most: int = 7):
        self.data, self.at, self.most, self.random = data, 0, most, random.Random(0)

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.random.randint(1, self.most))
        chunk = self.data[self.at : self.at + size]
        self.at += len(chunk)
        return chunk


def content_end(tar: bytes) -> int:
    """Where the end blocks begin, for a tar whose last data block is not zeros."""
    return len(padded(tar.rstrip(b"\0")))


# ---- equal to webdataset -----------------------------------------------------------------------------------


def test_same_samples_as_webdataset_on_shards_that_webdataset_wrote():
    shard = write_shard(make_samples(40))
    ours = flat(read_samples(io.BytesIO(shard)))
    assert ours == webdataset_read(shard)
    assert len(ours) == 40 and set(ours[0]) == {"__key__", "jpg", "seg.png", "json", "cls"}


def test_skipped_members_are_those_webdataset_skips():
    names = [
        "a.jpg",
        "noext",
        ".hidden.jpg",
        "d.1/noext",
        "__meta__",
        "__meta__/a.jpg",
        "__m__.jpg",
        "d/__m__/b.jpg",
    ]
    names += ["b..jpg", "c.", "___", "e/f/g.TXT", "_x.json"]
    shard = make_tar([(name, name.encode()) for name in names])
    assert flat(read_samples(io.BytesIO(shard))) == webdataset_read(shard)
    assert [name for name in names if is_skipped(name)] == [
        *("noext", ".hidden.jpg", "d.1/noext", "__meta__", "__meta__/a.jpg", "___"),
    ]


def test_keys_split_as_in_webdataset_for_random_names_and_differ_only_where_documented():
    rng, compared = random.Random(1), 0
    for _ in range(20_000):
        name = "".join(rng.choices("aB._/_é", k=rng.randint(1, 9)))
        if name.rpartition("/")[2].startswith("."):
            assert is_skipped(name)  # webdataset takes d/.hidden.jpg for the key "d/"
            continue
        key, extension = webdataset_key(name)
        assert key is not None or is_skipped(name)
        if key is not None:
            assert split_key(name) == (key, extension.lower())
            compared += 1
    assert compared > 3000
    for name in ("d/._a.jpg", "__MACOSX/a.jpg", "x/__MACOSX/a.jpg", "PaxHeader/a.jpg", "PaxHeaders.12/a.jpg"):
        assert is_skipped(name)
    for name in (".x/a.jpg", "d/@eaDir/a.jpg", "./.Trash-1/a.jpg", "$RECYCLE.BIN/a.jpg"):
        assert is_skipped(name) and webdataset_key(name)[0] is not None


def test_a_repeated_extension_starts_a_second_sample_with_the_same_key():
    shard = make_tar([("a.jpg", b"1"), ("a.json", b"2"), ("a.JPG", b"3"), ("a.cls", b"4"), ("b.jpg", b"5")])
    assert flat(read_samples(io.BytesIO(shard))) == [
        {"__key__": "a", "jpg": b"1", "json": b"2"},
        {"__key__": "a", "jpg": b"3", "cls": b"4"},
        {"__key__": "b", "jpg": b"5"},
    ]


def test_skipped_members_neither_split_a_sample_nor_make_one():
    shard = make_tar(
        [("a.jpg", b"1"), ("._a.jpg", b"x"), ("__MACOSX/a.b", b"x"), ("noext", b"x"), ("a.json", b"2")]
    )
    assert flat(read_samples(io.BytesIO(shard))) == [{"__key__": "a", "jpg": b"1", "json": b"2"}]
    assert list(read_samples(io.BytesIO(make_tar([("noext", b"x"), ("._a", b"x")])))) == []


def test_fields_that_are_not_wanted_stay_in_the_sample_without_their_bytes():
    shard = make_tar([("a.jpg", b"1"), ("a.json", b"2"), ("b.json", b"3"), ("c.jpg", b"")])
    samples = list(read_samples(io.BytesIO(shard), want_field=lambda ext: ext == "jpg"))
    assert flat(samples) == [
        {"__key__": "a", "jpg": b"1", "json": None},
        {"__key__": "b", "json": None},
        {"__key__": "c", "jpg": b""},
    ]
    unwanted = samples[1].fields["json"]
    assert (
        unwanted.refused is None
        and unwanted.size == 1
        and shard[unwanted.offset : unwanted.offset + 1] == b"3"
    )
    names = [m.name for m in read_members(io.BytesIO(shard), want=lambda name: name.endswith("jpg"))]
    assert names == ["a.jpg", "c.jpg"]


# ---- cuts --------------------------------------------------------------------------------------------------


def cut_lengths(shard: bytes) -> list[int]:
    return sorted({*range(0, len(shard), 97), *range(0, len(shard), BLOCK)})


@pytest.mark.slow
def test_no_cut_is_read_short_in_silence_and_tarfile_does_read_some_short():
    shard = write_shard(make_samples(7))
    whole = list(read_samples(io.BytesIO(shard)))
    proof = content_end(shard) + len(END)
    silent = {"tarfile": 0, "webdataset": 0}
    for length in cut_lengths(shard):
        seen, cut = read_until_cut(read_samples(io.BytesIO(shard[:length])))
        assert (cut is None) == (length >= proof)
        if cut is None:
            assert seen == whole
            continue
        assert cut.short and cut.offset <= length and cut.offset % BLOCK == 0
        complete = [s for s in seen if not s.cut]
        assert complete == whole[: len(complete)] and len(seen) - len(complete) <= 1
        for partial in seen[len(complete) :]:
            full = whole[len(complete)]
            assert partial is seen[-1] and partial.end == cut.offset and partial.start == full.start
            assert partial.fields.items() <= full.fields.items()
        silent["tarfile"] += tarfile_reads_short(shard[:length], 4 * len(whole))
        silent["webdataset"] += webdataset_reads_short(shard[:length], flat(whole))
    assert (
        silent["tarfile"] > 10 and silent["webdataset"] > 10
    )  # the negative control: why this reader exists


def tarfile_reads_short(data: bytes, files: int) -> bool:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
            return sum(1 for info in tar if tar.extractfile(info).read() is not None) < files
    except (tarfile.TarError, OSError):
        return False


def webdataset_reads_short(data: bytes, whole: list[dict]) -> bool:
    try:
        return webdataset_read(data) != whole
    except (tarfile.TarError, OSError):
        return False


# ---- streams, restart, memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("store"), ValueError("closed")])
def test_an_error_of_the_stream_passes_through_unchanged(error):
    class Failing(Drip):
        def read(self, size=-1):
            if self.at > 3000:
                raise error
            return super().read(size)

    with pytest.raises(type(error)) as caught:
        list(read_samples(Failing(write_shard(make_samples(3)), most=600)))
    assert caught.value is error


def test_a_stream_of_tiny_reads_gives_the_same():
    shard = write_shard(make_samples(8))
    assert list(read_samples(Drip(shard))) == list(read_samples(io.BytesIO(shard)))
    wanted = [s.key for s in read_samples(Drip(shard), want_field=lambda ext: False)]
    assert wanted == [s.key for s in read_samples(io.BytesIO(shard))]


def test_reading_restarts_at_every_sample_and_gives_the_rest_exactly():
    twice = [("z.jpg", b"1"), ("._z.jpg", b""), ("z.jpg", b"2"), ("y.jpg", b"")]
    shard = write_shard(make_samples(9)) + make_tar(twice)
    whole = list(read_samples(io.BytesIO(shard)))
    assert len(whole) == 12
    for index, sample in enumerate(whole):
        assert list(read_samples(io.BytesIO(shard[sample.start :]), sample.start)) == whole[index:]
        assert list(read_samples(io.BytesIO(shard[sample.end :]), sample.end)) == whole[index + 1 :]


class Endless(io.RawIOBase):
    """A tar of `count` members, made while it is read: nothing of it is ever held."""

    def __init__(self, count: int, size: int, names=("{:06d}.jpg",)):
        self.left, self.pending = (part for part in self.parts(count, size, names)), b""

    @staticmethod
    def parts(count, size, names):
        for index in range(count):
            yield header(names[index % len(names)].format(index // len(names)).encode(), octal(size))
            for _ in range(0, size, 1 << 16):
                yield bytes(1 << 16)
        yield END

    def read(self, size=-1):
        self.pending = self.pending or next(self.left, b"")
        chunk, self.pending = self.pending[:size], self.pending[size:]
        return chunk


def test_memory_does_not_grow_with_the_shard():
    count = []
    peak = peak_bytes(lambda: count.append(sum(1 for _ in read_samples(Endless(200, 1 << 20)))))
    assert count == [200] and peak < 8 << 20


def test_bytes_that_are_not_wanted_are_not_held():
    names = ("{:06d}.jpg", "{:06d}.mp4")
    samples = []
    jpg_only = read_samples(Endless(2, 100 << 20, names), want_field=lambda ext: ext == "txt")
    assert peak_bytes(lambda: samples.extend(jpg_only)) < 4 << 20
    assert [sorted(s.fields) for s in samples] == [["jpg", "mp4"]]
    assert peak_bytes(lambda: list(read_members(Endless(1, 100 << 20), max_member_bytes=1 << 20))) < 4 << 20


# ---- fuzz --------------------------------------------------------------------------------------------------


def fix_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def mutants(count: int):
    """Random bytes, shards with random damage, and headers with random fields under a right checksum."""
    rng = random.Random(0)
    gnu = make_tar([("a.jpg", b"1" * 600), ("n" * 120 + ".jpg", b"2")], tarfile.GNU_FORMAT)
    pax = make_tar([("é" * 80 + ".jpg", b"3"), ("b.jpg", b"4" * 700)])
    shard = sparse_6_gib() + gnu[: content_end(gnu)] + pax[: content_end(pax)] + END
    assert len(list(read_members(io.BytesIO(shard)))) == 5
    for index in range(count):
        data = bytearray(shard if index % 3 else rng.randbytes(rng.randrange(3000)))
        for _ in range(rng.randint(1, 6) if data else 0):
            data[rng.randrange(len(data))] = rng.choice((0, 0x20, 0x30, 0x37, 0x80, 0xFF, rng.randrange(256)))
        if index % 3 == 2:
            at = rng.randrange(len(data) // BLOCK) * BLOCK
            block = bytearray(data[at : at + BLOCK])
            block[rng.choice((124, 130, 135, 156, 257, 345, 482, 504))] = rng.randrange(256)
            data[at : at + BLOCK] = fix_checksum(block)
        yield bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


@pytest.mark.slow
def test_damaged_tars_raise_nothing_but_a_cut_and_lie_about_no_place():
    cuts = 0
    for data in mutants(6000):
        seen, cut = read_until_cut(read_samples(io.BytesIO(data), max_member_bytes=1 << 20))
        cuts += cut is not None
        for member in (member for sample in seen for member in sample.fields.values()):
            member.name.encode("utf-8")
            assert member.data is None or data[member.offset : member.offset + member.size] == member.data
            assert member.start < member.offset <= member.offset + member.size <= len(data)
        if cut is not None:
            assert 0 <= cut.offset <= len(data)
    assert 3000 < cuts < 6000
