"""The recount of tables and compressed tars: it sees what the reader dropped, and agrees with it on
everything damaged."""

import base64
import os
import random

import pyarrow as pa
import pytest
import zstandard

from tests.sources.test_compressed import images, squeeze
from tests.support.runs import KEYS, build, codes, read_rows
from tests.support.samples import units_of
from tests.support.tables import image_bytes, write_csv, write_files, write_json, write_jsonl, write_parquet
from tests.support.tars import make_tar
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.verification.recount import Recount, Sample
from wordsworth.pipeline.verification.verifier import verify


def write_any(folder, form: str, count: int):
    if form in ("tar.gz", "tar.zst"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"t.{form}").write_bytes(squeeze(make_tar(images(count)), form.rpartition(".")[2]))
        return folder / f"t.{form}"
    if form == "parquet":
        return write_parquet(
            folder / "t.parquet", {"image": [image_bytes(n) for n in range(count)]}, rows_in_group=7
        )
    rows = [{"url": name, "t": 'a "quote",\n'} for name in write_files(folder / "p", count)]
    return write_jsonl(folder / "t.jsonl", rows) if form == "jsonl" else write_csv(folder / "t.csv", rows)


FORMS = ["parquet", "csv", "jsonl", "tar.gz", "tar.zst"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_reader_that_drops_every_tenth_row_is_caught_by_the_recount_and_by_nothing_else(tmp_path, form):
    path = write_any(tmp_path / "in", form, 40)
    whole = verify(str(build(tmp_path / "whole", path)), source=True)
    assert whole.ok and whole.recounted == whole.rows == 40, whole.findings
    lossy = build(
        tmp_path / "out",
        path,
        reader=lambda shard: [row for n, row in enumerate(read_rows(shard)) if n % 10 != 9],
    )
    assert verify(str(lossy)).ok, "the folder alone is consistent: only the input tells"
    report = verify(str(lossy), source=True)
    (fault,) = report.findings
    assert (fault.code, report.rows, report.recounted) == (
        "missing_sample",
        36,
        40,
    ) and "(4 such here)" in fault.detail


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: [rows[1], rows[0], *rows[2:]], "wrong_key"),
        (lambda rows: [rows[0], *rows], "extra_row"),
        (lambda rows: [{**rows[0], "error": "missing_image"}, *rows[1:]], "wrong_error"),
        (lambda rows: [{**rows[0], "error": "bad_record"}, *rows[1:]], "wrong_error"),
        (lambda rows: [*rows, {**rows[0], "key": None, "error": "shard_truncated"}], "extra_row"),
        (lambda rows: [{**rows[0], "offset": 512}, *rows[1:]], "wrong_place"),
    ],
    ids=["swapped", "doubled", "no image", "bad", "cut", "a place"],
)
def test_rows_that_are_not_the_tables_are_found(tmp_path, form, change, what):
    path = write_any(tmp_path / "in", form, 6)
    out = build(tmp_path / "out", path, reader=lambda shard: change(read_rows(shard)))
    assert codes(verify(str(out), source=True)) == {what}


def test_another_size_of_bytes_in_a_table_is_found(tmp_path):
    path = write_any(tmp_path / "in", "parquet", 6)
    out = build(
        tmp_path / "out",
        path,
        reader=lambda shard: [{**row, "size": row["size"] + 1} for row in read_rows(shard)],
    )
    assert codes(verify(str(out), source=True)) == {"wrong_place"}


class _Collector:
    def __init__(self):
        self.recounted, self.findings = 0, []

    def add(self, what, where, detail, count=1):
        self.findings.append((what, detail, count))


def differences(path, **asked) -> list:
    """What the recount finds wrong with the rows that the reader gives."""
    (shard,) = find_shards([str(path)], format=None, image_keys=KEYS).shards
    report = _Collector()
    recount = Recount({"image-key": list(KEYS), "source": [str(path)]} | asked, None, report)
    rows = [(row["key"], row["offset"], row["size"], row["error"]) for row in read_rows(shard)]
    recount.shard(shard, [Sample(*row) for row in rows])
    return report.findings


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gz", "zst"])
def test_reader_and_recount_agree_wherever_a_compressed_tar_is_cut_or_damaged(tmp_path, form):
    tar = make_tar(images(9))
    parts = [squeeze(tar[at : at + 1500], form) for at in range(0, len(tar), 1500)]
    path, generator = tmp_path / f"a.tar.{form}", random.Random(0)
    for whole in (b"".join(parts), squeeze(tar, form)):
        for end in range(0, len(whole), 331):
            path.write_bytes(whole[:end])
            assert differences(path) == [], end
        for _ in range(40):
            bad = bytearray(whole)
            bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
            path.write_bytes(bad)
            assert differences(path) == [], bad
        for tail in (b"x", b"\0", b"\0x", whole):
            path.write_bytes(whole + tail)
            assert differences(path) == [], tail


@pytest.mark.slow
def test_reader_and_recount_agree_on_zstd_blocks_that_end_where_members_do(tmp_path):
    """A block is 128 KiB, and so are four members with their headers: damage in a block must not cost the
    one before it."""
    tar = make_tar([(f"{n:02d}.jpg", random.Random(n).randbytes((32 << 10) - 512)) for n in range(16)])
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(tar)
    path = tmp_path / "a.tar.zst"
    for at in range(3, len(whole), 39_119):
        for bad in (whole[:at], whole[:at] + bytes(16) + whole[at + 16 :]):
            path.write_bytes(bad)
            assert differences(path) == [], at


@pytest.mark.slow
def test_reader_and_recount_agree_on_csv_of_random_damage(tmp_path):
    generator, path = random.Random(5), tmp_path / "t.csv"
    tokens = ["a", "b.jpg", ",", ",", '"', '""', "\n", "\n", "\r\n", "\r", " ", "é", "\0", ""]
    for case in range(600):
        text = "url,t\n" + "".join(generator.choices(tokens, k=generator.randrange(30)))
        path.write_bytes(text.encode() + (b"\xff,1\n" if case % 7 == 0 else b""))
        assert differences(path) == [], repr(text)


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be", "utf-8"])
def test_reader_and_recount_agree_on_the_delimiters_and_encodings_of_damaged_text(tmp_path, code):
    generator = random.Random(code)
    tokens = ["a", "b.jpg", ",", ";", ";", '"', "|", "\t", "\n", "\n", "\r\n", "ä", "\u0a0a", "\ud800", "\0"]
    for case in range(150):
        path = tmp_path / ("t.jsonl" if case % 5 == 0 else "t.csv")
        header = generator.choice(["url;t", "url,t", "t|url", "t\turl", "x;y", "url"])
        begin = '{"url": "a.jpg"}' if case % 5 == 0 else header
        text = f"{begin}\n" + "".join(generator.choices(tokens, k=generator.randrange(40)))
        mark = generator.choice(["", "\ufeff"])
        data = bytearray((mark + text).encode(code, "surrogatepass"))
        if case % 3 == 0:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data + bytes(case % 2))
        found = differences(path)
        unusable = any(unit.fault for unit in units_of(path))
        assert [what for what, *_ in found] == ["unreadable_source"] * unusable, (data, found)


def test_reader_and_recount_agree_on_arrays_of_random_damage(tmp_path):
    generator = random.Random(8)
    tokens = ['{"url": "a.jpg"}', '{"url": "]"}', ",", "{", "}", "[", "]", '"', "\\", " ", "7", "\ud800"]
    for case in range(150):
        packing = ["", ".gz", ".zst"][case % 3]
        parts = generator.choices(tokens, [9, 9, 9, *[1] * 9], k=generator.randrange(14))
        text = ", ".join(parts) if case % 2 else "".join(parts)
        text = f"[{text}]" if case % 5 else f'[{{"url": "a.jpg"}},{text}'
        code = generator.choice(["utf-8", "utf-16-le", "utf-16-be"])
        data = text.encode(code, "surrogatepass")
        path = tmp_path / f"t.json{packing}"
        path.write_bytes(squeeze(data, packing[1:]) if packing else data)
        refused = any(unit.fault for unit in units_of(path))
        assert [what for what, *_ in differences(path)] == ["unreadable_source"] * refused, text


@pytest.mark.slow
def test_reader_and_recount_agree_wherever_a_compressed_table_is_cut_or_damaged(tmp_path):
    generator = random.Random(9)
    rows = [{"url": f"{n}.jpg", "t": generator.randbytes(40).hex()} for n in range(40)]
    for form, write_rows in (("csv", write_csv), ("jsonl", write_jsonl), ("json", write_json)):
        text = write_rows(tmp_path / f"t.{form}", rows).read_bytes()
        for packing in ("gz", "zst"):
            whole, path = squeeze(text, packing), tmp_path / f"t.{form}.{packing}"
            for end in range(0, len(whole), 397):
                path.write_bytes(whole[:end])
                assert differences(path) == [], end
            for _ in range(8):
                bad = bytearray(whole)
                bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
                path.write_bytes(bad)
                refused = any(unit.fault for unit in units_of(path))
                found = [what for what, *_ in differences(path)]
                assert found == ["unreadable_source"] * refused, bytes(bad)


@pytest.mark.slow
def test_reader_and_recount_agree_on_json_of_random_damage(tmp_path):
    generator, path = random.Random(6), tmp_path / "t.jsonl"
    lines = [
        b'{"url": "a.jpg"}',
        b'{"url": null}',
        b"{}",
        b"[]",
        b"{",
        b"",
        b" ",
        b'{"url": 7}',
        b"\xff",
        b'{"url": "\\ud800"}',
        b"\r",
    ]
    for _ in range(200):
        path.write_bytes(lines[0] + b"\n" + b"\n".join(generator.choices(lines, k=generator.randrange(9))))
        assert differences(path) == []


@pytest.mark.slow
def test_reader_and_recount_agree_on_parquet_of_random_damage(tmp_path):
    generator = random.Random(7)
    columns = {"image": [generator.randbytes(900) for _ in range(60)], "id": [f"k{n}" for n in range(60)]}
    options = {
        "write_page_checksum": True,
        "data_page_size": 4000,
        "write_batch_size": 3,
        "use_dictionary": False,
    }
    path = write_parquet(tmp_path / "t.parquet", columns, rows_in_group=25, **options)
    whole, cut = path.read_bytes(), 0
    for _ in range(60):
        bad = bytearray(whole)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        found = differences(path)
        assert found == [] or {what for what, *_ in found} == {"unreadable_source"}, found
        (shard,) = find_shards([str(path)]).shards
        cut += read_rows(shard)[-1:] != [] and read_rows(shard)[-1]["error"] == "shard_truncated"
    assert cut > 30
    for keep in (0, 8, len(whole) // 2, len(whole) - 1):
        os.truncate(path.with_suffix(".parquet"), 0)
        path.write_bytes(whole[:keep])
        assert differences(path) == [], keep


def test_a_key_and_an_image_column_of_the_run_are_those_of_the_recount(tmp_path):
    path = write_parquet(
        tmp_path / "t.parquet", {"a": [b"1"], "b": pa.array([None], pa.binary()), "id": ["x"]}
    )
    (shard,) = find_shards([str(path)]).shards
    for column, key in (("a", "id"), ("b", None), ("b", "id")):
        settings = ReadSettings(unit_rows=9, image_column=column, key=key)
        rows = [row for unit in read_units(shard, settings) for row in unit.samples.to_pylist()]
        report = _Collector()
        asked = {"image-key": list(KEYS), "source": [], "image-column": column, "key": key}
        recount = Recount(asked, None, report)
        recount.shard(shard, [Sample(row["key"], row["offset"], row["size"], row["error"]) for row in rows])
        assert report.findings == [] and len(rows) == 1


def test_a_reader_that_takes_base64_for_a_name_is_caught(tmp_path):
    packed = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode()
    path = write_jsonl(tmp_path / "in" / "t.jsonl", [{"image": packed}] * 2)
    assert verify(str(build(tmp_path / "whole", path)), source=True).ok

    def by_name(shard):
        return [{**row, "key": packed, "size": None, "error": "not_found"} for row in read_rows(shard)]

    out = build(tmp_path / "out", path, reader=by_name)
    assert codes(verify(str(out), source=True)) == {"wrong_key"}


def test_a_key_that_stands_in_the_path_of_a_table_is_counted_again(tmp_path):
    folder = tmp_path / "t=%41%2f%C3%A4%zz" / "u=__HIVE_DEFAULT_PARTITION__"
    paths = [
        write_parquet(folder / "t.parquet", {"image": [b"1", b"2"]}),
        write_csv(folder / "t.csv", [{"url": "1.jpg"}, {"url": "2.jpg"}]),
        write_jsonl(folder / "t.jsonl", [{"url": "1.jpg"}, {"url": "2.jpg", "t": "own"}]),
    ]
    for path in paths:
        (shard,) = find_shards([str(path)]).shards
        for key in ("t", "u"):
            settings = ReadSettings(unit_rows=9, key=key)
            read = [row for unit in read_units(shard, settings) for row in unit.samples.to_pylist()]
            report = _Collector()
            rows = [Sample(row["key"], row["offset"], row["size"], row["error"]) for row in read]
            Recount({"image-key": list(KEYS), "source": [], "key": key}, None, report).shard(shard, rows)
            assert report.findings == [] and len(rows) == 2
            assert rows[0].key == ("A/ä%zz" if key == "t" else "0")
            by_number = [row._replace(key=str(number)) for number, row in enumerate(rows)]
            Recount({"image-key": list(KEYS), "source": [], "key": key}, None, report).shard(shard, by_number)
            assert (report.findings == []) == (key == "u"), "a reader that knows nothing of paths is caught"


def test_structs_of_images_have_one_kind_of_key(tmp_path):
    """An earlier reader took the number of a row with bytes, and the path of one without."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = write_files(tmp_path / "p", 3)
    cells = [
        {"bytes": None if n == 1 else image_bytes(n), "path": f"../{name}"} for n, name in enumerate(names)
    ]
    path = write_parquet(tmp_path / "in" / "t.parquet", {"image": pa.array(cells, struct)})
    assert verify(str(build(tmp_path / "whole", path)), source=True).ok

    def mixed(shard):
        return [{**row, "key": str(n)} if n != 1 else row for n, row in enumerate(read_rows(shard))]

    assert codes(verify(str(build(tmp_path / "mixed", path, reader=mixed)), source=True)) == {"wrong_key"}

    def by_number(shard):
        return [{**row, "key": str(n)} for n, row in enumerate(read_rows(shard))]

    report = verify(str(build(tmp_path / "older", path, reader=by_number)), source=True)
    assert report.ok and report.recounted == 3, "a run of an earlier version stays what it was"
    lossy = build(tmp_path / "lossy", path, reader=lambda shard: by_number(shard)[:2])
    assert "missing_sample" in codes(verify(str(lossy), source=True))


@pytest.mark.parametrize("drops", ["later images", "empty lists"])
def test_a_reader_that_drops_images_of_lists_or_empty_lists_is_caught(tmp_path, drops):
    cells = [[image_bytes(0), image_bytes(1)], [], [image_bytes(2)]]
    path = write_parquet(tmp_path / "in" / "t.parquet", {"images": pa.array(cells, pa.list_(pa.binary()))})
    whole = verify(str(build(tmp_path / "whole", path)), source=True)
    assert whole.ok and whole.recounted == 4, whole.findings

    def lossy(shard):
        lost = "0#1" if drops == "later images" else "1"
        return [row for row in read_rows(shard) if row["key"] != lost]

    out = build(tmp_path / "out", path, reader=lossy)
    assert verify(str(out)).ok and codes(verify(str(out), source=True)) == {"missing_sample"}


def test_a_reader_that_gives_each_image_the_whole_list_of_keys_is_caught(tmp_path):
    items = [{"image": f"{number}.jpg", "id": number} for number in range(4)]
    path = write_jsonl(tmp_path / "in" / "t.jsonl", [{"items": items[:3]}, {"items": items[3:]}])
    asked = {"image-column": "items.image", "key": "items.id"}
    settings = ReadSettings(unit_rows=9, image_column="items.image", key="items.id")
    (shard,) = find_shards([str(path)]).shards
    for key, found in ((None, []), ("[0, 1, 2]", ["wrong_key"])):
        rows = [row for unit in read_units(shard, settings) for row in unit.samples.to_pylist()]
        assert [row["key"] for row in rows] == ["0#0", "1#1", "2#2", "3#0"]
        report = _Collector()
        recount = Recount({"image-key": list(KEYS), "source": []} | asked, None, report)
        rows[1]["key"] = rows[1]["key"] if key is None else f"{key}#1"
        recount.shard(shard, [Sample(row["key"], row["offset"], row["size"], row["error"]) for row in rows])
        assert [what for what, *_ in report.findings] == found


def test_reader_and_recount_agree_on_columns_of_any_depth(tmp_path):
    generator = random.Random(11)
    names = ["items", "image", "url", "id", "path", "bytes", "items.id"]
    packed = base64.b64encode(image_bytes(1)).decode()
    scalars = [None, "", 7, True, [], {}, "a.jpg", "data:,x", packed, f"{packed[:-1]}*", "x" * 4200, "\ud800"]

    def value(depth: int) -> object:
        kind = generator.random() if depth else 0
        if kind < 0.35:
            return generator.choice(scalars)
        if kind < 0.65:
            return [value(depth - 1) for _ in range(generator.randrange(4))]
        return {name: value(depth - 1) for name in generator.sample(names, generator.randrange(1, 5))}

    for _ in range(200):
        rows = [{name: value(3) for name in generator.sample(names, 5)} for _ in range(4)]
        rows[0] |= {"image": value(3), "items": value(3)}
        path = write_jsonl(tmp_path / "t.jsonl", rows)
        column, key = (
            ".".join((generator.choice(names[:2]), *generator.choices(names[:6], k=generator.randrange(3))))
            for _ in range(2)
        )
        shard = find_shards([str(path)]).shards[0]
        settings = ReadSettings(unit_rows=99, image_column=column, key=key)
        read = [row for unit in read_units(shard, settings) for row in unit.samples.to_pylist()]
        report = _Collector()
        recount = Recount({"image-key": [], "source": [], "image-column": column, "key": key}, None, report)
        recount.shard(shard, [Sample(row["key"], row["offset"], row["size"], row["error"]) for row in read])
        assert len(read) >= 4 and report.findings == [], (column, key, rows)
