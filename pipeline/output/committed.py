"""Hold which units are done, found from the names of files alone, in few bytes for millions of shards."""

import hashlib
import re
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

UNIT_NAME = re.compile(r"(?P<shard>.+-[0-9a-f]{12})-(?P<unit>\d{5,})(?P<end>-end)?\.parquet")
HASH_TYPE = "S16"  # numpy's name for 16 bytes


def unit_file(shard_name: str, number: int, last: bool) -> str:
    """Return the name of a unit's file."""
    end = "-end" if last else ""
    return f"{shard_name}-{number:05d}{end}.parquet"


def shard_name_of(file: str) -> str:
    """Return the name of the shard of a unit's file.

    Raises:
        ValueError: no unit has a file of this name.
    """
    match = UNIT_NAME.fullmatch(file)
    if match is None:
        raise ValueError(f"{file} is not the name of a unit's file")
    return match["shard"]


@dataclass(slots=True)
class ShardUnits:
    """Hold which units of one shard are done.

    Attributes:
        contiguous: number of units from the first on that are done without a gap.
        after_gap: numbers of the units behind the gap.
        ended: whether the shard's last unit is done.
    """

    contiguous: int = 0
    after_gap: set[int] = field(default_factory=set)
    ended: bool = False

    @property
    def complete(self) -> bool:
        return self.ended and not self.after_gap

    def add(self, number: int, last: bool) -> None:
        """Add one unit."""
        self.ended = self.ended or last
        if number >= self.contiguous:
            self.after_gap.add(number)
        while self.contiguous in self.after_gap:
            self.after_gap.remove(self.contiguous)
            self.contiguous += 1


class CommittedUnits:
    """Hold which units of a run are done, by shard name.

    A complete shard takes 20 bytes: a hash of its name and the number of its units. Another shard of which
    a unit is done takes an entry in `open`.
    """

    def __init__(self, files: Iterable[str] = ()):
        """Read the names of units' files, in any order. Other names are passed over."""
        self.open: dict[str, ShardUnits] = {}
        hashes = bytearray()
        counts = array("I")
        for match in filter(None, map(UNIT_NAME.fullmatch, files)):
            shard = match["shard"]
            have = self.open.setdefault(shard, ShardUnits())
            have.add(int(match["unit"]), match["end"] is not None)
            if have.complete:
                hashes += _hash(shard)
                counts.append(have.contiguous)
                del self.open[shard]
        self._hashes, self._counts = _by_hash(
            np.frombuffer(hashes, HASH_TYPE), np.frombuffer(counts, np.uint32)
        )
        self._add_late_units()

    def _add_late_units(self) -> None:
        """Add units that came when their shard was complete already, such as one behind the end."""
        _, is_complete = self._find(self.open)
        late = [shard for shard, found in zip(self.open, is_complete, strict=True) if found]
        places, _ = self._find(late)
        for shard, place in zip(late, places, strict=True):
            more = self.open.pop(shard)
            have = ShardUnits(contiguous=int(self._counts[place]), ended=True)
            for number in (*range(more.contiguous), *more.after_gap):
                have.add(number, more.ended)
            self._counts[place] = have.contiguous
            if not have.complete:
                self.open[shard] = have

    def _find(self, shards: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each shard among the complete shards, and whether the shard is there."""
        wanted = np.frombuffer(b"".join(map(_hash, shards)), HASH_TYPE)
        places = np.searchsorted(self._hashes, wanted)
        places[places == len(self._hashes)] = 0
        if not len(self._hashes):
            return places, np.zeros(len(wanted), bool)
        return places, self._hashes[places] == wanted

    def complete(self, shards: Collection[str]) -> np.ndarray:
        """Return which of the shards are complete: a bool for each."""
        is_open = np.fromiter((shard in self.open for shard in shards), bool, len(shards))
        _, found = self._find(shards)
        return found & ~is_open

    def __len__(self) -> int:
        """Return the number of shards of which a unit is done."""
        _, found = self._find(self.open)
        return len(self._hashes) + int(np.count_nonzero(~found))

    @property
    def units(self) -> int:
        """Return the number of units that are done, of all shards."""
        places, found = self._find(self.open)
        counted_twice = int(self._counts[places[found]].sum(dtype=np.int64))
        total = int(self._counts.sum(dtype=np.int64)) - counted_twice
        for have in self.open.values():
            total += have.contiguous + len(have.after_gap)
        return total

    def __getitem__(self, shard: str) -> ShardUnits:
        """Return which units of a shard are done; none of an unknown shard."""
        if shard in self.open:
            return self.open[shard]
        places, found = self._find([shard])
        if not found[0]:
            return ShardUnits()
        return ShardUnits(contiguous=int(self._counts[places[0]]), ended=True)


def _by_hash(hashes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes in order, each once, with the largest count of each."""
    order = np.argsort(hashes)
    hashes = hashes[order]
    counts = counts[order]
    if not len(hashes):
        return hashes, counts
    first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    return hashes[first], np.maximum.reduceat(counts, first)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
