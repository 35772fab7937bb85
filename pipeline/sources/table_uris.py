"""Decide where a name in a table leads: which names may be followed, and to which file or object."""

import os
import posixpath
import re
from typing import NamedTuple

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.samples import StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.filesystem import (
    ALLOW_HTTP,
    LOCAL_SCHEMES,
    StorageOptions,
    check_scheme,
    is_local,
    open_exact,
    open_filesystem,
    scheme_of,
    without_credentials,
)

_PARTS_TO_RESOLVE = re.compile(r"//|/\.\.?(/|$)|/$")  # what normpath changes in an absolute path
THIS_MACHINE = "a table in a store may not name files of this machine"


class Refused(Exception):
    """Report a URI that the table may not name. The message says why."""


class NamedObject(NamedTuple):
    """Say where a name in a table leads.

    Attributes:
        fs: file system of the object
        path: exact path in `fs`
        refusal: why the name is refused if nothing of this name is there: it looks like a URI that no table
            may name
    """

    fs: fsspec.AbstractFileSystem
    path: str
    refusal: str | None = None


class Resolver:
    """Turn the URIs of a table into file systems and paths. Relative URIs are relative to the table's folder.

    The writer of a table in a bucket is unknown: files of this machine that such a table names are refused,
    however their names are spelled.
    """

    def __init__(self, shard: Shard, options: StorageOptions):
        self.options = options
        self.fs, path = open_exact(shard.uri, options)
        self.local = is_local(self.fs)
        self.folder = path.rpartition("/")[0]

    def resolve(self, uri: str) -> NamedObject:
        """Return where a URI leads.

        A name such as `cam1:0001.jpg` or `a::b.jpg` is a path if a file or an object has just this name.

        Raises:
            Refused: the table may not name it.
            StoreFault: the client of the store is not installed or not set up.
        """
        if "\0" in uri:
            raise Refused("it holds a NUL byte")
        scheme = scheme_of(uri)
        if scheme is None and "::" not in uri:
            return self._beside(uri)
        try:
            check_scheme(uri, bool(self.options.get(ALLOW_HTTP)))
        except UserError as error:
            if "://" in uri and not self.local:  # spares a bucket the request for a name that no object has
                raise Refused(str(error)) from error
            return self._beside(uri)._replace(refusal=str(error))
        if "://" not in uri:
            beside = self._beside(uri)
            if scheme not in LOCAL_SCHEMES or (self.local and os.path.lexists(beside.path)):
                return beside
            if not self.local:
                return beside._replace(refusal=THIS_MACHINE)
        return self._open(uri, scheme in LOCAL_SCHEMES)

    def _open(self, uri: str, is_local_uri: bool) -> NamedObject:
        """Return where a URI with an allowed scheme leads."""
        open_uri = open_filesystem if is_local_uri else open_exact
        try:
            fs, path = open_uri(uri, self.options)
        except UserError as error:
            if isinstance(error.__cause__, ImportError):
                raise StoreFault(str(error)) from error
            raise Refused(str(error)) from error
        except Exception as error:  # a client can raise anything about its own settings
            raise StoreFault(
                f"cannot open {without_credentials(uri)}: {type(error).__name__}: {error}"
            ) from error
        if is_local(fs) and not self.local:
            raise Refused(THIS_MACHINE)
        return NamedObject(fs, path)

    def _beside(self, name: str) -> NamedObject:
        """Return where a path leads, absolute or relative to the table's folder."""
        if self.local:
            path = name if name.startswith("/") else f"{self.folder}/{name}"
            if path is not name and _PARTS_TO_RESOLVE.search(path):
                path = posixpath.normpath(path)
            return NamedObject(self.fs, path)
        if name.startswith("/"):
            raise Refused(THIS_MACHINE)
        return NamedObject(self.fs, self._key_beside(name))

    def _key_beside(self, name: str) -> str:
        """Return the path of an object beside the table. Only `.` and `..` have a meaning in its name."""
        parts = self.folder.split("/")
        bucket = parts[0]
        for part in name.split("/"):
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
            if not parts:
                raise Refused("it leads out of the table's bucket")
        if len(parts) == 1 or parts[0] != bucket:
            raise Refused("it leads out of the table's bucket")
        return "/".join(parts)
