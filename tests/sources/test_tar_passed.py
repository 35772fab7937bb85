"""Show that every skipped member is told with its kind and place, and every end that is none."""

import io
import tarfile
from collections import Counter

import pytest

from tests.support.tars import (
    END,
    extension,
    header,
    make_tar,
    octal,
    padded,
    pax_record,
    read_members,
    read_until_cut,
)
from wordsworth.pipeline.sources.tar import TarNote
from wordsworth.pipeline.sources.tar_groups import read_samples
from wordsworth.pipeline.sources.tar_keys import is_skipped, skip_reason

FILE = header() + padded(b"abc")
SKIPPED = {
    "._a.jpg": "apple_double",
    "d/.hidden.jpg": "hidden",
    "README": "no_extension",
    "__meta__/a.json": "meta",
    "x/__MACOSX/a.jpg": "macosx",
    "PaxHeaders.12/a.jpg": "pax_header",
    "cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg": "thumbnails",
    ".ipynb_checkpoints/a-checkpoint.jpg": "checkpoints",
    "./.Trash-1000/files/a.jpg": "trash",
    ".git/a.jpg": "hidden",
    "System Volume Information/a.jpg": "system",
}


def told(data: bytes, start: int = 0) -> list[TarNote]:
    heard: list[TarNote] = []
    read_until_cut(read_samples(io.BytesIO(data[start:]), start, on_note=heard.append))
    return heard


def test_every_skipped_file_is_told_with_its_kind_and_place():
    shard = make_tar(
        [("a.jpg", b"1"), *((name, b"x") for name in SKIPPED), ("b.jpg", b"2")], tarfile.USTAR_FORMAT
    )
    assert told(shard) == [
        TarNote("skipped", 1024 * place, name, kind) for place, (name, kind) in enumerate(SKIPPED.items(), 1)
    ]
    assert all(skip_reason(name) == kind and is_skipped(name) for name, kind in SKIPPED.items())
    assert [name for name in ("d.1/a.jpg", "./a.jpg", "../a.jpg", "_d/_a.csv") if is_skipped(name)] == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (b"1", "link"),
        (b"2", "link"),
        (b"3", "special"),
        (b"5", "directory"),
        (b"6", "special"),
        (b"V", "special"),
    ],
)
def test_what_is_no_file_is_told_with_its_kind_and_place(kind, name):
    long_name = extension(b"n" * 120, b"L")
    data = FILE + long_name + header(b"n", octal(0), kind) + FILE + END
    assert told(data) == [TarNote("skipped", 1024, "n" * 120, name)]
    assert told(header(b"folder/", octal(0), b"\0", b"") + FILE + END) == [
        TarNote("skipped", 0, "folder/", "directory")
    ]


def test_a_clean_tar_and_its_global_header_tell_nothing():
    assert told(extension(pax_record(b"comment", b"c"), b"g") + FILE + END + bytes(4096)) == []
    assert told(FILE + FILE) == []  # a cut has an error of its own


def test_more_behind_the_end_blocks_is_told_where_a_trusting_reader_stops():
    one = make_tar([("a.jpg", b"1")], tarfile.USTAR_FORMAT)
    assert told(one + one + one) == [TarNote("end", 1024), TarNote("end", len(one) + 1024)]
    assert told(FILE + END + b"junk" * 128) == told(FILE + END + b"junk") == [TarNote("end", 1024)]


def test_a_name_that_is_not_utf_8_is_told_and_one_that_spells_an_escape_is_not():
    shard = header(b"\xff.jpg") + padded(b"abc") + header(b"\\xff.jpg") + padded(b"abc") + END
    assert told(shard) == [TarNote("not_utf8", 0, "\\xff.jpg")]
    assert [member.name for member in read_members(io.BytesIO(shard))] == ["\\xff.jpg"] * 2


def test_a_reading_that_goes_on_from_any_sample_tells_the_rest_so_that_counts_add_up():
    shard = b"".join(
        make_tar([("a.jpg", b"1"), ("README", b""), ("b.jpg", b"2"), ("._b", b"")]) for _ in range(3)
    )
    whole = told(shard)
    assert Counter(passed.kind or passed.what for passed in whole) == {
        "no_extension": 3,
        "apple_double": 3,
        "end": 2,
    }
    for sample in read_samples(io.BytesIO(shard)):
        assert told(shard, sample.end) == [passed for passed in whole if passed.offset >= sample.end]


def test_to_listen_changes_no_sample():
    shard = make_tar([("a.jpg", b"1"), ("README", b""), ("a.json", b"2")]) + FILE + END
    samples = list(read_samples(io.BytesIO(shard)))
    assert list(read_samples(io.BytesIO(shard), on_note=[].append)) == samples and len(samples) == 2
