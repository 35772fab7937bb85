"""Start a local Ray that lives as long as the command, or join a cluster."""

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from wordsworth.pipeline.cluster import ray_internals
from wordsworth.pipeline.cluster.resources import CORES, cores
from wordsworth.pipeline.errors import ClusterGone, UserError

MIN_LOGICAL_CPUS = (
    4  # CPUs that a local Ray counts at least: all stages of a plan run side by side, even on one core
)
UNSAFE = "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION"  # environment variable of Ray's
RECEIPTS_THREAD = "receipts"  # name of the thread that draws from Ray Data, see pipeline/cluster/stall.py

_abandoned = False  # see abandoned()


def abandoned() -> bool:
    """Tell whether a session of this process ended and left Ray behind.

    A session does so where a shutdown would hang: the cluster is gone, or a thread waits for Ray without an
    answer. The program must then end by `os._exit`: at a usual exit Ray waits for a minute and replaces the
    exit code.
    """
    return _abandoned


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Give a block a Ray: one that runs already, a cluster, or a local Ray of the block's own.

    At the end of the block a Ray that was started or joined here is shut down, and everything that was
    changed in Ray is what it was. Where a shutdown would hang, Ray is left behind, and `abandoned()` says so.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, and without that variable starts a local Ray.

    Raises:
        UserError: Ray can be neither joined nor started.
    """
    if os.environ.get(UNSAFE):
        raise UserError(f"{UNSAFE} is set, which lets a shard run code: unset it")
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with ray_internals.messages_on_stderr(), ray_internals.without_automatic_start():
        if address:
            _join(address)
            alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        else:
            _start()
            alone = ray_internals.without_cluster_actors()
        cluster_is_gone = False
        try:
            with alone:
                yield
        except ClusterGone:
            cluster_is_gone = True
            raise
        finally:
            _end(cluster_is_gone)


def _join(address: str) -> None:
    try:
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: {str(error).splitlines()[0]} "
            "(is it the right address, and its token in RAY_AUTH_TOKEN?)"
        ) from error


def _start() -> None:
    """Start a local Ray. Its token lives in this process's environment and in no file."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    size = {"num_cpus": max(MIN_LOGICAL_CPUS, cores()), "resources": {CORES: cores()}}
    try:
        with ray_internals.without_services():
            _init(address="local", include_dashboard=False, **size)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot start a local Ray: {str(error).splitlines()[0]}") from error


def _init(**options: Any) -> None:
    """Call `ray.init` without its output, and keep this process's handler of SIGTERM.

    Ray puts a handler of its own in place, which exits before anyone can say how to resume.
    """
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    importing = threading.Thread(target=ray_internals.import_ray_data)
    importing.start()
    try:
        with _muted_native_stderr():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        importing.join()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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
    return RECEIPTS_THREAD in names or ray_internals.executor_is_alive()


@contextlib.contextmanager
def _muted_native_stderr() -> Iterator[None]:
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
