"""Take off what trainers put in front of the names of a model's tensors, and leave out what is beside."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.weight_sets import State, Weights, is_averaged

# Modules that torch puts around a module or around its parts, wherever they stand in a name.
TORCH_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# In front of all names: torch's DistributedDataParallel and averages, Lightning's Fabric, flax's optimizer.
OUTER_WRAPPERS = re.compile(r"^(module\.|_forward_module\.|opt/target/)+")
DEEPEST = 5  # modules around a model


@dataclass(frozen=True)
class Unwrapped:
    """Hold the tensors of a model.

    Attributes:
        state: the tensors, by their names in the model.
        outside: the tensors beside the model.
        key: which of several models in the file it is, as --weights-key names it; None where there is one.
        others: the keys of the others.
    """

    state: State
    outside: State
    key: str | None = None
    others: tuple[str, ...] = ()

    def provenance(self, where: str | Path, left_out: int) -> dict[str, Any]:
        """Return the origin of the weights, as a checkpoint keeps it in `extra`.

        Args:
            where: the file.
            left_out: number of tensors of the file that are no part of the model.
        """
        origin: dict[str, Any] = {"weights": Path(where).name}
        if left_out:
            origin["left_out"] = left_out
        if self.key is not None:
            origin["weights_key"] = self.key
        if self.others:
            origin["other_weights"] = list(self.others)
        return origin


def unwrap(state: State, is_model: Callable[[State], bool], where: str | Path) -> Unwrapped:
    """Find the model among the tensors.

    A prefix is taken off only where the tensors behind it are a model and all tensors together are none:
    formats whose own names begin like a wrapper's keep them.

    Args:
        state: the tensors of a file.
        is_model: tells whether tensors of these names are a model.
        where: the file in messages.

    Raises:
        ModelError: there are several models, of which none is the average of the others.
    """
    weights = state if isinstance(state, Weights) else Weights(state)
    plain = {}
    for name, tensor in state.items():
        plain[OUTER_WRAPPERS.sub("", TORCH_WRAPPERS.sub("", name))] = tensor
    found = {} if is_model(plain) else _models(plain, is_model)
    if not found:
        return Unwrapped(plain, {}, weights.key, weights.others)
    prefix = _chosen(found, where)
    outside = {name: tensor for name, tensor in plain.items() if not name.startswith(prefix)}
    others = tuple(other.rstrip(".") for other in found if other != prefix)
    key = weights.key
    if others:
        key = ".".join(part for part in (key, prefix.rstrip(".")) if part)
    return Unwrapped(found[prefix], outside, key, (*weights.others, *others))


def _models(state: State, is_model: Callable[[State], bool]) -> dict[str, State]:
    """Return the models by their prefix: the shortest one with which the tensors behind it are a model."""
    behind: dict[str, State] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        for depth in range(1, min(len(parts), DEEPEST + 1)):
            prefix = ".".join(parts[:depth]) + "."
            behind.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    found: dict[str, State] = {}
    for prefix in sorted(behind, key=len):
        inside = any(prefix.startswith(outer) for outer in found)
        if not inside and is_model(behind[prefix]):
            found[prefix] = behind[prefix]
    return found


def _chosen(found: dict[str, State], where: str | Path) -> str:
    """Return the prefix of the model to take. Raises ModelError where that is not known."""
    first, *rest = found
    if all(_equal(found[first], found[other]) for other in rest):
        return first  # one module under several names
    averaged = [prefix for prefix in found if is_averaged(prefix)]
    if len(averaged) == 1 and all(_same_shapes(found[averaged[0]], found[other]) for other in found):
        return averaged[0]
    keys = ", ".join(prefix.rstrip(".") for prefix in found)
    raise ModelError(f"{where} holds several models: {keys}; --weights-key KEY takes one of them")


def _same_shapes(one: State, other: State) -> bool:
    """Tell whether models are of one kind. The teacher of a distillation, a larger model, is no average."""
    common = one.keys() & other.keys()
    fits = all(one[name].shape == other[name].shape for name in common)
    return fits and 2 * len(common) > len(one)


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
