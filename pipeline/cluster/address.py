"""Find the address of the cluster that a command joins, and refuse what cannot be one."""

import os
import queue
import re
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError, without_secrets

ADDRESS = "RAY_ADDRESS"  # environment variable of Ray's
USES_TLS = "RAY_USE_TLS"  # environment variable of Ray's
LOCAL = "local"  # address of Ray's for a Ray of one's own

REACH_S = 5.0  # seconds for a connection, for the first bytes, and for each answer of the head
# What an HTTP/2 client says first, and an empty frame of settings. A head of Ray's answers with its own.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
SETTINGS_FRAME = 4  # kind of an HTTP/2 frame
HOST_PORT = re.compile(r"(?P<host>[^:/\[\]]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>\d{1,5})")
HEADS_PORT = "the port that `ray start --head` printed, 6379 unless --port said otherwise"

T = TypeVar("T")


def address_of(cluster: ClusterRequest) -> str | None:
    """Return the address of the cluster that a command asks for; None where it starts a local Ray."""
    address = cluster.address or os.environ.get(ADDRESS)
    return None if address in (None, "", LOCAL) else address


def refuse_other_schemes(given: str, origin: str) -> None:
    """Refuse the addresses of Ray Client and of the job server: both can run a job, none can be joined."""
    scheme, separator, rest = given.partition("://")
    if not separator:
        return
    shown = without_secrets(given)
    host = rest.rpartition("@")[2].partition("/")[0].partition(":")[0] or "HOST"
    jobs = shown if scheme in ("http", "https") else f"http://{host}:8265"
    what = "the job server's" if scheme in ("http", "https") else "for Ray Client, which cannot run this"
    if scheme not in ("ray", "http", "https"):
        what = "none of Ray's"
    raise UserError(
        f"{origin} {shown} is {what}: submit a job: wordsworth submit --address {jobs} -- ...; "
        f"on a node of the cluster, give HOST:PORT with {HEADS_PORT}",
        exit_code=2,
    )


def find_address(given: str, origin: str) -> tuple[str, str]:
    """Return host and port, and where they come from if that is a note that may be stale, else "".

    Raises:
        UserError: this is no address, or no Ray is found for "auto".
    """
    if given != "auto":
        if not HOST_PORT.fullmatch(given):
            raise UserError(
                f"{origin} {given} is no HOST:PORT: give that of the cluster's head, with {HEADS_PORT}",
                exit_code=2,
            )
        return given, ""
    named = os.environ.get(ADDRESS, "")
    if named and named != "auto":  # in this order Ray looks, too
        refuse_other_schemes(named, ADDRESS)
        return find_address(named, ADDRESS)
    traces = ray_internals.traces_of_ray()
    if traces is None:
        return given, ""
    if traces.heads and not (len(traces.heads) > 1 and traces.noted):
        return traces.heads[0], ""
    if traces.noted:
        return traces.noted, traces.note
    raise UserError(
        f"{origin} auto: no Ray runs on this machine, and `ray start` left no address in {traces.note}: "
        "start Ray here, or give HOST:PORT of the cluster's head"
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_of_this_machine(address: str) -> bool:
    """Tell whether the host of an address is this machine: nobody else can listen there."""
    try:
        host, port = _split(address)
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.bind((place[0], 0))
    except OSError:
        return False
    return True


def check_head(address: str, stale: str) -> None:
    """Refuse an address where nobody listens, or where what listens is no head of Ray's.

    Args:
        address: host and port.
        stale: path of the note that names the address; "" if none does.
    """
    source = f", which {stale} names" if stale else ""
    try:
        host, port = _split(address)
        connection = in_time(lambda: socket.create_connection((host, port), timeout=REACH_S), REACH_S)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, TimeoutError):
            reason = f"no answer within {REACH_S:.0f} s"
        remedy = f"is Ray's head running, and is this {HEADS_PORT}?"
        if stale:
            remedy = f"that Ray is gone: start Ray, or give HOST:PORT of another, or remove {stale}"
        raise UserError(f"cannot reach the Ray cluster at {address}{source} ({reason}): {remedy}") from error
    with connection:
        if os.environ.get(USES_TLS, "0").lower() not in ("1", "true"):
            _greet(connection, address)


def _greet(connection: socket.socket, address: str) -> None:
    """Refuse what does not speak HTTP/2, as every head does: Ray would wait for it for 40 seconds."""
    connection.settimeout(REACH_S)
    try:
        connection.sendall(PREFACE)
        answer = connection.recv(9)
    except OSError:
        answer = b""
    if len(answer) > 3 and answer[3] == SETTINGS_FRAME:
        return
    if answer.startswith(b"HTTP"):
        what = "is a web server, such as Ray's dashboard or job server"
    else:
        what = "speaks another protocol" if answer else f"says nothing for {REACH_S:.0f} s"
    raise UserError(f"what listens at {address} {what}, and is no head of a Ray cluster: give {HEADS_PORT}")


def in_time(call: Callable[[], T], timeout_s: float) -> T:
    """Return what `call` returns.

    Raises:
        TimeoutError: it takes longer. The name of a host may be looked up for a minute.
    """
    answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def attempt() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # it is raised where the answer is used
            answers.put((None, error))

    threading.Thread(target=attempt, daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # without an error there is an answer
