"""Decide where a name in a table leads: which names may be followed, and to which file or object."""

import os
import posixpath
import re
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.samples import StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.storage.allowed_uris import (
    AllowedUris,
    Place,
    is_below,
    num_container_parts,
    place_of,
)
from wordsworth.pipeline.storage.filesystem import (
    ALLOW_HTTP,
    ALLOW_URIS,
    StorageOptions,
    check_scheme,
    is_local,
    open_exact,
    open_filesystem,
)
from wordsworth.pipeline.storage.schemes import HTTP, LOCAL_SCHEMES, is_web, scheme_of, without_credentials

if TYPE_CHECKING:
    from wordsworth.pipeline.storage.web_rows import RowFiles

FOLDERS_HELD = 4096  # folders whose real names are remembered
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

    The writer of a table is unknown. Its rows reach the folder, the bucket or the web server that the table
    lies in, and what --allow-uris names. They never reach anything else with the identity of the user.

    Attributes:
        local: whether the table lies on a disk
    """

    def __init__(self, shard: Shard, options: StorageOptions):
        self.options = options
        self.fs, path = open_exact(shard.uri, options)
        self.local = is_local(self.fs)
        self.folder = path.rpartition("/")[0]
        self.allowed = AllowedUris(options.get(ALLOW_URIS, ()))
        self.own = None if self.local else place_of(shard.uri)._replace(path="")
        self._table = shard.uri
        self._real_folders: dict[str, str] = {}  # folders without links in their names, by their names
        self._root = self._real_folder(self.folder) if self.local else ""

    @cached_property
    def web(self) -> "RowFiles":
        """Return the file system for images on web servers."""
        from wordsworth.pipeline.storage.web_rows import row_files

        is_on_web = self.own is not None and self.own.store in HTTP
        return row_files(self.options, self.own.prefix if self.own and is_on_web else None)

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
        if scheme is not None and is_web(uri):  # lists of the web have `HTTP://` too
            scheme, uri = scheme.lower(), f"{scheme.lower()}{uri[len(scheme) :]}"
        try:
            check_scheme(uri, self._may_ask_web())
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
        if scheme in LOCAL_SCHEMES:
            return self._file(uri)
        return self._on_web(uri) if scheme in HTTP else self._in_store(uri)

    def _may_ask_web(self) -> bool:
        is_named = any(place.store in HTTP for place in self.allowed.places)
        return is_named or bool(self.options.get(ALLOW_HTTP))

    def _file(self, uri: str) -> NamedObject:
        """Return where the URI of a file of this machine leads."""
        if not self.local:
            raise Refused(THIS_MACHINE)
        try:
            fs, path = open_filesystem(uri, self.options)
        except UserError as error:
            raise Refused(str(error)) from error
        return NamedObject(fs, self._reached(path))

    def _on_web(self, uri: str) -> NamedObject:
        """Return where an address of a web server leads. The address is judged again at each redirect."""
        try:
            self.web.check(uri)
        except (UserError, ValueError) as error:
            raise Refused(str(error)) from error
        return NamedObject(self.web, uri)

    def _in_store(self, uri: str) -> NamedObject:
        """Return where the URI of a store leads. No client is made for one that may not be reached."""
        place = place_of(uri)
        if not ((self.own and self.own.holds(place)) or self.allowed.has_object(place)):
            prefix = without_credentials(place.prefix)
            raise Refused(f"it is in {prefix}, and the table is not (--allow-uris {prefix})")
        try:
            return NamedObject(*open_exact(uri, self.options))
        except UserError as error:
            if isinstance(error.__cause__, ImportError):
                raise StoreFault(str(error)) from error
            raise Refused(str(error)) from error
        except Exception as error:  # a client can raise anything about its own settings
            raise StoreFault(
                f"cannot open {without_credentials(uri)}: {type(error).__name__}: {error}"
            ) from error

    def _beside(self, name: str) -> NamedObject:
        """Return where a path leads, absolute or relative to the table's folder."""
        if self.local:
            path = name if name.startswith("/") else f"{self.folder}/{name}"
            if path is not name and _PARTS_TO_RESOLVE.search(path):
                path = posixpath.normpath(path)
            return NamedObject(self.fs, self._reached(path))
        if self.own and self.own.store in HTTP:
            return NamedObject(self.web, self._address_beside(self.own, name))
        if name.startswith("/"):
            raise Refused(THIS_MACHINE)
        return NamedObject(self.fs, self._key_beside(name))

    # ---- on this machine ----------------------------------------------------------------------------------

    def _reached(self, path: str) -> str:
        """Return the path that a path leads to, without links.

        Raises:
            Refused: the table may not name it.
        """
        folder, _, name = path.rpartition("/")
        real = f"{self._real_folder(folder)}/{name}"
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        if is_below(real, self._root) or self.allowed.has_file(real):
            return real
        outside = real.rpartition("/")[0] or "/"
        raise Refused(f"it lies outside of the table's folder (--allow-uris {outside})")

    def _real_folder(self, folder: str) -> str:
        if folder not in self._real_folders:
            if len(self._real_folders) >= FOLDERS_HELD:
                self._real_folders.clear()
            real = os.path.realpath(folder or "/")
            self._real_folders[folder] = "" if real == "/" else real
        return self._real_folders[folder]

    # ---- in a bucket, on a web server ---------------------------------------------------------------------

    def _key_beside(self, name: str) -> str:
        """Return the path of an object beside the table. Only `.` and `..` have a meaning in its name."""
        parts = self.folder.split("/")
        num_parts = num_container_parts(self.own.store if self.own else "", parts[0])
        bucket = parts[:num_parts]
        for part in name.split("/"):
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
            if not parts:
                raise Refused("it leads out of the table's bucket")
        if len(parts) == num_parts or parts[:num_parts] != bucket:
            raise Refused("it leads out of the table's bucket")
        return "/".join(parts)

    def _address_beside(self, own: Place, name: str) -> str:
        """Return the address that a relative one means beside the table, as links of a web page mean it."""
        address = urljoin(self._table, name if name.startswith("/") else f"./{name}")
        try:
            place = place_of(address)
        except ValueError as error:
            raise Refused(str(error)) from error
        if not own.holds(place) or name.startswith("//"):
            raise Refused("it leads to another server than the table's: write the whole address")
        return address
