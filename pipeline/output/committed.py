"""What of a run is done, by the names of its files alone, and small enough for millions of shards."""

import hashlib
import re
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

UNIT_NAME = re.compile(r"(?P<shard>.+-[0-9a-f]{12})-(?P<unit>\d{5,})(?P<end>-end)?\.parquet")


def unit_file(shard_name: str, number: int, last: bool) -> str:
    return f"{shard_name}-{number:05d}{'-end' if last else ''}.parquet"


@dataclass(slots=True)
class Committed:
    """What a shard already has.

    prefix: how many units from the first on are there without a gap. beyond: the numbers of those behind the gap. ended: whether
    the shard's last unit is there.
    """

    prefix: int = 0
    beyond: set[int] = field(default_factory=set)
    ended: bool = False

    @property
    def complete(self) -> bool:
        return self.ended and not self.beyond

    def add(self, number: int, last: bool) -> None:
        self.ended |= last
        if number >= self.prefix:
            self.beyond.add(number)
        while self.prefix in self.beyond:
            self.beyond.remove(self.prefix)
            self.prefix += 1


class Done:
    """What is committed, by shard name, small enough for millions of shards: 20 bytes for one that is complete, which is a hash of
    its name and the number of its units, and an entry for any other that has a unit."""

    def __init__(self, files: Iterable[str] = ()):
        """files: names of files of units; other names are passed over."""
        self.open: dict[str, Committed] = {}
        hashes, counts = bytearray(), array("I")
        for match in filter(None, map(UNIT_NAME.fullmatch, files)):
            shard = match["shard"]
            have = self.open.setdefault(shard, Committed())
            have.add(int(match["unit"]), match["end"] is not None)
            if have.complete:
                hashes += _hash(shard)
                counts.append(have.prefix)
                del self.open[shard]
        self._hashes, self._counts = _ordered(np.frombuffer(hashes, HASH), np.frombuffer(counts, np.uint32))
        self._add_late()

    def _add_late(self) -> None:
        """What no run writes, such as a unit behind the end, may have come when its shard was complete already."""
        late = [shard for shard, found in zip(self.open, self._find(self.open)[1], strict=True) if found]
        for shard, at in zip(late, self._find(late)[0], strict=True):
            more, have = self.open.pop(shard), Committed(int(self._counts[at]), ended=True)
            for number in (*range(more.prefix), *more.beyond):
                have.add(number, more.ended)
            self._counts[at] = have.prefix
            if not have.complete:
                self.open[shard] = have

    def _find(self, shards: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where the shards stand among the complete ones, and whether they do."""
        wanted = np.frombuffer(b"".join(map(_hash, shards)), HASH)
        at = np.searchsorted(self._hashes, wanted)
        at[at == len(self._hashes)] = 0
        found = self._hashes[at] == wanted if len(self._hashes) else np.zeros(len(wanted), bool)
        return at, found

    def complete(self, shards: Collection[str]) -> np.ndarray:
        """Which of the shards are complete: a bool for each."""
        return self._find(shards)[1] & ~np.fromiter(
            (shard in self.open for shard in shards), bool, len(shards)
        )

    def __len__(self) -> int:
        """Of how many shards there is something."""
        return len(self._hashes) + sum(~self._find(self.open)[1])

    @property
    def units(self) -> int:
        """How many units there are of all shards."""
        at, found = self._find(self.open)
        complete = int(self._counts.sum(dtype=np.int64) - self._counts[at[found]].sum(dtype=np.int64))
        return complete + sum(have.prefix + len(have.beyond) for have in self.open.values())

    def __getitem__(self, shard: str) -> Committed:
        """What there is of a shard; of an unknown one there is nothing."""
        if shard in self.open:
            return self.open[shard]
        (at,), (found,) = self._find([shard])
        return Committed(int(self._counts[at]), ended=True) if found else Committed()


HASH = "S16"  # numpy's name for 16 bytes


def _ordered(hashes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By hash, each once, with the largest of its counts."""
    order = np.argsort(hashes)
    hashes, counts = hashes[order], counts[order]
    first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    return hashes[first], np.maximum.reduceat(counts, first) if len(first) else counts


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
