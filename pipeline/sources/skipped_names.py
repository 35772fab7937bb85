"""Say which names are skipped: what is hidden, and what programs leave beside images.

One rule for members of tars, for files of folders and for objects of buckets. A name is judged by its parts
below the source: what the user names is never skipped. Tables have one rule more, that of pyarrow, Ray and
Spark: a name that begins with `_` holds the table's own records, such as `_delta_log` and `_metadata`.
"""

import re
from collections import Counter
from functools import lru_cache

from wordsworth.pipeline.sources.file_kinds import is_table

FOLDERS_CACHED = 4096  # folders whose verdict is kept
# Names of folders, and the kind that they are counted by. A name that begins with a dot is skipped anyway.
_FOLDERS = {
    "__MACOSX": "macosx",
    "@eaDir": "thumbnails",
    ".thumbnails": "thumbnails",
    ".ipynb_checkpoints": "checkpoints",
    "#recycle": "trash",
    "System Volume Information": "system",
}
_TRASH = re.compile(r"\.Trash.*|\$RECYCLE\.BIN", re.IGNORECASE)
_PAX_HEADER = re.compile(r"PaxHeaders?(\.[0-9]+)?")  # old tars unpack headers here that they do not know
_META = re.compile(r"__[^/]*__")  # webdataset.tariterators.tar_file_iterator, skip_meta


def skip_kind(path: str) -> str | None:
    """Return the kind that a file is skipped by; None for a file that counts.

    Args:
        path: path below the source, or the name of a tar's member

    Returns:
        The kind of the first folder that is skipped ("hidden", "thumbnails", "trash", "checkpoints",
        "macosx", "system", "pax_header", "meta"), or "apple_double" or "hidden" of the file itself.
    """
    folder, _, base = path.rpartition("/")
    skipped = skipped_folder(folder) if folder else None
    return skipped[0] if skipped else _file_kind(base)


def _file_kind(name: str) -> str | None:
    if not name.startswith("."):
        return None
    return "apple_double" if name.startswith("._") else "hidden"


def is_record_of_table(path: str) -> bool:
    """Return whether a table is a record of another table: a part of its path begins with `_`.

    `_year=2024` is no such part: it is a column of a partitioned table.
    """
    if "_" not in path or not is_table(path):
        return False
    return any(part.startswith("_") and "=" not in part for part in path.split("/"))


@lru_cache(maxsize=FOLDERS_CACHED)
def skipped_folder(folder: str) -> tuple[str, str] | None:
    """Return the kind of the first folder of a path that is skipped, and the path up to it; None for none.

    Args:
        folder: path of a folder below the source, without a slash at its end
    """
    parts = folder.split("/")
    for number, part in enumerate(parts):
        kind = _folder_kind(part, is_first=number == 0)
        if kind:
            return kind, "/".join(parts[: number + 1])
    return None


def _folder_kind(name: str, is_first: bool) -> str | None:
    if name in ("", ".", ".."):  # in names of tars
        return None
    if name in _FOLDERS:
        return _FOLDERS[name]
    if _TRASH.fullmatch(name):
        return "trash"
    if name.startswith("."):
        return "hidden"
    if _PAX_HEADER.fullmatch(name):
        return "pax_header"
    return "meta" if is_first and _META.fullmatch(name) else None


class NameFilter:
    """Skip names of one source's listing, and count what was skipped.

    A folder counts once, as `KIND_folder`: on a disk nobody looks into it. A file counts as its kind.

    Args:
        skipped: gets the number of files and folders that were skipped, by kind
        include_hidden: skip nothing
    """

    def __init__(self, skipped: Counter[str], include_hidden: bool = False):
        self.skipped = skipped
        self.include_hidden = include_hidden
        self._folder: str | None = None  # the folder that was skipped last
        self._taken: str | None = None  # the folder that was looked into last
        self._has_records = False  # whether a part of that folder's path begins with `_`

    def takes_folder(self, path: str) -> bool:
        """Return whether to look into a folder, a path below the source; count it if not."""
        if self.include_hidden:
            return True
        skipped = skipped_folder(path)
        if skipped:
            self._count_folder(*skipped)
        return skipped is None

    def takes_file(self, path: str) -> bool:
        """Return whether a file counts; count it, or the folder that is skipped with it, if not."""
        if self.include_hidden:
            return True
        slash = path.rfind("/")
        if slash > 0 and path[:slash] != self._taken:  # many files in a row have one folder
            folder = path[:slash]
            if not self.takes_folder(folder):
                return False
            self._taken = folder
            self._has_records = folder.startswith("_") or "/_" in folder
        first = path[slash + 1 : slash + 2]
        if first == ".":
            self.skipped[_file_kind(path[slash + 1 :]) or ""] += 1
            return False
        if (first == "_" or self._has_records) and is_record_of_table(path):
            self.skipped["underscore"] += 1
            return False
        return True

    def _count_folder(self, kind: str, folder: str) -> None:
        if folder != self._folder:  # a listing is in the order of the paths
            self._folder = folder
            self.skipped[f"{kind}_folder"] += 1


def part_below_pattern(pattern: str, path: str) -> str:
    """Return the parts of a path that the wildcards of a glob stand for.

    The other parts are named by the user, and so is a part that the glob begins with a dot for: `.*`.
    """
    wanted = pattern.split("/")
    parts = path.split("/")
    begin = wanted.index("**") if "**" in wanted else len(wanted)
    end = wanted[::-1].index("**") if "**" in wanted else 0
    named = wanted[:begin] + ["**"] * (len(parts) - begin - end) + wanted[len(wanted) - end :]
    found = []
    for want, part in zip(named, parts, strict=False):
        is_pattern = any(char in want for char in "*?[")
        is_named = not is_pattern or (want.startswith(".") and part.startswith("."))
        if not is_named:
            found.append(part)
    return "/".join(found)
