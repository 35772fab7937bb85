"""Define a shard: one object of a source that is read front to back, and its row in the listing."""

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import pyarrow as pa

from wordsworth.pipeline.storage.filesystem import join

NAMED = "named"  # kind of a page of images that were named one by one
UNSEEN = ""  # version of a named image that could not be seen when it was listed; its size is 0
PAGE_KINDS = ("images", NAMED)

LISTING = pa.schema(
    [
        ("kind", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("id", pa.string()),
        ("first_index", pa.int32()),
        ("source", pa.int32()),
        (
            "members",
            pa.list_(pa.struct([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])),
        ),
    ]
)
PICKS = pa.field("picks", pa.list_(pa.int32()))  # one more column, of a listing of picked samples


class ListedImage(TypedDict):
    """Describe one loose image of a page.

    Attributes:
        key: path under the page's prefix
        size: bytes
        version: etag, or time of modification
    """

    key: str
    size: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Describe one object that is read front to back: a tar, an archive, a table, or a page of images.

    Attributes:
        kind: "tar", "zip", "table", "images", or NAMED
        uri: URI of the tar, the archive or the table; the prefix of a page of images
        size: bytes; of a page the sum of its images
        version: etag, or time of modification; empty for a page
        first_index: place of a page's first image among all images of the prefix
        members: images of a page
        source: number of the command's source under which the shard was found; no part of the shard's
            identity
        picks: numbers of the samples that count, from 0, in order; of a shard that is no page. None are given
            where all count
    """

    kind: str
    uri: str
    size: int
    version: str
    first_index: int = 0
    members: tuple[ListedImage, ...] = ()
    source: int = 0
    picks: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Return 12 hex digits made from what the shard is, never from keys that stand in the data."""
        lines = [f"{self.kind}|{self.uri}|{self.size}|{self.version}|{self.first_index}"]
        for member in self.members:
            lines.append(f"{member['key']}|{member['size']}|{member['version']}")
        if self.picks:
            lines.append(f"picks {self.picks}")
        identity = "\n".join(lines).encode("utf-8", "surrogatepass")
        return hashlib.sha256(identity).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Return the text that the names of the shard's units begin with."""
        return unit_stem(self.uri, self.id)

    @property
    def is_page(self) -> bool:
        """Return whether this is a page of loose images."""
        return self.kind in PAGE_KINDS

    def place_in_rows(self, member: ListedImage) -> tuple[str, str]:
        """Return the shard and the key that the row of a page's image has.

        They are the prefix and the path below it; of a page of NAMED images the image's folder and name.
        """
        if self.kind != NAMED:
            return self.uri, member["key"]
        folder, _, name = join(self.uri, member["key"]).rpartition("/")
        return folder, name

    @property
    def last_path(self) -> str:
        """Return the URI of the last file of the shard, in the order of the listing."""
        if not self.members:
            return self.uri
        return join(self.uri, self.members[-1]["key"])

    def to_row(self) -> dict[str, Any]:
        """Return the shard as a row of LISTING."""
        return {**asdict(self), "members": list(self.members), "id": self.id}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Shard":
        """Return the shard of a row of LISTING."""
        return cls(
            kind=row["kind"],
            uri=row["uri"],
            size=row["size"],
            version=row["version"],
            first_index=row["first_index"],
            members=tuple(row["members"] or ()),
            source=row["source"],
            picks=tuple(row.get("picks") or ()),
        )


def unit_stem(uri: str, id: str) -> str:
    """Return a readable stem of the URI, and the id behind it."""
    stem = uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).strip("._")[:80] or "shard"
    return f"{stem}-{id}"


def listing_table(shards: list[Shard]) -> pa.Table:
    """Return shards as a table of LISTING, one row each; with the column PICKS where a shard has some."""
    has_picks = any(shard.picks for shard in shards)
    schema = LISTING.append(PICKS) if has_picks else LISTING
    return pa.Table.from_pylist([shard.to_row() for shard in shards], schema=schema)
