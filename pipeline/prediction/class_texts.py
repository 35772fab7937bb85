"""Read the classes and the prompts of --classes and --prompt: a list, or a file with one a line."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, without_credentials
from wordsworth.pipeline.storage.small_files import read_small_text
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.zero_shot import (
    DEFAULT_PROMPT,
    IMAGENET,
    IMAGENET_SIMPLE,
    ZeroShot,
    published_classes,
    published_prompts,
)

NUM_SHOWN = 3  # names that a message lists, at most
Texts = str | Sequence[str]  # as the option has them, or from Python a list


def read_zero_shot(classes: Texts, prompt: Texts | None, options: StorageOptions | None) -> ZeroShot:
    """Return the classes and the prompts that are asked for.

    Args:
        classes: names with commas between them, a list of names, @FILE with a name on each line, or
            "imagenet": ImageNet's 1000, with the 80 published prompts unless others are given.
        prompt: one text, a list of texts, @FILE with a text on each line, "imagenet" or "imagenet-simple".
        options: of the store that has the files.

    Raises:
        UserError: there is no class, a class comes twice, a prompt has not one {}, a file cannot be read.
    """
    try:
        if classes == IMAGENET:
            return ZeroShot(classes=published_classes(), prompts=_prompts(prompt, IMAGENET, options))
        names = _classes(classes, options)
        return ZeroShot(classes=names, prompts=_prompts(prompt, DEFAULT_PROMPT, options))
    except ModelError as error:
        raise UserError(str(error), exit_code=2) from error


def _classes(given: Texts, options: StorageOptions | None) -> tuple[str, ...]:
    """Return the names of the classes: each as it is written, without the space around it."""
    if not isinstance(given, str):
        names = tuple(name.strip() for name in given)
        called = "classes"
    elif given.startswith("@"):
        names = _lines("--classes", given, options)
        called = f"--classes {without_credentials(given)}"
    else:
        names = tuple(name.strip() for name in given.split(",") if name.strip())
        called = f"--classes {given!r}" if len(given) < 100 else "--classes"
    if not names or not all(names):
        raise UserError(f"{called} names no class, or one without a name", exit_code=2)
    _check_unique(names, called)
    return names


def _check_unique(names: tuple[str, ...], called: str) -> None:
    counts = Counter(unicodedata.normalize("NFC", name) for name in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        shown = ", ".join(map(repr, twice[:NUM_SHOWN])) + (", ..." if len(twice) > NUM_SHOWN else "")
        comma = (
            ""
            if called.startswith("--classes @")
            else " (a name with a comma in it: --classes @FILE, one a line)"
        )
        raise UserError(
            f"{called} names {shown} more than once: each class is named once{comma}", exit_code=2
        )


def _prompts(given: Texts | None, default: str, options: StorageOptions | None) -> tuple[str, ...]:
    if given is None:
        given = default
    if not isinstance(given, str):
        return tuple(given)
    if given in (IMAGENET, IMAGENET_SIMPLE):
        return published_prompts(given)
    if given.startswith("@"):
        return _lines("--prompt", given, options)
    return (given,)


def _lines(option: str, given: str, options: StorageOptions | None) -> tuple[str, ...]:
    """Return the lines of a file without the space around them. Empty lines are left out."""
    called = f"{option} {without_credentials(given)}"
    fs, path = open_filesystem(given[1:], options)
    if not fs.isfile(path):
        raise UserError(f"{called}: no such file", exit_code=2)
    text = read_small_text(fs, path, called)
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{called} is empty: it has one text a line", exit_code=2)
    comments = [line for line in lines if line.startswith("#")]
    if comments:
        raise UserError(
            f"{called}: {comments[0]!r} begins with #: such files have no comments, and a class or prompt "
            "that is meant to begin so goes into the option itself",
            exit_code=2,
        )
    return lines
