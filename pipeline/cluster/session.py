"""Start a local Ray that lives as long as the command, or join a cluster."""

import contextlib
import importlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from wordsworth.pipeline.cluster import joining, ray_internals
from wordsworth.pipeline.cluster.address import address_of
from wordsworth.pipeline.cluster.cores import cores
from wordsworth.pipeline.cluster.nodes import CORES
from wordsworth.pipeline.cluster.ray_internals import AUTH_MODE
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session_folder import RAY_TMPDIR, session_folder
from wordsworth.pipeline.cluster.tokens import TOKEN
from wordsworth.pipeline.cluster.waiting import wait_for_shape
from wordsworth.pipeline.errors import ClusterGone, UserError

MIN_LOGICAL_CPUS = (
    4  # CPUs that a local Ray counts at least: all stages of a plan run side by side, even on one core
)
UNSAFE = "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION"  # environment variable of Ray's
RECEIPTS_THREAD = "receipts"  # name of the thread that draws from Ray Data, see pipeline/cluster/stall.py
SIGNS_THREAD = "signs"  # name of the thread that hears from workers, see pipeline/labeling/run_watch.py
NODES_THREAD = "nodes"  # name of the thread that looks at the nodes, see pipeline/cluster/growth.py

_LOG = logging.getLogger("wordsworth")

_abandoned = False  # see abandoned()
_is_local = False  # see is_local()
_joined = False  # see on_cluster()
_beside: "_Start | None" = None  # see ray_beside()


def abandoned() -> bool:
    """Tell whether a session of this process ended and left Ray behind.

    A session does so where a shutdown would hang: the cluster is gone, or a thread waits for Ray without an
    answer. The program must then end by `os._exit`: at a usual exit Ray waits for a minute and replaces the
    exit code.
    """
    return _abandoned


def is_local() -> bool:
    """Tell whether the running Ray was started by a session of this process, for this machine alone."""
    return _is_local


def on_cluster() -> bool:
    """Tell whether Ray works on a cluster: one that was joined here, or one of several nodes."""
    import ray

    if not ray.is_initialized():
        return False
    return _joined or sum(node["Alive"] for node in ray.nodes()) > 1


@contextlib.contextmanager
def ray_session(
    cluster: ClusterRequest | None = None, note: Callable[[str], None] = _LOG.info
) -> Iterator[None]:
    """Give a block a Ray: one that runs already, a cluster, or a local Ray of the block's own.

    At the end of the block a Ray that was started or joined here is shut down, and everything that was
    changed in Ray is what it was. Where a shutdown would hang, Ray is left behind, and `abandoned()` says so.

    Args:
        cluster: which Ray; None takes RAY_ADDRESS, and without that variable starts a local Ray.
        note: gets what the user should know.

    Raises:
        UserError: Ray can be neither joined nor started.
    """
    if os.environ.get(UNSAFE):
        raise UserError(f"{UNSAFE} is set, which lets a shard run code: unset it")
    import ray

    if _beside:
        _beside.wait()
    if ray.is_initialized():
        yield
        return
    with _new_session(cluster or ClusterRequest(), note):
        yield


@contextlib.contextmanager
def ray_beside(cluster: ClusterRequest, note: Callable[[str], None] = _LOG.info) -> Iterator[None]:
    """Start a local Ray in a thread, while the block loads what else a command needs.

    `ray_session` in the block waits for that Ray, and raises what its start has raised. At the end of the
    block it is shut down. Where a command joins a cluster or a Ray runs already, nothing is started here.
    While Ray starts, what anything writes to descriptor 2 is thrown away, as in `ray_session`.
    """
    global _beside
    runs = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if runs or address_of(cluster) or cluster.wait_for or os.environ.get(UNSAFE):
        yield
        return
    # Two threads that import take turns, and Ray's processes would start late: so Ray is imported alone.
    importlib.import_module("ray")
    with contextlib.ExitStack() as sessions:
        _beside = start = _Start(lambda: sessions.enter_context(_new_session(cluster, note)))
        sessions.callback(start.has_ended.set)
        start.start()
        try:
            yield
        finally:
            start.has_begun.wait()
            _beside = None


class _Start(threading.Thread):
    """Start Ray in a thread of its own, which lives as long as Ray.

    Linux kills Ray's processes at the end of the thread that has started them: so they outlive no command.
    """

    def __init__(self, begin: Callable[[], None]):
        super().__init__(name="ray-start", daemon=True)
        self.begin = begin
        self.error: BaseException | None = None
        self.has_begun = threading.Event()
        self.has_ended = threading.Event()

    def run(self) -> None:
        """Start Ray, keep what the start raises, and wait for the end."""
        try:
            self.begin()
        except BaseException as error:  # raised where the command needs Ray
            self.error = error
        self.has_begun.set()
        self.has_ended.wait()

    def wait(self) -> None:
        """Wait until Ray has started, and raise what the start has raised."""
        self.has_begun.wait()
        if self.error:
            raise self.error


@contextlib.contextmanager
def _new_session(cluster: ClusterRequest, note: Callable[[str], None]) -> Iterator[None]:
    """Start or join a Ray for the block."""
    if cluster.wait_for and not address_of(cluster):
        raise UserError("--wait-for waits for nodes of a cluster: give its --address", exit_code=2)
    with contextlib.ExitStack() as changed:
        changed.enter_context(ray_internals.messages_on_stderr())
        changed.enter_context(ray_internals.without_automatic_start())
        if address_of(cluster):
            changed.enter_context(joining.joined(cluster, note, _init))
            changed.enter_context(_marked_as_joined())
        else:
            changed.enter_context(session_folder())
            changed.enter_context(_own_token())
            _start()
            changed.enter_context(_being_local())
            changed.enter_context(ray_internals.without_cluster_actors())
        cluster_is_gone = False
        try:
            if address_of(cluster):
                wait_for_shape(cluster, note)
            yield
        except ClusterGone:
            cluster_is_gone = True
            raise
        finally:
            _end(cluster_is_gone)


@contextlib.contextmanager
def _being_local() -> Iterator[None]:
    global _is_local
    _is_local = True
    try:
        yield
    finally:
        _is_local = False


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Let a local Ray ask for a token, unless the environment says that it needs none.

    The token lives in this process's environment and in no file, and no longer than the session.
    """
    is_given = TOKEN in os.environ
    if not is_given:
        os.environ[TOKEN] = secrets.token_hex(32)
    is_open = os.environ.get(AUTH_MODE, "").lower() == "disabled"
    try:
        with ray_internals.auth_mode("disabled" if is_open else "token"):
            yield
    finally:
        if not is_given:
            del os.environ[TOKEN]


def _start() -> None:
    """Start a local Ray that listens on loopback alone, and try once more where the machine is too busy."""
    try:
        _init_local()
    except Exception as error:
        if not _may_pass(error):
            raise _not_started(error) from error
        import ray

        ray.shutdown()
        try:
            _init_local()
        except Exception as again:
            raise _not_started(again, " twice") from again
    if not ray_internals.ray_is_known():
        _LOG.warning(
            "this version of Ray was not tried with this program: Ray listens on every interface of this "
            "machine, and asks for a token (docs/security.md)"
        )


def _init_local() -> None:
    size = {"num_cpus": max(MIN_LOGICAL_CPUS, cores()), "resources": {CORES: cores()}}
    with ray_internals.without_services(), ray_internals.on_loopback() as where:
        _init(address="local", include_dashboard=False, **where, **size)


def _may_pass(error: Exception) -> bool:
    """Tell whether another start may succeed: Ray gives its own processes few seconds on a busy machine."""
    return not isinstance(error, OSError | ValueError) or isinstance(error, ConnectionError | TimeoutError)


def _not_started(error: Exception, how_often: str = "") -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    advice = "is this machine very busy, or its memory full?"
    if "AF_UNIX" in reason:
        advice = f"set {RAY_TMPDIR} to a folder with a shorter name"
    return UserError(f"cannot start a local Ray{how_often}: {reason} ({advice})")


def _init(**options: Any) -> None:
    """Call `ray.init` without its output, and keep this process's handler of SIGTERM.

    Ray puts a handler of its own in place, which exits before anyone can say how to resume.
    """
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    importing = threading.Thread(target=ray_internals.import_ray_data)
    importing.start()
    try:
        with ray_internals.muted_native_stderr(), ray_internals.without_arguments():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        importing.join()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _marked_as_joined() -> Iterator[None]:
    global _joined
    _joined = True
    try:
        yield
    finally:
        _joined = False


def _end(cluster_is_gone: bool) -> None:
    """Shut Ray down, or leave Ray behind where that would hang.

    A shutdown would wait for a cluster that is gone. And where a thread asks Ray something after a shutdown,
    Ray ends this process from within, without a word.
    """
    import ray

    global _abandoned
    if cluster_is_gone or _ray_is_asked():
        _abandoned = True
    else:
        ray.shutdown()


def _ray_is_asked() -> bool:
    """Tell whether a thread still waits for an answer of Ray's."""
    names = [thread.name for thread in threading.enumerate()]
    its_threads = (RECEIPTS_THREAD, SIGNS_THREAD, NODES_THREAD)
    return any(name in names for name in its_threads) or ray_internals.executor_is_alive()
