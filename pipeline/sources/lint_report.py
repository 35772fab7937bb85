"""Define what lint reports: the codes, the findings of each shard, and the whole report."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from wordsworth.pipeline.sources.passed_over import PassedOver

CODES = {  # in the order in which a shard's findings are shown
    "truncated": "the tar, archive or table ends or breaks before its end",
    "bad_record": "a line of a table that cannot be read",
    "trailing_data": "more behind end blocks: other readers stop there, the labeler reads on",
    "empty_shard": "no sample in the shard",
    "missing_image": "a sample without an image",
    "refused_uri": "a text of a table that is neither an image nor the name of one",
    "missing_sidecar": "a sample without a field that most samples have, or that is to be kept",
    "empty_file": "an image of no bytes",
    "oversized_member": "an image or a kept field that is too large to be read",
    "sparse_member": "a GNU sparse file, which is not unpacked",
    "encrypted_member": "an image of a zip archive that needs a password",
    "unknown_method": "an image of a zip archive in a compression that is not read",
    "damaged_member": "an image of a zip archive that is not what the directory tells",
    "repeated_key": "a key that another sample of the shard has",
    "colliding_key": "a loose image that would share its key with another in a tar",
    "unsorted": "a key smaller than the one before it",
    "not_utf8_name": "a name that is not UTF-8; its key has escapes",
    "unsafe_key": "a key that would leave its folder if it became a path",
    "shared_name": "images whose names differ behind the first dot alone: --key-rule decides on them",
    "other_image": "images of a sample beside the one that is labelled",
    "hidden_extension": "an image that only the last part of its extension tells",
    "skipped_member": "a member that is no part of a sample",
}
# Counted and shown, but no reason to exit with 3. Readers need the members of a sample together, not the
# samples in order; members that stand apart are a `repeated_key`.
HARMLESS = {"unsorted", "skipped_member", "other_image"}
MOST_PLACES = 100  # places kept of one shard and code
MOST_TEXT = 1000  # characters kept of a key or a detail: a name in a tar can have a million


class LintPlace(NamedTuple):
    """Say where a finding is.

    Attributes:
        key: key of the sample, name of a skipped member, or None
        offset: bytes from the beginning of the tar to the header of the member, or of the sample's first
            member; None for loose images, zip archives and tables
        detail: what is wrong, one line
    """

    key: str | None
    offset: int | None
    detail: str


@dataclass(slots=True)
class LintFinding:
    """Hold all findings of one code in one shard.

    Attributes:
        code: one of CODES
        shard: URI of the shard, or of the prefix of loose images, without credentials
        count: number of all findings
        places: the first findings
        kinds: number of findings by kind, where the code has kinds
    """

    code: str
    shard: str
    count: int = 0
    places: list[LintPlace] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class LintReport:
    """Hold what was found.

    Attributes:
        shards: number of shards
        samples: number of samples
        findings: findings by shard and code
        passed_over: what the listing passed over
        unreadable: the store's error by shard
    """

    shards: int = 0
    samples: int = 0
    findings: list[LintFinding] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Return whether everything was read and nothing is wrong."""
        return not self.unreadable and all(finding.code in HARMLESS for finding in self.findings)


class ShardFindings:
    """Collect the findings of one shard.

    Args:
        shard: URI of the shard, without credentials
        most_places: places to keep for each code
    """

    def __init__(self, shard: str, most_places: int):
        self.shard = shard
        self.most_places = most_places
        self._by_code: dict[str, LintFinding] = {}

    def add(
        self, code: str, key: str | None, offset: int | None, detail: str, kind: str | None = None
    ) -> None:
        """Add one finding. The arguments are those of `LintPlace` and `LintFinding`."""
        self.add_all(code, [LintPlace(key, offset, detail)], 1, kind)

    def add_all(self, code: str, places: list[LintPlace], count: int, kind: str | None = None) -> None:
        """Add `count` findings of one code, of which `places` are the first."""
        finding = self._by_code.setdefault(code, LintFinding(code, self.shard))
        finding.count += count
        for key, offset, detail in places[: self.most_places - len(finding.places)]:
            finding.places.append(LintPlace(key and key[:MOST_TEXT], offset, detail[:MOST_TEXT]))
        if kind:
            finding.kinds[kind] += count

    def ordered(self) -> list[LintFinding]:
        """Return the findings in the order of CODES."""
        return [self._by_code[code] for code in CODES if code in self._by_code]
