"""Judge by the second writing of the rule which names are skipped, for verify."""

import re
from fnmatch import fnmatchcase

OTHER_SYSTEMS = ("@eaDir", "#recycle", "System Volume Information", "__MACOSX")
TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_ENDINGS = (".parquet", *(text + packing for text in TEXT_ENDINGS for packing in ("", ".gz", ".zst")))


class SkippedNames:
    """Judge the objects of a run's sources by the parts of their names that the user did not write.

    Args:
        sources: the sources of the run, without credentials; of a long list only its length and hash, by
            which no object is judged.
        include_hidden: whether the run takes every name.
    """

    def __init__(self, sources: list[str], include_hidden: bool):
        self.sources = [source for source in sources if source.startswith("/") or "://" in source]
        self.include_hidden = include_hidden

    def skips(self, uri: str) -> bool:
        """Return whether every source that an object lies below skips its name."""
        if self.include_hidden:
            return False
        folders = uri.split("/")
        base = folders.pop()
        if not (_is_skipped_file(base, folders) or any(map(_may_be_skipped, folders))):
            return False  # most names are out of question, whatever the sources are
        held = [_parts_below(source, uri) for source in self.sources]
        verdicts = [_is_skipped(parts) for parts in held if parts is not None]
        return bool(verdicts) and all(verdicts)


def _parts_below(source: str, uri: str) -> list[str] | None:
    """Return the parts of a URI that a source does not name; None for a URI that the source does not hold."""
    if uri == source:
        return []
    if uri.startswith(source.rstrip("/") + "/"):
        return uri[len(source.rstrip("/")) + 1 :].split("/")
    named = re.split(r"[*?\[]", source)[0].rpartition("/")[0]
    if named == source or not uri.startswith(f"{named}/"):
        return None
    written = source[len(named) + 1 :].split("/")
    parts = uri[len(named) + 1 :].split("/")
    return [part for part in parts if not any(_writes(pattern, part) for pattern in written)]


def _writes(pattern: str, part: str) -> bool:
    """Return whether a part of a glob writes a name out, or at least the dot that it begins with."""
    return pattern == part or (pattern[:1] == part[:1] == "." and fnmatchcase(part, pattern))


def is_skipped_member(name: str) -> bool:
    """Return whether a member of a tar is skipped for its name."""
    *folders, base = name.split("/")
    if base.startswith(".") or any(map(is_skipped_folder, folders)):
        return True
    return bool(folders) and _is_meta(folders[0])


def _is_skipped(parts: list[str]) -> bool:
    """Return whether a name is skipped, by its parts below a source."""
    if not parts:
        return False
    *folders, base = parts
    if _is_skipped_file(base, folders) or any(map(is_skipped_folder, folders)):
        return True
    return bool(folders) and _is_meta(folders[0])


def _is_skipped_file(base: str, folders: list[str]) -> bool:
    if base.startswith("."):
        return True
    if not base.lower().endswith(TABLE_ENDINGS):
        return False
    return any(part[:1] == "_" and "=" not in part for part in (*folders, base))


def _may_be_skipped(folder: str) -> bool:
    return is_skipped_folder(folder) or _is_meta(folder)


def _is_meta(folder: str) -> bool:
    return len(folder) > 3 and folder.startswith("__") and folder.endswith("__")


def is_skipped_folder(name: str) -> bool:
    """Return whether everything in a folder of this name is skipped."""
    if name.startswith("."):
        return name not in (".", "..")
    stem, dot, number = name.partition(".")
    is_pax = stem in ("PaxHeader", "PaxHeaders") and (not dot or (number.isascii() and number.isdecimal()))
    return name in OTHER_SYSTEMS or name.upper() == "$RECYCLE.BIN" or is_pax
