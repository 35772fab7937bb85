"""Make one optimizer step: from a batch of patches to the loss and changed weights."""

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from wordsworth.pipeline.training.request import Mixing, TrainRequest
from wordsworth.vit_model.inference import resolve_precision
from wordsworth.vit_model.objectives import Outcome
from wordsworth.vit_model.patches import unpatchify

Part = tuple[np.ndarray, np.ndarray]  # patches uint8 (B, N, P*P*3), classes int64 (B,)


class Step:
    """Make optimizer steps on one worker.

    What is random in a step (masks, mixing, dropout) follows from the seed, the worker and the step's number.
    So a training that continues draws what it would have drawn.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        request: TrainRequest,
        device: torch.device,
        rank: int = 0,
        class_weights: tuple[float, ...] | None = None,
    ):
        """Prepare steps.

        Args:
            objective: as in vit_model/objectives.py, or what DDP or FSDP made of one.
            optimizer: of the objective's parameters, with groups as `optimizer.parameter_groups` makes them.
            request: what the user asked for.
            device: where the objective lies.
            rank: number of this worker, from 0.
            class_weights: K weights; the loss of a batch is the mean over its images, weighted by their
                classes. None: all weigh the same.
        """
        self.objective: Any = objective
        self.optimizer = optimizer
        self.request = request
        self.device = device
        self.rank = rank
        self.generator = torch.Generator()
        num_pixels = request.config.patch_size**2  # channels are fastest in a patch
        self.mean = torch.tensor(request.preprocessing.mean, device=device).repeat(num_pixels)
        self.std = torch.tensor(request.preprocessing.std, device=device).repeat(num_pixels)
        self.sharded = hasattr(objective, "set_requires_gradient_sync")  # by FSDP
        if self.sharded and not request.classified:
            # --probe calls this method: FSDP then gathers the weights for it as it does for forward.
            register_fsdp_forward_method(objective, "embedding")
        self.bf16 = resolve_precision(request.precision, device.type) == "bf16"
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, device=device)
        self.mixer = None
        if request.classified:
            self.mixer = Mixer(request.mixing, request.config.num_classes, device)

    def __call__(self, parts: list[Part], lr: float, number: int) -> Outcome:
        """Make one step.

        Args:
            parts: the parts of a batch, whose gradients are added.
            lr: learning rate, before the factor of each group.
            number: number of the step, from 0.

        Returns:
            The loss, and the objective's own metrics with the norm of the gradient; means over the parts.
        """
        # Hashed, because a CPU's generator takes 32 bits of a seed.
        seed = int(np.random.SeedSequence([self.request.seed, self.rank, number]).generate_state(1)[0])
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.zero_grad()
        mean_weight = self._mean_weight(parts)
        metrics: list[dict[str, torch.Tensor]] = []
        for patches, classes in parts:
            is_last = len(metrics) + 1 == len(parts)
            with self._synchronised(is_last):
                loss, others = self.forward(patches, classes, mean_weight)
                (loss / len(parts)).backward()
            metrics.append({"loss": loss.detach(), **others})
        norm: Any = nn.utils.clip_grad_norm_(self.objective.parameters(), self.request.clip or math.inf)
        self.optimizer.step()
        means = {}
        for name in metrics[0]:
            means[name] = torch.stack([part[name] for part in metrics]).mean()
        loss = means.pop("loss")
        means["gradient_norm"] = norm.full_tensor() if self.sharded else norm
        return loss, means

    def forward(
        self, patches: np.ndarray, classes: np.ndarray, mean_weight: torch.Tensor | None = None
    ) -> Outcome:
        """Return loss and metrics as training sees them, mixing included.

        Args:
            patches: uint8 (B, N, P*P*3).
            classes: int64 (B,).
            mean_weight: as `_mean_weight` gives it for the batch that these images are a part of.
        """
        inputs, pixels, targets = self._inputs(patches, classes)
        if self.mixer and self.mixer.changes:
            images = unpatchify(inputs, self.request.config.grid, self.request.config.patch_size)
            # The model takes patches or images; mixing needs images.
            inputs, targets = self.mixer(images.permute(0, 3, 1, 2), targets)
        weighted = {}
        if self.class_weights is not None and mean_weight is not None:
            weighted["weights"] = self._weights(targets) / mean_weight
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective(
                inputs, pixels=pixels, classes=targets, generator=self.generator, **weighted
            )

    def _mean_weight(self, parts: list[Part]) -> torch.Tensor | None:
        """Return the mean weight of the images of a whole batch, over all parts and workers; None without.

        Divided by it, the weighted means of equal parts have the mean of the whole batch as their mean.
        Mixing keeps it, because it shares out every class of a part.
        """
        if self.class_weights is None:
            return None
        targets = self._to_device(np.concatenate([classes for _, classes in parts]))
        mean = self._weights(targets).mean()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        return mean

    def _weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weights (B,) of images with classes (B,) or targets (B, K)."""
        weights = self.class_weights
        assert weights is not None
        return weights[targets] if targets.ndim == 1 else targets.to(weights.dtype) @ weights

    @torch.no_grad()
    def score(self, patches: np.ndarray, classes: np.ndarray, number: int) -> Outcome:
        """Return loss and metrics as the model would be used: nothing dropped, nothing mixed.

        DDP takes no part, so workers may have different numbers of batches. With FSDP all workers must make
        the same number of calls.

        Args:
            patches: uint8 (B, N, P*P*3).
            classes: int64 (B,).
            number: decides the masks.
        """
        objective = getattr(self.objective, "module", self.objective)
        self.generator.manual_seed(number)
        inputs, pixels, targets = self._inputs(patches, classes)
        objective.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outcome = objective(inputs, pixels=pixels, classes=targets, generator=self.generator)
        objective.train()
        return outcome

    @torch.no_grad()
    def embed(self, patches: np.ndarray) -> torch.Tensor:
        """Return the embeddings of whole images as the labeler gets them: (B, N, P*P*3) uint8 -> (B, D).

        The same holds for DDP and FSDP as for `score`.
        """
        objective = getattr(self.objective, "module", self.objective)
        inputs = self._normalised(self._to_device(patches))
        objective.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = objective.embedding(inputs)
        objective.train()
        return embeddings.float()

    def _inputs(
        self, patches: np.ndarray, classes: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return normalised floats (B, N, P*P*3), the uint8 patches and the classes, on the device."""
        pixels = self._to_device(patches)
        targets = self._to_device(classes)
        return self._normalised(pixels), pixels, targets

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type != "cpu":
            tensor = tensor.pin_memory()  # so that the copy runs while the step before is computed
        return tensor.to(self.device, non_blocking=True)

    @contextlib.contextmanager
    def _synchronised(self, is_last: bool) -> Iterator[None]:
        """Exchange gradients between the workers once per step, not once per part."""
        if self.sharded:
            self.objective.set_requires_gradient_sync(is_last)
            yield
        elif is_last or not hasattr(self.objective, "no_sync"):
            yield
        else:
            with self.objective.no_sync():
                yield


class Mixer:
    """Mix the images of a batch on its device: mixup and CutMix by torchvision, random erasing by timm."""

    def __init__(self, mixing: Mixing, num_classes: int, device: torch.device):
        self.share = mixing.share
        self.mixers: list[Any] = []
        self.erase: Any = None
        if mixing.mixes:
            from torchvision.transforms import v2

            for kind, alpha in ((v2.MixUp, mixing.mixup), (v2.CutMix, mixing.cutmix)):
                if alpha:
                    self.mixers.append(kind(alpha=alpha, num_classes=num_classes))
        if mixing.erase:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(mixing.erase, mode="pixel", device=device)
        self.changes = bool(self.mixers or self.erase)

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return changed images (B, 3, H, W), and their classes (B,) or targets (B, K).

        Args:
            images: (B, 3, H, W).
            classes: (B,).
        """
        if self.erase:
            random.seed(int(torch.randint(1 << 31, ())))  # timm draws from Python's generator
            images = self.erase(images)
        if self.mixers and float(torch.rand(())) < self.share:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, classes = mixer(images, classes)
        return images, classes


class WeightAverage:
    """Keep an exponential moving average of the parameters (the paper's Polyak averaging, B.1.1)."""

    def __init__(self, objective: nn.Module, decay: float):
        """Begin with the parameters as they are.

        Args:
            objective: whose parameters are averaged.
            decay: share of the average that a step keeps. Less is kept in the first steps, so that the
                average is over all of them.
        """
        self.decay = decay
        self.steps = 0
        self.parameters = [_local(parameter) for parameter in objective.parameters()]
        self.averages = [parameter.clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Bring the parameters of one more step into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @torch.no_grad()
    def load(self, objective: nn.Module, state: dict[str, torch.Tensor], steps: int) -> None:
        """Take over an average.

        Args:
            objective: the same as before.
            state: averages by the names of the objective's parameters.
            steps: steps that made the average.
        """
        self.steps = steps
        for (name, _), average in zip(objective.named_parameters(), self.averages, strict=True):
            average.copy_(_local(state[name.removeprefix("module.")]))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the objective the average as parameters for the length of a block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Return this worker's part of a parameter: the whole, or its shard."""
    parameter = parameter.detach()
    if hasattr(parameter, "to_local"):
        return parameter.to_local()
    return parameter
