"""Define a unit: a run of consecutive samples of one shard, and the table that carries a unit between stages.

Ray Data moves Arrow tables between stages. A unit is one row of one table: a few scalars, the samples as one
list of structs, and the bytes (encoded images, later patches) as one `large_binary` cell. Nothing is pickled,
and the bytes are read in place.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

TIMED = ("read", "decode", "predict")  # stages whose seconds stand in a unit's file
STAGES = (*TIMED, "write")

# The columns that every sample has from the reader on. Later stages append columns; --keep fields stand in
# `sidecars`.
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

# One more column of samples that were named one by one: URI of the sample's folder, the shard of its row.
FOLDER = "folder"

# The columns of a unit's row that are attributes of Unit, by the attribute's name.
_SCALARS = {
    "shard_uri": pa.string(),
    "shard_name": pa.string(),
    "number": pa.int32(),
    "last": pa.bool_(),
    "next_offset": pa.int64(),
    "next_index": pa.int32(),
    "bytes_read": pa.int64(),
    "fault": pa.string(),
    "skipped": pa.string(),
    "prediction": pa.string(),
    "next_in_group": pa.int32(),
}
_SECONDS = {stage: f"seconds_{stage}" for stage in STAGES}


@dataclass(frozen=True, kw_only=True)
class GpuCall:
    """Say how a GPU predicted one unit.

    Attributes:
        gpu: name of the GPU and of its node.
        mode: how batches ran; one of `prediction.gpu_modes.MODES`.
        batch_size: images in one forward pass.
        notes: why the mode or the batch size is not the fastest one, a sentence each.
    """

    gpu: str
    mode: str
    batch_size: int
    notes: list[str]

    def to_json(self) -> str:
        """Return the text that `Unit.prediction` holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(slots=True)
class Unit:
    """Hold a run of consecutive samples of one shard.

    Attributes:
        shard_uri: URI of the shard, without credentials.
        shard_name: stem of the names of the shard's output files.
        number: number of the unit in its shard, from 0.
        last: whether the shard ends with this unit.
        next_offset: place in the shard where the next unit begins: a byte of a tar, an entry of
            an image page.
        next_index: index of the next unit's first sample in the shard.
        bytes_read: bytes of the source that the unit took.
        samples: one row per sample: the columns of SAMPLE, then those of later stages.
        payload: uint8; encoded images end to end from the reader, patches [M, N, P*P*3] of the M good samples
            from the decoder.
        seconds: seconds of each stage that the unit went through.
        fault: why the store could not be read, or None. A unit with a fault has no samples and
            writes nothing.
        skipped: a JSON object: what a tar has beside the samples, by kind (sources.tar_reader).
        prediction: the JSON of a GpuCall; None on CPUs.
        next_in_group: samples from `next_offset` on that come before the next unit: the unit ends within a
            group of a tar that was divided into samples, or within a table's row with a list of images.
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
    next_in_group: int = 0

    @property
    def name(self) -> str:
        """Return the name of the unit: the stem of its file, without the mark of a shard's end."""
        return f"{self.shard_name}-{self.number:05d}"

    def to_arrow(self) -> pa.Table:
        """Return the unit as a table of one row. The payload is not copied."""
        columns = {}
        for name, kind in _SCALARS.items():
            columns[name] = pa.array([getattr(self, name)], kind)
        for stage, name in _SECONDS.items():
            columns[name] = pa.array([self.seconds.get(stage)], pa.float64())
        columns["samples"] = _one_list(self.samples)
        columns["payload"] = _one_cell(self.payload)
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Return the unit that a table of one row holds. The payload is a read-only view into the table.

        Raises:
            ValueError: the table has another number of rows, because something merged or split units.
        """
        if table.num_rows != 1:
            raise ValueError(f"a unit is one row, not {table.num_rows}")
        scalars: dict[str, Any] = {name: table[name][0].as_py() for name in _SCALARS}
        seconds = {}
        for stage, name in _SECONDS.items():
            value = table[name][0].as_py()
            if value is not None:
                seconds[stage] = value
        samples = pa.Table.from_struct_array(_one_chunk(table["samples"]).flatten())
        return cls(**scalars, samples=samples, payload=_view(table["payload"]), seconds=seconds)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array. What `combine_chunks` returns depends on the version of pyarrow."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _one_list(samples: pa.Table) -> pa.LargeListArray:
    """Return a column of one cell: the rows of `samples` as a list of structs."""
    struct = _one_chunk(samples.to_struct_array())
    return pa.LargeListArray.from_arrays(pa.array([0, len(struct)], pa.int64()), struct)


def _one_cell(payload: np.ndarray) -> pa.LargeBinaryArray:
    """Return a column of one cell that shares the payload's memory."""
    bounds = pa.py_buffer(np.array([0, payload.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, bounds, pa.py_buffer(payload.reshape(-1))]
    )


def _view(column: pa.ChunkedArray) -> np.ndarray:
    """Return the bytes of a `large_binary` column of one row, in place: `scalar.as_buffer()` would copy."""
    chunk = next(chunk for chunk in column.chunks if len(chunk))
    _, offsets, data = chunk.buffers()
    if data is None:
        return np.empty(0, np.uint8)
    begin, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2]
    view = np.frombuffer(data, np.uint8)[begin:end]
    view.flags.writeable = False  # other readers share this memory
    return view
