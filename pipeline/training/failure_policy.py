"""Ray Train as it is needed here: which failures are worth another try, and few processes on one machine."""

import asyncio
import os
from typing import Any
from unittest.mock import PropertyMock, patch

from ray.runtime_context import RuntimeContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

from wordsworth.pipeline.errors import UserError, root_cause
from wordsworth.vit_model.config import ModelError

NEEDLESS = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING")


class Trainer(TorchTrainer):
    """alone: on one machine, where three actors that take four CPU-seconds each to start have nothing to do: one hands out data
    sets (the workers make their own), one looks for machines that are about to go, one asks for more of them. A fourth, which
    starts the workers and looks after them, imports torch for it: this process has done so already."""

    def __init__(self, *arguments: Any, alone: bool, **options: Any):
        super().__init__(*arguments, **options)
        self.alone = alone

    def _create_default_callbacks(self) -> list[Any]:
        needless = (
            (DatasetsCallback, PlacementGroupCleanerCallback, StateManagerCallback)
            if self.alone
            else DatasetsCallback
        )
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)
        ]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["failure_policy"] = _Policy(self.run_config.failure_config)
        if not self.alone:
            return super()._initialize_and_run_controller(**options)
        if not self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = _AsManyAsThereAre(self.scaling_config)
        quiet = {name: "0" for name in NEEDLESS} | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
        nobody = patch.object(
            RuntimeContext, "current_actor", PropertyMock(return_value=None)
        )  # the workers' way to ask it
        # Without an environment of their own workers can have processes that wait already.
        as_it_is = patch.object(
            WorkerGroup, "_get_worker_runtime_env", lambda self, custom_runtime_env: custom_runtime_env
        )
        with patch.dict(os.environ, quiet), nobody, as_it_is:
            controller = TrainController(**options)
            loop = asyncio.new_event_loop()  # asyncio.run would keep Ctrl-C from what waits
            try:
                loop.run_until_complete(controller.run())
            finally:
                loop.close()
        return controller.get_result()

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C ends the command as it does everywhere else: the last checkpoint is what remains."""


class _AsManyAsThereAre(FixedScalingPolicy):
    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Policy(DefaultFailurePolicy):
    """Starts workers again, but not for what would come again: an error that is meant for the user."""

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        return (
            FailureDecision.RAISE
            if meant(training_failed_error)
            else super().make_decision(training_failed_error)
        )


def meant(error: Exception) -> Exception | None:
    """The first worker's error that says what the user can do."""
    causes = (
        root_cause(inner(one), UserError, ModelError)
        for one in getattr(error, "worker_failures", {}).values()
    )
    return next((cause for cause in causes if isinstance(cause, (UserError, ModelError))), None)


def inner(error: BaseException) -> BaseException:
    """What a worker raised."""
    return getattr(error, "_base_exc", error)
