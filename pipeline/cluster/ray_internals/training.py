"""Run Ray Train with this program's idea of a final error, over loopback or over the addresses of nodes."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from wordsworth.pipeline.cluster.ray_internals.gate import ray_is_known
from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

LOOPBACK_INTERFACES = ("lo", "lo0")  # on Linux, on macOS
SIOCGIFADDR = 0x8915  # of Linux's ioctl: the address of an interface
CONNECT_S = 20.0  # seconds in which a worker must reach another one
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # environment variable of Ray Train's
START_TIMEOUT_S = 60.0  # seconds that Ray Train waits for workers to start, before it counts a failure


class WorkerRoom(NamedTuple):
    """Say what a training leaves to others, and how long it waits.

    Attributes:
        spare_cpus: CPUs of the cluster that workers on CPUs leave to the tasks that read and decode.
        wait_s: seconds without room for the fewest workers after which a training gives up.
    """

    spare_cpus: float
    wait_s: float


def make_trainer(
    train_loop: Callable[..., Any],
    is_final: Callable[[Exception], bool],
    room: WorkerRoom,
    is_local: bool = False,
    **options: Any,
) -> "TorchTrainer":
    """Make Ray Train's trainer, which does not start workers again after a final error.

    Gives an end at the first error that would come again; saves an actor that hands out data sets, which the
    workers make themselves; saves on a local Ray three actors, of which one tidies up after a controller that
    died (that Ray ends with the command), one hears of nodes that are taken away, and one asks for more; lets
    the workers of a local Ray talk over loopback alone, and those of a cluster over the interface of their
    node's address, after each has reached the first; leaves CPUs to the tasks that read and decode where the
    number of workers may change, and gives up where there is no room for the fewest; and lets Ctrl-C end the
    command as everywhere else. Fails with AttributeError or ImportError where Ray has renamed what is
    extended. Stock Ray starts the workers again after every error, as often as `max_failures` says, lets the
    workers meet at a port that listens on every interface, lets Gloo take the interface that the host's name
    leads to, which on many machines is loopback, waits for hours where a firewall divides the nodes, gives
    all CPUs that are left after a loss to workers, waits for ever for room for the fewest, and handles Ctrl-C
    itself.

    Args:
        train_loop: function that every worker runs.
        is_final: tells whether an error would come again. Another process calls it: a function of a module,
            or an object that can be sent.
        room: what is left to others, and how long room is waited for.
        is_local: whether Ray is one that this command started.
        options: further arguments of TorchTrainer.
    """
    from ray.train.torch import TorchTrainer

    if not ray_is_known():
        return TorchTrainer(train_loop, **options)
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    class FailurePolicy(DefaultFailurePolicy):
        """Start workers again, but not after a final error."""

        def make_decision(self, training_failed_error: Exception) -> FailureDecision:
            if is_final(training_failed_error):
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    class Trainer(TorchTrainer):
        """Give Ray Train this program's failure policy, without the actor for data sets and without Ray's own
        Ctrl-C."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            needless = (DatasetsCallback, PlacementGroupCleanerCallback) if is_local else DatasetsCallback
            return [one for one in callbacks if not isinstance(one, needless)]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["failure_policy"] = FailurePolicy(self.run_config.failure_config)
            if self.scaling_config.elasticity_enabled:
                settings["scaling_policy"] = _elastic_policy(self.scaling_config, room)
            elif is_local:
                settings["scaling_policy"] = _fixed_policy(self.scaling_config)
            with _without_preemption_watcher() if is_local else contextlib.nullcontext():
                return super()._initialize_and_run_controller(**settings)

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C as it is: the last checkpoint is what remains."""

    over = _over_loopback if is_local else _over_node_addresses
    options["torch_config"] = over(options["torch_config"])
    return Trainer(train_loop, **options)


@contextlib.contextmanager
def _without_preemption_watcher() -> Iterator[None]:
    """Let Ray Train start no actor that hears of nodes that are taken away, unless the user asks for it."""
    if PREEMPTION_WATCHER in os.environ:
        yield
        return
    os.environ[PREEMPTION_WATCHER] = "0"
    try:
        yield
    finally:
        del os.environ[PREEMPTION_WATCHER]


def _fixed_policy(scaling_config: "ScalingConfig") -> Any:
    """Return what starts a fixed number of workers on one machine, and asks nobody for more machines."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class FixedPolicy(FixedScalingPolicy):
        def _maybe_send_resource_request(self) -> None:
            """Ask for nothing."""

        def _send_resource_request(self) -> None:
            """Ask for nothing."""

        def _cancel_resource_request(self) -> None:
            """Take nothing back."""

    return FixedPolicy(scaling_config)


def _elastic_policy(scaling_config: "ScalingConfig", room: WorkerRoom) -> Any:
    """Return what decides how many workers there are, between the least and the most."""
    import ray
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    class ElasticPolicy(ElasticScalingPolicy):
        """Start as many workers as there is room for, beside the tasks that bring them data."""

        waiting_since: float | None = None  # by time.monotonic; None while there is room

        def _count_possible_workers(self, reserved_resources: Any) -> int:
            count = super()._count_possible_workers(reserved_resources)
            if self.scaling_config.use_gpu:
                return count
            return max(0, min(count, int(ray.cluster_resources().get("CPU", 0) - room.spare_cpus)))

        def make_decision_for_non_running_worker_group(self) -> Any:
            decision = super().make_decision_for_non_running_worker_group()
            if not isinstance(decision, NoopDecision):
                self.waiting_since = None
                return decision
            self.waiting_since = self.waiting_since or time.monotonic()
            if time.monotonic() - self.waiting_since > room.wait_s:
                raise WorkerGroupStartupTimeoutError(self.scaling_config.min_workers)
            return decision

    return ElasticPolicy(scaling_config)


def is_without_room(error: Exception) -> bool:
    """Tell whether an error of Ray Train says that the cluster has no room for the workers.

    Fails, and says no, where Ray has renamed the error: the user then reads Ray's own words.
    """
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"


def _over_loopback(config: "TorchConfig") -> "TorchConfig":
    """Return the settings of a process group whose workers all are processes of this machine.

    The workers meet in a file of Ray's session folder. By default they meet at a port of the first worker,
    which answers on every interface and to everybody, and PyTorch chooses an interface by the machine's name.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import (
        _set_torch_distributed_env_vars,
        _setup_torch_process_group,
        _TorchBackend,
    )

    class LoopbackBackend(_TorchBackend):
        """Set the process group up in every worker, as Ray Train does, but without a port."""

        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            has_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
            folder = ray._private.worker._global_node.get_session_dir_path()
            process_group = {
                "backend": backend_config.backend or ("nccl" if has_gpu else "gloo"),
                "world_size": len(worker_group),
                "init_method": f"file://{folder}/workers-{uuid4().hex}",
                "timeout_s": backend_config.timeout_s,
            }
            worker_group.execute(_set_torch_distributed_env_vars)
            worker_group.execute(_talk_over_loopback)
            ray.get(
                [
                    worker_group.execute_single_async(
                        rank, _setup_torch_process_group, world_rank=rank, **process_group
                    )
                    for rank in range(len(worker_group))
                ]
            )

    class LoopbackConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return LoopbackBackend

    return LoopbackConfig(backend=config.backend, timeout_s=config.timeout_s)


def _talk_over_loopback() -> None:
    """Let Gloo and NCCL of this process use the loopback interface, unless the user named another one."""
    names = [name for _, name in socket.if_nameindex() if name in LOOPBACK_INTERFACES]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ.setdefault(variable, names[0])


def _over_node_addresses(config: "TorchConfig") -> "TorchConfig":
    """Return the settings of a process group whose workers are on nodes of a cluster."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class ClusterBackend(_TorchBackend):
        """Set the process group up as Ray Train does, after every worker has chosen its interface and has
        reached the first one."""

        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            worker_group.execute(_talk_over_node_address)
            check_connections(worker_group)
            super().on_start(worker_group, backend_config)

    class ClusterConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return ClusterBackend

    return ClusterConfig(backend=config.backend, timeout_s=config.timeout_s)


def check_connections(worker_group: Any) -> None:
    """Check that every worker can open a connection to the first worker.

    Where a firewall lets only Ray's own ports through, PyTorch waits as long as workers wait for each other.

    Raises:
        UserError: one cannot.
    """
    address, port = worker_group.execute_single(0, _listen)
    for reason in worker_group.execute(_connect, address, port):
        if reason:
            raise UserError(
                f"{reason}: the workers of a training talk to each other directly, at any port from 1024 on: "
                "let such connections through between the nodes of the cluster"
            )


def _listen() -> tuple[str, int]:
    """Listen at a port of this node's address for a while, and return address and port."""
    import ray.util

    server = socket.create_server((ray.util.get_node_ip_address(), 0))
    server.settimeout(CONNECT_S * 3)

    def accept() -> None:
        with server, contextlib.suppress(OSError):  # the time is over
            while True:
                server.accept()[0].close()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[:2]


def _connect(address: str, port: int) -> str:
    """Open a connection, and return why that is impossible; "" where it is not."""
    import ray.util

    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except OSError as error:
        return f"node {ray.util.get_node_ip_address()} cannot reach node {address} at port {port} ({error})"
    return ""


def _talk_over_node_address() -> None:
    """Let Gloo of this process use the interface by which Ray knows the node, unless the user named one.

    Ray's nodes reach each other there. NCCL finds the fastest interface by itself.
    """
    import ray.util

    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address; None where none is found."""
    try:
        import fcntl
    except ImportError:  # Windows: Gloo then looks for itself
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def error_of_worker(error: BaseException) -> BaseException:
    """Return what a training worker raised, out of the wrapper in which Ray Train keeps the error.

    Gives the error itself, whose message is for the user. Fails by returning the wrapper, which is what stock
    Ray gives.
    """
    return getattr(error, "_base_exc", error)
