"""The tar reader: equal to tarfile and webdataset where they are right, and loud where they read short in silence."""

import io
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import tracemalloc

import pytest

os.environ["WDS_SECURE"] = "1"  # webdataset reads it when it is imported
import webdataset

from pipeline.tar import BLOCK, Member, TarCut, is_skipped, read_members, read_samples, split_key

END = bytes(2 * BLOCK)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Drip(io.RawIOBase):
    """A stream of `data` whose every read returns 1 to 7 bytes, or as many as `most` allows."""

    def __init__(self, data: bytes, seed: int = 0, most: int = 7):
        self.data, self.at, self.most, self.random = data, 0, most, random.Random(seed)

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.random.randint(1, self.most))
        chunk = self.data[self.at : self.at + size]
        self.at += len(chunk)
        return chunk


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def content_end(tar: bytes) -> int:
    """Where the end blocks begin, for a tar whose last data block is not zeros."""
    return len(padded(tar.rstrip(b"\0")))


def header(name=b"a.jpg", size=b"00000000003\0", kind=b"0", magic=b"ustar\x0000", signed=False, tail=b"") -> bytes:
    """One header block made by hand. `size` is the raw 12-byte field, `tail` what stands from byte 345 on."""
    fields = [name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, size, b"00000000000\0", b" " * 8, kind]
    block = (b"".join(fields) + bytes(100) + magic.ljust(88, b"\0") + tail).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def pax_record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    while len(b"%d" % length) + len(keyword) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def extension(payload: bytes, kind: bytes = b"x") -> bytes:
    return header(b"ext", octal(len(payload)), kind) + padded(payload)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_tar(files: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files:
            add(tar, name, data)
    return out.getvalue()


def make_samples(count: int = 7, seed: int = 0) -> list[dict]:
    """Samples for TarWriter with every kind of name: nested, dotted, upper case, unicode, longer than a header."""
    rng = random.Random(seed)
    keys = ["plain", "deep/er/key", "v1.2/key", "Grün/图像", "long/" + "n" * 150, "x" * 99, "./dot/key", "a b"]
    return [
        {"__key__": f"{keys[i % len(keys)]}{i}", "JPG": rng.randbytes(rng.choice([0, 511, 512, 513, 1300]))}
        | {"seg.PNG": rng.randbytes(40), "json": b"{}", "cls": b"%d" % i}
        for i in range(count)
    ]


def write_shard(samples: list[dict]) -> bytes:
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return out.getvalue()


def webdataset_read(shard: bytes) -> list[dict]:
    source = [{"url": "shard", "stream": io.BytesIO(shard)}]
    files = webdataset.tariterators.tar_file_expander(source)
    return [
        {name: value for name, value in sample.items() if name != "__url__"}
        for sample in webdataset.tariterators.group_by_keys(files)
    ]


def flat(samples) -> list[dict]:
    return [{"__key__": s.key} | {ext: member.data for ext, member in s.fields.items()} for s in samples]


def read_until_cut(items) -> tuple[list, TarCut | None]:
    seen = []
    try:
        for item in items:
            seen.append(item)
    except TarCut as cut:
        return seen, cut
    return seen, None


def cut_of(data: bytes) -> TarCut:
    cut = read_until_cut(read_members(io.BytesIO(data)))[1]
    assert cut is not None
    return cut


def only(data: bytes) -> Member:
    (member,) = read_members(io.BytesIO(data))
    return member


# --- equal to the reference readers


def test_same_samples_as_webdataset_on_shards_that_webdataset_wrote():
    shard = write_shard(make_samples(40))
    ours = flat(read_samples(io.BytesIO(shard)))
    assert ours == webdataset_read(shard)
    assert len(ours) == 40 and set(ours[0]) == {"__key__", "jpg", "seg.png", "json", "cls"}


def test_skipped_members_are_those_webdataset_skips():
    names = ["a.jpg", "noext", ".hidden.jpg", "d.1/noext", "__meta__", "__meta__/a.jpg", "__m__.jpg", "d/__m__/b.jpg"]
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
        key, extension = webdataset.tariterators.base_plus_ext(name)
        assert key is not None or is_skipped(name)
        if key is not None:
            assert split_key(name) == (key, extension.lower())
            compared += 1
    assert compared > 3000
    for name in ("d/._a.jpg", "__MACOSX/a.jpg", "x/__MACOSX/a.jpg", "PaxHeader/a.jpg", "PaxHeaders.12/a.jpg"):
        assert is_skipped(name)


@pytest.mark.parametrize("form", FORMATS)
def test_equals_tarfile_with_exact_offsets_and_starts(form):
    rng = random.Random(2)
    names = ["a.jpg", "d/" * 40 + "split.jpg", "b" * 100, "d/" * 60 + "prefix.jpg", "Ärger/图.png", "empty.txt"]
    names += [] if form == "ustar" else ["n" * 101 + ".jpg", "l/" * 700 + "long.jpg"]
    files = [(name, rng.randbytes(rng.choice([1, 511, 512, 513, 5000]))) for name in names]
    files[5] = ("empty.txt", b"")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form], pax_headers={"comment": "global"}) as tar:
        for name, data in files:
            add(tar, name, data)
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo("not/a/file")
                info.type, info.linkname = kind, "t" * (90 if form == "ustar" else 300)
                tar.addfile(info)
    shard = out.getvalue()
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        theirs = [(i.name, i.offset_data, i.size, i.offset, tar.extractfile(i).read()) for i in tar if i.isreg()]
    ours = list(read_members(io.BytesIO(shard)))
    assert [(m.name, m.offset, m.size, m.start, m.data) for m in ours] == theirs
    assert [(m.name, m.data) for m in ours] == files
    assert all(shard[m.offset : m.offset + m.size] == m.data for m in ours)


def test_base_256_v7_contiguous_and_signed_checksum_headers_are_read():
    body, base256 = padded(b"abc") + END, b"\x80" + bytes(10) + b"\x03"
    v7 = header(magic=b"") + padded(b"abc") + header(b"folder/", octal(0), b"\0", b"") + END
    tars = [header(size=base256) + body, header(kind=b"7") + body, header(kind=b"\0", magic=b"") + body, v7]
    tars += [header(size=b"          3 ") + body, header(size=b"3 \0junkjunk\0") + body]
    tars += [extension(pax_record(b"path", b"b"), b"X") + header() + body, header(b"\xe9\xff.jpg", signed=True) + body]
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            (info,) = [i for i in tar if i.isreg()]
        member = only(data)
        assert (member.start, member.offset, member.size) == (info.offset, info.offset_data, info.size)
        assert member.data == b"abc"
    assert only(header(size=b"\x0000000000003") + body).size == 3  # as in GNU tar and Go; Python reads 0 here
    assert member.name == "\\xe9\\xff.jpg"  # the last: not UTF-8, and still a str that Parquet takes


def test_prefix_bytes_are_a_name_only_in_a_ustar_header():
    body = padded(b"abc") + END
    assert only(header(tail=b"folder") + body).name == "folder/a.jpg"
    assert only(header(magic=b"ustar  \0", tail=b"14000000000\0") + body).name == "a.jpg"  # GNU: the access time
    star = b"f" * 131 + b"14000000000 " * 2 + bytes(8) + b"tar\0"
    assert only(header(tail=star) + body).name == "f" * 131 + "/a.jpg"


def test_pax_path_and_size_override_the_header():
    payload = pax_record(b"path", "é/b.jpg".encode()) + pax_record(b"size", b"3") + pax_record(b"linkpath", b"x")
    data = extension(payload) + header(size=octal(0)) + padded(b"abc") + END
    assert only(data) == Member("é/b.jpg", 3 * BLOCK, b"abc", 3, 0, None)
    unset = extension(pax_record(b"path", b"")) + header() + padded(b"abc") + END
    assert only(unset).name == "a.jpg"
    nul_padded = extension(pax_record(b"path", b"b.jpg") + bytes(9)) + header() + padded(b"abc") + END
    assert only(nul_padded).name == "b.jpg"


def test_a_global_header_between_a_pax_header_and_its_member_changes_nothing():
    local, everywhere = extension(pax_record(b"path", b"b.jpg")), extension(pax_record(b"comment", b"c"), b"g")
    data = local + everywhere + header() + padded(b"abc") + END
    assert only(data) == Member("b.jpg", 5 * BLOCK, b"abc", 3, 0, None)
    assert only(everywhere + header() + padded(b"abc") + END).start == 2 * BLOCK


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_no_data_follows_links_devices_and_folders_whatever_their_size_field_says(kind):
    data = header(b"not_a_file", octal(5000), kind) + header() + padded(b"abc") + END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["not_a_file", "a.jpg"]
    assert only(data).offset == 2 * BLOCK


def test_concatenated_tars_are_read_to_the_end_where_tarfile_stops_after_the_first():
    one, two = make_tar([("a.jpg", b"1"), ("b.jpg", b"2")]), make_tar([("c.jpg", b"3")])
    both = one + two + bytes(4096)
    assert [m.name for m in read_members(io.BytesIO(both))] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [m.offset for m in read_members(io.BytesIO(both))][2] == len(one) + BLOCK
    assert len(webdataset_read(both)) == 2  # the negative control


# --- cuts and damage


def cut_lengths(shard: bytes) -> list[int]:
    return sorted({*range(0, len(shard), 97), *range(0, len(shard), BLOCK)})


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
    assert silent["tarfile"] > 10 and silent["webdataset"] > 10  # the negative control: why this reader exists


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


def test_a_flipped_header_byte_is_a_cut_at_its_member():
    shard = write_shard(make_samples(7))
    members = list(read_members(io.BytesIO(shard)))
    rng = random.Random(3)
    for index, member in enumerate(members):
        for at in (0, 124, 135, 148, 153, 156, 257, 511, *rng.sample(range(148), 4)):
            damaged = bytearray(shard)
            damaged[member.offset - BLOCK + at] ^= 1 << rng.randrange(3)
            seen, cut = read_until_cut(read_members(io.BytesIO(bytes(damaged))))
            assert cut is not None and (cut.offset, cut.short) == (member.start, False)
            assert seen == members[:index]
    assert any(m.offset - m.start > BLOCK for m in members)  # some have a pax header before them


@pytest.mark.parametrize(
    ("data", "offset", "short"),
    [
        (b"", 0, True),
        (b"\x1f\x8b" + bytes(20), 0, True),
        (b"\x1f\x8b" + bytes(1022), 0, False),
        (bytes(BLOCK), 0, True),  # one end block
        (bytes(2 * BLOCK - 1), 0, True),
        (END + b"junk", 2 * BLOCK, True),
        (END + b"junk" * 128, 2 * BLOCK, False),
        (bytes(BLOCK) + header() + padded(b"abc") + END, 0, False),  # a lone zero block is a hole
        (header() + padded(b"abc"), 2 * BLOCK, True),
        (header() + b"abc", 0, True),
        (extension(pax_record(b"path", b"b")) + END, 0, False),  # a pax header for nothing
        (extension(pax_record(b"path", b"b")), 0, True),
        (extension(b"9 path=bb") + header() + padded(b"abc") + END, 0, False),
        (extension(b"99 path=b\n") + header() + padded(b"abc") + END, 0, False),
        (extension(pax_record(b"size", b"-3")) + header() + padded(b"abc") + END, 0, False),
        (extension(pax_record(b"size", b"9" * 5000)) + header() + padded(b"abc") + END, 0, False),
        (extension(bytes((1 << 20) + 1)) + header() + padded(b"abc") + END, 0, False),
        (extension(b"n" * (1 << 20) + b"n\0", b"L") + header() + padded(b"abc") + END, 0, False),
        (extension(pax_record(b"path", b"all.jpg"), b"g") + header() + padded(b"abc") + END, 0, False),
        (header(size=b"-0000000003\0") + END, 0, False),
        (header(size=b"0x000000003\0") + END, 0, False),
        (header(size=b"00000 00003\0") + END, 0, False),
        (header(size=b"\xff" * 11 + b"\xfd") + END, 0, False),  # base 256, negative
        (header(size=b"\x80" + b"\xff" * 11) + END, 0, False),  # base 256, 88 bits
    ],
)
def test_damage_is_a_cut_with_its_place(data, offset, short):
    cut = cut_of(data)
    assert (cut.offset, cut.short) == (offset, short)
    assert str(offset) in str(cut) and cut.reason in str(cut)


def test_a_tar_of_end_blocks_alone_is_empty_and_whole():
    for zeros in (1024, 1025, 10240):
        assert list(read_members(io.BytesIO(bytes(zeros)))) == []
    global_only = extension(pax_record(b"comment", b"empty git archive"), b"g") + END
    assert list(read_members(io.BytesIO(global_only))) == []


def test_a_cut_inside_a_skipped_member_is_a_cut():
    data = header(size=octal(5000)) + bytes(4000)
    with pytest.raises(TarCut):
        list(read_members(io.BytesIO(data), want=lambda name: False))
    with pytest.raises(TarCut):
        list(read_members(io.BytesIO(data), max_member_bytes=100))


def test_a_cut_keeps_its_facts_through_pickle():
    cut = pickle.loads(pickle.dumps(TarCut(512, "why", True)))
    assert (cut.offset, cut.reason, cut.short) == (512, "why", True)


@pytest.mark.parametrize("error", [OSError("store"), ValueError("closed"), TimeoutError("slow")])
def test_an_error_of_the_stream_passes_through_unchanged(error):
    class Failing(Drip):
        def read(self, size=-1):
            if self.at > 3000:
                raise error
            return super().read(size)

    with pytest.raises(type(error)) as caught:
        list(read_samples(Failing(write_shard(make_samples(3)), most=600)))
    assert caught.value is error


# --- restart, streams, samples


def test_reading_restarts_at_every_sample_and_gives_the_rest_exactly():
    twice = [("z.jpg", b"1"), ("._z.jpg", b""), ("z.jpg", b"2"), ("y.jpg", b"")]
    shard = write_shard(make_samples(9)) + make_tar(twice)
    whole = list(read_samples(io.BytesIO(shard)))
    assert len(whole) == 12
    for index, sample in enumerate(whole):
        assert list(read_samples(io.BytesIO(shard[sample.start :]), sample.start)) == whole[index:]
        assert list(read_samples(io.BytesIO(shard[sample.end :]), sample.end)) == whole[index + 1 :]


def test_reading_restarts_at_every_member():
    shard = write_shard(make_samples(9))
    whole = list(read_members(io.BytesIO(shard)))
    for index, member in enumerate(whole):
        assert list(read_members(io.BytesIO(shard[member.start :]), member.start)) == whole[index:]


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_tiny_reads_gives_the_same(seed):
    shard = write_shard(make_samples(8))
    assert list(read_samples(Drip(shard, seed))) == list(read_samples(io.BytesIO(shard)))
    wanted = [s.key for s in read_samples(Drip(shard, seed), want_field=lambda ext: False)]
    assert wanted == [s.key for s in read_samples(io.BytesIO(shard))]


def test_a_repeated_extension_starts_a_second_sample_with_the_same_key():
    shard = make_tar([("a.jpg", b"1"), ("a.json", b"2"), ("a.JPG", b"3"), ("a.cls", b"4"), ("b.jpg", b"5")])
    assert flat(read_samples(io.BytesIO(shard))) == [
        {"__key__": "a", "jpg": b"1", "json": b"2"},
        {"__key__": "a", "jpg": b"3", "cls": b"4"},
        {"__key__": "b", "jpg": b"5"},
    ]


def test_skipped_members_neither_split_a_sample_nor_make_one():
    shard = make_tar([("a.jpg", b"1"), ("._a.jpg", b"x"), ("__MACOSX/a.b", b"x"), ("noext", b"x"), ("a.json", b"2")])
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
    assert unwanted.refused is None and unwanted.size == 1 and shard[unwanted.offset : unwanted.offset + 1] == b"3"
    names = [m.name for m in read_members(io.BytesIO(shard), want=lambda name: name.endswith("jpg"))]
    assert names == ["a.jpg", "c.jpg"]


# --- refusals and memory


def sparse_6_gib() -> bytes:
    """An old GNU sparse file of 3 stored bytes, 6 GiB when unpacked, with two blocks of its map behind the header."""
    tail = bytes(41) + (octal(0) + octal(3)) * 4 + b"\x01" + b"\x80" + (6 << 30).to_bytes(11, "big")
    maps = bytes(504) + b"\x01" + bytes(7) + bytes(BLOCK)
    return header(b"s.jpg", kind=b"S", magic=b"ustar  \0", tail=tail) + maps + padded(b"abc")


def peak_bytes(read) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_sparse_members_are_refused_without_allocating_and_the_next_ones_read():
    pax = extension(pax_record(b"GNU.sparse.major", b"1") + pax_record(b"GNU.sparse.name", b"t.jpg"))
    data = sparse_6_gib() + pax + header(b"made/up") + padded(b"abc") + header() + padded(b"xyz") + END
    members = []
    assert peak_bytes(lambda: members.extend(read_members(io.BytesIO(data)))) < 4 << 20
    assert [(m.name, m.data, m.refused) for m in members] == [
        ("s.jpg", None, "sparse_member"),
        ("t.jpg", None, "sparse_member"),
        ("a.jpg", b"xyz", None),
    ]
    assert data[members[0].offset :][:3] == b"abc" and members[0].size == 3


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar_are_refused_under_their_own_name(tmp_path, version):
    flags = "--format=gnu" if version == "gnu" else f"--format=pax --sparse-version={version}"
    gnu_tar = shutil.which("tar")
    if gnu_tar is None or b"GNU tar" not in subprocess.run([gnu_tar, "--version"], capture_output=True).stdout:
        pytest.skip("needs GNU tar")
    with open(tmp_path / "holes.jpg", "wb") as file:
        for extent in range(60):  # more than the header's map holds
            file.seek(extent << 17)
            file.write(b"data" * 1024)
    (tmp_path / "next.jpg").write_bytes(b"next")
    command = [gnu_tar, "--sparse", "--hole-detection=raw", *flags.split(), "-cf", "-", "holes.jpg", "next.jpg"]
    data = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    seen = [(m.name, m.data, m.refused) for m in read_members(io.BytesIO(data))]
    assert seen == [("holes.jpg", None, "sparse_member"), ("next.jpg", b"next", None)]


def test_oversized_members_are_refused_and_the_next_ones_read():
    shard = make_tar([("a.jpg", bytes(5000)), ("b.jpg", bytes(100)), ("c.jpg", bytes(101))])
    seen = [(m.name, m.size, m.refused) for m in read_members(io.BytesIO(shard), max_member_bytes=100)]
    refused = "too_many_bytes"
    assert seen == [("a.jpg", 5000, refused), ("b.jpg", 100, None), ("c.jpg", 101, refused)]
    unwanted = list(read_samples(io.BytesIO(shard), max_member_bytes=100, want_field=lambda ext: False))
    assert [s.fields["jpg"].refused for s in unwanted] == [None] * 3
    assert list(read_members(io.BytesIO(shard), max_member_bytes=100, want=lambda name: False)) == []


def test_a_header_that_claims_much_allocates_nothing():
    class Eager(io.BytesIO):
        """Makes room for all that is asked for before it reads, as files and sockets do."""

        def read(self, size=-1):
            return bytes(bytearray(size)[:0]) + super().read(size)

    stream = Eager(header(size=octal(255 << 20)) + bytes(1000))
    assert peak_bytes(lambda: read_until_cut(read_members(stream))) < 4 << 20


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


# --- fuzz


def fix_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def mutants(count: int, seed: int):
    """Random bytes, shards with random damage, and headers with random fields under a right checksum."""
    rng = random.Random(seed)
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


@pytest.mark.parametrize("seed", range(3))
def test_damaged_tars_raise_nothing_but_a_cut_and_lie_about_no_place(seed):
    cuts = 0
    for data in mutants(2000, seed):
        seen, cut = read_until_cut(read_samples(io.BytesIO(data), max_member_bytes=1 << 20))
        cuts += cut is not None
        for member in (member for sample in seen for member in sample.fields.values()):
            member.name.encode("utf-8")
            assert member.data is None or data[member.offset : member.offset + member.size] == member.data
            assert member.start < member.offset <= member.offset + member.size <= len(data)
        if cut is not None:
            assert 0 <= cut.offset <= len(data)
    assert 1000 < cuts < 2000


def test_pax_payloads_of_random_records_raise_nothing_but_a_cut():
    rng, whole = random.Random(4), 0
    parts = [b"GNU.sparse.", b"path", b"size", b"=", b"\n", b" ", b"\0", b"9", b"12 ", b"\xff", b"1" * 5000]
    parts += [pax_record(b"path", b"x.jpg"), pax_record(b"size", b"3"), pax_record(b"GNU.sparse.size", b"-1")]
    for _ in range(3000):
        payload = b"".join(rng.choices(parts, k=rng.randint(0, 4)))
        data = extension(payload, rng.choice([b"x", b"g", b"L", b"X"])) + header() + padded(b"abc") + END
        whole += read_until_cut(read_members(io.BytesIO(data)))[1] is None
    assert whole > 100
