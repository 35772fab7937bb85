"""Expand what stands for several sources: lists of sources, and brace patterns."""

import contextlib
from collections.abc import Iterable

from braceexpand import braceexpand

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import (
    HTTP,
    QUERIES,
    StorageOptions,
    is_local,
    open_filesystem,
    without_credentials,
)


def expand_sources(sources: Iterable[str], storage_options: StorageOptions | None = None) -> list[str]:
    """Return the sources that lists and brace patterns stand for.

    `@FILE` is a list of sources, one a line; `#` begins a comment. `part-{000..127}.tar` stands for 128
    sources.

    Raises:
        UserError: a list is missing or empty, or braces do not close.
    """
    expanded = []
    for source in sources:
        lines = _read_list(source, storage_options) if source.startswith("@") else [source]
        for line in lines:
            expanded += _expand_braces(line, storage_options)
    return expanded


def _read_list(source: str, storage_options: StorageOptions | None) -> list[str]:
    fs, path = open_filesystem(source[1:], storage_options)
    if not fs.isfile(path):
        raise UserError(
            f"{without_credentials(source)}: no such file; @FILE is a list of sources, one a line"
        )
    lines = [line.strip() for line in fs.cat_file(path).decode("utf-8", "surrogateescape").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{without_credentials(source)} lists no source")
    return found


def _expand_braces(source: str, storage_options: StorageOptions | None) -> list[str]:
    """Return the names that a brace pattern stands for. A local file of just this name is no pattern."""
    if "{" not in source:
        return [source]
    with contextlib.suppress(UserError):  # a name that is refused may stand for names that are not
        fs, path = open_filesystem(source, storage_options)
        if is_local(fs) and fs.exists(path):
            return [source]
    try:
        return list(braceexpand(source, escape=False))
    except ValueError as error:
        raise UserError(
            f"{without_credentials(source)}: its braces do not close; "
            "quote a pattern such as 'part-{000..127}.tar'"
        ) from error


def take_queries(
    sources: Iterable[str], options: StorageOptions | None
) -> tuple[tuple[str, ...], StorageOptions]:
    """Return the sources without the queries of web addresses, and the storage options with them.

    Raises:
        UserError: two sources differ in nothing but their queries.
    """
    names = []
    queries: dict[str, str] = {}
    for source in sources:
        name, mark, query = source.partition("?")
        if not mark or source.partition("://")[0].lower() not in HTTP:
            names.append(source)
            continue
        if queries.setdefault(name, query) != query:
            raise UserError(
                f"{name} is given twice, with two queries: the address without the query must differ",
                exit_code=2,
            )
        names.append(name)
    return tuple(names), {**(options or {}), QUERIES: queries} if queries else dict(options or {})
