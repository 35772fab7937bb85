"""Bring a run's model to the cluster: its weights into Ray's object store, its actors onto CPUs or GPUs."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from wordsworth.pipeline.cluster.actors import fits_an_actor
from wordsworth.pipeline.cluster.claims import ACTOR_RETRIES, Claim, ModelNeeds, WorkEstimate
from wordsworth.pipeline.cluster.growth import Follower
from wordsworth.pipeline.cluster.node_check import check_nodes
from wordsworth.pipeline.cluster.nodes import Room, see_room
from wordsworth.pipeline.cluster.resources import StageResources, plan_resources
from wordsworth.pipeline.cluster.session import is_local
from wordsworth.pipeline.cluster.sharing import take_seat
from wordsworth.pipeline.cluster.waiting import scales_to_gpus, wait_for_room
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.dataset import MODEL, workers_of
from wordsworth.pipeline.labeling.plan import (
    choose_device,
    image_bytes,
    make_plan,
    max_unit_bytes,
    max_unit_rows,
)
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.settings import StageSettings, predict_settings, stage_settings
from wordsworth.pipeline.output.records import JsonObject, RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.prediction.actor import PredictSettings, lost_gpus
from wordsworth.pipeline.prediction.gpu_trial import GpuBusy, GpuWay, modes_of, try_gpus
from wordsworth.vit_model.checkpoint import BaseCheckpoint

# These make an estimate of the work that is left, so that a small run starts few workers.
SMALL_IMAGE = (
    10_000  # bytes of an encoded image: a photograph has more, so there are fewer images in the bytes left
)
MACS_PER_SECOND = 20e9  # multiply-accumulates per second of one core; a core is faster
DECODE_SECONDS = 4e-8  # core-seconds to decode one byte of JPEG
NODE_PATIENCE = 60.0  # seconds to wait for a free GPU of a node that joined


class ModelSetup:
    """Decide how a run's model works on this cluster. Made inside a Ray session.

    Attributes:
        weights: ObjectRef of the model, as `BaseCheckpoint.to_bytes` gives it.
    """

    def __init__(
        self,
        request: LabelRequest,
        checkpoint: BaseCheckpoint,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
    ):
        """Put the weights into Ray's object store.

        Args:
            check: asks every node whether it can do its part; called again where nodes were waited for.
        """
        import ray

        self.request = request
        self.checkpoint = checkpoint
        self.progress = progress
        self._check = check
        weights = checkpoint.to_bytes()
        self.weights = ray.put(weights)
        self._weight_bytes = len(weights)
        self._gpu: GpuWay | None = (
            None  # what the GPUs of the cluster can do, once the model was tried on them
        )

    def plan_run(self, asked: JsonObject, source_bytes: float = math.inf) -> RunPlan:
        """Return the plan of a new run, once it is known that its actors can work.

        Waits for nodes that are to come. What the plan freezes is decided by the nodes that are there then.

        Args:
            source_bytes: bytes of all shards; infinite where nobody knows.

        Raises:
            UserError: the cluster has no GPU that can be used, or too little for a run.
        """
        import ray

        device = self._device()
        if device == "cuda":
            self._try_gpus(self.request.precision, self.request.batch_size or None)
        else:
            self._wait_for_claims(device)
        resources = ray.cluster_resources()
        return make_plan(asked, self.request, self.checkpoint, resources, self._gpu, source_bytes)

    def _device(self) -> str:
        """Return "cuda" or "cpu": what --device means here. On a cluster that adds GPUs, auto waits for
        one."""
        cluster = self.request.cluster
        gpus = sum(node.gpus for node in see_room(cluster).nodes if node.has(cluster.predict_on))
        held = see_room(cluster).held.get("GPU", 0)
        device = choose_device(self.request, {"GPU": gpus + held})
        if device == "cpu" and self.request.device == "auto" and scales_to_gpus(cluster, self.progress.note):
            self.progress.note(
                "the autoscaler of this cluster adds GPUs: waiting for one, since --device auto takes GPUs "
                "(--device cpu runs on CPUs)"
            )
            return "cuda"
        return device

    def settings(self, folder: RunFolder, plan: RunPlan) -> StageSettings:
        """Return the settings of every stage. Tries the model on the cluster's GPUs, unless that was done.

        Raises:
            UserError: the run is for GPUs, and no GPU can be used.
        """
        settings = stage_settings(folder, plan, self.request, self.checkpoint)
        if plan.resolved.device != "cuda":
            self._note_idle_gpus()
            return settings
        gpu = self._gpu or self._try_gpus(plan.resolved.precision, plan.resolved.batch_size)
        predict = replace(settings.predict, batch_size=gpu.batch_size, gpu_modes=gpu.modes)
        return replace(settings, predict=predict)

    @property
    def gpu_notes(self) -> tuple[str, ...]:
        """Return why the GPUs of the cluster do not work in the fastest mode, a sentence each."""
        return self._gpu.notes if self._gpu else ()

    def claims(self, plan: RunPlan, bytes_left: float = math.inf) -> StageResources:
        """Return what each stage may take of the cluster.

        Args:
            bytes_left: bytes of the shards that are not complete.

        Raises:
            UserError: the cluster has too little for a run.
        """
        take_seat(self.request.cluster, self.progress.note)
        return self._wait_for_claims(plan.resolved.device, self._unit_bytes(plan), self._work(bytes_left))

    def follower(
        self, plan: RunPlan, settings: PredictSettings, claim: Claim, bytes_left: float = math.inf
    ) -> Follower | None:
        """Return what is to happen when nodes join and leave; None for a local Ray, which has one node.

        Args:
            settings: of the actors.
            claim: of an actor, which stays as it was when the run began.
            bytes_left: bytes of the shards that are not complete.
        """
        if is_local():
            return None
        cluster = self.request.cluster
        device = plan.resolved.device

        def check(node_id: str) -> None:
            check_nodes((), self.progress.note, only=node_id)
            if device == "cuda":
                self._try_gpu_of(node_id, settings, claim)

        def divide(without: frozenset[str]) -> dict[str, int] | None:
            take_seat(cluster, self.progress.note)
            room = see_room(cluster, without)
            try:
                stages = self._claims(room, device, self._unit_bytes(plan), self._work(bytes_left))
            except UserError:
                return None
            count = stages.predictors
            if device == "cpu":  # what is left may ask for actors that claim less than these do
                smaller = min(1.0, stages.predict["num_cpus"] / claim["num_cpus"])
                count = max(1, int(count * smaller))
            return workers_of(replace(stages, predictors=count))

        return Follower(check=check, divide=divide, model=MODEL, note=self.progress.note)

    def _try_gpu_of(self, node_id: str, settings: PredictSettings, claim: Claim) -> None:
        """Try the model on the GPU of a node that joined, if the node has one.

        Raises:
            UserError: the GPU cannot be used.
        """
        cluster = self.request.cluster
        found = [node for node in see_room(cluster).nodes if node.node_id == node_id]
        nodes = [node for node in found if node.has(cluster.predict_on) and fits_an_actor(node, claim)]
        if not nodes:
            return
        with contextlib.suppress(GpuBusy):  # actors of this run were faster, and have tried it themselves
            way = try_gpus(self.weights, settings, claim, nodes, lambda _: None, NODE_PATIENCE)
            for told in (way.told, *way.notes):
                self.progress.note(told)

    def _work(self, bytes_left: float) -> WorkEstimate:
        images_left = bytes_left / SMALL_IMAGE
        return WorkEstimate(
            model=images_left * self.checkpoint.macs() / MACS_PER_SECOND,
            decode=bytes_left * DECODE_SECONDS,
        )

    def _unit_bytes(self, plan: RunPlan) -> int:
        return plan.resolved.unit_rows * image_bytes(self.checkpoint)

    def _claims(
        self, room: Room, device: str, unit_bytes: int | None, work: WorkEstimate | None = None
    ) -> StageResources:
        """Return what each stage may take of what a cluster has for this job. Raises NoRoom."""
        needs = ModelNeeds(
            device=device,
            weight_bytes=self._weight_bytes,
            unit_bytes=unit_bytes or _max_unit_bytes(),
            gpus_per_actor=self.request.gpus_per_actor,
        )
        return plan_resources(room, needs, work)

    def _wait_for_claims(
        self, device: str, unit_bytes: int | None = None, work: WorkEstimate | None = None
    ) -> StageResources:
        """Return what each stage may take, once the cluster has room for the run.

        Args:
            unit_bytes: bytes of the patches of one unit; None for the most that the cluster allows.
        """

        def plan(room: Room) -> StageResources:
            return self._claims(room, device, unit_bytes, work)

        cluster = self.request.cluster
        before = {node.node_id for node in see_room(cluster).nodes}
        planned = wait_for_room(plan, cluster, self.progress.note)
        if {node.node_id for node in see_room(cluster).nodes} - before:
            self._check()
        return planned

    def _try_gpus(self, precision: str, batch_size: int | None) -> GpuWay:
        claim = self._wait_for_claims("cuda").predict
        unit_bytes = _max_unit_bytes()
        settings = replace(
            predict_settings(self.request, self.checkpoint, "cuda", precision, batch_size),
            gpu_modes=modes_of(self.request.gpu_mode),
            largest_batch=max_unit_rows(self.checkpoint, unit_bytes),
        )
        cluster = self.request.cluster
        nodes = [node for node in see_room(cluster).nodes if node.has(cluster.predict_on)]
        patience = self.request.stall_timeout
        self._gpu = try_gpus(self.weights, settings, claim, nodes, self.progress.note, patience)
        for told in (self._gpu.told, *self._gpu.notes):
            self.progress.note(told)
        return self._gpu

    def _note_idle_gpus(self) -> None:
        """Tell the user that a run which was begun on CPUs stays there."""
        import ray

        gpus = ray.cluster_resources().get("GPU", 0)
        if gpus and self.request.device == "auto":
            self.progress.note(
                f"this run was begun on CPUs and goes on there, {gpus:g} GPUs of this cluster stay idle: "
                "a GPU's scores differ in their last digits, so its rows have another fingerprint and cannot "
                "join; label into a new --output to use the GPUs"
            )


def _max_unit_bytes() -> int:
    """Return the bytes of patches that one unit may have on the cluster of this moment."""
    import ray

    return max_unit_bytes(ray.cluster_resources())


@contextlib.contextmanager
def naming_lost_gpus() -> Iterator[None]:
    """Name the GPU that its actor lost again and again until the run ended. Ray says only that an actor died.

    Raises:
        UserError: in place of Ray's error.
    """
    from ray.exceptions import RayActorError

    before = lost_gpus().keys()
    try:
        yield
    except RayActorError as error:
        lost = [told for actor, told in lost_gpus().items() if actor not in before]
        if not lost:
            raise
        raise UserError(
            f"{lost[0]}, and again after its actor was started {ACTOR_RETRIES['max_restarts']} times: "
            "look at that GPU (nvidia-smi, dmesg), or leave its node out. "
            "What is done is kept: run the same command again"
        ) from error
