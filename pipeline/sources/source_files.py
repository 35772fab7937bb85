"""List the files that a source names: a file, a folder or a glob."""

import difflib
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.folder_links import FolderLinks
from wordsworth.pipeline.sources.passed_over import ListingRules, PassedOver
from wordsworth.pipeline.sources.skipped_names import NameFilter, part_below_pattern, skipped_folder
from wordsworth.pipeline.sources.table_formats import refuse_table_folder
from wordsworth.pipeline.storage.filesystem import WILDCARDS, absolute_uri, is_local, without_credentials
from wordsworth.pipeline.storage.objects import object_info
from wordsworth.pipeline.storage.refusals import explanation
from wordsworth.pipeline.storage.schemes import SCHEMES, is_web
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.storage.walk import Unlisted, walk_files

NAMES_COMPARED = 10_000  # names of a folder, among which a misspelled one is looked for
FILES_JUDGED = 16  # files of a glob whose folders are looked into for the records of a table
FileInfo = tuple[str, dict[str, Any]]  # path of a file, and what its store says about it


class NothingFound(UserError):
    """Report that there is nothing at a source, or nothing to label."""


def list_files(
    fs: fsspec.AbstractFileSystem,
    path: str,
    source: str,
    after: str | None,
    rules: ListingRules,
    passed_over: PassedOver,
) -> tuple[str, Iterator[FileInfo]]:
    """Return the prefix that keys are relative to, and the files behind `after` in the order of their paths.

    Args:
        fs: file system of the source
        path: path of the source in `fs`
        source: the source as messages name it
        after: path to begin behind; None begins with the first file
        rules: what to take of what lies below a folder, and of what a glob's wildcards stand for
        passed_over: gets what was not taken

    Raises:
        NothingFound: nothing is there. The message names `source`.
        UserError: it may not be listed.
    """
    try:
        info = _info(fs, path)
        if info and info["type"] != "directory":
            return path.rpartition("/")[0], iter([(path, info)] if after is None else [])
        if info:
            refuse_table_folder(fs, path, source)
            return path, _files_below(fs, path, after, rules, passed_over)
        root = root_of_glob(fs, path)
        if root is not None:
            files = _glob(fs, root, path[len(root) :], after, FolderLinks(root, rules, passed_over))
            first = list(islice(files, FILES_JUDGED))
            for folder in {root, *(found.rpartition("/")[0] for found, _ in first)}:
                refuse_table_folder(fs, folder, source)
            if first or after is not None:
                return root, _taken_of_glob(chain(first, files), root, path[len(root) :], rules, passed_over)
            if any(name.startswith("matched: ") for name in passed_over.left_out):
                raise NothingFound(
                    f"{without_credentials(source)} matches folders alone: add /** for the files in them"
                )
    except PermissionError as error:
        raise UserError(
            f"not allowed to list {without_credentials(source)}: "
            f"{explanation(error) or f'{error}; check the credentials'}"
        ) from error
    except FileNotFoundError:
        pass
    raise NothingFound(
        f"nothing found at {without_credentials(source)}: no such file or folder, and no match as a glob"
        f"{_meant(fs, path, source)}"
    )


def _meant(fs: fsspec.AbstractFileSystem, path: str, source: str) -> str:
    """Say which name that is there is most like one that is not, or how far its path is there."""
    slashes = re.match(rf"({'|'.join(SCHEMES)}):/(?!/)", source, re.IGNORECASE)
    if slashes:
        return f": did you mean {slashes[1].lower()}://{source[slashes.end() :]}?"
    if not is_local(fs):
        return ""
    above = Path(path)
    while not above.is_dir():
        above = above.parent
    missing = Path(path).relative_to(above).parts[0]
    names = [one.name for one in islice(above.iterdir(), NAMES_COMPARED)]
    alike = difflib.get_close_matches(missing, sorted(names), 1)
    return f": did you mean {above / alike[0]}?" if alike else f": {above} has no {missing}"


def _files_below(
    fs: fsspec.AbstractFileSystem,
    root: str,
    after: str | None,
    rules: ListingRules,
    passed_over: PassedOver,
) -> Iterator[FileInfo]:
    """Yield the files of a folder that count."""
    above = len(root.rstrip("/")) + 1  # characters in front of a path below the root
    names = NameFilter(passed_over.skipped, rules.include_hidden)
    links = FolderLinks(root, rules, passed_over)

    def takes_folder(path: str, is_link: bool) -> bool:
        return names.takes_folder(path[above:]) and links.takes_folder(path, is_link)

    unlisted = _naming_forbidden(fs, root, passed_over)
    for path, info in walk_files(fs, root, after, takes_folder, unlisted):
        if names.takes_file(path[above:]) and _is_file(path, info, passed_over):
            yield path, info


def _naming_forbidden(fs: fsspec.AbstractFileSystem, root: str, passed_over: PassedOver) -> Unlisted:
    """Return what names a folder that may not be listed, such as lost+found; for the root it raises."""

    def unlisted(folder: str, error: OSError) -> None:
        if folder != root:
            if isinstance(error, PermissionError):  # else the folder went away after its parent was listed
                passed_over.leave_out("forbidden", folder)
        elif isinstance(error, PermissionError):
            raise UserError(
                f"not allowed to list {absolute_uri(fs, folder)}: "
                f"{explanation(error) or f'{error}; check the rights'}"
            ) from error
        else:
            raise error

    return unlisted


def _is_file(path: str, info: dict[str, Any], passed_over: PassedOver) -> bool:
    """Return whether an entry is a file; name it if not: reading a pipe would never end."""
    if info["type"] != "other":
        return True
    passed_over.leave_out("special", path)
    return False


def leads_nowhere(path: str, info: dict[str, Any]) -> bool:
    """Return whether an entry of a disk is a link that leads nowhere."""
    return bool(info.get("islink")) and not info["size"] and not os.path.exists(path)


def glob_pattern(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """Return the pattern of a source that is a glob; None for one that names a file or a folder."""
    root = root_of_glob(fs, path)
    if root is None or _info(fs, path):
        return None
    return _escaped(root) + path[len(root) :]


def root_of_glob(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """Return the folder above the first wildcard of a path; None for a path without wildcards.

    On a disk, a folder that is there is no pattern, whatever its name looks like.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if WILDCARDS.search(part) is None:
            continue
        is_there = is_local(fs) and os.path.isdir("/".join(parts[: number + 1]))
        if not is_there:
            return "/".join(parts[:number])
    return None


def _escaped(path: str) -> str:
    """Return the glob that a path alone matches."""
    return WILDCARDS.sub(lambda found: f"[{found[0]}]", path)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return with_retries(lambda: object_info(fs, path))
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_web(path) and not isinstance(error, PermissionError):
            raise UserError(f"cannot read {error}") from error
        raise


def _glob(
    fs: fsspec.AbstractFileSystem, root: str, pattern: str, after: str | None, links: FolderLinks
) -> Iterator[FileInfo]:
    """Yield the files behind `after` that match a pattern below `root`, in the order of their paths.

    fsspec does not look into links, so a disk is walked here.
    """
    try:
        matches = re.compile(glob_translate(_escaped(root) + pattern)).match
    except ValueError:  # `**` beside other characters
        return
    if not is_local(fs):
        yield from _glob_in_store(fs, root, pattern, after, links)
        return
    parts = pattern.split("/")

    def takes_folder(path: str, is_link: bool) -> bool:
        part = _part_for_folder(parts, path[len(root) :])
        if part is None and matches(path):
            _name_matched(path, root, pattern, links)
        return part is not None and links.takes_folder(path, is_link, not WILDCARDS.search(part))

    unlisted = _naming_forbidden(fs, root or "/", links.passed_over)
    for path, info in walk_files(fs, root or "/", after, takes_folder, unlisted):
        if matches(path):
            yield path, info


def _glob_in_store(
    fs: fsspec.AbstractFileSystem, root: str, pattern: str, after: str | None, links: FolderLinks
) -> Iterator[FileInfo]:
    found = fs.glob(_escaped(root) + pattern, detail=True)
    for path, info in sorted(found.items(), key=itemgetter(0)):
        if after is not None and path <= after:
            continue
        if info.get("type") != "directory":
            yield path, info
        elif "**" not in pattern:
            _name_matched(path, root, pattern, links)


def _name_matched(folder: str, root: str, pattern: str, links: FolderLinks) -> None:
    """Name a folder that a glob matches: a shell would give the folder itself, and so its files."""
    below = part_below_pattern(pattern, folder[len(root) :])
    if links.rules.include_hidden or not skipped_folder(below):
        links.passed_over.leave_out("matched", folder)


def _part_for_folder(parts: list[str], folder: str) -> str | None:
    """Return the part of a pattern that stands for a folder; None where no file in the folder can match."""
    names = folder.split("/")
    for part, name in zip(parts, names, strict=False):
        if part == "**":
            return part
        if not re.match(glob_translate(part), name):
            return None
    return parts[len(names) - 1] if len(names) < len(parts) else None


def _taken_of_glob(
    files: Iterator[FileInfo], root: str, pattern: str, rules: ListingRules, passed_over: PassedOver
) -> Iterator[FileInfo]:
    """Yield the files of a glob that count."""
    names = NameFilter(passed_over.skipped, rules.include_hidden)
    for path, info in files:
        below = part_below_pattern(pattern, path[len(root) :])
        if names.takes_file(below) and _is_file(path, info, passed_over):
            yield path, info


def name_in_text(path: str) -> str | None:
    """Return a path that is no UTF-8 with escapes; None for any other.

    On a disk names are bytes, but a listing and a row hold text.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return None
