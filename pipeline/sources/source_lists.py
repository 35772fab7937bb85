"""Expand what stands for several sources: lists of sources, and brace patterns."""

import codecs
import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence

from braceexpand import braceexpand

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.source_names import SourceNames
from wordsworth.pipeline.storage.filesystem import (
    QUERIES,
    StorageOptions,
    is_local,
    open_filesystem,
)
from wordsworth.pipeline.storage.schemes import HTTP, SCHEMES, scheme_of, without_credentials

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def expand_sources(sources: Iterable[str], storage_options: StorageOptions | None = None) -> SourceNames:
    """Return the sources that lists and brace patterns stand for.

    `@FILE` is a list of sources, one a line; a line that begins with `#` and names no file is a comment.
    `part-{000..127}.tar` stands for 128 sources.

    Raises:
        UserError: a list is missing or empty, or braces do not close.
    """
    expanded = SourceNames()
    for source in sources:
        is_listed = source.startswith("@")
        lines = _read_list(source, storage_options) if is_listed else [source]
        for line in lines:
            for name in _expand_braces(line, storage_options):
                expanded.append(name, is_listed)
    return expanded


def _read_list(source: str, storage_options: StorageOptions | None) -> Iterator[str]:
    """Yield the sources of a list, which is UTF-8, or UTF-16 with a byte order mark."""
    fs, path = open_filesystem(source[1:], storage_options)
    if not fs.isfile(path):
        raise UserError(
            f"{without_credentials(source)}: no such file; @FILE is a list of sources, one a line"
        )
    is_empty = True
    with fs.open(path, "rb") as file:
        encoding = "utf-16" if file.read(2) in UTF16_MARKS else "utf-8-sig"
        file.seek(0)
        for text in io.TextIOWrapper(file, encoding, errors="surrogateescape"):
            line = text.strip()
            if line and (not line.startswith("#") or os.path.lexists(line)):
                is_empty = False
                yield line
    if is_empty:
        raise UserError(f"{without_credentials(source)} lists no source")


def _expand_braces(source: str, storage_options: StorageOptions | None) -> Iterable[str]:
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
    sources: Sequence[str], options: StorageOptions | None
) -> tuple[SourceNames, StorageOptions]:
    """Return the sources without the queries of web addresses, and the storage options with them.

    Raises:
        UserError: two sources differ in nothing but their queries, or an address holds a user or a password.
    """
    given = sources if isinstance(sources, SourceNames) else SourceNames(sources)
    names = SourceNames()
    queries: dict[str, str] = {}
    for number, source in enumerate(given):
        is_web = source.partition("://")[0].lower() in HTTP
        name, mark, query = source.partition("?") if is_web else (source, "", "")
        _check_no_login(name)
        if not mark:
            names.append(source, given.is_listed(number))
            continue
        if queries.setdefault(name, query) != query:
            raise UserError(
                f"{name} is given twice, with two queries: the address without the query must differ",
                exit_code=2,
            )
        names.append(name, given.is_listed(number))
    return names, {**(options or {}), QUERIES: queries} if queries else dict(options or {})


def _check_no_login(name: str) -> None:
    """Refuse an address with a user or a password: it would stand in the plan and in every row.

    Raises:
        UserError: the address holds one.
    """
    if "@" not in name or scheme_of(name) not in SCHEMES + HTTP:
        return
    shown = without_credentials(name)
    if shown != name:
        raise UserError(
            f"{shown}: its address holds a user or a password, which would stand in every row: leave it out. "
            "Keys belong in the store's usual places; what a web server asks for, in --storage-options in a "
            'file of --config: {"client_kwargs": {"headers": {"Authorization": "..."}}}',
            exit_code=2,
        )
