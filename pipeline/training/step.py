"""One optimiser step: what reaches a model from a batch, and what the model learns of it."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wordsworth.pipeline.training.request import Mixing, TrainRequest
from wordsworth.vit_model.inference import resolve_precision
from wordsworth.vit_model.objectives import Outcome
from wordsworth.vit_model.patches import unpatchify

Part = tuple[np.ndarray, np.ndarray]  # patches uint8 (B, N, P*P*3), classes int64 (B,)


class Step:
    """One optimiser step: patches in, the loss and what the objective says of it out. objective: as in vit_model/objectives.py, or
    what DDP or FSDP made of one. A step's randomness (masks, mixing, dropout) is that of the seed, the worker and the step's
    number, so a training that goes on draws what it would have drawn.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        request: TrainRequest,
        device: torch.device,
        rank: int = 0,
    ):
        self.objective, self.optimizer, self.request, self.device, self.rank = (
            objective,
            optimizer,
            request,
            device,
            rank,
        )
        self.chance = torch.Generator()
        pixels = request.config.patch_size**2  # channels are fastest in a patch
        self.mean = torch.tensor(request.preprocessing.mean, device=device).repeat(pixels)
        self.std = torch.tensor(request.preprocessing.std, device=device).repeat(pixels)
        self.sharded = hasattr(objective, "set_requires_gradient_sync")  # by FSDP
        self.bf16 = resolve_precision(request.precision, device.type) == "bf16"
        self.mix = Mixer(request.mixing, request.config.num_classes, device) if request.classified else None

    def __call__(self, parts: list[Part], lr: float, number: int) -> Outcome:
        """The parts of a batch, the learning rate, the number of the step."""
        # Hashed: of a seed a CPU's generator takes 32 bits.
        seed = int(np.random.SeedSequence([self.request.seed, self.rank, number]).generate_state(1)[0])
        self.chance.manual_seed(seed)
        torch.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.zero_grad()
        said = []
        for part in parts:
            with self._synchronised(len(said) + 1 == len(parts)):
                loss, metrics = self.forward(*part)
                (loss / len(parts)).backward()
            said.append({"loss": loss.detach(), **metrics})
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.request.clip or math.inf)
        self.optimizer.step()
        means = {name: torch.stack([one[name] for one in said]).mean() for name in said[0]}
        return means.pop("loss"), means | {"gradient_norm": norm.full_tensor() if self.sharded else norm}

    def forward(self, patches: np.ndarray, classes: np.ndarray) -> Outcome:
        """As training sees it, mixing included."""
        inputs, pixels, classes = self._inputs(patches, classes)
        if self.mix and self.mix.asked:
            images = unpatchify(inputs, self.request.config.grid, self.request.config.patch_size).permute(
                0, 3, 1, 2
            )
            inputs, classes = self.mix(images, classes)  # the model takes patches and images
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective(inputs, pixels=pixels, classes=classes, generator=self.chance)

    @torch.no_grad()
    def score(self, patches: np.ndarray, classes: np.ndarray, number: int) -> Outcome:
        """As the model would be used: nothing dropped, nothing mixed; the masks are those of the number. DDP takes no part, so that
        workers may have different numbers of batches; with FSDP all must call this equally often."""
        objective = getattr(self.objective, "module", self.objective)
        self.chance.manual_seed(number)
        inputs, pixels, classes = self._inputs(patches, classes)
        objective.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outcome = objective(inputs, pixels=pixels, classes=classes, generator=self.chance)
        objective.train()
        return outcome

    def _inputs(
        self, patches: np.ndarray, classes: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        given = (torch.from_numpy(values) for values in (patches, classes))
        if self.device.type != "cpu":  # what is pinned is copied while the step before is computed
            given = (values.pin_memory() for values in given)
        pixels, classes = (values.to(self.device, non_blocking=True) for values in given)
        return (pixels.float() / 255 - self.mean) / self.std, pixels, classes  # (B, N, P*P*3)

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Gradients go between the workers once a step, not once a part."""
        if self.sharded:
            self.objective.set_requires_gradient_sync(last)
            yield
        elif last or not hasattr(self.objective, "no_sync"):
            yield
        else:
            with self.objective.no_sync():
                yield


class Mixer:
    """Mixup, CutMix and random erasing of a batch on its device: torchvision's and timm's."""

    def __init__(self, mixing: Mixing, classes: int, device: torch.device):
        self.share, self.mixers, self.erase = mixing.share, [], None
        if mixing.mixes:
            from torchvision.transforms import v2

            kinds = ((v2.MixUp, mixing.mixup), (v2.CutMix, mixing.cutmix))
            self.mixers = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        if mixing.erase:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(mixing.erase, mode="pixel", device=device)
        self.asked = bool(self.mixers or self.erase)

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W), (B,) -> the same, and classes or targets (B, K)."""
        if self.erase:
            import random

            random.seed(int(torch.randint(1 << 31, ())))  # timm draws from Python's generator
            images = self.erase(images)
        if self.mixers and float(torch.rand(())) < self.share:
            images, classes = self.mixers[int(torch.randint(len(self.mixers), ()))](images, classes)
        return images, classes


class Average:
    """An exponential moving average of the parameters (the paper's Polyak averaging, B.1.1)."""

    def __init__(self, objective: nn.Module, keep: float):
        """keep: the share that a step keeps of the average; while there are few steps, less, so that it is of them all."""
        self.keep, self.steps = keep, 0
        self.parameters = [_local(parameter) for parameter in objective.parameters()]
        self.averages = [parameter.clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        keep = min(self.keep, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - keep)

    @torch.no_grad()
    def load(self, objective: nn.Module, state: dict[str, torch.Tensor], steps: int) -> None:
        """state: as of the objective; steps: how many made it."""
        self.steps = steps
        for (name, _), average in zip(objective.named_parameters(), self.averages, strict=True):
            average.copy_(_local(state[name.removeprefix("module.")]))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The objective has the average for parameters as long as the block lasts."""
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
    """What this worker has of a parameter: all of it, or its own shard."""
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


# ---- how fast a device could be -------------------------------------------------------------------------------------------


def flops_of(objective: nn.Module, patch_dim: int, patches: int) -> float:
    """Floating-point operations of the matrix products and convolutions of one image, forward and backward, counted as they run."""
    device = next(objective.parameters()).device
    inputs = torch.zeros(2, patches, patch_dim, device=device)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # in which attention is matrix products
        loss, _ = objective(inputs, pixels=inputs, classes=torch.zeros(2, dtype=torch.long, device=device))
        loss.backward()
    objective.zero_grad()
    return counter.get_total_flops() / 2


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product here and now: the most that a model could do."""
    import time

    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        product = a @ b
        product.flatten()[0].item()  # waits for the device
        rates.append(2 * side**3 / (time.perf_counter() - begin))
    return max(rates)
