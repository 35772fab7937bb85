"""stages: what Ray's workers call makes what is missing, and starts light."""

import subprocess
import sys

import pytest

from tests.support.samples import shard_of, write_tar
from wordsworth.pipeline.labeling import stages
from wordsworth.pipeline.labeling.unit_begin import UnitBegin
from wordsworth.pipeline.output.committed import CommittedUnits
from wordsworth.pipeline.output.frozen_listing import open_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import listing_table
from wordsworth.pipeline.unit import Unit

SETTINGS = ReadSettings(unit_rows=4)


def content(unit: Unit) -> tuple:
    """All that must be equal between two readings; only the clock may differ."""
    header = (unit.number, unit.last, unit.next_offset, unit.next_index, unit.bytes_read)
    return (*header, unit.samples.to_pylist(), unit.payload.tobytes())


def test_the_read_stage_makes_only_the_units_that_are_not_there(tmp_path, monkeypatch):
    members = [(f"d/{number:03d}.jpg", bytes([number + 1]) * (300 + 97 * number)) for number in range(18)]
    shard = shard_of(write_tar(tmp_path / "a.tar", members))
    units = [content(unit) for unit in read_units(shard, SETTINGS)]
    (row,) = open_shards(listing_table([shard]), CommittedUnits())
    row = row.drop_columns(["start", "have"])

    def begin(run, shard_name: str, number: int) -> UnitBegin:
        if number == 0:
            return UnitBegin(position=0, index=0)
        _, _, next_offset, next_index, *_ = units[number - 1]
        return UnitBegin(position=next_offset, index=next_index)

    monkeypatch.setattr(stages, "unit_begin", begin)

    def read(start: int, have: list[int]) -> list[tuple]:
        todo = row.append_column("start", [[start]]).append_column("have", [[have]])
        tables = stages.read_stage(todo, SETTINGS, str(tmp_path / "out"))
        return [content(Unit.from_arrow(table)) for table in tables]

    assert read(0, []) == units
    assert read(2, [0, 1]) == units[2:]
    assert read(1, [0, 2, 4]) == [units[1], units[3]]


@pytest.mark.slow
def test_the_stages_load_neither_torch_nor_ray():
    code = (
        "import sys, wordsworth.pipeline.labeling.stages; print({'torch', 'ray', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
