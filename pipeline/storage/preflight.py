"""Ask every store that a command names for one key, before the command loads anything that takes seconds.

So wrong credentials, a bucket that is not there and an endpoint that nobody answers end a command at once,
and the line names the place. A listing that is denied ends nothing: reading by name may be allowed.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.client_options import options_for, refuse_unknown_options
from wordsworth.pipeline.storage.filesystem import (
    EXTRAS,
    StorageOptions,
    open_filesystem,
)
from wordsworth.pipeline.storage.refusals import (
    BUSY,
    MOST_SAID,
    NO_BUCKET,
    NO_TLS,
    STORES,
    UNREACHABLE,
    Refusal,
    refusal_of,
    refused,
)
from wordsworth.pipeline.storage.store_view import PROXIES
from wordsworth.pipeline.storage.walk import is_listing

PATIENCE_S = 5.0  # for the answer of one store
CONNECT_S = 2.0  # for a connection, where no answer came
_PATTERN = re.compile(r"[*?\[{]")  # where a name ends that a glob or a brace pattern begins with
WRONG_OPTION = (AttributeError, RuntimeError, TypeError)  # what clients raise of options that they cannot use
_OPTIONS = Refusal(
    "the store's client cannot use one of the --storage-options",
    f"check the values and what is inside client_kwargs and config_kwargs ({STORES})",
)
_NO_STORE = Refusal(
    "what answers does not speak S3",
    "check the endpoint; a proxy or a login page may stand before it",
)


def check_stores(
    sources: Iterable[str | None], outputs: Iterable[str | None] = (), options: StorageOptions | None = None
) -> None:
    """Ask the store of each place for one key there; each bucket once.

    Places on this disk, on web servers and on the Hugging Face hub are not asked about.

    Args:
        sources: what is read, as given; None stands for none.
        outputs: folders that are written. A command lists them, so a denied listing is refused here.
        options: storage options of the command.

    Raises:
        UserError: a store refuses every request, does not answer, or its client cannot be made.
    """
    asked = set()
    for places, is_output in ((outputs, True), (sources, False)):
        for place in places:
            uri = (place or "").removeprefix("@")
            scheme, separator, rest = uri.partition("://")
            bucket = rest.partition("/")[0]
            if separator and scheme in EXTRAS and (scheme, bucket) not in asked:
                asked.add((scheme, bucket))
                refuse_unknown_options(scheme, options_for(uri, options or {}))
                _check(uri, is_output, options)


def _check(uri: str, is_output: bool, options: StorageOptions | None) -> None:
    fs = None
    try:
        fs, path = open_filesystem(uri, options)
        if not isinstance(fs, AsyncFileSystem):
            return  # another client than the usual one was registered for the scheme
        bucket, _, prefix = path.partition("/")
        sync(fs.loop, _ask, fs, bucket, _PATTERN.split(prefix)[0], timeout=PATIENCE_S)
    except UserError:
        raise
    except Exception as error:
        refusal = NO_BUCKET if isinstance(error, FileNotFoundError) else refusal_of(error)
        if isinstance(error, FSTimeoutError):
            refusal = _silence(fs)
        if refusal and refusal is not BUSY and (is_output or not refusal.of_object):
            raise refused(uri, error, refusal) from error
        if refusal is None and isinstance(error, WRONG_OPTION) and options_for(uri, options or {}):
            said = replace(_OPTIONS, problem=f"{_OPTIONS.problem} ({str(error)[:MOST_SAID]})")
            raise refused(uri, error, said) from error


async def _ask(fs: Any, bucket: str, prefix: str) -> None:
    """Ask for one key of a bucket that begins with a prefix."""
    if hasattr(fs, "_call_s3"):
        answer = await fs._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if not is_listing(answer):
            raise refused(f"s3://{bucket}", OSError(), _NO_STORE)
    elif hasattr(fs, "service_client"):  # Azure's
        container = fs.service_client.get_container_client(bucket)
        async for _ in container.list_blobs(name_starts_with=prefix, results_per_page=1):
            break
    else:  # Google's
        await fs._call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1)


def _silence(fs: fsspec.AbstractFileSystem | None) -> Refusal | None:
    """Say what is wrong with the connection to a store that has not answered; None where it comes about.

    A store that takes the connection may be slow, and is given more time by who asks next. Behind a proxy the
    store's address need not be known here.
    """
    if any(map(os.environ.get, PROXIES)):
        return None
    address = urlsplit(_endpoint(fs))
    host = address.hostname or ""
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((host, port), CONNECT_S) as connection:
            if address.scheme == "https":
                _greet(connection, host)
    except ssl.SSLError as error:
        return replace(NO_TLS, problem=f"no secure connection to {host}:{port} comes about ({error.reason})")
    except OSError as error:
        return replace(UNREACHABLE, problem=f"no answer from {host}:{port} ({error})")
    return None


def _greet(connection: socket.socket, host: str) -> None:
    """Find out whether the other side speaks TLS; who asks next checks its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.wrap_socket(connection, server_hostname=host).close()


def _endpoint(fs: Any) -> str:
    """Return the URL of the server that a store's client asks."""
    client = getattr(fs, "_s3", None)
    if client is not None:
        return client.meta.endpoint_url
    if hasattr(fs, "service_client"):
        return fs.service_client.url
    return getattr(fs, "base", "")
