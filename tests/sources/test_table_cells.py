"""Show that an image in a cell, in whatever spelling, is the image, and that its text goes nowhere else."""

import base64
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from tests.support.samples import rows_of, shard_of, units_of
from tests.support.tables import write_csv, write_files, write_jsonl, write_parquet
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.table_cells import cell_image, key_text
from wordsworth.pipeline.verification.recount import SOURCE_ERRORS
from wordsworth.pipeline.verification.recount_tables import TableFile, table_rows


def picture(form: str, side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(file, form)
    return file.getvalue()


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(path: Path, columns: dict) -> Path:
    """Write a table of the kind that the name says."""
    if path.suffix == ".parquet":
        return write_parquet(path, columns)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return write_jsonl(path, rows) if path.suffix == ".jsonl" else write_csv(path, rows)


def payload(units) -> bytes:
    return b"".join(unit.payload.tobytes() for unit in units)


def assert_recounted(path: Path, **options) -> None:
    """Check that the recount finds the rows that the reader gives."""
    rows = rows_of(units_of(path, rows=99, **options))
    with open(path, "rb") as file:
        asked = (options.get("image_column"), options.get("key"))
        again = list(table_rows(TableFile(file, path.stat().st_size), str(path), *asked))
    assert [row.key for row in again] == [row["key"] for row in rows]
    for row, read in zip(again, rows, strict=True):
        assert row.error == (read["error"] if read["error"] in SOURCE_ERRORS else None)
        assert row.size in (None, read["size"])


FORMS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
@pytest.mark.parametrize("spelling", ["base64", "data"])
def test_text_that_is_an_image_is_decoded_and_never_becomes_a_key_or_a_detail(tmp_path, name, spelling):
    images = [picture(form) for form in FORMS]
    head = "data:image/jpeg;base64," if spelling == "data" else ""
    cells = [head + packed(image) for image in images]
    path = write(tmp_path / name, {"image": cells, "id": [f"k{n}" for n in range(len(images))]})
    units = units_of(path, rows=4, keep=("image",))
    assert payload(units) == b"".join(images)
    rows = rows_of(units)
    assert [row["key"] for row in rows] == [str(n) for n in range(len(images))]
    assert [row["sidecars"] for row in rows] == [[f"({len(image)} bytes)"] for image in images]
    assert not any(cell[-40:] in str(rows) for cell in cells)
    assert [row["key"] for row in rows_of(units_of(path, key="id"))] == [f"k{n}" for n in range(len(images))]
    assert [row["key"] for row in rows_of(units_of(path, key="image"))] == [row["key"] for row in rows]
    assert_recounted(path)
    assert_recounted(path, key="id")
    assert_recounted(path, key="image")


def test_a_table_may_hold_images_and_names_of_images(tmp_path):
    image = picture("PNG")
    (name,) = write_files(tmp_path / "p", 1)
    path = write(tmp_path / "t.jsonl", {"image": [name, packed(image), None, "data:,x"]})
    units = units_of(path)
    assert [(row["key"], row["error"]) for row in rows_of(units)] == [
        (name, None),
        ("1", None),
        ("2", "missing_image"),
        ("3", None),
    ]
    assert payload(units).endswith(image + b"x")
    assert_recounted(path)


JPEG = picture("JPEG")


@pytest.mark.parametrize(
    ("cell", "data"),
    [
        (packed(JPEG).rstrip("="), JPEG),
        (base64.urlsafe_b64encode(JPEG).decode(), JPEG),
        (base64.encodebytes(JPEG).decode().replace("\n", "\r\n"), JPEG),
        (f" {packed(JPEG)}\n", JPEG),
        (packed(JPEG).encode(), JPEG),
        (f"data:image/jpeg;base64,{packed(JPEG)}".encode(), JPEG),
        (f"DATA:image/jpeg;charset=x;BASE64,{packed(JPEG).replace('+', '%2B').replace('=', '%3d')}", JPEG),
        ("data:image/svg+xml,%3Csvg%2f>é", "<svg/>é".encode()),
        ({"bytes": packed(JPEG), "path": "a.jpg"}, JPEG),
        ({"bytes": packed(b"no image"), "path": "a.jpg"}, b"no image"),
        ({"bytes": JPEG, "path": "a.jpg"}, JPEG),
        ({"bytes": None, "path": f"data:;base64,{packed(JPEG)}"}, JPEG),
    ],
)
def test_every_spelling_of_an_image_is_read(tmp_path, cell, data):
    image = cell_image(cell, 1 << 20)
    assert (image.data, image.size, image.uri, image.error) == (data, len(data), None, None)
    if not isinstance(cell, bytes) and not (isinstance(cell, dict) and isinstance(cell["bytes"], bytes)):
        assert_recounted(write_jsonl(tmp_path / "t.jsonl", [{"image": cell}]))
    if not isinstance(cell, dict):
        assert_recounted(write_parquet(tmp_path / "t.parquet", {"image": pa.array([cell, cell])}))


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        (packed(JPEG)[:-1] + "*", "bad_record"),
        (packed(JPEG).rstrip("=") + "AAAAA"[: 1 + -len(packed(JPEG).rstrip("=")) % 4], "bad_record"),
        (packed(JPEG).replace("+", " "), "bad_record"),
        ("data:image/png;base64,####", "bad_record"),
        ({"bytes": "no base64!"}, "bad_record"),
        ("x" * 5000, "refused_uri"),
        (packed(bytes(5000)), "refused_uri"),
        (packed(JPEG * 9), "too_many_bytes"),
    ],
)
def test_text_that_is_no_image_and_no_name_is_a_row_that_does_not_repeat_it(tmp_path, cell, error):
    path = write_jsonl(tmp_path / "t.jsonl", [{"image": cell, "n": 1}])
    units = units_of(path, keep=("image",), max_bytes=len(JPEG) * 3)
    (row,) = rows_of(units)
    assert (row["key"], row["error"]) == ("0", error) and units[-1].last
    assert len(str(row)) < 400
    assert_recounted(path, max_bytes=len(JPEG) * 3)


@pytest.mark.parametrize(
    "name",
    [
        "/9j/a.jpg",
        "iVBORw0KGgo.png",
        "a/b/0123456789abcdef0123456789abcdef",
        "data/a.jpg",
        "data:x",
        "QkFCQkFCQkFCQkFCQkFCQkFCQkFC",
        "/9j/abcdefghijklmnopqrstuvw",
    ],
)
def test_a_name_that_looks_a_little_like_an_image_stays_a_name(tmp_path, name):
    assert cell_image(name, 1 << 20).uri == name
    assert key_text(name) == name
    assert_recounted(write_jsonl(tmp_path / "t.jsonl", [{"image": name}]))


@pytest.mark.parametrize("key", [packed(JPEG), f"data:;base64,{packed(JPEG)}", JPEG, "x" * 5000])
def test_a_key_column_of_images_or_long_texts_leaves_the_number_of_the_row(tmp_path, key):
    path = write_parquet(tmp_path / "t.parquet", {"image": [JPEG], "mask": [key]})
    settings = {"image_column": "image", "key": "mask"}
    assert [row["key"] for row in rows_of(units_of(path, **settings))] == ["0"]
    assert_recounted(path, **settings)


def test_a_key_column_with_an_empty_cell_leaves_the_number_of_the_row(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"url": "a.jpg", "id": 7}, {"url": "b.jpg"}])
    assert [row["key"] for row in rows_of(units_of(path, key="id"))] == ["7", "1"]
    assert_recounted(path, key="id")


# ---- memory ------------------------------------------------------------------------------------------------

LARGE = random.Random(0).randbytes(1 << 20) + bytes(1 << 20)
REPEATED = {
    "a dictionary": ([LARGE] * 100, {"dictionary_pagesize_limit": 1 << 26}),
    "text": ([packed(LARGE)] * 100, {"dictionary_pagesize_limit": 1 << 26}),
    "a struct": ([{"bytes": LARGE, "path": "a"}] * 100, {"dictionary_pagesize_limit": 1 << 26}),
    "Arrow's dictionary": (pa.DictionaryArray.from_arrays([0] * 100, [LARGE]), {}),
    "a list": ([[LARGE] * 5] * 20, {"dictionary_pagesize_limit": 1 << 26}),
    "shared beginnings": (
        [LARGE] * 100,
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
    ),
}


@pytest.mark.parametrize("form", REPEATED)
def test_a_small_file_that_repeats_a_large_image_is_read_in_little_memory(tmp_path, form):
    column, options = REPEATED[form]
    path = write_parquet(tmp_path / "t.parquet", {"image": column}, **options)
    assert path.stat().st_size < 8 << 20
    before = pa.total_allocated_bytes()
    rows = peak = 0
    for unit in read_units(shard_of(path), ReadSettings(unit_rows=4, unit_bytes=8 << 20)):
        rows += len(unit.samples)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == 100 and peak < 80 << 20, f"{peak >> 20} MiB"
    before = pa.total_allocated_bytes()
    with open(path, "rb") as file:
        again = [
            pa.total_allocated_bytes() - before
            for _ in table_rows(TableFile(file, path.stat().st_size), str(path), None, None)
        ]
    assert len(again) == 100 and max(again) < 80 << 20, f"{max(again) >> 20} MiB"


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_bytes_of_every_arrow_type_are_images(tmp_path, kind):
    column = pa.array([JPEG, None, JPEG], pa.binary())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    path = write_parquet(tmp_path / "t.parquet", {"photo": column})
    units = units_of(path)
    assert [row["error"] for row in rows_of(units)] == [None, "missing_image", None]
    assert payload(units) == JPEG * 2
    assert_recounted(path)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_of_every_arrow_type_is_read(tmp_path, kind):
    column = pa.array(["a.jpg", packed(JPEG)], pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    path = write_parquet(tmp_path / "t.parquet", {"url": column})
    units = units_of(path)
    assert [(row["key"], row["error"]) for row in rows_of(units)] == [("a.jpg", "not_found"), ("1", None)]
    assert payload(units) == JPEG
    assert_recounted(path)


# ---- nested fields -----------------------------------------------------------------------------------------


def nested(names: list[str]) -> list[dict]:
    return [
        {"image": {"url": name, "w": 1}, "meta": {"id": n, "Cls": f"c{n}", "deep": {"x.y": [n]}}}
        for n, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_dotted_name_is_a_field_of_a_struct(tmp_path, name):
    names = write_files(tmp_path / "p", 3)
    rows = nested(names)
    path = tmp_path / name
    if name == "t.jsonl":
        write_jsonl(path, [*rows, {"image": None}, {"image": {"url": names[0]}, "meta": 7}])
    else:
        write_parquet(path, pa.Table.from_pylist(rows))
    asked = {"image_column": "image.url", "key": "meta.id"}
    read = rows_of(units_of(path, **asked, keep=("meta.cls", "meta.deep.x.y", "image.w")))
    assert [row["key"] for row in read] == ["0", "1", "2", "3", "4"][: len(read)]
    assert [row["sidecars"] for row in read[:3]] == [[f"c{n}", f"[{n}]", "1"] for n in range(3)]
    assert [row["error"] for row in read] == [None, None, None, "missing_image", None][: len(read)]
    assert_recounted(path, **asked)
    plain = rows_of(units_of(path))
    assert [row["key"] for row in plain[:3]] == names, "a struct names its image in path, url or uri"
    assert_recounted(path)


def test_a_column_whose_name_has_a_dot_comes_first(tmp_path):
    columns = {"image.url": ["a.jpg"], "image": [{"url": "b.jpg", "id": "s"}], "image.id": ["c"]}
    path = write_parquet(tmp_path / "t.parquet", columns)
    for asked, key in (({}, "a.jpg"), ({"key": "image.id"}, "c")):
        assert [row["key"] for row in rows_of(units_of(path, image_column="image.url", **asked))] == [key]
        assert_recounted(path, image_column="image.url", **asked)
    records = [{"image": {"url": "b.jpg"}}, {"image.url": "a.jpg"}]
    for lines in (records, records[::-1]):
        path = write_jsonl(tmp_path / "t.jsonl", lines)
        keys = {row["key"] for row in rows_of(units_of(path, image_column="image.url"))}
        assert keys == {"b.jpg", "a.jpg"}, "each record is read as it is"
        assert_recounted(path, image_column="image.url")


def test_a_field_that_is_not_there_is_a_fault_that_names_the_columns(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", {"image": [{"url": "b.jpg"}], "n": [1]})
    for asked in ({"image_column": "image.uri"}, {"key": "n.id"}, {"keep": ("image.x",)}):
        (unit,) = units_of(path, **asked)
        assert "has no column" in unit.fault and "(it has image, n)" in unit.fault
    (unit,) = units_of(write_parquet(tmp_path / "u.parquet", {"m": [{"n": 1}]}), image_column="m.n")
    assert "column m.n is int64, neither bytes nor URIs" in unit.fault


def test_an_image_is_not_kept_through_the_struct_that_holds_it(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", {"image": [{"bytes": JPEG, "path": "a.jpg"}]})
    size = f"({len(JPEG)} bytes)"
    for column, kept, text in (
        (None, "image", size),
        (None, "image.bytes", size),
        (None, "image.path", "a.jpg"),
        ("image.bytes", "image", json.dumps({"bytes": size, "path": "a.jpg"})),
    ):
        (row,) = rows_of(units_of(path, image_column=column, keep=(kept,)))
        assert row["sidecars"] == [text] and row["size"] == len(JPEG)


# ---- structs of Hugging Face's datasets --------------------------------------------------------------------

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hugging_face(path: Path, paths: list[str | None], without_bytes: tuple[int, ...] = (), **options) -> Path:
    cells = [
        {"bytes": None if n in without_bytes else JPEG + bytes(n), "path": name}
        for n, name in enumerate(paths)
    ]
    return write_parquet(path, {"n": list(range(len(paths))), "photo": pa.array(cells, STRUCT)}, **options)


def test_the_key_of_an_image_in_a_struct_is_its_path(tmp_path):
    paths = write_files(tmp_path / "p", 6)
    path = hugging_face(tmp_path / "t.parquet", paths, without_bytes=(1, 4), rows_in_group=4)
    rows = rows_of(units_of(path))
    assert [row["key"] for row in rows] == paths, "whether the bytes are there or not"
    assert [row["error"] for row in rows] == [None] * 6
    assert rows[0]["size"] == len(JPEG) and rows[1]["size"] == (tmp_path / paths[1]).stat().st_size
    assert_recounted(path)


def test_a_run_that_an_earlier_version_began_goes_on_with_the_numbers_of_rows(tmp_path):
    paths = write_files(tmp_path / "p", 4)
    path = hugging_face(tmp_path / "t.parquet", paths, without_bytes=(1,))
    assert [row["key"] for row in rows_of(units_of(path, keys_by_path=False))] == ["0", paths[1], "2", "3"]


PATHS = ["a/1.jpg", "1.jpg", None, "1.jpg", "", "b.jpg", "x" * 5000, "s3://u:secret@b/c.jpg"]
KEYS = ["a/1.jpg", "1", "2", "3", "4", "b.jpg", "6", "s3://b/c.jpg"]


def test_a_path_that_comes_again_or_is_null_leaves_the_number_of_the_row_wherever_a_reading_begins(tmp_path):
    path = hugging_face(tmp_path / "t.parquet", PATHS, rows_in_group=3)
    units = units_of(path, rows=2)
    assert [row["key"] for row in rows_of(units)] == KEYS
    for unit in units[:-1]:
        place = (unit.number + 1, unit.next_offset, unit.next_index)
        again = rows_of(list(read_units(shard_of(path), ReadSettings(unit_rows=2), *place)))
        assert [row["key"] for row in again] == KEYS[unit.next_index :]
    assert_recounted(path)
    cells = [row["key"] for row in rows_of(units_of(path, key="photo.path"))]
    assert cells[:5] == ["a/1.jpg", "1.jpg", "2", "1.jpg", ""], "who asks for the path gets it"
    assert_recounted(path, key="photo.path")
    assert [row["key"] for row in rows_of(units_of(path, key="n"))] == list("01234567")
    assert [row["key"] for row in rows_of(units_of(path, image_column="photo.bytes"))] == list("01234567")
    assert_recounted(path, image_column="photo.bytes")


def test_paths_that_are_all_null_are_not_read(tmp_path, monkeypatch):
    path = hugging_face(tmp_path / "t.parquet", [None] * 5, rows_in_group=2)
    monkeypatch.setattr("numpy.unique", None)
    assert [row["key"] for row in rows_of(units_of(path))] == list("01234")
    assert_recounted(path)


def test_where_paths_cannot_be_read_no_path_is_a_key(tmp_path):
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "NONE"}
    path = hugging_face(tmp_path / "t.parquet", [f"{n}.jpg" for n in range(40)], rows_in_group=10, **options)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x06\0\0\x0037.jpg", b"\x06\0\0\x0073.jpg", 1))
    assert path.read_bytes() != data
    assert [row["key"] for row in rows_of(units_of(path))] == [*map(str, range(30)), None]
    assert_recounted(path)


# ---- lists of images ---------------------------------------------------------------------------------------

COUNTS = (2, 0, 1, 5, None, 3, 1)  # images of each row; None: the list is null
NO_NAMES = [""] * 12


def lists(form: str, names: list[str]) -> pa.Array:
    """Return a column with lists of COUNTS images, of JPEGs of different sizes or of these names."""
    cells: list[list | None] = []
    at = 0
    for count in COUNTS:
        of_row = range(at, at + (count or 0))
        at += count or 0
        images = {
            "structs": [{"bytes": JPEG + bytes(n), "path": f"{n}.jpg"} for n in of_row],
            "bytes": [JPEG + bytes(n) for n in of_row],
            "names": [names[n] for n in of_row],
            "base64": [packed(JPEG + bytes(n)) for n in of_row],
            "nested": [[JPEG + bytes(n)] for n in of_row],
            "named structs": [{"url": names[n]} for n in of_row],
        }
        cells.append(None if count is None else images[form])
    kinds = {
        "structs": STRUCT,
        "bytes": pa.large_binary(),
        "nested": pa.list_(pa.binary()),
        "named structs": pa.struct([("url", pa.string())]),
    }
    return pa.array(cells, pa.list_(kinds.get(form, pa.string())))


LIST_KEYS = [
    f"{row}" if not count else f"{row}#{number}"
    for row, count in enumerate(COUNTS)
    for number in range(count or 1)
]


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, "t.parquet") for form in ("structs", "bytes", "names", "base64", "nested", "named structs")]
    + [(form, "t.jsonl") for form in ("names", "base64", "named structs")],
)
def test_each_image_of_a_list_is_a_row_and_so_is_an_empty_list(tmp_path, form, name):
    names = write_files(tmp_path / "p", 12)
    images = lists(form, names)
    ids = [f"k{row}" for row in range(len(COUNTS))]
    path = tmp_path / name
    if name == "t.jsonl":
        write_jsonl(
            path, [{"id": i, "images": cell} for i, cell in zip(ids, images.to_pylist(), strict=True)]
        )
    else:
        write_parquet(path, {"id": ids, "images": images}, rows_in_group=3)
    units = units_of(path, rows=99, keep=("id", "images"))
    rows = rows_of(units)
    assert [row["key"] for row in rows] == LIST_KEYS
    assert [row["error"] for row in rows] == [
        "missing_image" if "#" not in key else None for key in LIST_KEYS
    ]
    good = [row for row in rows if row["error"] is None]
    if "names" in form or "named" in form:
        assert payload(units) == b"".join((tmp_path / one).read_bytes() for one in names)
        assert [row["sidecars"][1] for row in good] == names
    else:
        assert payload(units) == b"".join(JPEG + bytes(n) for n in range(12))
        assert [row["sidecars"][1] for row in good] == [f"({len(JPEG) + n} bytes)" for n in range(12)]
    assert all(row["sidecars"][0] == f"k{row['key'][0]}" for row in rows)
    assert_recounted(path)
    assert [row["key"] for row in rows_of(units_of(path, key="id"))] == [f"k{key}" for key in LIST_KEYS]
    assert_recounted(path, key="id")
    if form == "named structs":
        assert rows_of(units_of(path, image_column="images.url"))[0]["key"] == "0#0"
        assert_recounted(path, image_column="images.url")


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
@pytest.mark.parametrize("unit_rows", [1, 2, 3, 4])
def test_a_reading_begun_within_a_list_makes_the_same_units_and_counts_every_byte_once(
    tmp_path, name, unit_rows
):
    path = tmp_path / name
    cells = lists("base64", NO_NAMES)
    if name == "t.jsonl":
        write_jsonl(path, [{"images": cell} for cell in cells.to_pylist()])
    else:
        write_parquet(path, {"images": cells}, rows_in_group=2)
    units = units_of(path, rows=unit_rows)
    assert any(unit.next_in_group for unit in units) and not units[-1].next_in_group
    assert sum(unit.bytes_read for unit in units) == path.stat().st_size
    for unit in units[:-1]:
        place = (unit.number + 1, unit.next_offset, unit.next_index, unit.next_in_group)
        again = list(read_units(shard_of(path), ReadSettings(unit_rows=unit_rows), *place))
        rest = units[unit.number + 1 :]
        assert [one.to_arrow().drop_columns(["seconds_read"]) for one in again] == [
            one.to_arrow().drop_columns(["seconds_read"]) for one in rest
        ]


def test_a_damaged_image_in_a_list_costs_no_other(tmp_path):
    cell = [packed(JPEG), packed(JPEG)[:-1] + "*", None, "", {"path": None}, "gone.jpg", 7]
    path = write_jsonl(
        tmp_path / "t.jsonl", [{"images": cell}, {"images": packed(JPEG)}, {"images": [[], []]}]
    )
    rows = rows_of(units_of(path))
    assert [(row["key"], row["error"]) for row in rows] == [
        ("0#0", None),
        ("0#1", "bad_record"),
        *((f"0#{number}", "missing_image") for number in (2, 3, 4)),
        ("0#5", "not_found"),
        ("0#6", "not_found"),
        ("1", None),
        ("2", "missing_image"),
    ]
    assert_recounted(path)


@pytest.mark.parametrize(
    "kind", [pa.large_list, pa.list_view, pa.large_list_view, lambda of: pa.list_(of, 2)]
)
def test_lists_of_every_arrow_type_are_read(tmp_path, kind):
    column = pa.array([[JPEG, JPEG], [JPEG, None]], kind(pa.binary()))
    path = write_parquet(tmp_path / "t.parquet", {"photos": column})
    assert payload(units_of(path)) == JPEG * 3
    assert_recounted(path)


def test_a_struct_of_a_list_is_kept_without_its_image(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", {"images": lists("structs", NO_NAMES)})
    rows = rows_of(units_of(path, rows=99, image_column="images.bytes", keep=("images", "images.path")))
    for number, row in enumerate(row for row in rows if "#" in row["key"]):
        cell = {"bytes": f"({len(JPEG) + number} bytes)", "path": f"{number}.jpg"}
        assert json.loads(row["sidecars"][0]) == cell and row["sidecars"][1] == f"{number}.jpg"


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_what_stands_beside_an_image_in_its_list_belongs_to_that_image_alone(tmp_path, name):
    def item(number: int) -> dict:
        return {"pic": [packed(JPEG + bytes(number))] * 2, "class": f"c{number}", "id": {"n": number}}

    cells = [[item(0), item(1)], [], [item(2), None, item(3) | {"id": None}]]
    rows = [{"meta": {"items": cell, "day": [n, 7]}, "tags": ["x", "y"]} for n, cell in enumerate(cells)]
    path = tmp_path / name
    if name == "t.jsonl":
        write_jsonl(path, rows)
    else:
        write_parquet(path, pa.Table.from_pylist(rows))
    asked = {"image_column": "meta.items.pic", "key": "meta.items.id.n"}
    read = rows_of(units_of(path, rows=99, **asked, keep=("meta.items.class", "meta.day", "tags")))
    assert [(row["key"], row["sidecars"][0]) for row in read] == [
        *(("0#0", "c0"), ("0#1", "c0"), ("1#2", "c1"), ("1#3", "c1")),
        ("1", "[]"),
        *(("2#0", "c2"), ("2#1", "c2"), ("2#2", None), ("2#3", "c3"), ("2#4", "c3")),
    ]
    assert read[0]["sidecars"][1:] == ["[0, 7]", '["x", "y"]'], "another list belongs to the record"
    for key in ("meta.items.id.n", "meta.items.id", "meta.items", "meta.items.class", "meta.day", "tags"):
        assert_recounted(path, **asked | {"key": key})


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary_view(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.string(),
        pa.string_view(),
    ],
)
def test_entries_of_every_arrow_type_are_images(tmp_path, kind):
    text = not pa.types.is_dictionary(kind) and "string" in str(kind)
    cells = pa.array([packed(JPEG) if text else JPEG, None, packed(JPEG) if text else JPEG])
    entries = cells.dictionary_encode() if pa.types.is_dictionary(kind) else cells.cast(kind)
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), entries)
    path = write_parquet(tmp_path / "t.parquet", {"images": column})
    units = units_of(path, rows=99)
    assert [row["key"] for row in rows_of(units)] == ["0#0", "0#1", "1", "2#0"]
    assert payload(units) == JPEG * 2
    assert_recounted(path)


def test_the_bytes_of_another_image_are_kept_as_their_number(tmp_path):
    columns = {"image": [JPEG], "mask": [JPEG], "all": [{"m": JPEG, "n": 1}], "raw": [b"a\xff"]}
    path = write_parquet(tmp_path / "t.parquet", columns)
    (row,) = rows_of(units_of(path, image_column="image", keep=("mask", "all", "raw")))
    size = f"({len(JPEG)} bytes)"
    assert row["sidecars"] == [size, json.dumps({"m": size, "n": 1}), "a\\xff"]


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_list_in_place_of_a_name_is_a_row_that_does_not_repeat_it(tmp_path, name):
    rows = [{"image": {"url": [packed(JPEG[:900])]}}, {"image": {"url": []}}]
    path = tmp_path / name
    if name == "t.jsonl":
        write_jsonl(path, rows)
    else:
        cells = [{"bytes": JPEG, "path": ["a.jpg"]}, {"bytes": None, "path": [packed(JPEG[:900])]}]
        write_parquet(path, {"image": cells})
    errors = [None, "refused_uri"] if name == "t.parquet" else ["refused_uri", "missing_image"]
    rows = rows_of(units_of(path, keep=("image",)))
    assert [(row["key"], row["error"]) for row in rows] == list(zip("01", errors, strict=True))
    assert packed(JPEG[:900]) not in str(rows)
    assert_recounted(path)


def test_a_table_without_a_header_is_refused_without_its_first_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"{packed(JPEG)},1\n{packed(JPEG)},2\n")
    (unit,) = units_of(path)
    assert f"(it has a text of {len(packed(JPEG))} characters, 1): name it with --image-column" in unit.fault
    assert packed(JPEG)[:40] not in unit.fault


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_struct_or_a_list_that_holds_an_image_is_no_key(tmp_path, name):
    data = JPEG[:900] if name == "t.parquet" else packed(JPEG[:900])
    rows = [{"image": {"bytes": data, "path": "a.jpg"}, "more": [{"x": {"y": data}}], "none": []}]
    path = tmp_path / name
    _ = write_jsonl(path, rows) if name == "t.jsonl" else write_parquet(path, pa.Table.from_pylist(rows))
    for key in ("image", "more", "more.x", "none"):
        asked = {"image_column": "image.bytes", "key": key}
        (row,) = rows_of(units_of(path, **asked))
        assert row["key"] == "0" and row["size"] == 900
        assert_recounted(path, **asked)
