"""Show that members equal tarfile's where it is right, that damage is loud, and a claim allocates nothing."""

import io
import pickle
import random
import shutil
import subprocess
import tarfile

import pytest

from tests.support.tars import (
    END,
    add,
    extension,
    header,
    make_samples,
    make_tar,
    octal,
    padded,
    pax_record,
    peak_bytes,
    read_members,
    read_until_cut,
    sparse_6_gib,
    webdataset_read,
    write_shard,
)
from wordsworth.pipeline.sources.tar import Member
from wordsworth.pipeline.sources.tar_groups import read_samples
from wordsworth.pipeline.sources.tar_headers import BLOCK, TarCut

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def cut_of(data: bytes) -> TarCut:
    cut = read_until_cut(read_members(io.BytesIO(data)))[1]
    assert cut is not None
    return cut


def only(data: bytes) -> Member:
    (member,) = read_members(io.BytesIO(data))
    return member


# ---- equal to tarfile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_equals_tarfile_with_exact_offsets_and_starts(form):
    rng = random.Random(2)
    names = [
        "a.jpg",
        "d/" * 40 + "split.jpg",
        "b" * 100,
        "d/" * 60 + "prefix.jpg",
        "Ärger/图.png",
        "empty.txt",
    ]
    names += [] if form == "ustar" else ["n" * 101 + ".jpg", "l/" * 700 + "long.jpg"]
    files = [(name, rng.randbytes(rng.choice([1, 511, 512, 513, 5000]))) for name in names]
    files[5] = ("empty.txt", b"")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form], pax_headers={"comment": "global"}) as tar:
        for name, data in files:
            add(tar, name, data)
            for kind in (
                tarfile.DIRTYPE,
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.FIFOTYPE,
                tarfile.CHRTYPE,
            ):
                info = tarfile.TarInfo("not/a/file")
                info.type, info.linkname = kind, "t" * (90 if form == "ustar" else 300)
                tar.addfile(info)
    shard = out.getvalue()
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        theirs = [
            (i.name, i.offset_data, i.size, i.offset, tar.extractfile(i).read()) for i in tar if i.isreg()
        ]
    ours = list(read_members(io.BytesIO(shard)))
    assert [(m.name, m.offset, m.size, m.start, m.data) for m in ours] == theirs
    assert [(m.name, m.data) for m in ours] == files
    assert all(shard[m.offset : m.offset + m.size] == m.data for m in ours)


def test_base_256_v7_contiguous_and_signed_checksum_headers_are_read():
    body, base256 = padded(b"abc") + END, b"\x80" + bytes(10) + b"\x03"
    v7 = header(magic=b"") + padded(b"abc") + header(b"folder/", octal(0), b"\0", b"") + END
    tars = [header(size=base256) + body, header(kind=b"7") + body, header(kind=b"\0", magic=b"") + body, v7]
    tars += [header(size=b"          3 ") + body, header(size=b"3 \0junkjunk\0") + body]
    tars += [
        extension(pax_record(b"path", b"b"), b"X") + header() + body,
        header(b"\xe9\xff.jpg", signed=True) + body,
    ]
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
    assert (
        only(header(magic=b"ustar  \0", tail=b"14000000000\0") + body).name == "a.jpg"
    )  # GNU: the access time
    star = b"f" * 131 + b"14000000000 " * 2 + bytes(8) + b"tar\0"
    assert only(header(tail=star) + body).name == "f" * 131 + "/a.jpg"


def test_pax_path_and_size_override_the_header():
    payload = (
        pax_record(b"path", "é/b.jpg".encode()) + pax_record(b"size", b"3") + pax_record(b"linkpath", b"x")
    )
    data = extension(payload) + header(size=octal(0)) + padded(b"abc") + END
    assert only(data) == Member("é/b.jpg", 3 * BLOCK, b"abc", 3, 0, None)
    unset = extension(pax_record(b"path", b"")) + header() + padded(b"abc") + END
    assert only(unset).name == "a.jpg"
    nul_padded = extension(pax_record(b"path", b"b.jpg") + bytes(9)) + header() + padded(b"abc") + END
    assert only(nul_padded).name == "b.jpg"


def test_a_global_header_between_a_pax_header_and_its_member_changes_nothing():
    local, everywhere = (
        extension(pax_record(b"path", b"b.jpg")),
        extension(pax_record(b"comment", b"c"), b"g"),
    )
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


def test_reading_restarts_at_every_member():
    shard = write_shard(make_samples(9))
    whole = list(read_members(io.BytesIO(shard)))
    for index, member in enumerate(whole):
        assert list(read_members(io.BytesIO(shard[member.start :]), member.start)) == whole[index:]


# ---- cuts and damage ---------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
def test_pax_payloads_of_random_records_raise_nothing_but_a_cut():
    rng, whole = random.Random(4), 0
    parts = [b"GNU.sparse.", b"path", b"size", b"=", b"\n", b" ", b"\0", b"9", b"12 ", b"\xff", b"1" * 5000]
    parts += [pax_record(b"path", b"x.jpg"), pax_record(b"size", b"3"), pax_record(b"GNU.sparse.size", b"-1")]
    for _ in range(3000):
        payload = b"".join(rng.choices(parts, k=rng.randint(0, 4)))
        data = extension(payload, rng.choice([b"x", b"g", b"L", b"X"])) + header() + padded(b"abc") + END
        whole += read_until_cut(read_members(io.BytesIO(data)))[1] is None
    assert whole > 100


# ---- refusals ----------------------------------------------------------------------------------------------


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
    if (
        gnu_tar is None
        or b"GNU tar" not in subprocess.run([gnu_tar, "--version"], capture_output=True).stdout
    ):
        pytest.skip("needs GNU tar")
    with open(tmp_path / "holes.jpg", "wb") as file:
        for extent in range(60):  # more than the header's map holds
            file.seek(extent << 17)
            file.write(b"data" * 1024)
    (tmp_path / "next.jpg").write_bytes(b"next")
    command = [
        gnu_tar,
        "--sparse",
        "--hole-detection=raw",
        *flags.split(),
        "-cf",
        "-",
        "holes.jpg",
        "next.jpg",
    ]
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
