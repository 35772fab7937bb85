"""unit: what travels between stages comes out as it went in, in place, and never merged with another."""

import numpy as np
import pyarrow as pa
import pytest

from wordsworth.pipeline.unit import SAMPLE, STAGES, Unit

ROWS = [
    {
        "key": "a/b",
        "index": 7,
        "offset": 512,
        "size": 3,
        "sidecars": ["{}", None],
        "error": None,
        "error_detail": None,
    },
    {
        "key": None,
        "index": 8,
        "offset": 2**40,
        "size": None,
        "sidecars": [None, None],
        "error": "shard_truncated",
        "error_detail": "é",
    },
    {
        "key": "",
        "index": 9,
        "offset": None,
        "size": 0,
        "sidecars": [],
        "error": "empty",
        "error_detail": "0 bytes",
    },
]


def make(rows: list[dict] = ROWS, payload: np.ndarray | None = None, **changes) -> Unit:
    payload = np.arange(24, dtype=np.uint8) if payload is None else payload
    fields = {"seconds": {"read": 0.25}, **changes}
    return Unit(
        "s3://b/a.tar",
        "a-0123456789ab",
        3,
        True,
        2**40,
        10,
        99,
        pa.Table.from_pylist(rows, schema=SAMPLE),
        payload,
        **fields,
    )


def same(found: Unit, made: Unit) -> bool:
    names = (
        "shard_uri",
        "shard_name",
        "number",
        "last",
        "next_offset",
        "next_index",
        "bytes_read",
        "seconds",
        "fault",
    )
    assert [getattr(found, name) for name in names] == [getattr(made, name) for name in names]
    assert (
        found.samples.schema == made.samples.schema and found.samples.to_pylist() == made.samples.to_pylist()
    )
    return np.array_equal(found.payload, made.payload.reshape(-1)) and found.payload.dtype == np.uint8


@pytest.mark.parametrize(
    "unit",
    [
        make(),
        make([], np.empty(0, np.uint8)),
        make(ROWS[1:], np.empty(0, np.uint8)),
        make(payload=np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)),
        make(seconds={}, fault="OSError: 503"),
        make(seconds={stage: 1.5 for stage in STAGES}),
    ],
    ids=["plain", "no rows", "no payload", "patches", "fault", "all stages"],
)
def test_a_unit_comes_out_as_it_went_in(unit):
    assert same(Unit.from_arrow(unit.to_arrow()), unit)


def test_a_unit_is_one_row_of_plain_columns():
    table = make().to_arrow()
    assert table.num_rows == 1 and table.schema == make([], np.empty(0, np.uint8)).to_arrow().schema
    assert table.schema.field("payload").type == pa.large_binary()
    assert not any(isinstance(kind, pa.ExtensionType) for kind in table.schema.types)


def test_a_unit_is_found_in_a_slice_in_chunks_and_behind_ipc():
    units = [make(ROWS[:count], np.full(count, count, np.uint8), fault=str(count)) for count in (1, 2, 0, 3)]
    tables = [unit.to_arrow() for unit in units]
    merged = pa.concat_tables(tables)
    for whole in (merged, merged.combine_chunks()):
        for place, unit in enumerate(units):
            assert same(Unit.from_arrow(whole.slice(place, 1)), unit)
            assert same(
                Unit.from_arrow(whole.slice(1).slice(place - 1, 1) if place else whole.slice(0, 1)), unit
            )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, tables[0].schema) as writer:
        writer.write_table(merged.combine_chunks().slice(1, 1))
    assert same(Unit.from_arrow(pa.ipc.open_stream(sink.getvalue()).read_all()), units[1])


def test_columns_that_later_stages_append_travel_too():
    unit = make()
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.float16()), 2)
    unit.samples = unit.samples.append_column("embedding", fixed).append_column(
        "ids", pa.array([[1], None, []], pa.list_(pa.int32()))
    )
    assert same(Unit.from_arrow(unit.to_arrow()), unit)
    cut = make()
    cut.samples = unit.samples.slice(1, 2)
    assert same(Unit.from_arrow(cut.to_arrow()), cut)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("start", [0, 1])
def test_the_payload_is_never_copied(start):
    payload = np.arange(1 << 20, dtype=np.uint8).reshape(16, 16, -1)
    table = make(payload=payload).to_arrow()
    assert table["payload"].chunk(0).buffers()[2].address == address(payload)
    if start:
        table = pa.concat_tables([make().to_arrow(), table]).combine_chunks()
    buffer = table["payload"].chunk(0).buffers()[2]
    view = Unit.from_arrow(table.slice(start, 1)).payload
    assert address(view) == buffer.address + (24 if start else 0)
    assert not view.flags.writeable  # it lies in the object store, where others read it
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    copied = np.frombuffer(table["payload"][start].as_buffer(), np.uint8)
    assert np.array_equal(view, copied)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_units_that_were_merged_on_the_way_are_refused(count):
    tables = [make().to_arrow()] * count
    merged = pa.concat_tables(tables) if tables else make().to_arrow().slice(0, 0)
    with pytest.raises(ValueError, match=f"a unit is one row, not {count}"):
        Unit.from_arrow(merged)
