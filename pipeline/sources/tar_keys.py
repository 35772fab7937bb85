"""Split the names of tar members into keys and extensions, and say which members are no part of a sample."""

from typing import Final, Literal

from wordsworth.pipeline.sources.skipped_names import skip_kind

KeyRule = Literal["auto", "first-dot", "last-dot"]  # where a key ends: tar_groups.py says more
FIRST_DOT: Final = "first-dot"
LAST_DOT: Final = "last-dot"
AUTO: Final = "auto"
DEFAULT_KEY_RULE: Final = AUTO


def skip_reason(name: str, include_hidden: bool = False) -> str | None:
    """Return why a member is no part of any sample; None if it is part of one.

    Members are skipped by the rule of all sources (skipped_names.py), and if the base name has no dot. As in
    webdataset 1.0.2, that takes away `.hidden.jpg`, and what lies in a first folder `__xyz__`. webdataset
    itself takes `d/.hidden.jpg` for extension `hidden.jpg` of the key `d/`, and reads the folders that the
    rule skips: `__MACOSX/`, `PaxHeader/`, `.thumbnails/` and the others.

    Args:
        name: name of the member
        include_hidden: take every name that has an extension

    Returns:
        "no_extension", a kind of `skip_kind`, or None
    """
    kind = None if include_hidden else skip_kind(name)
    if kind is None and "." not in name.rpartition("/")[2].lstrip("."):
        return "no_extension"
    return kind


def is_skipped(name: str, include_hidden: bool = False) -> bool:
    """Return whether a member is no part of any sample."""
    return skip_reason(name, include_hidden) is not None


def split_key(name: str) -> tuple[str, str]:
    """Return key and extension of a member, as in webdataset 1.0.2.

    The base name is split at its first dot. The key keeps the directories, the extension is in lower case:
    `d.1/a.B.JPG` gives `("d.1/a", "b.jpg")`. Dots in front belong to the key: `.a.jpg` gives `(".a", "jpg")`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem:
        bare, _, extension = base.lstrip(".").partition(".")
        stem = base[: len(base) - len(base.lstrip("."))] + bare
    return folder + slash + stem, extension.lower()


def split_last_dot(name: str) -> tuple[str, str]:
    """Return key and extension of a member by the rule LAST_DOT: `d/a.B.JPG` gives `("d/a.B", "jpg")`."""
    key, _, extension = name.rpartition(".")
    return key, extension.lower()
