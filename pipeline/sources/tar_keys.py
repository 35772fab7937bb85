"""Split the names of tar members into keys and extensions, and say which members are no part of a sample."""

import re

_META_NAME = re.compile(r"__[^/]*__(/|\Z)")  # webdataset.tariterators.tar_file_iterator, skip_meta
_JUNK_FOLDER = re.compile(r"(^|/)(__MACOSX|PaxHeaders?(\.[0-9]+)?)/")


def skip_reason(name: str) -> str | None:
    """Return why a member is no part of any sample; None if it is part of one.

    As in webdataset 1.0.2, a name is skipped whose first component is `__xyz__`, or whose base name has no
    dot or begins with a dot. In webdataset, `d/.hidden.jpg` slips through as extension `hidden.jpg` of the
    key `d/`; here it is skipped like `.hidden.jpg`, and so is AppleDouble's `d/._a.jpg`. Skipped here and
    not in webdataset: members in a `__MACOSX/` folder, or in a `PaxHeader/` folder, where old tars unpack
    headers that they do not know.

    Returns:
        "apple_double", "hidden", "no_extension", "meta", "macosx", "pax_header" or None
    """
    base = name.rpartition("/")[2]
    if base.startswith("._"):
        return "apple_double"
    if base.startswith("."):
        return "hidden"
    if "." not in base:
        return "no_extension"
    if _META_NAME.match(name):
        return "meta"
    junk = _JUNK_FOLDER.search(name)
    if junk is None:
        return None
    return "macosx" if junk[2] == "__MACOSX" else "pax_header"


def is_skipped(name: str) -> bool:
    """Return whether a member is no part of any sample."""
    return skip_reason(name) is not None


def split_key(name: str) -> tuple[str, str]:
    """Return key and extension of a member, as in webdataset 1.0.2.

    The base name is split at its first dot. The key keeps the directories, the extension is in lower case:
    `d.1/a.B.JPG` gives `("d.1/a", "b.jpg")`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()
