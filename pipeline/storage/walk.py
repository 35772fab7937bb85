"""List what lies under a prefix as a stream, in the order of the paths, from any path on."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from wordsworth.pipeline.storage.filesystem import is_local, patiently

Entry = tuple[str, dict[str, Any]]
KEYS = 1000  # in one answer of S3


def scan(fs: fsspec.AbstractFileSystem, root: str, after: str | None = None) -> Iterator[Entry]:
    """The files under `root`, however deep, in the order of their paths' characters; those up to `after` are left out.

    On S3 the store lists in that order itself, and memory holds one answer of 1,000 names. Elsewhere folder after folder is
    listed, and memory holds the names of one folder and of the folders above it.
    """
    native = getattr(fs, "call_s3", None)
    yield from _scan_s3(fs, root, after) if native else _scan_folders(fs, root, after)


def _scan_folders(fs: fsspec.AbstractFileSystem, folder: str, after: str | None) -> Iterator[Entry]:
    entries = patiently(lambda: fs.ls(folder, detail=True))
    named = ((entry["name"].rstrip("/"), entry) for entry in entries)
    # A folder stands where its files do: "a/b" comes behind "a.txt", although "a" comes before it.
    ordered = sorted(
        (f"{name}/" if entry["type"] == "directory" else name, entry)
        for name, entry in named
        if name != folder.rstrip("/")
    )
    for name, entry in ordered:
        if not name.endswith("/"):
            if after is None or name > after:
                yield name, entry
        elif after is None or name > after or after.startswith(name):
            yield from _scan_folders(fs, name[:-1], after)


def _scan_s3(fs: Any, root: str, after: str | None) -> Iterator[Entry]:
    """ListObjectsV2 without a delimiter: keys come in the order of their UTF-8 bytes, which is that of their characters.

    A store on a file system (rclone) may name a key twice while it is replaced; here it comes once.
    """
    bucket, _, prefix = root.partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else "", "MaxKeys": KEYS}
    if after:
        asked["StartAfter"] = after.partition("/")[2]
    before = None
    while True:
        answer = patiently(lambda asked=asked: fs.call_s3("list_objects_v2", **asked))
        for found in answer.get("Contents", ()):
            if found["Key"] != before and not found["Key"].endswith("/"):  # a marker of an empty folder
                before = found["Key"]
                path = f"{bucket}/{found['Key']}"
                yield path, {**found, "name": path, "size": found["Size"], "type": "file"}
        if not answer.get("IsTruncated"):
            return
        asked = {**asked, "ContinuationToken": answer["NextContinuationToken"]}
        asked.pop("StartAfter", None)


def names(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[str]:
    """The names in a folder, in any order and as they are now; none where there is no such folder.

    It looks at none of the files. On this machine's disk and on S3 it is a stream; elsewhere memory holds all names.
    """
    with contextlib.suppress(FileNotFoundError):
        if is_local(fs):
            with os.scandir(folder) as entries:
                yield from (entry.name for entry in entries)
        elif hasattr(fs, "call_s3"):
            below = len(folder.rstrip("/")) + 1
            yield from (name for path, _ in _scan_s3(fs, folder, None) if "/" not in (name := path[below:]))
        else:
            fs.invalidate_cache()
            yield from (name for path in fs.ls(folder, detail=False) if (name := path.rpartition("/")[2]))
