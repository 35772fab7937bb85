"""Make samples of a tar's members again for verify, without code of the reader: the rules for keys.

docs/sources.md has a table of what each rule makes of the same names.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Self

# Images with dots, beside the first, of a group that is not long yet.
MOST_IMAGES = 1024
MOST_BYTES = 64 << 20  # bytes of these images


class Sample(NamedTuple):
    """Hold what a row and a sample of the source have in common.

    Attributes:
        key: key of the sample; None for the mark that a shard is cut.
        offset: first byte of the encoded image in its shard, or None.
        size: bytes of the encoded image, or None.
        error: error code of a row; of a sample only a code in SOURCE_ERRORS.
    """

    key: str | None
    offset: int | None
    size: int | None
    error: str | None


class Part(NamedTuple):
    """Hold a member that is part of a sample.

    Attributes:
        first_key: name up to the first dot of the base name.
        field: what stands behind that dot, in lower case.
        last_key: name up to the last dot.
        ending: what stands behind that dot, in lower case.
        offset: first byte of the data.
        size: bytes of the data.
    """

    first_key: str
    field: str
    last_key: str
    ending: str
    offset: int
    size: int

    @classmethod
    def of(cls, name: str, offset: int, size: int) -> Self:
        """Return the part of this name."""
        base = name.rfind("/") + 1
        bare = len(name) - len(name[base:].lstrip("."))  # dots in front belong to the key
        first = name.index(".", bare)
        last = name.rindex(".")
        return cls(
            name[:first], name[first + 1 :].lower(), name[:last], name[last + 1 :].lower(), offset, size
        )


def samples_of(parts: Iterable[Part], image_keys: list[str], key_rule: str) -> Iterator[Sample]:
    """Yield the samples of a tar, by one of the rules "first-dot", "last-dot" and "auto"."""
    if key_rule == "last-dot":
        for run in _runs(parts, lambda part: part.last_key, lambda part: part.ending):
            yield _best(run[0].last_key, {part.ending: part for part in run}, image_keys)
    elif key_rule == "first-dot":
        for run in _runs(parts, lambda part: part.first_key, lambda part: part.field):
            yield _best(run[0].first_key, {part.field: part for part in run}, image_keys)
    else:
        for _, members in groupby(parts, lambda part: part.first_key):
            yield from _of_groups(members, image_keys)


def _runs(
    parts: Iterable[Part], key: Callable[[Part], str], field: Callable[[Part], str]
) -> Iterator[list[Part]]:
    """Yield the parts that follow each other under one key. A field that comes again begins the next run."""
    for _, members in groupby(parts, key):
        run: list[Part] = []
        fields: set[str] = set()
        for part in members:
            if field(part) in fields:
                yield run
                run = []
                fields = set()
            run.append(part)
            fields.add(field(part))
        yield run


def _best(key: str, fields: dict[str, Part], image_keys: list[str]) -> Sample:
    """Return a sample.

    Its image is the first of the image keys, or else the first field that ends in one, as `v1.2.jpg` does.
    """
    exact = [name for name in image_keys if name in fields]
    ending = [name for name in fields if name.split(".")[-1] in image_keys]
    names = exact or ending
    if not names:
        return Sample(key, None, None, "missing_image")
    image = fields[names[0]]
    return Sample(key, image.offset, image.size, None)


# ---- auto --------------------------------------------------------------------------------------------------


def _of_groups(members: Iterable[Part], image_keys: list[str]) -> Iterator[Sample]:
    """Yield the samples of the parts that follow each other under one first key."""
    members = iter(members)
    group: dict[str, Part] = {}
    more: list[int] = []  # sizes of the images whose last key is not that of the first image
    first: Part | None = None
    for part in members:
        if part.field in group:
            yield from _of_group(group, image_keys)
            group, more, first = {}, [], None
        group[part.field] = part
        if part.field == part.ending or part.ending not in image_keys:
            continue
        first = first or part
        if part.last_key != first.last_key and group.keys().isdisjoint(image_keys):
            more.append(part.size)
            if len(more) > MOST_IMAGES or sum(more) > MOST_BYTES:
                yield from _of_long_group([*group.values(), *members], image_keys)
                return
    yield from _of_group(group, image_keys)


def _of_group(group: dict[str, Part], image_keys: list[str]) -> Iterator[Sample]:
    """Yield the samples of a whole group: several only where dots alone tell its images apart."""
    images = [part for part in group.values() if part.ending in image_keys]
    keys = list(dict.fromkeys(image.last_key for image in images))
    if len(keys) < 2 or not group.keys().isdisjoint(image_keys):
        yield _best(next(iter(group.values())).first_key, group, image_keys)
        return
    for key in keys:
        yield _best(key, {image.ending: image for image in images if image.last_key == key}, image_keys)


def _of_long_group(parts: list[Part], image_keys: list[str]) -> Iterator[Sample]:
    """Yield the samples of a long group: the parts in a row with one last key, if there is an image."""
    for run in _runs(parts, lambda part: part.last_key, lambda part: part.ending):
        fields = {part.ending: part for part in run}
        if not fields.keys().isdisjoint(image_keys):
            yield _best(run[0].last_key, fields, image_keys)
