"""Find where a unit begins in its shard: the file of the unit before it says so."""

from dataclasses import dataclass

from wordsworth.pipeline.output.committed import unit_file
from wordsworth.pipeline.output.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class UnitBegin:
    """Hold where a unit begins.

    Attributes:
        position: place of its first sample in the shard, in bytes or in entries, as `Unit.next_offset`.
        index: number of its first sample in the shard.
        in_group: samples from `position` on that come before it, as `Unit.next_in_group`.
    """

    position: int
    index: int
    in_group: int = 0


def unit_begin(run: RunFolder, shard_name: str, number: int) -> UnitBegin:
    """Return where unit `number` of a shard begins. Reads the footer of the unit before, which must exist."""
    if number == 0:
        return UnitBegin(position=0, index=0)
    footer = run.units().footer(unit_file(shard_name, number - 1, last=False))
    return UnitBegin(position=footer.next_offset, index=footer.next_index, in_group=footer.next_in_group)
