"""A unit on the wire: a run of consecutive samples of one shard, as one row of an Arrow table.

Ray moves tables between stages. A unit is one row of one table: a few scalars, the samples as one list of structs, and the bytes
(encoded images, later patches) as one `large_binary` cell. Nothing is pickled and nothing is ragged; the cell is read in place.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

TIMED = ("read", "decode", "predict")  # stages whose seconds a file's own footer can hold
STAGES = (*TIMED, "write")

# What every sample carries from the reader on. Later stages append columns; --keep fields sit in `sidecars`.
SAMPLE = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sidecars", pa.list_(pa.string())),
        ("error", pa.string()),
        ("error_detail", pa.string()),
    ]
)

_HEADER = [
    ("shard_uri", pa.string()),
    ("shard_name", pa.string()),
    ("number", pa.int32()),
    ("last", pa.bool_()),
    ("next_offset", pa.int64()),
    ("next_index", pa.int32()),
    ("bytes_read", pa.int64()),
    ("fault", pa.string()),
    ("skipped", pa.string()),
    ("prediction", pa.string()),
    *[(f"seconds_{stage}", pa.float64()) for stage in STAGES],
]


@dataclass(slots=True)
class Unit:
    """A run of consecutive samples of one shard.

    shard_uri, shard_name: where it comes from, and the name of its outputs (`Shard.name`)
    number: the unit's place in its shard, from 0; `last` says that the shard ends here
    next_offset, next_index: where the next unit begins; next_offset is a byte offset in a tar, an entry of an image page
    samples: one row a sample, SAMPLE first and then what later stages know
    payload: uint8; from the reader encoded images end to end, from the decoder patches [M, N, P*P*3] of the M good samples
    skipped: JSON, how many members of a tar were no part of a sample, by kind
    fault: the store failed while this was read: no sample, nothing to write, the shard stays open
    prediction: JSON, how a GPU predicted it (`Predictor.way`); None of a CPU
    """

    shard_uri: str
    shard_name: str
    number: int
    last: bool
    next_offset: int
    next_index: int
    bytes_read: int
    samples: pa.Table
    payload: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    fault: str | None = None
    skipped: str = "{}"
    prediction: str | None = None

    def to_arrow(self) -> pa.Table:
        """One row; the payload is not copied."""
        struct = self.samples.to_struct_array()
        struct = struct.combine_chunks() if isinstance(struct, pa.ChunkedArray) else struct
        samples = pa.LargeListArray.from_arrays(pa.array([0, len(struct)], pa.int64()), struct)
        bounds = np.array([0, self.payload.size], np.int64)
        payload = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(self.payload.reshape(-1))]
        )
        values = [
            self.seconds.get(name[8:]) if name.startswith("seconds_") else getattr(self, name)
            for name, _ in _HEADER
        ]
        columns = [pa.array([value], kind) for value, (_, kind) in zip(values, _HEADER, strict=True)]
        schema = pa.schema([*_HEADER, ("samples", samples.type), ("payload", pa.large_binary())])
        return pa.Table.from_arrays([*columns, samples, payload], schema=schema)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "Unit":
        """The unit of a one-row table; the payload is a read-only view into the table's own buffer.

        Raises ValueError for any other number of rows: that would mean that units were merged on the way.
        """
        if table.num_rows != 1:
            raise ValueError(f"a unit is one row, not {table.num_rows}")
        header = {name: table[name][0].as_py() for name, _ in _HEADER}
        seconds = {stage: header.pop(f"seconds_{stage}") for stage in STAGES}
        cell = table["samples"].combine_chunks()
        cell = cell.chunk(0) if isinstance(cell, pa.ChunkedArray) else cell
        samples = pa.Table.from_struct_array(cell.flatten())
        return cls(
            **header,
            samples=samples,
            payload=_view(table["payload"]),
            seconds={stage: value for stage, value in seconds.items() if value is not None},
        )


def _view(column: pa.ChunkedArray) -> np.ndarray:
    """The bytes of a one-row large_binary column, in place: `scalar.as_buffer()` would copy them."""
    chunk = next(chunk for chunk in column.chunks if len(chunk))
    _, offsets, data = chunk.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2]
    view = np.frombuffer(data, np.uint8)[begin:end] if data is not None else np.empty(0, np.uint8)
    view.flags.writeable = False  # others read the same bytes
    return view
