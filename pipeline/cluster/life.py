"""Tell the driver that a worker gets on, where a unit takes long: receipts come only with whole units."""

import contextlib
import os
import time

from wordsworth.pipeline.cluster.ray_internals import find_notes, leave_note

KEY = b"wordsworth-life:"  # and the id of a job: the key of the last sign


def give_sign_of_life() -> None:
    """Leave a note that every other sign of the job replaces. Without a cluster nobody wants to know."""
    import ray

    if ray.is_initialized():
        with contextlib.suppress(Exception):  # a cluster that is short of breath is no reason to fail a unit
            leave_note(_key_of_job(), f"{os.getpid()} {time.monotonic_ns()}")


def last_sign_of_life() -> str | None:
    """Return the last note, or None if there was none. Two notes are never equal."""
    import ray

    return find_notes(_key_of_job()).get(_key_of_job()) if ray.is_initialized() else None


def _key_of_job() -> bytes:
    import ray

    return KEY + ray.get_runtime_context().get_job_id().encode()
