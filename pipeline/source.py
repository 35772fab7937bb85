"""What the user points at, as shards: tar files, and pages of a listing of loose images."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.kinds import FORMATS, IMAGE_KEYS, kind_of
from pipeline.storage import full_uri, open_filesystem, public, version_of

PAGE = 4096  # loose images in one shard: a page of the listing

LISTING = pa.schema(
    [
        ("kind", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("id", pa.string()),
        ("first_index", pa.int32()),
        ("members", pa.list_(pa.struct([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())]))),
    ]
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One object that is read front to back.

    kind "tar", "table": `uri` is the tar, compressed or not, or the table. kind "images": `uri` is the prefix, `members` a page of
    the images under it, as dicts of key (path under the prefix), size and version; `first_index` is the place of the page's first
    image in the whole listing.
    version: etag, or time of modification. size: bytes.
    """

    kind: str
    uri: str
    size: int
    version: str
    first_index: int = 0
    members: tuple[dict, ...] = ()

    @property
    def id(self) -> str:
        """12 hex digits made of nothing but what the shard is, never of keys that stand in the data."""
        entries = [f"{member['key']}|{member['size']}|{member['version']}" for member in self.members]
        identity = "\n".join([f"{self.kind}|{self.uri}|{self.size}|{self.version}|{self.first_index}", *entries])
        return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What the names of its units begin with: a readable stem and the id."""
        stem = self.uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).strip("._")[:80] or "shard"
        return f"{stem}-{self.id}"

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "members": list(self.members), "id": self.id}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Shard":
        fields = {name: row[name] for name in ("kind", "uri", "size", "version", "first_index")}
        return cls(**fields, members=tuple(row["members"] or ()))


@dataclass(slots=True)
class Listing:
    """What a set of sources holds. `ignored`: files that are neither shards nor images, by extension."""

    shards: list[Shard] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)


def find_shards(
    sources: list[str],
    format: str | None = None,
    image_keys: tuple[str, ...] = IMAGE_KEYS,
    storage_options: dict[str, Any] | None = None,
) -> Listing:
    """List the shards of files, folders and globs, local or of any allowed fsspec URL, in a fixed order, each once.

    format: "tar", "images" or "table" where the names leave it open. Raises UserError for a source that is missing, that holds
    nothing to label, or that holds more than one of these.
    """
    listing, seen, counted = Listing(), set(), Counter()
    for source in sources:
        fs, path = open_filesystem(source, storage_options)
        root, files = _expand(fs, path, source)
        kind, chosen = _choose(files, format, image_keys, source, listing.ignored)
        fresh = {path: info for path, info in chosen.items() if (uri := full_uri(fs, path)) not in seen and not seen.add(uri)}
        if kind != "images":
            listing.shards += _files(kind, fs, fresh)
        else:  # sources under one prefix share its numbering
            uri = full_uri(fs, root)
            pages = list(_pages(fs, root, fresh, counted[uri]))
            counted[uri] += sum(len(page.members) for page in pages)
            listing.shards += pages
    return listing


def _expand(fs: fsspec.AbstractFileSystem, path: str, source: str) -> tuple[str, dict[str, dict]]:
    """The prefix that keys are relative to, and the files by path."""
    try:
        if fs.isfile(path):
            return path.rpartition("/")[0], {path: fs.info(path)}
        if fs.isdir(path):
            return path, fs.find(path, detail=True)
        if any(char in path for char in "*?["):
            found = fs.glob(path, detail=True)
            root = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            files = {path: info for path, info in found.items() if info.get("type") != "directory"}
            if files:
                return root, files
    except PermissionError as error:
        raise UserError(f"not allowed to list {public(source)}: {error}; check the credentials") from error
    except FileNotFoundError:
        pass
    raise UserError(f"nothing found at {public(source)}: no such file or folder, and no match as a glob")


def _choose(
    files: dict[str, dict], format: str | None, image_keys: tuple[str, ...], source: str, ignored: Counter
) -> tuple[str, dict[str, dict]]:
    """Tars, images or tables, from the names; what is neither is counted."""
    by_kind: dict[str, dict[str, dict]] = {kind: {} for kind in FORMATS}
    others: Counter = Counter()
    for path in sorted(files):
        base = path.rpartition("/")[2]
        extension = base.rpartition(".")[2].lower() if "." in base else ""
        if kind := kind_of(base, image_keys):
            by_kind[kind][path] = files[path]
        elif base != "labels.txt":  # class names beside the shards are ours
            others[f".{extension}" if extension else base] += 1
    kinds = [format] if format else [kind for kind, chosen in by_kind.items() if chosen]
    if len(kinds) > 1:
        names = " and ".join(FORMATS[kind] for kind in kinds)
        which = " or ".join(f"--format {kind}" for kind in kinds)
        raise UserError(f"{public(source)} holds both {names}: say which with {which}")
    for kind in by_kind.keys() - set(kinds):
        others.update(f".{path.rpartition('.')[2].lower()}" for path in by_kind[kind])
    if not kinds or not by_kind[kinds[0]]:
        found = ", ".join(f"{count} {name}" for name, count in others.most_common(3)) or "no file at all"
        wanted = FORMATS.get(format or "", ".tar shards or images")
        raise UserError(f"no {wanted} in {public(source)} (it holds {found})")
    ignored.update(others)
    for path in by_kind[kinds[0]]:
        _check_name(path)
    return kinds[0], by_kind[kinds[0]]


def _check_name(path: str) -> None:
    """Names on a disk are bytes; one that is no text fits no listing and no prediction row."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"the name {shown} is not UTF-8: rename it") from None


def _files(kind: str, fs: fsspec.AbstractFileSystem, files: dict[str, dict]) -> Iterator[Shard]:
    for path, info in files.items():
        yield Shard(kind, full_uri(fs, path), info["size"], version_of(info))


def _pages(fs: fsspec.AbstractFileSystem, root: str, files: dict[str, dict], first: int) -> Iterator[Shard]:
    names = iter(files.items())
    while page := list(islice(names, PAGE)):
        members = tuple(
            {"key": path[len(root) :].lstrip("/"), "size": info["size"], "version": version_of(info)} for path, info in page
        )
        size = sum(member["size"] for member in members)
        yield Shard("images", full_uri(fs, root), size, "", first, members)
        first += len(members)


def listing_table(shards: list[Shard]) -> pa.Table:
    return pa.Table.from_pylist([shard.to_row() for shard in shards], schema=LISTING)
