"""Divide a row with a list of images: each image has its own part of what stands in the same list."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

from wordsworth.pipeline.sources.nested_fields import Field


def flat(cells: list[Any]) -> Iterator[Any]:
    """Yield the entries of a list, and those of lists in it."""
    for cell in cells:
        if isinstance(cell, list):
            yield from flat(cell)
        else:
            yield cell


def values_beside(value: Any, image: Field | None, other: Field | None) -> Iterator[Any]:
    """Yield the value of a field for each image.

    Of a list that holds both fields, an image has the value of its own entry; else it has the whole value.

    Args:
        value: a record, or what stands where the fields have led to
        image: the field of the images; None for the value itself
        other: the other field; None for the value itself
    """
    if isinstance(value, list):
        for entry in value:
            yield from values_beside(entry, image, other)
        return
    if image and other and isinstance(value, dict):
        to_image = image.first_step(value)
        to_other = other.first_step(value)
        if to_image and to_other and to_image[0] == to_other[0]:
            yield from values_beside(value[to_image[0]], to_image[1], to_other[1])
            return
    images = image.of(value) if image else value
    num_images = sum(1 for _ in flat(images)) if isinstance(images, list) else 1
    yield from repeat(other.of(value) if other else value, num_images)
