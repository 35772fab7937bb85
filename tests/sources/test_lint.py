"""Show that lint finds each planted fault at its byte, none in a clean shard, and the labeler's samples."""

import gzip
import io
import json
import os
import random
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem

from tests.support.builders import photo
from tests.support.samples import rows_of, units_of
from tests.support.stores import s3_bucket
from tests.support.tars import (
    END,
    header,
    make_samples,
    make_tar,
    octal,
    padded,
    peak_bytes,
    sparse_6_gib,
    write_shard,
)
from wordsworth.pipeline.sources import lint_tar as lint_module
from wordsworth.pipeline.sources.lint import lint
from wordsworth.pipeline.sources.lint_report import CODES, HARMLESS, LintFinding, LintReport
from wordsworth.pipeline.sources.pack import pack
from wordsworth.pipeline.sources.samples import ReadSettings


def member(name: bytes, data: bytes = b"abc", kind: bytes = b"0") -> bytes:
    return header(name, octal(len(data)), kind) + padded(data)


ROOT = Path(__file__).parents[2]
PAIR = member(b"a.jpg") + member(b"a.json", b"{}")  # 4 blocks
NEXT = member(b"b.jpg") + member(b"b.json", b"{}")


def report_of(tmp_path: Path, data: bytes, **settings) -> LintReport:
    (tmp_path / "s.tar").write_bytes(data)
    return lint([str(tmp_path / "s.tar")], ReadSettings(unit_rows=1, **settings))


def found(tmp_path: Path, data: bytes, **settings) -> dict[str, list[tuple[str | None, int | None]]]:
    """Codes and their places."""
    findings = report_of(tmp_path, data, **settings).findings
    assert all(len(finding.places) == finding.count for finding in findings)
    return {finding.code: [(place.key, place.offset) for place in finding.places] for finding in findings}


PLANTED = {
    "unsorted": (NEXT + PAIR + END, [("a", 2048)]),
    "repeated_key, adjacent": (member(b"a.jpg") + member(b"a.jpg") + END, [("a", 1024)]),
    "missing_image": (PAIR + member(b"b.json", b"{}") + END, [("b", 2048)]),
    "missing_sidecar": (PAIR + NEXT + member(b"c.jpg") + END, [("c", 4096)]),
    "missing_sidecar, first": (member(b"0.jpg") + PAIR + NEXT + END, [("0", 0)]),
    "hidden_extension": (PAIR + member(b"img.v1.2.jpg") + member(b"img.json") + END, [("img", 2048)]),
    "truncated, in data": (PAIR + NEXT[:600], [(None, 2048)]),
    "truncated, without an end": (PAIR, [(None, 2048)]),
    "truncated, bad header": (PAIR + NEXT[:148] + b"9" + NEXT[149:] + END, [(None, 2048)]),
    "trailing_data": (PAIR + END + bytes(4096) + NEXT + END, [(None, 2048)]),
    "sparse_member": (PAIR + sparse_6_gib() + member(b"s.json", b"{}") + END, [("s", 2048)]),
    "oversized_member": (PAIR + member(b"b.jpg", bytes(1001)) + member(b"b.json", b"") + END, [("b", 2048)]),
    "skipped_member": (PAIR + member(b"README") + NEXT + END, [("README", 2048)]),
    "empty_shard": (END, [(None, 0)]),
    "empty_file": (PAIR + member(b"b.jpg", b"") + member(b"b.json", b"") + END, [("b", 2048)]),
    "not_utf8_name": (
        PAIR + member(b"b\xff.jpg") + member(b"b\xff.json") + END,
        [("b\\xff", 2048), ("b\\xff", 3072)],
    ),
    "shared_name": (member(b"22.1.jpg") + member(b"22.2.jpg") + member(b"22.json") + END, [("22", 0)]),
    "other_image": (PAIR + NEXT + member(b"b.x.png") + END, [("b", 2048)]),
    "unsafe_key, absolute": (member(b"/a.jpg") + END, [("/a", 0)]),
    "unsafe_key, above": (member(b"d/../../a.jpg") + END, [("d/../../a", 0)]),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found_at_its_byte_and_nothing_else(tmp_path, planted):
    data, places = PLANTED[planted]
    assert found(tmp_path, data, max_bytes=1000) == {planted.partition(",")[0]: places}


def test_a_key_that_comes_again_apart_is_found_and_so_is_the_order_it_breaks(tmp_path):
    assert found(tmp_path, PAIR + NEXT + PAIR + END) == {
        "repeated_key": [("a", 4096)],
        "unsorted": [("a", 4096)],
    }


@pytest.mark.parametrize(
    "rule, detail",
    [
        (
            "auto",
            "3 images share the base name 22: each is a sample, keyed up to the last dot; "
            "webdataset and --key-rule first-dot see one sample",
        ),
        (
            "first-dot",
            "3 images share the base name 22: one of them is labelled (--key-rule first-dot); "
            "--key-rule auto takes each",
        ),
    ],
)
def test_images_that_only_their_dots_tell_apart_are_named_with_the_rule(tmp_path, rule, detail):
    images = [member(f"d/22.{number}.jpg".encode()) for number in range(3)]
    report = report_of(tmp_path, PAIR + b"".join(images) + member(b"e.jpg") + END, key_rule=rule)
    finding = next(finding for finding in report.findings if finding.code == "shared_name")
    assert [tuple(place) for place in finding.places] == [("d/22", 2048, detail)]
    assert report.samples == (5 if rule == "auto" else 3) and not report.clean


def test_every_code_is_planted_or_has_a_test_of_its_own():
    assert {name.partition(",")[0] for name in PLANTED} | {
        "colliding_key",
        "bad_record",
        "refused_uri",
        *("encrypted_member", "unknown_method", "damaged_member"),  # test_zip
    } == set(CODES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_clean_shard_has_no_finding(tmp_path, form):
    names = [f"d/{number:03d}" + ("n" * 90 if form != tarfile.USTAR_FORMAT else "") for number in range(40)]
    shard = make_tar(
        [(f"{name}.{ext}", b"x" * 700) for name in names for ext in ("jpg", "json", "seg.png")], form
    )
    report = report_of(tmp_path, shard, keep=("json",))
    (masks,) = report.findings
    assert (masks.code, masks.count, masks.places[0].detail) == (
        "other_image",
        40,
        "jpg is labelled, of jpg, json, seg.png",
    )
    assert (report.clean, report.shards, report.samples) == (True, 1, 40)


def test_members_that_are_passed_over_are_counted_by_kind_and_are_no_fault(tmp_path):
    junk = [
        member(b"._a.jpg"),
        member(b"d/.x.jpg"),
        member(b"README"),
        member(b"__MACOSX/a.jpg"),
        member(b"__m__/a.jpg"),
    ]
    others = [
        member(b"d", b"", b"5"),
        member(b"l", b"", b"2"),
        member(b"h", b"", b"1"),
        member(b"f", b"", b"6"),
    ]
    report = report_of(tmp_path, b"".join([PAIR, *junk, *others, NEXT, END]))
    (finding,) = report.findings
    assert finding.kinds == dict.fromkeys(
        ("apple_double", "hidden", "no_extension", "macosx", "meta", "directory"), 1
    ) | {
        "link": 2,
        "special": 1,
    }
    assert (finding.count, report.clean) == (9, True) and finding.code in HARMLESS
    assert [place.offset for place in finding.places] == [
        *range(2048, 2048 + 5 * 1024, 1024),
        *range(7168, 7168 + 4 * 512, 512),
    ]


def test_more_than_one_tar_in_a_file_is_told_at_each_end_and_all_is_read(tmp_path):
    one = make_tar([("a.jpg", b"1")], tarfile.USTAR_FORMAT)
    two = make_tar([("b.jpg", b"1")], tarfile.USTAR_FORMAT)
    report = report_of(tmp_path, one + two + one[:512])
    assert [(f.code, [p.offset for p in f.places]) for f in report.findings] == [
        ("truncated", [2 * len(one)]),
        ("trailing_data", [1024, len(one) + 1024]),
    ]
    assert report.samples == 2
    with tarfile.open(fileobj=io.BytesIO(one + two)) as archive:  # what the finding warns of
        assert archive.getnames() == ["a.jpg"] and archive.offset == 1024


def test_junk_behind_the_end_is_told_with_the_cut_that_the_labeler_will_write(tmp_path):
    assert found(tmp_path, PAIR + END + b"junk" * 300) == {
        "truncated": [(None, 3072)],
        "trailing_data": [(None, 2048)],
    }
    rows = rows_of(units_of(tmp_path / "s.tar"))
    assert [row["error"] for row in rows] == [None, "shard_truncated"]


# ---- order, keys, sidecars ---------------------------------------------------------------------------------


def test_shards_sorted_by_key_or_by_file_name_are_in_order(tmp_path):
    keys = ["a", "a-b", "a b", "a+", "b", "b (2)", "c/d", "c/d-e"]
    for order in (sorted(keys), sorted(keys, key=lambda key: f"{key}.jpg")):
        assert found(tmp_path, make_tar([(f"{key}.jpg", b"1") for key in order])) == {}
    assert sorted(keys) != sorted(keys, key=lambda key: f"{key}.jpg")
    report = report_of(tmp_path, make_tar([(f"{key}.jpg", b"1") for key in "edcba"]))
    (finding,) = report.findings
    assert (finding.code, finding.count, report.clean) == ("unsorted", 4, True)


def test_members_of_a_sample_that_stand_apart_are_a_finding(tmp_path):
    apart = member(b"a.jpg") + member(b"b.jpg") + member(b"a.json", b"{}") + END
    report = report_of(tmp_path, apart)
    assert "repeated_key" in {finding.code for finding in report.findings} and not report.clean


def test_shards_that_pack_wrote_are_clean(tmp_path):
    for number in range(9):
        path = tmp_path / "photos" / f"{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    pack(str(tmp_path / "photos"), str(tmp_path / "shards"))
    report = lint([str(tmp_path / "shards")], ReadSettings(unit_rows=1))
    assert report.clean and [finding.code for finding in report.findings] == ["unsorted"]


def test_the_page_says_what_every_code_means():
    table = (
        (ROOT / "docs" / "sources.md").read_text().partition("## What lint finds")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    faults, notes = table.split("no reason to exit with 3")
    assert sorted(rows) == sorted(CODES)
    assert all(f"| `{code}` |" in (notes if code in HARMLESS else faults) for code in CODES)


def test_a_field_to_keep_is_missed_wherever_it_lacks_and_another_only_where_most_have_it(tmp_path):
    few = PAIR + member(b"b.jpg") + member(b"c.jpg") + END  # json: 1 of 3
    assert found(tmp_path, few) == {}
    assert found(tmp_path, few, keep=("json",)) == {"missing_sidecar": [("b", 2048), ("c", 3072)]}
    lacking = {"txt": [("a", 0), ("b", 2048), ("c", 3072)], "json": [("b", 2048), ("c", 3072)]}
    assert found(tmp_path, few, keep=("txt", "json"))["missing_sidecar"] == lacking["txt"] + lacking["json"]
    half = PAIR + member(b"b.jpg") + END
    assert found(tmp_path, half) == {}


def test_a_random_shard_lacks_exactly_what_counting_says(tmp_path):
    rng = random.Random(5)
    have = {
        f"{n:03d}": [e for e, p in (("cls", 0.9), ("json", 0.6), ("txt", 0.3)) if rng.random() < p]
        for n in range(150)
    }
    shard = make_tar([(f"{key}.{ext}", b"1") for key, exts in have.items() for ext in ("jpg", *exts)])
    (finding,) = report_of(tmp_path, shard, max_bytes=1 << 20).findings
    counts = {ext: sum(ext not in exts for exts in have.values()) for ext in ("cls", "json", "txt")}
    assert (
        finding.kinds == {ext: count for ext, count in counts.items() if count < 75}
        and len(finding.kinds) == 2
    )
    assert finding.count == sum(finding.kinds.values())
    said = {(place.key, place.detail.removeprefix("has no ")) for place in finding.places}
    assert said == {(key, ext) for key, exts in have.items() for ext in finding.kinds if ext not in exts}


def test_places_are_capped_and_counts_are_not(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(make_tar([(f"{number:04d}.json", b"1") for number in range(300)]))
    (finding,) = lint([str(path)], ReadSettings(unit_rows=1), most_places=7).findings
    assert (finding.code, finding.count, [place.key for place in finding.places]) == (
        "missing_image",
        300,
        [f"{number:04d}" for number in range(7)],
    )


@pytest.mark.slow
def test_memory_holds_neither_members_nor_keys_and_a_key_of_a_million_characters_is_clipped(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(40):
            info = tarfile.TarInfo(f"{number:03d}{'k' * 500_000}.json")
            info.size = 1 << 20
            archive.addfile(info, io.BytesIO(bytes(1 << 20)))
    reports: list[LintReport] = []
    peak = peak_bytes(lambda: reports.append(lint([str(path)], ReadSettings(unit_rows=1))))
    (finding,) = reports[0].findings
    assert finding.count == 40 and {len(place.key) for place in finding.places} == {1000}
    assert peak < 12 << 20, f"{peak >> 20} MiB for a tar of {path.stat().st_size >> 20} MiB"


# ---- the labeler's view ------------------------------------------------------------------------------------


def odd_shards() -> dict[str, bytes]:
    rng = random.Random(6)
    names = [
        "a.jpg",
        "a.json",
        "img.v1.2.jpg",
        "B.JPG",
        "c.txt",
        "d.seg.png",
        "._a.jpg",
        "README",
        "d/e.webp",
        "a.b.c",
        "\xff.gif",
    ]
    made = {
        f"random {n}": make_tar([(rng.choice(names), b"x" * rng.choice([0, 3, 700])) for _ in range(25)])
        for n in range(20)
    }
    written = write_shard(make_samples(9))
    made |= {f"cut at {at}": written[:at] for at in range(0, len(written), 1601)}
    return made | {
        "concatenated": written + make_tar([("z.json", b"1")]),
        "empty": END,
        "sparse": PAIR + sparse_6_gib() + END,
    }


ODD = odd_shards()


@pytest.mark.parametrize("name", ODD)
def test_lint_and_the_labeler_agree_on_samples_images_and_cuts(tmp_path, name):
    report = report_of(tmp_path, ODD[name])
    by_code = {finding.code: finding for finding in report.findings}
    rows = rows_of(units_of(tmp_path / "s.tar"))
    cuts = [(None, row["offset"]) for row in rows if row["error"] == "shard_truncated"]
    assert report.samples == len(rows) - len(cuts)
    for code, theirs in (("missing_image", "missing_image"), ("sparse_member", "sparse_member")):
        keys = [place.key for place in by_code.get(code, LintFinding("", "")).places]
        assert keys == [row["key"] for row in rows if row["error"] == theirs]
    assert [place[:2] for place in by_code.get("truncated", LintFinding("", "")).places] == cuts


def test_the_odd_shards_have_what_the_agreement_is_about(tmp_path):
    codes = [{finding.code for finding in report_of(tmp_path, data).findings} for data in ODD.values()]
    assert (
        sum("missing_image" in each for each in codes) > 10
        and sum("truncated" in each for each in codes) > 10
    )


# ---- stores ------------------------------------------------------------------------------------------------


def flaky(monkeypatch, open_):
    fs = LocalFileSystem(skip_instance_cache=True)
    whole = fs.open
    monkeypatch.setattr(fs, "open", lambda path, *args, **options: open_(whole(path)))
    monkeypatch.setattr(lint_module, "open_exact", lambda uri, options=None: (fs, uri))
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))


def test_bytes_that_differ_once_are_no_finding_and_nothing_is_counted_twice(tmp_path, monkeypatch):
    data = PAIR + member(b"README") + NEXT + member(b"._b") + member(b"c.jpg") + member(b"c.json") + END
    expected = found(tmp_path, data)
    assert expected == {"skipped_member": [("README", 2048), ("._b", 5120)]}
    readings = []

    def flip(file):
        readings.append(1)
        bad = bytearray(file.read())
        bad[6144] ^= len(readings) == 1  # the header of c.jpg
        return io.BytesIO(bad)

    flaky(monkeypatch, flip)
    assert found(tmp_path, data) == expected and len(readings) == 2


def test_a_shard_that_the_store_does_not_give_is_no_finding_and_the_others_are_read(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(PAIR + END if name != "c" else NEXT)

    def refuse(file):
        if file.name.endswith("b.tar"):
            raise OSError("503 SlowDown")
        return file

    flaky(monkeypatch, refuse)
    report = lint([str(tmp_path)], ReadSettings(unit_rows=1))
    assert report.unreadable == {str(tmp_path / "b.tar"): "OSError: 503 SlowDown"} and not report.clean
    assert [(finding.code, os.path.basename(finding.shard)) for finding in report.findings] == [
        ("truncated", "c.tar")
    ]


def test_a_store_gives_the_same_findings_as_a_disk(tmp_path):
    data = NEXT + PAIR + member(b"README") + PAIR[:700]
    with s3_bucket() as bucket:
        bucket.objects["b/s.tar"] = data
        theirs = lint(["s3://b/s.tar"], ReadSettings(unit_rows=1)).findings
    ours = report_of(tmp_path, data).findings
    assert {finding.shard for finding in theirs} == {"s3://b/s.tar"} and len(ours) == 3
    assert [(f.code, f.count, f.places) for f in theirs] == [(f.code, f.count, f.places) for f in ours]


# ---- loose images ------------------------------------------------------------------------------------------


def test_loose_images_empty_large_or_of_one_key_are_found_across_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("wordsworth.pipeline.sources.finder.PAGE", 2)
    sizes = {
        "a.jpg": 3,
        "a.png": 3,
        "b.v1.jpg": 0,
        "b.v2.jpg": 3,
        "c.jpg": 11,
        "d/a.jpg": 3,
        "notes.txt": 3,
        "._a.jpg": 3,
    }
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    begun = []
    report = lint(
        [str(tmp_path)], ReadSettings(unit_rows=1, max_bytes=10), on_shard=lambda *told: begun.append(told)
    )
    assert {finding.code: [tuple(place[:2]) for place in finding.places] for finding in report.findings} == {
        "empty_file": [("b.v1.jpg", None)],
        "oversized_member": [("c.jpg", None)],
        "colliding_key": [("a.png", None), ("b.v2.jpg", None)],
    }
    assert (report.shards, report.samples, report.passed_over.ignored) == (3, 6, {".txt": 1})
    assert report.passed_over.skipped == {"apple_double": 1}
    assert begun == [(number, 3, str(tmp_path)) for number in (1, 2, 3)]


def test_clean_loose_images_have_no_finding(tmp_path):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    report = lint([str(tmp_path)], ReadSettings(unit_rows=1))
    assert report.clean and report.findings == [] and json.dumps(report.passed_over.ignored) == "{}"


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.zst"])
def test_a_compressed_tar_is_linted_as_the_tar_in_it(tmp_path, ending):
    plain = b"".join(map(member, (b"a.jpg", b"._a.jpg", b"b.txt", b"c.v1.jpg"))) + END
    packed = gzip.compress(plain) if ending == ".tar.gz" else zstandard.compress(plain)
    for name, data, extra in (
        ("whole", packed, set()),
        ("cut", packed[: len(packed) * 2 // 3], {"truncated"}),
    ):
        path = tmp_path / name / f"a{ending}"
        path.parent.mkdir()
        path.write_bytes(data)
        found = {finding.code for finding in lint([str(path)], ReadSettings(unit_rows=1)).findings}
        assert found >= extra
        if not extra:
            assert found == {"skipped_member", "missing_image", "hidden_extension"}


def test_a_table_is_linted_without_asking_for_what_it_names(tmp_path):
    lines = [
        '{"url": "s3://nowhere/a.jpg", "id": "a"}',
        "{broken",
        '{"url": null, "id": "b"}',
        '{"url": "x.jpg", "id": "a"}',
        '{"url": "' + "x" * 5000 + '"}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    report = lint([str(tmp_path / "t.jsonl")], ReadSettings(unit_rows=1, key="id"))
    assert {finding.code: finding.count for finding in report.findings} == {
        "bad_record": 1,
        "missing_image": 1,
        "repeated_key": 1,
        "refused_uri": 1,
    }
    assert report.samples == 5
