"""Describe what a process sees of a place: which store it asks there, how, and what lies there.

Two processes with the same view of a place read and write the same store. A view holds no secret: of
credentials it says their kind.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync

from wordsworth.pipeline.errors import UserError, without_secrets
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    is_local,
    open_exact,
    open_filesystem,
    version_of,
    without_credentials,
)
from wordsworth.pipeline.storage.refusals import explanation

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
LOCAL = "a disk"  # the store of a local path

View = dict[str, str]
# A view has these keys, as far as they mean something in its store:
#   store          the kind of store, or LOCAL
#   endpoint       URL of the server
#   account        of Azure, or the project of Google
#   region
#   credentials    their kind, and where they were found
#   proxy          host and port
#   size, version  of the object
#   error          why the object cannot be seen
SETTINGS = ("store", "endpoint", "account", "region")  # keys that must be the same for all processes
ALL_SETTINGS = (*SETTINGS[1:], "credentials", "proxy")
PROBE = "_probe-"  # beginning of the names of objects that are written to try a place; no reader sees them
DISK_REMEDY = "mount the same folder on every node, or name a store such as s3://"
STORE_REMEDY = (
    "give every node the same settings and credentials, in its own environment or files, or by --env-file"
)
# Kinds of credentials, by botocore's name for where they were found.
AWS_KINDS = {
    "env": "keys in the environment",
    "shared-credentials-file": "keys in ~/.aws/credentials",
    "config-file": "keys in ~/.aws/config",
    "custom-process": "keys of a credential_process",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a role for a web identity",
    "sso": "a login by aws sso",
    "login": "a login by aws login",
    "container-role": "the role of the container",
    "iam-role": "the role of the machine",
}
NO_CREDENTIALS = "no credentials"
OF_OPTIONS = "keys in --storage-options"


def view_of_object(uri: str, options: StorageOptions) -> View:
    """Return the view of an object that a listing found.

    Args:
        uri: of the object, as `absolute_uri` makes it.
        options: storage options of the command.
    """

    def look(fs: fsspec.AbstractFileSystem, path: str) -> View:
        about = fs.info(path)
        return {"size": str(about.get("size", "")), "version": version_of(about)}

    return _view(lambda: open_exact(uri, options), look)


def view_of_record(uri: str, options: StorageOptions, writable: str | None = None) -> View:
    """Return the view of a small object that a command wrote: its bytes count, as a hash.

    Args:
        uri: of the object.
        options: storage options of the command.
        writable: URI of a folder where this process must be able to write; None for no such folder.
    """

    def look(fs: fsspec.AbstractFileSystem, path: str) -> View:
        data = fs.cat_file(path)
        if writable is not None:
            _try_to_write(fs, writable, options)
        return {"size": str(len(data)), "version": hashlib.sha256(data).hexdigest()}

    return _view(lambda: open_filesystem(uri, options), look)


def _view(
    open_place: Callable[[], tuple[fsspec.AbstractFileSystem, str]],
    look: Callable[[fsspec.AbstractFileSystem, str], View],
) -> View:
    try:
        fs, path = open_place()
    except Exception as error:  # a client raises whatever it likes; the view has what it said
        return {"error": why(error)}
    fs.invalidate_cache()
    try:
        seen = look(fs, path)
    except Exception as error:  # likewise
        seen = {"error": why(error)}
    return seen | _settings(fs)


def _try_to_write(fs: fsspec.AbstractFileSystem, folder: str, options: StorageOptions) -> None:
    """Write an empty object in a folder, and remove it. On a disk the right to do so is asked for."""
    _, path = open_filesystem(folder, options)
    if is_local(fs):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "no right to write there", path)
        return
    probe = f"{path.rstrip('/')}/{PROBE}{secrets.token_hex(8)}"
    put_if_absent(fs, probe, b"")
    fs.rm_file(probe)


def difference(place: str, here: View, there: View) -> str | None:
    """Say what a node sees otherwise than this process, and what to do; None where it sees the same.

    Args:
        place: in words.
        here, there: views of it. Where this process sees nothing, there is nothing to compare.
    """
    if "error" in here:
        return None
    remedy = DISK_REMEDY if here.get("store") == LOCAL else STORE_REMEDY
    if "error" in there:
        using = _told(here, there, ALL_SETTINGS) if "store" in there else ""
        return f"cannot use {place}: {there['error']}{using}: {remedy}"
    if _told(here, there, SETTINGS):
        return f"asks another store for {place}{_told(here, there, SETTINGS)}: {remedy}"
    if any(here.get(name) != there.get(name) for name in ("size", "version")):
        return f"sees another file than this command at {place}: {remedy}"
    return None


def _told(here: View, there: View, names: Sequence[str]) -> str:
    """Return the settings that differ, in brackets; "" where none does."""
    told = [
        f"{name} {there.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in names
        if here.get(name) != there.get(name)
    ]
    return f" ({'; '.join(told)})" if told else ""


def why(error: Exception) -> str:
    """Return an exception of a store's client as one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(explanation(error) or said)


def _settings(fs: fsspec.AbstractFileSystem) -> View:
    """Return which store a client asks, and how. The client must have asked it once."""
    if is_local(fs):
        return {"store": LOCAL}
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    view = {"store": protocol, "proxy": _proxy()}
    if hasattr(fs, "call_s3"):
        view |= _of_s3(fs)
    elif hasattr(fs, "service_client"):
        view |= _of_azure(fs)
    elif hasattr(fs, "credentials"):
        view |= _of_google(fs)
    elif protocol == "hf":
        view |= _of_hub(fs)
    return {name: value for name, value in view.items() if value}


def _of_s3(fs: Any) -> View:
    client = fs._s3
    if client is None:  # it could not be made: the view has the error
        return {}
    kind = NO_CREDENTIALS
    if fs.key or fs.secret or fs.client_kwargs.get("aws_access_key_id"):
        kind = OF_OPTIONS
    elif not fs.anon:
        found = sync(fs.loop, fs.session.get_credentials)
        kind = AWS_KINDS.get(found.method, found.method) if found else NO_CREDENTIALS
    return {
        "endpoint": without_credentials(client.meta.endpoint_url),
        "region": client.meta.region_name or "",
        "credentials": kind,
    }


def _of_azure(fs: Any) -> View:
    kind = NO_CREDENTIALS
    for name, text in (
        ("connection_string", "a connection string"),
        ("account_key", "the account's key"),
        ("sas_token", "a SAS token"),
    ):
        if getattr(fs, name, None):
            kind = text
            break
    else:
        if getattr(fs, "credential", None) is not None:
            kind = type(fs.credential).__name__
    return {
        "endpoint": without_credentials(fs.service_client.url).partition("?")[0],
        "account": fs.account_name or "",
        "credentials": kind,
    }


def _of_google(fs: Any) -> View:
    found = getattr(fs.credentials, "credentials", None)
    kind = f"{type(found).__module__}.{type(found).__name__}" if found is not None else NO_CREDENTIALS
    return {
        "endpoint": without_credentials(fs.base),
        "account": fs.project or "",
        "credentials": kind.removeprefix("google."),
    }


def _of_hub(fs: Any) -> View:
    from huggingface_hub import get_token

    has_token = bool(getattr(fs, "token", None) or get_token())
    return {
        "endpoint": without_credentials(str(fs.endpoint)),
        "credentials": "a token" if has_token else NO_CREDENTIALS,
    }


def _proxy() -> str:
    """Return host and port of the proxy that the clients use."""
    for name in PROXIES:
        if os.environ.get(name):
            return urlsplit(os.environ[name]).netloc.rpartition("@")[2]
    return ""
