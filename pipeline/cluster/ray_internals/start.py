"""Start a local Ray with few processes that listen on loopback alone, and keep its messages off stdout."""

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from wordsworth.pipeline.cluster.ray_internals import small_agent
from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known, replaced

REPEAT_AFTER_S = 30.0  # seconds for which a message of Ray's is not printed again
LOOPBACK = "127.0.0.1"
MESSAGE_LENGTH = 240  # characters of a message of Ray's that are printed


@contextlib.contextmanager
def without_services() -> Iterator[None]:
    """Start a local Ray without three processes, and leave none where the start fails: around `ray.init`.

    Saves 4 CPU-seconds of a start: one process asks for more machines, one brings the workers' logs to a
    driver that does not print them, and one serves the dashboard. Where the packages of the dashboard are
    installed (the extra `cluster`), the node's agent stays as small as without them, and listens nowhere.
    Fails with AttributeError where Ray has renamed what is replaced. Stock Ray starts the three processes,
    its agent serves metrics and logs, and processes of a start that failed live as long as this process.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import node, parameter, ray_constants, services, utils

    heads: list[Any] = []
    few = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    python_of = services._build_python_executable_command_memory_profileable

    def with_small_agent(component: str, *arguments: Any, **options: Any) -> list[str]:
        command = python_of(component, *arguments, **options)
        is_agent = component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT
        return [*command, small_agent.__file__] if is_agent else command

    with (
        replaced(parameter, RayParams=few),
        replaced(node.Node, start_api_server=lambda head, **_: heads.append(head)),
        replaced(utils, get_dashboard_dependency_error=lambda: ImportError("not for a local Ray")),
        replaced(services, _build_python_executable_command_memory_profileable=with_small_agent),
    ):
        try:
            yield
        except BaseException:
            for head in heads:
                head.kill_all_processes(check_alive=False)
            raise


@contextlib.contextmanager
def on_loopback() -> Iterator[dict[str, str]]:
    """Start a local Ray that no other machine can reach: around `ray.init`, which gets the options given.

    Gives sockets that listen on 127.0.0.1 alone. Ray would replace that address by one that others can reach,
    and listen on every interface. The session's folder has one short name, which leaves room for the names
    of sockets, at most 107 bytes. Fails with KeyError where Ray has renamed what is replaced. Stock Ray
    listens on every interface and asks for the token.
    """
    if not ray_is_known():
        yield {}
        return
    from ray._private import parameter, services

    named = functools.partial(parameter.RayParams, session_name="session")
    with (
        replaced(parameter, RayParams=named),
        replaced(services, resolve_ip_for_localhost=lambda host: host),
    ):
        yield {"_node_ip_address": LOOPBACK}


@contextlib.contextmanager
def without_arguments() -> Iterator[None]:
    """Keep the command's arguments out of what Ray tells of a job: around `ray.init`.

    Gives a job table, an API and event files without the keys that a user may have typed. Fails with
    KeyError where Ray has renamed what is replaced. Stock Ray tells the whole command line to everyone who
    may ask the cluster.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import utils

    with replaced(utils, get_entrypoint_name=lambda: "wordsworth"):
        yield


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Print what Ray says of dead nodes and workers in one line on stderr, and not again for half a minute.

    Gives a stdout that holds results alone. Fails with AttributeError where Ray has renamed what is replaced.
    Stock Ray prints every message in full on stdout.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import worker

    with replaced(worker, print_to_stdstream=_print_on_stderr):
        yield


_printed: dict[str, float] = {}  # when a message was printed last, by the first characters of the message


def _print_on_stderr(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    message = " ".join(" ".join(data["lines"]).split())
    if "worker processes have been started" in message:
        return  # a run has more stages than cores on purpose
    now = time.monotonic()
    beginning = message[:40]
    if now - _printed.get(beginning, -math.inf) <= REPEAT_AFTER_S:
        return
    _printed[beginning] = now
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[: MESSAGE_LENGTH - 3]}..."
    moment = "" if sys.stderr.isatty() else time.strftime("%H:%M:%S ")
    print(f"{moment}ray: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_automatic_start() -> Iterator[None]:
    """Keep a thread that still asks Ray something from starting another Ray when this one ends.

    Gives a shutdown that stays one. Fails without a word where Ray has renamed the switch. Stock Ray may
    start a second local Ray for such a thread.
    """
    if not ray_is_known():
        yield
        return
    from ray._private import auto_init_hook

    with replaced(auto_init_hook, enable_auto_connect=False):
        yield


@contextlib.contextmanager
def muted_native_stderr() -> Iterator[None]:
    """Keep Ray's C++ side from announcing on stderr that its log level was set; what goes wrong comes as an
    exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
