"""List the files of a folder on a disk again, for verify: by os.walk, with its own rule for links.

A link to a folder is followed where it leads to files that the folder does not have itself: out of the tree,
if the run was asked for that, or into a folder whose name is skipped. None is followed into a folder above.
"""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from wordsworth.pipeline.verification.recount_names import is_skipped_member

Identity = tuple[int, str]  # size in bytes and version of a file


@dataclass(frozen=True)
class _Start:
    """Hold a folder to walk from: the run's, or one that a link leads to.

    Attributes:
        path: path of the folder.
        above: real paths of the folders above it.
        trees: real paths of the folders whose files are listed already, above it.
    """

    path: str
    above: frozenset[str]
    trees: tuple[str, ...]


def files_on_disk(top: str, asked: dict[str, str | bool]) -> dict[str, Identity]:
    """Return size and version of every file under a folder, by its path below the folder.

    Args:
        top: path of the folder.
        asked: the plan's options by name, of which "follow-links" and "include-hidden" count.
    """
    found: dict[str, Identity] = {}
    waiting = [_Start(top, frozenset(), (os.path.realpath(top),))]
    while waiting:
        start = waiting.pop()
        for folder, subfolders, names in os.walk(start.path, onerror=partial(_fail, start.path)):
            for name in names:
                identity = _identity(os.path.join(folder, name))
                if identity:
                    found[os.path.relpath(os.path.join(folder, name), top)] = identity
            above = start.above | set(_real_paths(start.path, folder))
            subfolders[:] = [name for name in subfolders if _real(folder, name) not in above]
            for name in subfolders:
                path = os.path.join(folder, name)
                if os.path.islink(path) and _is_followed(os.path.realpath(path), start.trees, asked):
                    waiting.append(_Start(path, above, (*start.trees, os.path.realpath(path))))
    return found


def _fail(start: str, error: OSError) -> None:
    """Raise the error of a start. A folder below it that may not be listed has no files for anyone."""
    if error.filename == start or not isinstance(error, PermissionError | FileNotFoundError):
        raise error


def _real_paths(start: str, folder: str) -> Iterator[str]:
    """Yield the real paths of a folder and of the folders between it and the start."""
    yield os.path.realpath(start)
    if folder != start:
        path = start
        for part in os.path.relpath(folder, start).split(os.sep):
            path = os.path.join(path, part)
            yield os.path.realpath(path)


def _real(folder: str, name: str) -> str:
    return os.path.realpath(os.path.join(folder, name))


def _is_followed(target: str, trees: tuple[str, ...], asked: dict[str, str | bool]) -> bool:
    for tree in trees:
        if os.path.commonpath([tree, target]) == tree:
            a_file = os.path.join(os.path.relpath(target, tree), "x")
            return not asked.get("include-hidden") and is_skipped_member(a_file)
    return asked.get("follow-links") == "outside"


def _identity(path: str) -> Identity | None:
    """Return size and version of a file; None for a pipe or the like. A link has the time of the link.

    None also for a name that is no UTF-8, which no row can hold.
    """
    if any("\udc80" <= char <= "\udcff" for char in path):
        return None
    version = str(os.lstat(path).st_mtime)
    if os.path.isfile(path):
        return os.path.getsize(path), version
    return (0, version) if not os.path.exists(path) else None


def files_named(source: str, top: str) -> dict[str, Identity]:
    """Return the files that a source names, by their paths below a folder: a file, or a glob's matches.

    A glob with `**` names nothing here: what it matches is found below the folder.
    """
    top = top or "/"
    if os.path.exists(source):
        status = os.stat(source)
        if os.path.isdir(source):
            return {}
        return {os.path.relpath(source, top): (status.st_size, str(status.st_mtime))}
    if "**" in source:
        return {}
    found = {}
    for path in glob.glob(source, include_hidden=True):
        identity = None if os.path.isdir(path) else _identity(path)
        if identity:
            found[os.path.relpath(path, top)] = identity
    return found
