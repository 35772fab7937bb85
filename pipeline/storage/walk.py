"""List files as a stream: all files under a prefix, in the order of their paths, or the names in a folder."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fsspec

from wordsworth.pipeline.storage.filesystem import is_local
from wordsworth.pipeline.storage.streams import with_retries

Entry = tuple[str, dict[str, Any]]  # a path, and what fsspec tells about the file
# Says of the path of a folder, and of whether it is a link, whether to look into the folder.
Unlisted = Callable[[str, OSError], None]  # is told of a folder that cannot be listed, and of the reason
TakesFolder = Callable[[str, bool], bool]
KEYS_PER_ANSWER = 1000  # in one answer of S3, at most


def _raise(folder: str, error: OSError) -> None:
    raise error


def walk_files(
    fs: fsspec.AbstractFileSystem,
    root: str,
    after: str | None = None,
    takes_folder: TakesFolder = lambda path, is_link: not is_link,
    unlisted: Unlisted = _raise,
) -> Iterator[Entry]:
    """Yield the files under `root`, at any depth, in the order of the characters of their paths.

    S3 lists in this order itself, and memory holds one answer of KEYS_PER_ANSWER names. Other file systems
    are listed folder by folder, and memory holds the names of one folder and of the folders above it.

    Args:
        fs: file system of `root`.
        root: folder or prefix.
        after: path to begin behind; None begins with the first file.
        takes_folder: says whether to look into a folder, or into a link to one. S3 is not listed by folders
            and does not ask it.
        unlisted: is told of a folder that is gone or forbidden, and may raise; the listing goes on behind it.
    """
    if hasattr(fs, "call_s3"):
        yield from _walk_s3(fs, root, after)
    else:
        yield from _walk_folders(fs, root, after, takes_folder, unlisted)


def _walk_folders(
    fs: fsspec.AbstractFileSystem,
    folder: str,
    after: str | None,
    takes_folder: TakesFolder,
    unlisted: Unlisted,
) -> Iterator[Entry]:
    read = partial(_folder_on_disk, folder) if is_local(fs) else partial(_folder_in_store, fs, folder)
    try:
        entries = sorted(with_retries(read))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        unlisted(folder, error)
        return
    for name, entry in entries:
        is_file = not name.endswith("/")
        if is_file and (after is None or name > after):
            yield name, entry
        is_ahead = after is None or name > after or after.startswith(name)
        if not is_file and is_ahead and takes_folder(name[:-1], entry.get("islink", False)):
            yield from _walk_folders(fs, name[:-1], after, takes_folder, unlisted)


# A folder is sorted by the paths of its files: "a/b" comes after "a.txt", although "a" comes before. So the
# two functions below give the names of folders with a slash at the end.


def _folder_in_store(fs: fsspec.AbstractFileSystem, folder: str) -> list[Entry]:
    """Return the entries of a folder, with their paths."""
    entries = []
    for entry in fs.ls(folder, detail=True):
        name = entry["name"].rstrip("/")
        if name != folder.rstrip("/"):
            entries.append((f"{name}/" if entry["type"] == "directory" else name, entry))
    return entries


def _folder_on_disk(folder: str) -> list[Entry]:
    """Return the entries of a folder on a disk, with their paths, as fsspec would in twice the time.

    A link has the type and the size of what it leads to, and its own time.
    """
    entries = []
    with os.scandir(folder) as found:
        for item in found:
            name = item.path
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # it is gone since
            is_link = stat.S_ISLNK(status.st_mode)
            kind, size = _behind_link(name) if is_link else (_kind(status.st_mode), status.st_size)
            entry = {"name": name, "size": size, "type": kind, "islink": is_link, "mtime": status.st_mtime}
            entries.append((f"{name}/" if kind == "directory" else name, entry))
    return entries


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "other"


def _behind_link(path: str) -> tuple[str, int]:
    """Return the type and the size of what a link leads to. One that leads nowhere is an empty file."""
    try:
        status = os.stat(path)
    except OSError:
        return "file", 0
    return _kind(status.st_mode), status.st_size


def _walk_s3(fs: Any, root: str, after: str | None) -> Iterator[Entry]:
    """Yield the files under an S3 prefix, by ListObjectsV2 without a delimiter.

    Keys come in the order of their UTF-8 bytes, which is that of their characters. A store on a file system
    (rclone) may list a key twice while the object is overwritten; the second one is left out. An empty object
    with a slash at the end of its key marks a folder and is left out.
    """
    bucket, slash, prefix = root.partition("/")
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": "", "MaxKeys": KEYS_PER_ANSWER}
    if slash:
        request["Prefix"] = f"{prefix}/"
    if after:
        request["StartAfter"] = after.partition("/")[2]
    previous = None
    while True:
        answer = with_retries(partial(_listed, fs, request))
        for found in answer.get("Contents", ()):
            key = found["Key"]
            if key == previous or (key.endswith("/") and found["Size"] == 0):
                continue
            _check_listed(key, request["Prefix"], previous)
            previous = key
            path = f"{bucket}/{key}"
            yield path, {**found, "name": path, "size": found["Size"], "type": "file"}
        if not answer.get("IsTruncated"):
            return
        request.pop("StartAfter", None)
        token = answer.get("NextContinuationToken")
        if not token or token == request.get("ContinuationToken"):
            raise OSError(f"the listing of s3://{root} never ends: the store does not say how it goes on")
        request["ContinuationToken"] = token


def _listed(fs: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request for a part of a listing.

    Raises:
        OSError: the answer is no listing, but the page of a proxy or a login, which S3's client takes for an
            empty one.
    """
    answer: dict[str, Any] = fs.call_s3("list_objects_v2", **request)
    if not is_listing(answer):
        raise OSError(f"the store answers a listing of s3://{request['Bucket']} with something else")
    return answer


def is_listing(answer: dict[str, Any]) -> bool:
    """Return whether an answer to ListObjectsV2 is one: each has some of these fields, an empty one too."""
    return not {"IsTruncated", "Name", "MaxKeys", "KeyCount", "Contents"}.isdisjoint(answer)


def _check_listed(key: str, prefix: str, previous: str | None) -> None:
    """Check that a key may stand where a listing has it.

    Raises:
        OSError: it may not. What comes behind it would be lost or doubled by whoever continues the listing.
    """
    if not key.startswith(prefix):
        raise OSError(f"the store lists {key!r} under {prefix!r}")
    if previous is not None and key < previous:
        raise OSError(f"the store lists {key!r} behind {previous!r}, which is not the order of S3's keys")


def list_names(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[str]:
    """Yield the names in a folder as they are now, in any order; none if there is no such folder.

    No file is looked at. On local disks and on S3 this is a stream; elsewhere memory holds all names.
    """
    with contextlib.suppress(FileNotFoundError):
        if is_local(fs):
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield entry.name
        elif hasattr(fs, "call_s3"):
            yield from _names_on_s3(fs, folder)
        else:
            fs.invalidate_cache()
            for path in fs.ls(folder, detail=False):
                name = path.rpartition("/")[2]
                if name:
                    yield name


def _names_on_s3(fs: Any, folder: str) -> Iterator[str]:
    folder = folder.rstrip("/")
    prefix = f"{folder}/"
    for path, _ in _walk_s3(fs, folder, None):
        name = path[len(prefix) :]
        if "/" not in name:
            yield name
