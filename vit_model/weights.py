"""Read files of tensors, and check tensors against a config. Nothing is ever unpickled as code."""

import pickle
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.model import VisionTransformer

State = dict[str, torch.Tensor]
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
# The errors of the readers for bytes that are no tensors.
UNREADABLE = (
    SafetensorError,
    BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
NAMED_KEYS = 3  # keys that a message names; the message counts the rest


def load_weights(path: str | Path) -> State:
    """Read a file of tensors. Names stay as they are in the file.

    A .npz is read without pickles; a .pth, .pt or .bin is read by torch with `weights_only`, and a {"model":
    ...} or {"state_dict": ...} around the tensors is taken off.

    Raises:
        ModelError: there is no such file, its format is another one, or the file holds anything but named
            tensors.
    """
    path = Path(path)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(f"{path}: weights must be a file that ends in {', '.join(WEIGHT_SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        state = _read_tensors(path)
    except RuntimeError as error:
        if "TorchScript" in str(error):
            advice = "which holds code; save its state_dict alone"
            raise ModelError(f"{path} is a TorchScript archive, {advice}") from error
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is not a torch file, and was not opened; "
            "save its state_dict alone (safetensors is best)"
        ) from error
    except UNREADABLE as error:
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ModelError(f"{path} is not a dictionary of named tensors; save the model's state_dict alone")
    return state


def _read_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a TorchScript archive, which is refused anyway
        state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            return state[wrapper]
    return state


def _read_npz(path: Path) -> State:
    """Read the arrays of an .npz. numpy refuses pickled objects with a ValueError."""
    state = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            # JAX stores bfloat16 as two bytes without a type.
            if array.dtype.kind == "V" and array.dtype.itemsize == 2:
                state[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                state[name] = torch.from_numpy(array)
    return state


def check_weights(
    config: ViTConfig, state: State, where: str | Path, called: Callable[[str], str] = str
) -> State:
    """Check that the tensors are exactly those of a model with this config.

    Args:
        config: the model.
        state: the tensors, under our names.
        where: name of the weights in a message.
        called: from our name of a missing tensor to its name in the file.

    Returns:
        The tensors as float32, in the order of the model.

    Raises:
        ModelError: tensors are missing, unexpected or of another shape. Nothing is dropped silently.
    """
    with torch.device("meta"):
        model = VisionTransformer(config).state_dict()
    missing = [called(key) for key in model if key not in state]
    unexpected = [key for key in state if key not in model]
    misfits = [_misfit(key, state[key], model[key]) for key in model if key in state]
    complaints = [
        *_count_keys("missing", missing),
        *_count_keys("unexpected", unexpected),
        *_count_keys("misfitting", [misfit for misfit in misfits if misfit]),
    ]
    if complaints:
        raise ModelError(f"{where} does not fit the model: {'; '.join(complaints)}")
    return {key: state[key].float() for key in model}


def _misfit(key: str, found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """Return what is wrong with a tensor, or None."""
    if found.shape != wanted.shape:
        return f"{key} is {tuple(found.shape)} in the file, {tuple(wanted.shape)} in the model"
    if not found.is_floating_point():
        return f"{key} is {found.dtype} in the file, not a float"
    return None


def _count_keys(problem: str, keys: list[str]) -> list[str]:
    """Return one complaint that counts the keys and names the first ones, or none."""
    if not keys:
        return []
    rest = len(keys) - NAMED_KEYS
    more = f" and {rest} more" if rest > 0 else ""
    return [f"{len(keys)} {problem} ({', '.join(keys[:NAMED_KEYS])}{more})"]


def first_line(error: Exception) -> str:
    """Return an error as one line. A ModelError is one line already."""
    if isinstance(error, ModelError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
