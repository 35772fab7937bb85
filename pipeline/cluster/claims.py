"""Hold what tasks and actors claim of Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wordsworth.pipeline.errors import UserError

MiB = 1 << 20  # bytes
GiB = 1 << 30  # bytes

# Options of Ray's for a task: how often Ray runs a task again that was lost.
RETRIES = {"max_retries": 3}
# Options of Ray's for an actor. `max_restarts` bounds what kills the actor again and again. A task needs more
# tries: every attempt to reach an actor that is on its way to another machine counts as one.
ACTOR_RETRIES = {"max_restarts": 6, "max_task_retries": 30}

LIST_CPUS = 0.1  # CPUs that a listing task claims
READ_CPUS = 0.05  # CPUs that a read task claims: most of the time a read task waits for the store
DECODE_CPUS = 0.5  # CPUs that a decode task claims
WRITE_CPUS = 0.3  # CPUs that a write task claims
# CPUs that an actor on a CPU claims. The actor uses nearly a whole core; the rest is left to short tasks.
PREDICT_CPUS = 0.6
MIN_PREDICT_CPUS = 0.2  # CPUs that an actor on a CPU claims at least, where nodes have one CPU
GPU_CPUS = 0.5  # CPUs that an actor on a GPU claims where there are enough: the actor copies and launches
MIN_GPU_CPUS = 0.01  # CPUs that an actor on a GPU claims at least
PARTS = 1e4  # parts of a CPU or a GPU: Ray counts in ten-thousandths
# CPUs of one node without which a run would stand still, beside those of the read tasks that wait.
TURN_CPUS = LIST_CPUS + DECODE_CPUS
READERS_OF_OTHERS = 4  # read tasks of another job that may wait on one node

ACTOR_START = 10.0  # CPU-seconds that an actor takes to start, with Ray Data, torch and the weights
TASK_START = 5.0  # CPU-seconds that a process takes to start which reads or decodes
MAX_READ_TASKS = 64  # read tasks of a run
READ_SHARE = 1 / 8  # share of the CPUs beside the actors that all read tasks may claim together
ACTOR_MEMORY_SHARE = 0.6  # share of the memory that all actors on CPUs may claim together

UNBOUNDED = 1 << 30  # a number of workers that no cluster has
ROUNDING = 1e-6  # by which an amount may be off

Claim = dict[str, Any]  # what a task or an actor claims of Ray: num_cpus, num_gpus, memory, label_selector


class NoRoom(UserError):
    """Report that the nodes of this moment have too little for a run: other nodes, or other jobs' end, would
    help.

    Attributes:
        lacking: what is missing, in a few words.
        wanted: bundles of resources that would help, by Ray's names.
        selector: labels of the node that would have them.
    """

    def __init__(
        self,
        message: str,
        lacking: str,
        wanted: Sequence[Mapping[str, float]] = (),
        selector: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.lacking = lacking
        self.wanted = wanted
        self.selector = selector or {}


@dataclass(frozen=True, kw_only=True)
class ModelNeeds:
    """Hold what a run's model needs of a cluster.

    Attributes:
        device: "cpu" or "cuda".
        weight_bytes: bytes of the model in fp32.
        unit_bytes: bytes of the patches of one unit.
        gpus_per_actor: GPUs that an actor takes: above 0, 1 at most.
    """

    device: str
    weight_bytes: int
    unit_bytes: int
    gpus_per_actor: float = 1.0

    @property
    def actor_memory(self) -> int:
        """Bytes that an actor claims: its process, the weights twice, and a unit that comes and one that
        goes."""
        return GiB + 2 * self.weight_bytes + 2 * self.unit_bytes

    @property
    def read_memory(self) -> int:
        """Bytes that a read task claims."""
        return 256 * MiB + self.unit_bytes

    @property
    def decode_memory(self) -> int:
        """Bytes that a decode task claims."""
        return 256 * MiB + 2 * self.unit_bytes

    @property
    def gpu_share(self) -> float:
        """GPUs that an actor claims of Ray: a whole part of one.

        With shares of 0.4 a GPU takes two actors and no more. Where two GPUs have 0.2 left each, Ray would
        send a third actor there, which then waits for ever (ray-project/ray#52133). With shares of 0.5
        nothing is left, and as many actors fit.
        """
        return math.floor(PARTS / int(1 / self.gpus_per_actor + ROUNDING)) / PARTS


# ---- what there is to do ----------------------------------------------------------------------------------


class WorkEstimate(NamedTuple):
    """Hold the seconds that one core takes for the whole run; infinite where nobody knows.

    Attributes:
        model: seconds of the model.
        decode: seconds of decoding.
    """

    model: float = math.inf
    decode: float = math.inf


def useful_workers(work_s: float, start_s: float) -> int:
    """Return how many workers are useful: each works for at least as long as it takes to start.

    Args:
        work_s: core-seconds of the whole work; may be infinite.
        start_s: core-seconds that a worker takes to start.
    """
    if math.isinf(work_s):
        return UNBOUNDED
    return max(1, math.ceil(work_s / start_s))
