"""Fit the tensors of a file to a timm module, as timm does with the files of its own.

A file may have the names of the repository that a model was published in (ConvNeXt, Swin, BEiT, DINOv3, ...).
timm has a filter for each family, which renames such tensors and resamples tables of positions.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.weights import NAMED_KEYS, State

# The names that timm's files have for their filter.
FILTERS = ("checkpoint_filter_fn", "_checkpoint_filter_fn", "pretrained_filter_fn", "_filter_fn")
COUNTER = "num_batches_tracked"  # of a BatchNorm in training; files of weights may lack it


def under_names_of(net: nn.Module, state: State) -> State:
    """Return the tensors under the names of timm's module.

    Tensors of another model keep their names: `check_fit` says what is wrong with them.

    Args:
        net: timm's module; its tensors may be on the meta device.
        state: the tensors of a file.
    """
    change = _filter(net)
    if change is None or _has_names_and_sizes(net, state):
        return state
    try:
        return dict(change(dict(state), net))
    except Exception:  # a filter that meets another family's tensors has many kinds of errors
        return state


def is_of(net: nn.Module, state: State) -> bool:
    """Return whether tensors are those of a module, under its names or those of its first repository."""
    if _has_names_and_sizes(net, state):
        return True
    # Renaming takes time, and hardly any of the prefixes that are tried stands before a whole model.
    return 2 * len(state) > len(net.state_dict()) and _has_names_and_sizes(net, under_names_of(net, state))


def _has_names_and_sizes(net: nn.Module, state: State) -> bool:
    """Return whether the tensors are those of the module, with any number of classes."""
    head = _classifier_names(net)
    for name, wanted in net.state_dict().items():
        if name.endswith(COUNTER) or name in head:
            continue
        if name not in state or state[name].shape != wanted.shape:
            return False
    return True


def _filter(net: nn.Module) -> Callable[[State, nn.Module], State] | None:
    """Return timm's function that renames published tensors of a family, or None where it has none."""
    module = sys.modules[type(net).__module__]
    for name in FILTERS:
        if hasattr(module, name):
            return getattr(module, name)
    return None


def num_classes_of(net: nn.Module, state: State) -> int:
    """Return the number of classes of tensors under the names of timm's module: 0 where they have no head."""
    for name in _classifier_names(net):
        if name in state:
            return state[name].shape[0]
    return 0


def _classifier_names(net: nn.Module) -> list[str]:
    """Return the names of the tensors whose first side is the number of classes."""
    layers = net.pretrained_cfg.get("classifier") or ()
    if isinstance(layers, str):
        layers = (layers,)
    names = []
    for layer in layers:
        names += [f"{layer}.weight", f"{layer}.bias"]
    return names


def check_fit(net: nn.Module, state: State, where: str | Path) -> State:
    """Check that the tensors are exactly those of the module.

    Args:
        net: timm's module; its tensors may be on the meta device.
        state: the tensors.
        where: the weights in messages.

    Returns:
        The tensors in memory of their own, fractions as float32.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape.
    """
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in wanted]
    misfitting = []
    for name in wanted.keys() & state.keys():
        if state[name].shape != wanted[name].shape:
            sizes = f"{tuple(state[name].shape)} in the file, {tuple(wanted[name].shape)} in the model"
            misfitting.append(f"{name} is {sizes}")
    problems = {"missing": missing, "unexpected": unexpected, "misfitting": misfitting}
    complaints = [f"{len(found)} {problem} ({_some(found)})" for problem, found in problems.items() if found]
    if complaints:
        raise ModelError(f"{where} does not fit the model: {'; '.join(complaints)}")
    return {name: _own(state.get(name, torch.tensor(0))) for name in wanted}


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED_KEYS
    return ", ".join(sorted(names)[:NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that shares no memory with others, as safetensors needs it; fractions as float32."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor
