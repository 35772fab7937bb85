"""List the files that a source names: a file, a folder or a glob."""

import os
from collections.abc import Iterator
from typing import Any

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.skipped_names import NameFilter, part_below_pattern
from wordsworth.pipeline.storage.filesystem import WILDCARDS, is_local, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.walk import walk_files

FileInfo = tuple[str, dict[str, Any]]  # path of a file, and what its store says about it


def list_files(
    fs: fsspec.AbstractFileSystem, path: str, source: str, after: str | None, names: NameFilter
) -> tuple[str, Iterator[FileInfo]]:
    """Return the prefix that keys are relative to, and the files behind `after` in the order of their paths.

    `names` judges what lies below a folder, and what a glob's wildcards stand for.

    Raises:
        UserError: nothing is there, or it may not be listed. The message names `source`.
    """
    try:
        info = _info(fs, path)
        if info and info["type"] != "directory":
            return path.rpartition("/")[0], iter([(path, info)] if after is None else [])
        if info:
            return path, _files_below(fs, path, after, names)
        root = _root_of_glob(fs, path)
        if root is not None:
            files = _glob(fs, _escaped(root) + path[len(root) :])
            if files:
                behind = (entry for entry in files if after is None or entry[0] > after)
                return root, (
                    entry for entry in behind if names.takes_file(part_below_pattern(path, entry[0]))
                )
    except PermissionError as error:
        raise UserError(
            f"not allowed to list {without_credentials(source)}: {error}; check the credentials"
        ) from error
    except FileNotFoundError:
        pass
    raise UserError(
        f"nothing found at {without_credentials(source)}: no such file or folder, and no match as a glob"
    )


def _files_below(
    fs: fsspec.AbstractFileSystem, root: str, after: str | None, names: NameFilter
) -> Iterator[FileInfo]:
    """Yield the files of a folder whose names are not skipped."""
    above = len(root.rstrip("/")) + 1  # characters in front of a path below the root
    for path, info in walk_files(fs, root, after, lambda folder: names.takes_folder(folder[above:])):
        if names.takes_file(path[above:]):
            yield path, info


def glob_pattern(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """Return the pattern of a source that is a glob; None for one that names a file or a folder."""
    root = _root_of_glob(fs, path)
    if root is None or _info(fs, path):
        return None
    return _escaped(root) + path[len(root) :]


def _root_of_glob(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """Return the folder above the first wildcard of a path; None for a path without wildcards.

    On a disk, a folder that is there is no pattern, whatever its name looks like.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        is_there = is_local(fs) and os.path.isdir("/".join(parts[: number + 1]))
        if WILDCARDS.search(part) and not is_there:
            return "/".join(parts[:number])
    return None


def _escaped(path: str) -> str:
    """Return the glob that a path alone matches."""
    return WILDCARDS.sub(lambda found: f"[{found[0]}]", path)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return object_info(fs, path)
    except FileNotFoundError:
        return None


def _glob(fs: fsspec.AbstractFileSystem, pattern: str) -> list[FileInfo]:
    try:
        found = fs.glob(pattern, detail=True)
    except ValueError:  # `**` beside other characters
        return []
    return sorted((path, info) for path, info in found.items() if info.get("type") != "directory")


def check_name(path: str) -> None:
    """Refuse a name that is not UTF-8: on a disk names are bytes, but a listing and a row hold text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"the name {shown} is not UTF-8: rename it") from None
