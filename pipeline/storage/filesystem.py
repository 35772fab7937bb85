"""Open file systems and object stores by URI, and refuse every scheme that is not on a list."""

import glob
import logging
import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage import google_credentials
from wordsworth.pipeline.storage.client_options import options_for
from wordsworth.pipeline.storage.schemes import (
    HTTP,
    SCHEMES,
    is_chain,
    is_web,
    scheme_of,
    without_credentials,
)

StorageOptions = dict[str, Any]  # keyword arguments of an fsspec file system, as --storage-options gives them

ALLOW_HTTP = "wordsworth_allow_http"  # key of --allow-http in the storage options, which every process gets
ALLOW_URIS = "wordsworth_allow_uris"  # key of the prefixes of --allow-uris in the storage options
QUERIES = "wordsworth_queries"  # key of the queries of signed sources in the storage options, by address
# The extra of this package that installs a scheme's client.
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
# Settings of Amazon's client; each has an environment variable AWS_<NAME>.
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
# Fields that a store changes whenever an object is overwritten, the best first.
VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
)
WILDCARDS = re.compile(r"[*?\[]")
# Loggers of clients whose warnings and tracebacks Python writes to stderr where no logging is set up. What
# they say is in the exceptions too.
for _client in ("adlfs", "azure", "gcsfs", "google", "s3fs"):
    logging.getLogger(_client).addHandler(logging.NullHandler())


def check_scheme(uri: str, allow_http: bool = False) -> None:
    """Refuse a URI whose scheme is not allowed, before any I/O.

    fsspec would run a shell for `pipe:`, and `::` chains file systems. Behind an allowed scheme `::` is a
    part of the name, unless another scheme follows it.

    Raises:
        UserError: the scheme is not allowed.
    """
    scheme = scheme_of(uri)
    allowed = SCHEMES + HTTP if allow_http else SCHEMES
    if not is_chain(uri) and (scheme is None or scheme in allowed):
        return
    hint = " (--allow-http reads from web servers)" if scheme in HTTP else ""
    if scheme and scheme.lower() in allowed:
        hint = f": did you mean {scheme.lower()}?"
    raise UserError(
        f"cannot read {without_credentials(uri)}: the scheme is not one of {', '.join(allowed)}{hint}",
        exit_code=2,
    )


def open_filesystem(uri: str, options: StorageOptions | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI, and the path in that file system. A local path comes back absolute.

    A local file or folder that is there is taken for one, whatever its name looks like.

    Raises:
        UserError: the scheme is not allowed, or its client is not installed.
    """
    local = _odd_local_path(uri)
    if local is not None:
        return fsspec.filesystem("file"), local
    if uri.startswith("/") and "::" not in uri and not options:  # what fsspec finds out at ten times the cost
        return fsspec.filesystem("file"), uri.rstrip("/") or "/"
    options = dict(options_for(uri, options or {}))
    queries = options.pop(QUERIES, {})
    allowed = options.pop(ALLOW_URIS, ())
    check_scheme(uri, options.pop(ALLOW_HTTP, False) or any(map(is_web, allowed)))
    if uri.startswith(("s3://", "s3a://")):
        options = _with_checksums(options)
    if uri.startswith(("gs://", "gcs://")):
        google_credentials.prepare(options)
    unchained = uri.partition("::")[0]  # fsspec takes what follows for another file system
    try:
        if scheme_of(uri) in HTTP:
            from wordsworth.pipeline.storage.web import WebFiles

            return WebFiles(queries=queries, allowed=tuple(allowed), **options), uri
        fs, path = fsspec.core.url_to_fs(unchained, **options)
        if type(fs).__module__.startswith("s3fs."):
            from wordsworth.pipeline.storage.s3_files import S3Files

            is_own = bool(options.get("skip_instance_cache"))  # fsspec takes it out of what it keeps
            fs = S3Files(*fs.storage_args, **fs.storage_options, skip_instance_cache=is_own)
    except ImportError as error:
        extra = EXTRAS.get(uri.split(":", 1)[0], "")
        raise UserError(
            f"cannot read {without_credentials(uri)}: {error}; try: pip install 'wordsworth[{extra}]'"
        ) from error
    return fs, path if unchained == uri else fs._strip_protocol(uri)


def _odd_local_path(uri: str) -> str | None:
    """Return the path of a local file, folder or glob whose name looks like a URI or a home folder.

    None for a name that looks like neither, and where nothing is there.
    """
    scheme = scheme_of(uri)
    if scheme in SCHEMES + HTTP and uri.startswith(f"{scheme}://"):
        return None
    if not (scheme or "::" in uri or uri.startswith("~")):
        return None
    wildcard = WILDCARDS.search(uri)
    folder = uri[: wildcard.start()].rpartition("/")[0] if wildcard else ""
    is_there = os.path.lexists(uri) or (folder and os.path.isdir(folder))
    if not is_there and not (wildcard and any(glob.iglob(uri))):
        return None
    return uri.rstrip("/") if uri.startswith("/") else f"{os.getcwd()}/{uri}".rstrip("/")


def open_exact(uri: str, options: StorageOptions | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI that `absolute_uri` made, and the exact path in that file system.

    Such a URI is the name of a listed object. Nothing in it has a meaning but its scheme: neither `::` nor
    `?versionId=` nor a slash at the end.

    Raises:
        UserError: the scheme is not allowed, or its client is not installed.
    """
    scheme, separator, rest = uri.partition("://")
    if uri.startswith("/") or not separator:
        return fsspec.filesystem("file"), uri
    fs, _ = open_filesystem(f"{scheme}://{rest.partition('/')[0]}", options)
    if hasattr(fs, "call_s3"):
        return fs, rest
    return fs, fs._strip_protocol(uri)


def join(prefix: str, key: str) -> str:
    """Return the path or the URI of the object `key` under a prefix. No byte of the key changes."""
    return f"{prefix}{key}" if prefix == "/" else f"{prefix}/{key}"


def key_under(prefix: str, path: str) -> str:
    """Return the key of an object under a prefix: the second argument of the `join` that gives `path`."""
    return path[len(join(prefix, "")) :]


def _with_checksums(options: StorageOptions) -> StorageOptions:
    """Return the options of an S3 file system, without optional checksums unless the store is Amazon's.

    Some other stores save the framing of a checksum with the object, or answer a range with the checksum of
    the whole object.
    """
    endpoint = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    if not (endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        return options
    checksums = {name: "when_required" for name in CHECKSUMS if f"AWS_{name.upper()}" not in os.environ}
    return {**options, "config_kwargs": checksums | options.get("config_kwargs", {})}


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether the files lie on this machine or on a mounted disk."""
    return isinstance(fs, LocalFileSystem)


def absolute_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Return a path as plans and rows hold it: with its scheme, or as an absolute path if it is local."""
    return path if is_local(fs) else fs.unstrip_protocol(path)


def version_of(info: dict[str, Any]) -> str:
    """Return what changes when an object is overwritten: its etag, or else its time of modification.

    Args:
        info: what fsspec tells about the object.
    """
    for name in VERSION_FIELDS:
        if info.get(name):
            return str(info[name]).strip('"')
    return ""
