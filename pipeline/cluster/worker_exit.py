"""End an actor's process without the steps at its exit that can hang."""

import atexit
import os
import sys


def leave_at_exit() -> None:
    """Let the process of an actor end as soon as Python begins to tidy up, by `os._exit`.

    For an actor that has nothing to flush. When Ray lets go of an actor, its process goes through Python's
    end, and then through that of the libraries which torch and Ray have loaded. About one of forty such
    processes waited there for ever, with a gigabyte of memory. By then Ray's own shutdown is done, and a unit
    that an actor has given back is Ray's. In a process that is no actor this does nothing.
    """
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        atexit.register(_leave)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
