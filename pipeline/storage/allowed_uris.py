"""Say which URIs lie under a prefix that --allow-uris names."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.schemes import (
    HTTP,
    LOCAL_SCHEMES,
    SCHEMES,
    is_chain,
    scheme_of,
    without_credentials,
)

if TYPE_CHECKING:
    import yarl

# Schemes that are two names of one store.
_SAME_STORE = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_HUB_KINDS = ("datasets", "spaces", "models", "buckets")
_BY_EXACT_NAME = ("s3", "gs")  # stores in which `..` is a part of a name like any other
HELP = "give an absolute folder, s3://BUCKET[/PREFIX] or https://HOST[/PATH]"


class Place(NamedTuple):
    """Say where an object lies, so that two places can be compared.

    Attributes:
        store: the scheme, one name for each store
        container: the bucket, the repository, or the host with its port
        path: path in it, without a slash in front
    """

    store: str
    container: str
    path: str

    def holds(self, other: "Place") -> bool:
        """Return whether the other place is this one, or lies below it."""
        if self[:2] != other[:2]:
            return False
        if ".." in other.path.split("/"):
            return not self.path and self.store in _BY_EXACT_NAME
        folder = self.path.rstrip("/")
        return not folder or other.path == folder or other.path.startswith(f"{folder}/")

    @property
    def prefix(self) -> str:
        """Return the prefix of all places in the same container, as --allow-uris takes it."""
        return f"{self.store}://{self.container}" + ("/" if self.store in HTTP else "")


def place_of(uri: str) -> Place:
    """Return the place of a URI of a store or a web server.

    Raises:
        ValueError: it is no valid address of a web server.
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if scheme in HTTP:
        from yarl import URL

        return web_place(URL(uri))
    parts = rest.split("/")
    num_parts = num_container_parts(scheme, parts[0])
    container = "/".join(parts[:num_parts])
    if scheme == "hf":
        container = container.partition("@")[0]
    return Place(_SAME_STORE.get(scheme, scheme), container, "/".join(parts[num_parts:]))


def web_place(url: "yarl.URL") -> Place:
    """Return the place of an address of a web server.

    Raises:
        ValueError: it has no host.
    """
    if not url.raw_host or url.port is None:
        raise ValueError("the address has no host")
    host = f"[{url.raw_host}]" if ":" in url.raw_host else url.raw_host.lower()
    port = "" if url.is_default_port() else f":{url.port}"
    return Place(url.scheme, host + port, url.path.removeprefix("/"))


def num_container_parts(scheme: str, first: str) -> int:
    """Return how many parts of a path name what one identity opens: a bucket has one."""
    if scheme == "hf":
        return 3 if first in _HUB_KINDS else 2
    return 2 if first.startswith("arn:") else 1


class AllowedUris:
    """Hold the prefixes of --allow-uris.

    Args:
        prefixes: as `checked_prefixes` returns them

    Attributes:
        folders: folders of this machine, without links in their names
        places: prefixes in stores and on web servers
    """

    def __init__(self, prefixes: Sequence[str]):
        self.folders = [os.path.realpath(prefix) for prefix in prefixes if prefix.startswith("/")]
        self.places = [place_of(prefix) for prefix in prefixes if not prefix.startswith("/")]

    def has_file(self, path: str) -> bool:
        """Return whether a path without links lies in one of the folders."""
        return any(is_below(path, folder) for folder in self.folders)

    def has_object(self, place: Place) -> bool:
        """Return whether an object of a store or a web server lies under one of the prefixes."""
        return any(prefix.holds(place) for prefix in self.places)


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or lies below it. Both are without links and `..`."""
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def checked_prefixes(given: Sequence[str]) -> list[str]:
    """Return the prefixes that an option was given, folders as absolute paths.

    Raises:
        UserError: one of them names no folder, bucket or host.
    """
    return [_checked(prefix) for prefix in given]


def _checked(prefix: str) -> str:
    scheme, separator, rest = prefix.partition("://")
    if scheme in LOCAL_SCHEMES and separator:
        prefix = rest
    elif not separator and scheme_of(prefix) is None and prefix:
        return os.path.abspath(os.path.expanduser(prefix))
    if prefix.startswith("/"):
        return os.path.abspath(prefix)
    try:
        is_known = scheme in SCHEMES + HTTP and bool(separator)
        container = place_of(prefix).container if is_known else ""
    except ValueError:
        container = ""
    if not container or is_chain(prefix) or "?" in prefix:
        raise UserError(f"--allow-uris {without_credentials(prefix)}: {HELP}", exit_code=2)
    return prefix
