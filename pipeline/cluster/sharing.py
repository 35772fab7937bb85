"""Let the jobs of one cluster plan one after the other, so that each sees what the others hold.

A job sees the actors of other jobs and plans with the rest, at its start and whenever nodes join. Between a
plan and its actors lie some seconds in which nobody sees them. So a job takes a seat before it plans, and
gives it back when Ray knows its actors. The seat is an actor without resources, with a name that Ray gives
away once; it ends with its job, however the job ends.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar

from wordsworth.pipeline.cluster.address import address_of
from wordsworth.pipeline.cluster.ray_internals import ExecutionCallback, ray_is_known
from wordsworth.pipeline.cluster.request import ClusterRequest

NAME = "planning"  # name of the actor that is the seat
NAMESPACE = "wordsworth"  # of that actor
PATIENCE_S = 60.0  # seconds after which a job plans although another one has the seat
LOOK_S = 0.5  # seconds between two looks at the seat
REGISTERED_S = 2.0  # seconds after a plan has begun or changed in which Ray comes to know its actors

Note = Callable[[str], None]


class Seat(ExecutionCallback):
    """Give the seat back when the plan of this job has its actors.

    Attributes:
        taken: the actor that is the seat of this job; None where it has none.
        began_at: when the plan began, or the seat was taken in a plan under way, by `time.monotonic`.
    """

    taken: ClassVar[Any] = None
    began_at: ClassVar[float] = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Remember when the plan began."""
        Seat.began_at = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Give the seat back once the actors of the plan are known."""
        if Seat.taken is not None and time.monotonic() - Seat.began_at > REGISTERED_S:
            give_back()


def take_seat(cluster: ClusterRequest, note: Note) -> None:
    """Wait until no other job is between its plan and its actors; for PATIENCE_S at most.

    Nobody shares a local Ray, and with a Ray that nobody tried a job does not see what others hold.

    Args:
        cluster: what the command asks of the cluster.
        note: is told why it takes a while.
    """
    if not address_of(cluster) or not ray_is_known():
        return
    import ray

    give_back()
    begun = time.monotonic()
    told = False
    while time.monotonic() - begun < PATIENCE_S:
        try:
            Seat.began_at = time.monotonic()  # a plan under way that grows has its actors soon
            options = {"name": NAME, "namespace": NAMESPACE, "num_cpus": 0}
            Seat.began_at = time.monotonic()
            Seat.taken = ray.remote(_Holder).options(**options).remote()
            return
        except ValueError:  # the name is given away
            if not told:
                told = True
                note(f"another job is starting on this cluster: waits for its actors ({PATIENCE_S:g} s)")
            time.sleep(LOOK_S)  # nobody tells when the seat is free


def give_back() -> None:
    """Give the seat back, if this job has it."""
    import ray

    seat = Seat.taken
    Seat.taken = None
    if seat is not None:
        ray.kill(seat)


class _Holder:
    """Do nothing, as long as it lives."""
