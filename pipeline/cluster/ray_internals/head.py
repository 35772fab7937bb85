"""Ask a cluster's head what it wants, before Ray joins the cluster, and find the Rays of this machine."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known
from wordsworth.pipeline.cluster.ray_internals.start import muted_native_stderr

AUTH_MODE = "RAY_AUTH_MODE"  # environment variable of Ray's
ANSWER_S = 5.0  # seconds for one answer of a head
# Loggers of Ray's job client, which tell of each upload and connection.
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

AuthMode = Literal["token", "disabled"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Hold what a cluster's head says of itself.

    Attributes:
        ray_version: of the head; "" where it says nothing.
        python_version: of the head, with its patch level; "" where it says nothing.
        node_ids: Ray's names of the living nodes, by hexadecimal digits.
    """

    ray_version: str
    python_version: str
    node_ids: frozenset[str]


def ask_head(address: str, mode: AuthMode) -> Head | None:
    """Return what the head at an address says of itself; None from stock Ray, which has no such question.

    Saves the half of a minute for which Ray tries a wrong token, and the minute for which Ray waits for a
    node on a machine that has none. Fails with ImportError where Ray has renamed what is asked.

    Args:
        address: host and port.
        mode: "token" shows this process's token; "disabled" shows none.

    Raises:
        ray.exceptions.AuthenticationError: the head asks for a token, or for another one.
        ray.exceptions.RpcError: what answers is no head.
    """
    if not ray_is_known():
        return None
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

    with muted_native_stderr(), auth_mode(mode):
        head = GcsClient(address=address)
        told = head.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=ANSWER_S)
        nodes = head.get_all_node_info(timeout=ANSWER_S).values()
    about = json.loads(told or "{}")
    alive = {node.node_id.hex() for node in nodes if node.state == 0}
    return Head(
        ray_version=about.get("ray_version", ""),
        python_version=about.get("python_version", ""),
        node_ids=frozenset(alive),
    )


@contextlib.contextmanager
def auth_mode(mode: AuthMode) -> Iterator[None]:
    """Show a token in a block, or none. Ray reads the variable when it is imported, and here once more.

    Gives one process a local Ray and clusters of both kinds, one after another. Fails with ImportError where
    Ray has renamed what is called. Stock Ray has the mode that the variable had when Ray was imported.
    """
    before = os.environ.get(AUTH_MODE)
    os.environ[AUTH_MODE] = mode
    _read_auth_mode()
    try:
        yield
    finally:
        if before is None:
            del os.environ[AUTH_MODE]
        else:
            os.environ[AUTH_MODE] = before
        _read_auth_mode()


def _read_auth_mode() -> None:
    """Let Ray read the variable and the token again. A Ray that is not imported yet will."""
    if "ray" not in sys.modules or not ray_is_known():
        return
    from ray._raylet import (  # type: ignore[attr-defined]  # they are compiled
        AuthenticationTokenLoader,
        Config,
    )

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Hold what this machine shows of Rays.

    Attributes:
        heads: addresses of the heads that run here or that a node here belongs to.
        noted: address in the note that the last `ray start` left; None for no note.
        note: path of that note, whether it is there or not.
    """

    heads: list[str] = field(default_factory=list)
    noted: str | None = None
    note: str = ""


def traces_of_ray() -> Traces | None:
    """Return what this machine shows of Rays; None from stock Ray, which looks itself for "auto".

    Gives a line that names the note of a Ray that is gone. Fails with AttributeError where Ray has renamed
    what is called.
    """
    if not ray_is_known():
        return None
    from ray._common import utils
    from ray._private import services

    services.find_gcs_addresses.cache_clear()
    return Traces(
        heads=sorted(services.find_gcs_addresses()),
        noted=services.find_bootstrap_address(None),
        note=utils.get_ray_address_file(None),
    )


def nodes_of_this_machine() -> set[str]:
    """Return Ray's names of the nodes that run on this machine, of any cluster; none from stock Ray.

    Fails with AttributeError where Ray has renamed what is called.
    """
    if not ray_is_known():
        return set()
    from ray._private import services

    return set(services.find_node_ids())


def quiet_job_client() -> None:
    """Keep Ray's job client from telling of each upload and connection. Under other names it would tell."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def begins_here(address: str, is_local: bool) -> bool:
    """Tell whether this machine runs processes of a cluster, of which a node may come; never of stock Ray.

    A head answers before it has started its own node, on a busy machine many seconds before. Fails with
    AttributeError where Ray has renamed what is called.

    Args:
        address: host and port of the cluster's head.
        is_local: whether the host is this machine.
    """
    if not ray_is_known():
        return False
    from ray._private import services

    signs = {f"--gcs-address={address}"}
    if is_local:
        signs.add(f"--gcs_server_port={address.rpartition(':')[2]}")
    processes = services.psutil.process_iter(["cmdline"])
    return any(signs & set(process.info["cmdline"] or ()) for process in processes)
