"""Make names that a store or a disk allows and a program may trip over."""

import random
import sys
import unicodedata
from collections import defaultdict
from functools import cache

# Words that mean something to a shell, a URI, a glob, a table or a system.
WORDS = (
    *(":", "::", "a:b", "C:", "s3:", "pipe:", "file:", "data:", "zip:", "*", "**", "?", "[0-9]"),
    *("{a,b}", "{1..3}", "%2F", "%00", "%", "+", "&", "#", "?versionId=x", "@", "~", "$HOME", "`id`"),
    *("$(id)", ";", "|", "!", "\\", " ", "  ", "'", '"', "<b>", "=", "a=b", ",", "-", "--help", "_x"),
    *("CON", "NUL", "nan", "null", "None", "0", "caf\u00e9", "cafe\u0301", "\ufeff", "\u202e", "\u00df"),
    *("SS", "\u0130", "i", "\U0001f600", "\u2028", "\r", "\n"),
)
ENDINGS = (".jpg", ".JPG", ".png", ".jpeg")


@cache
def characters() -> dict[str, str]:
    """Return the characters of each Unicode class; halves of surrogate pairs are none."""
    found: dict[str, list[str]] = defaultdict(list)
    for number in range(1, sys.maxunicode + 1):
        found[unicodedata.category(chr(number))].append(chr(number))
    del found["Cs"]
    return {name: "".join(members) for name, members in found.items()}


def make_names(
    count: int, seed: int, *, part_bytes: int, name_bytes: int, without: str = "", separators=("/",)
) -> list[str]:
    """Return `count` different names of images of which none is hidden.

    No name is a folder of another.

    Args:
        count: names.
        seed: of the random numbers.
        part_bytes: bytes that a part between two slashes has at most.
        name_bytes: bytes that a name has at most.
        without: characters that the store forbids.
        separators: what may stand between two parts.
    """
    rng = random.Random(seed)
    forbidden = str.maketrans("", "", f"/\0{without}")
    names: dict[str, None] = {}
    while len(names) < count:
        folders = [_part(rng, forbidden, part_bytes) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        base = _cut(_part(rng, forbidden, part_bytes), part_bytes - 5) + rng.choice(ENDINGS)
        name = "".join(f"{folder}{rng.choice(separators)}" for folder in folders) + base
        is_short = len(name.encode()) <= name_bytes
        if is_short and not any(part.startswith((".", "__")) for part in name.split("/")):
            names[name] = None
    return list(names)


def longest(name_bytes: int, part_bytes: int) -> str:
    """Return a name of just so many bytes, in parts of at most `part_bytes`."""
    name = ""
    while len(name) + part_bytes + 6 < name_bytes:
        name += "d" * part_bytes + "/"
    return name + "x" * (name_bytes - len(name) - 4) + ".jpg"


def _part(rng: random.Random, forbidden: dict, most_bytes: int) -> str:
    """Return a part of a name: words, letters of all classes, sometimes as long as it may be."""
    classes = characters()
    long = rng.random() < 0.02
    made = ""
    for _ in range(200 if long else rng.randint(1, 5)):
        if rng.random() < 0.4:
            made += rng.choice(WORDS)
        else:
            made += rng.choice(classes[rng.choice(sorted(classes))])
    made = _cut(made.translate(forbidden), most_bytes)
    return made or "x"


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")
