"""Join a Ray cluster, or say within seconds why that is not possible, and what to do.

Ray itself tries a dead address for minutes and a wrong token for half a minute. So everything is asked for
before Ray is: whether anybody answers at the address, whether that is a head of Ray's, whether it wants a
token, which versions it has, and whether this machine is one of its nodes.
"""

import contextlib
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.cluster.address import (
    ADDRESS,
    address_of,
    check_head,
    find_address,
    is_of_this_machine,
    refuse_other_schemes,
)
from wordsworth.pipeline.cluster.ray_internals import AuthMode, Head
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.tokens import ask, mode_of_environment
from wordsworth.pipeline.cluster.travelling import travelling_settings
from wordsworth.pipeline.errors import UserError

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # holds the environment of a submitted job; the name is Ray's
OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"  # lets a driver change the environment of its job
MATCH_LEVEL = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"  # "minor" lets Ray join another patch level of Python
NODE_S = 5.0  # seconds in which a node that was started a moment ago is known to its head
BEGUN_NODE_S = 180.0  # the same where processes of its cluster run here: on a busy machine Ray takes minutes

_noted: set[str] = set()  # addresses of which this process has told the user


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Hold a cluster that can be joined.

    Attributes:
        address: host and port of its head.
        mode: whether this process shows a token.
        settings: environment variables of this process that travel to the cluster.
    """

    address: str
    mode: AuthMode
    settings: dict[str, str]


def reach(cluster: ClusterRequest, note: Callable[[str], None]) -> Reached | None:
    """Find out whether a cluster can be joined, before anything heavy is imported or loaded.

    Args:
        cluster: what the command asks for.
        note: gets "joining ...", and a warning where the cluster is open to everybody.

    Returns:
        The cluster; None where the command starts a local Ray, or works on one that runs already.

    Raises:
        UserError: it cannot be joined.
    """
    given = address_of(cluster)
    if given is None or _has_ray():
        return None
    origin = "--address" if cluster.address else ADDRESS
    refuse_other_schemes(given, origin)
    address, stale = find_address(given, origin)
    settings = travelling_settings(os.environ)
    is_new = address not in _noted
    _noted.add(address)
    if is_new:
        note(f"joining the Ray cluster at {address}")
    if address == "auto":  # stock Ray looks itself
        return Reached(address=address, mode=mode_of_environment(), settings=settings)
    check_head(address, stale)
    mode, head = ask(address)
    if head:
        _refuse_other_versions(address, head)
        _refuse_other_machine(address, head, mode, note)
        if mode == "disabled" and is_new and not cluster.insecure:
            note(
                f"warning: the Ray cluster at {address} asks for no token: whoever reaches it can run code "
                "on it (--insecure joins without this line)"
            )
    return Reached(address=address, mode=mode, settings=settings)


@contextlib.contextmanager
def joined(cluster: ClusterRequest, note: Callable[[str], None], init: Callable[..., None]) -> Iterator[None]:
    """Join a cluster before a block. Who leaves the block has left the cluster.

    The settings of stores that are no secrets travel to every process of the cluster that works for this
    command.

    Args:
        cluster: what the command asks for.
        note: gets what the user should know.
        init: calls `ray.init` with the options that it gets.

    Raises:
        UserError: it cannot be joined.
    """
    reached = reach(cluster, note)
    assert reached is not None
    options: dict[str, Any] = {"address": reached.address}
    if reached.settings:
        options["runtime_env"] = {"env_vars": reached.settings}
    with ray_internals.auth_mode(reached.mode), _overriding_job(reached.settings):
        try:
            init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot join the Ray cluster at {reached.address}: {reason}") from error
        yield


def _has_ray() -> bool:
    """Tell whether this process has a Ray already. What has not imported Ray has none."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _refuse_other_versions(address: str, head: Head) -> None:
    import ray

    level = 2 if os.environ.get(MATCH_LEVEL) == "minor" else 3
    python = platform.python_version()
    same_python = head.python_version.split(".")[:level] == python.split(".")[:level]
    if not head.ray_version or (head.ray_version == ray.__version__ and same_python):
        return
    host = socket.gethostname()
    raise UserError(
        f"the Ray cluster at {address} was started with Ray {head.ray_version} and Python "
        f"{head.python_version}, and this process on {host} has Ray {ray.__version__} and Python {python}: "
        "Ray joins only what is the same to the last digit: use the cluster's Python and Ray here, or "
        "start every node with these"
    )


def _refuse_other_machine(address: str, head: Head, mode: AuthMode, note: Callable[[str], None]) -> None:
    """Refuse a machine without a node of the cluster: Ray would look for one for a minute.

    A node that was just started may not be known yet, so the head is asked for a few seconds, and for longer
    where processes of the cluster run here: then a node is on its way.
    """
    begun = time.monotonic()
    is_on_its_way = False
    while not ray_internals.nodes_of_this_machine() & head.node_ids:
        waited_s = time.monotonic() - begun
        if waited_s > NODE_S and not is_on_its_way:
            is_on_its_way = ray_internals.begins_here(address, is_of_this_machine(address))
            if not is_on_its_way:
                raise UserError(
                    f"this machine ({socket.gethostname()}) is no node of the Ray cluster at {address}: "
                    f"submit a job (wordsworth submit), or run `ray start --address={address}` here first"
                )
            note(
                "the node of this machine is not known to the cluster yet: "
                f"waits {BEGUN_NODE_S:.0f} s at most"
            )
        if waited_s > BEGUN_NODE_S:
            raise UserError(
                f"Ray runs on this machine ({socket.gethostname()}) and is no node of the Ray cluster at "
                f"{address} after {waited_s:.0f} s: look at raylet.out in the logs of Ray here"
            )
        time.sleep(0.5)  # nothing tells when a node is there
        head = ray_internals.ask_head(address, mode) or head


@contextlib.contextmanager
def _overriding_job(settings: dict[str, str]) -> Iterator[None]:
    """Let the settings of this process win over those of its job: an entrypoint may set others."""
    if not settings or JOB_CONFIG not in os.environ or OVERRIDE in os.environ:
        yield
        return
    job = json.loads(os.environ[JOB_CONFIG]).get("runtime_env") or {}
    if not set(job.get("env_vars", {})) & set(settings):
        yield
        return
    os.environ[OVERRIDE] = "1"
    try:
        yield
    finally:
        del os.environ[OVERRIDE]
