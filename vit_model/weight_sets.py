"""Find the sets of named tensors in a checkpoint, and choose one: the averaged weights before the others."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.torch_file import StandIn

State = dict[str, torch.Tensor]
Sets = Mapping[str, Mapping[str, Any]]  # by dotted path

# Names of sets that trainers write, in the order in which they are taken. An average of the weights comes
# first, as in timm's loader; the teacher of DINO and iBOT and I-JEPA's target encoder are such averages.
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "teacher",
    "target_encoder",
)
PLAIN = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "student",
)
# A part of a name behind which the weights are averages of those behind another.
AVERAGED_PART = re.compile(r"(teacher|ema|target_encoder|averaged)(_.*)?|.*_ema(_.*)?")
# Parts of a checkpoint that hold no weights, by the beginning of their names.
NOT_WEIGHTS = ("optim", "opt_", "lr_", "sched", "scaler", "amp", "grad", "loops", "rng")
MAX_DEPTH = 5  # dictionaries in dictionaries
MAX_MODULES = 100_000  # of a model that was saved whole: a forged one may hold itself
MAX_MODULE_DEPTH = 50  # modules in modules
NAMED_SETS = 6  # sets that a message names


class Weights(State):
    """Hold the tensors of a file under its own names.

    Attributes:
        key: the set of tensors in a file with several, as --weights-key names it; None in a file with one.
        others: the keys of the other sets.
    """

    key: str | None = None
    others: tuple[str, ...] = ()


def choose_weights(content: Any, key: str | None, where: object) -> Weights:
    """Return one set of tensors of a checkpoint.

    Args:
        content: what the file holds: tensors by name, dictionaries of these, whole modules as stand-ins.
        key: the set that the user names: a dotted path, whose last parts may be the beginning of the names
            of tensors. None leaves the choice to us.
        where: the file in messages.

    Raises:
        ModelError: no such key, no tensors, or several sets of which none is known to be the model's.
    """
    found = dict(_sets(content, "", set()))
    if not found:
        raise ModelError(f"{where} is not a dictionary of named tensors; save the model's state_dict alone")
    chosen = _default_key(found) if key is None else _asked_key(found, key, where)
    if chosen is None:
        raise ModelError(
            f"{where} holds several sets of tensors: {_listed(found)}; --weights-key KEY takes one of them"
        )
    weights = Weights(chosen.tensors(found))
    _check_plain(weights, where)
    tensors = Weights(
        (name, tensor.detach()) for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)
    )
    others = tuple(name for name in found if name != chosen.path)
    if key is not None or others:
        tensors.key = str(chosen) or None
        tensors.others = others
    return tensors


@dataclass(frozen=True)
class _Key:
    """Name a set of tensors.

    Attributes:
        path: of the dictionary, dotted.
        prefix: beginning of the names of the tensors in it; "" for all of them.
    """

    path: str
    prefix: str = ""

    def __str__(self) -> str:
        return ".".join(part for part in (self.path, self.prefix.rstrip(".")) if part)

    def tensors(self, found: Sets) -> dict[str, Any]:
        """Return the set without the prefix of its names."""
        named = {}
        for name, value in found[self.path].items():
            if isinstance(name, str) and name.startswith(self.prefix):
                named[name.removeprefix(self.prefix)] = value
        return named


def is_averaged(key: str) -> bool:
    """Tell whether a dotted key or prefix is that of averaged weights."""
    return any(AVERAGED_PART.fullmatch(part) for part in key.lower().split("."))


# ---- the sets of a file ----


def _sets(content: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every set of tensors with its dotted path.

    Args:
        content: a checkpoint, or a part of one.
        path: of the part.
        seen: identities of the parts before: a forged file may hold itself.
    """
    if isinstance(content, StandIn):
        content = module_tensors(content)
    if not isinstance(content, Mapping):
        return
    if _is_set(content):
        yield path, content
        return
    if id(content) in seen or path.count(".") >= MAX_DEPTH:
        return
    seen.add(id(content))
    for name, value in content.items():
        if isinstance(name, str) and not name.lower().startswith(NOT_WEIGHTS):
            yield from _sets(value, f"{path}.{name}" if path else name, seen)


def _is_set(content: Mapping[Any, Any]) -> bool:
    """Tell whether a dictionary holds tensors by name, and hardly anything else."""
    tensors = [isinstance(value, torch.Tensor) for value in content.values()]
    named = all(isinstance(name, str) for name in content)
    return named and any(tensors) and 2 * sum(tensors) > len(tensors)


def module_tensors(module: StandIn) -> dict[str, torch.Tensor]:
    """Return the tensors of a module that was saved whole, under the names of its state_dict."""
    tensors: dict[str, torch.Tensor] = {}
    waiting = [("", module)]
    for _ in range(MAX_MODULES):
        if not waiting:
            break
        prefix, part = waiting.pop()
        if prefix.count(".") > MAX_MODULE_DEPTH:
            continue
        parts = part.content if isinstance(part.content, dict) else {}
        hidden = parts.get("_non_persistent_buffers_set") or ()
        for name, tensor in (*_items(parts, "_parameters"), *_items(parts, "_buffers")):
            if isinstance(tensor, torch.Tensor) and name not in hidden:
                tensors[prefix + name] = tensor
        children = [(f"{prefix}{name}.", child) for name, child in _items(parts, "_modules")]
        waiting += [(name, child) for name, child in reversed(children) if isinstance(child, StandIn)]
    return tensors


def _items(parts: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    found = parts.get(name)
    return list(found.items()) if isinstance(found, dict) else []


# ---- the choice ----


def _default_key(found: Sets) -> _Key | None:
    """Return the set to take where the user names none, or None where that is not known."""
    if len(found) == 1:
        return _Key(next(iter(found)))
    largest = max(len(tensors) for tensors in found.values())
    # A handful of tensors, such as the counters of an average, is no model.
    paths = [path for path, tensors in found.items() if 4 * len(tensors) >= largest]
    for known in (*AVERAGED, *PLAIN):
        named = [path for path in paths if known in path.lower().split(".")]
        whole = [path for path in named if path.lower().rpartition(".")[2] == known]
        if len(named) == 1 or len(whole) == 1:
            return _Key((whole or named)[0])
        if named:
            return None
    return None


def _asked_key(found: Sets, key: str, where: object) -> _Key:
    """Return the set that a key of the user's names. Raises ModelError if there is none."""
    if key in found:
        return _Key(key)
    below = [path for path in found if path.startswith(f"{key}.")]
    if len(below) == 1:
        return _Key(below[0])
    fitting = []
    for path in found:
        rest = key.removeprefix(f"{path}.")
        inside = _Key(path, f"{rest}.")
        if inside.tensors(found):
            fitting.append(inside)
    default = _default_key(found)
    for inside in fitting:
        if len(fitting) == 1 or (default and inside.path == default.path):
            return inside
    raise ModelError(f"{where} has no --weights-key {key}; its keys are {_listed(found)}")


def _listed(found: Sets) -> str:
    """Return the keys that there are: the sets, or the first parts of the names where there is one set."""
    keys = [path for path in found if path]
    if not keys:
        names = next(iter(found.values()))
        keys = list(dict.fromkeys(str(name).partition(".")[0] for name in names))
    more = f" and {len(keys) - NAMED_SETS} more" if len(keys) > NAMED_SETS else ""
    return ", ".join(keys[:NAMED_SETS]) + more


def _check_plain(weights: Mapping[str, Any], where: object) -> None:
    """Raise ModelError where something is in the place of a tensor, or a tensor has no plain values."""
    for name, value in weights.items():
        kind = None
        if isinstance(value, StandIn):
            kind = value.called
        elif isinstance(value, torch.Tensor) and value.is_meta:
            kind = "a tensor of torch's meta device, which has no values"
        elif isinstance(value, torch.Tensor) and value.layout != torch.strided:
            kind = f"a tensor of the layout {value.layout}"
        if kind:
            raise ModelError(
                f"{where} holds {name} as {kind}; save the model's state_dict as plain tensors "
                "(safetensors is best)"
            )
