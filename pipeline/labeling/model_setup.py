"""Bring a run's model to the cluster: its weights into Ray's object store, its actors onto CPUs or GPUs."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

from wordsworth.pipeline.cluster.resources import (
    ACTOR_RETRIES,
    ModelNeeds,
    StageResources,
    WorkEstimate,
    gpu_nodes,
    plan_resources,
    share_of_cluster,
)
from wordsworth.pipeline.errors import UserError
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
from wordsworth.pipeline.prediction.actor import lost_gpus
from wordsworth.pipeline.prediction.gpu_trial import GpuWay, modes_of, try_gpus
from wordsworth.vit_model.checkpoint import Checkpoint
from wordsworth.vit_model.cost import macs

# These make an estimate of the work that is left, so that a small run starts few workers.
SMALL_IMAGE = (
    10_000  # bytes of an encoded image: a photograph has more, so there are fewer images in the bytes left
)
MACS_PER_SECOND = 20e9  # multiply-accumulates per second of one core; a core is faster
DECODE_SECONDS = 4e-8  # core-seconds to decode one byte of JPEG


class ModelSetup:
    """Decide how a run's model works on this cluster. Made inside a Ray session.

    Attributes:
        weights: ObjectRef of the model, as `Checkpoint.to_bytes` gives it.
    """

    def __init__(self, request: LabelRequest, checkpoint: Checkpoint, progress: Progress):
        import ray

        self.request = request
        self.checkpoint = checkpoint
        self.progress = progress
        weights = checkpoint.to_bytes()
        self.weights = ray.put(weights)
        self._weight_bytes = len(weights)
        self._gpu: GpuWay | None = (
            None  # what the GPUs of the cluster can do, once the model was tried on them
        )

    def plan_run(self, asked: JsonObject) -> RunPlan:
        """Return the plan of a new run, once it is known that its actors can work.

        Raises:
            UserError: the cluster has no GPU that can be used, or too little for a run.
        """
        import ray

        cluster = ray.cluster_resources()
        device = choose_device(self.request, cluster)
        if device == "cuda":
            self._try_gpus(self.request.precision, self.request.batch_size or None)
        else:
            self._claims(device, max_unit_bytes(cluster))
        return make_plan(asked, self.request, self.checkpoint, cluster, self._gpu)

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
        images_left = bytes_left / SMALL_IMAGE
        work = WorkEstimate(
            model=images_left * macs(self.checkpoint.config) / MACS_PER_SECOND,
            decode=bytes_left * DECODE_SECONDS,
        )
        unit_bytes = plan.resolved.unit_rows * image_bytes(self.checkpoint)
        return self._claims(plan.resolved.device, unit_bytes, work)

    def _claims(self, device: str, unit_bytes: int, work: WorkEstimate | None = None) -> StageResources:
        needs = ModelNeeds(
            device=device,
            weight_bytes=self._weight_bytes,
            unit_bytes=unit_bytes,
            gpus_per_actor=self.request.gpus_per_actor,
        )
        nodes = gpu_nodes() if device == "cuda" else None
        return plan_resources(share_of_cluster(), needs, work, nodes)

    def _try_gpus(self, precision: str, batch_size: int | None) -> GpuWay:
        import ray

        unit_bytes = max_unit_bytes(ray.cluster_resources())
        settings = replace(
            predict_settings(self.request, self.checkpoint, "cuda", precision, batch_size),
            gpu_modes=modes_of(self.request.gpu_mode),
            largest_batch=max_unit_rows(self.checkpoint, unit_bytes),
        )
        claim = self._claims("cuda", unit_bytes).predict
        patience = self.request.stall_timeout
        self._gpu = try_gpus(self.weights, settings, claim, gpu_nodes(), self.progress.note, patience)
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
