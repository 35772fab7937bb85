"""Hold everything that depends on Ray's private names: a list of entries, each with what Ray does without it.

No other folder of the program imports or touches what Ray marks as internal. An entry that changes or reads
Ray's insides does so only where `ray_is_known()`: the running Ray is a version that the entries were tried
with. With any other version the program runs on stock Ray, by Ray's public interface alone: starts are
slower, the driver keeps more, some messages say less, and a local Ray listens on every interface.

Importing this package imports neither Ray nor Ray Data: a session imports Ray Data while Ray's processes
start.
"""

from wordsworth.pipeline.cluster.ray_internals.cluster_state import (
    AutoscalerState,
    Holding,
    autoscaler_state,
    draining_nodes,
    holdings,
)
from wordsworth.pipeline.cluster.ray_internals.cluster_store import find_notes, leave_note, remove_notes
from wordsworth.pipeline.cluster.ray_internals.driver import (
    ExecutionCallback,
    ExecutorProbe,
    StageFigures,
    executor_is_alive,
    keep_driver_small,
)
from wordsworth.pipeline.cluster.ray_internals.gate import STOCK, TRIED_VERSIONS, ray_is_known
from wordsworth.pipeline.cluster.ray_internals.head import (
    AUTH_MODE,
    AuthMode,
    Head,
    Traces,
    ask_head,
    auth_mode,
    begins_here,
    nodes_of_this_machine,
    quiet_job_client,
    traces_of_ray,
)
from wordsworth.pipeline.cluster.ray_internals.one_machine import import_ray_data, without_cluster_actors
from wordsworth.pipeline.cluster.ray_internals.running_plan import RunningPlan
from wordsworth.pipeline.cluster.ray_internals.start import (
    messages_on_stderr,
    muted_native_stderr,
    on_loopback,
    without_arguments,
    without_automatic_start,
    without_services,
)
from wordsworth.pipeline.cluster.ray_internals.training import (
    START_TIMEOUT_S,
    WorkerRoom,
    error_of_worker,
    is_without_room,
    make_trainer,
)

__all__ = [
    "AUTH_MODE",
    "START_TIMEOUT_S",
    "STOCK",
    "TRIED_VERSIONS",
    "AuthMode",
    "AutoscalerState",
    "ExecutionCallback",
    "ExecutorProbe",
    "Head",
    "Holding",
    "RunningPlan",
    "StageFigures",
    "Traces",
    "WorkerRoom",
    "ask_head",
    "auth_mode",
    "autoscaler_state",
    "begins_here",
    "draining_nodes",
    "error_of_worker",
    "executor_is_alive",
    "find_notes",
    "holdings",
    "import_ray_data",
    "is_without_room",
    "keep_driver_small",
    "leave_note",
    "make_trainer",
    "messages_on_stderr",
    "muted_native_stderr",
    "nodes_of_this_machine",
    "on_loopback",
    "quiet_job_client",
    "ray_is_known",
    "remove_notes",
    "traces_of_ray",
    "without_arguments",
    "without_automatic_start",
    "without_cluster_actors",
    "without_services",
]
