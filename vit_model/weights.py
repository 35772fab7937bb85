"""Read files of tensors, and check tensors against a config. No code of a file is ever run."""

import pickle
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
from wordsworth.vit_model.file_kinds import WEIGHT_SUFFIXES, kind_by_content, kind_by_name
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.torch_file import read_torch
from wordsworth.vit_model.weight_bounds import check_archive, check_views
from wordsworth.vit_model.weight_sets import State, Weights, choose_weights

__all__ = ["State", "Weights", "check_weights", "first_line", "load_weights", "read_content"]

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
    RuntimeError,
)
NAMED_KEYS = 3  # keys that a message names; the message counts the rest


def load_weights(path: str | Path, key: str | None = None) -> Weights:
    """Read a file of tensors. Names and types stay as they are in the file.

    A .npz is read without pickles; torch's own files run no code. Of several sets of tensors, as a training
    saves them, one is taken: the averaged weights where there are any, as timm does.

    Args:
        path: the file.
        key: the set of tensors to take, such as "state_dict"; or the beginning of the names to take.

    Raises:
        ModelError: there is no such file or key, its format is another one, or the file holds no named
            tensors.
    """
    return choose_weights(read_content(path), key, path)


def read_content(path: str | Path) -> Any:
    """Read all that a file of tensors holds: mostly tensors by name, or dictionaries of these by name.

    Every file of weights is opened here, also those that another library could open itself: what that library
    runs or refuses is then no matter.

    Raises:
        ModelError: there is no such file, or its format is another one.
    """
    path = Path(path)
    kind = kind_by_name(path.name)
    if kind:
        raise ModelError(f"{path} {kind}")
    if not path.name.endswith(WEIGHT_SUFFIXES):
        raise ModelError(f"{path}: weights must be a file that ends in {', '.join(WEIGHT_SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    kind = kind_by_content(path)
    if kind:
        raise ModelError(f"{path} {kind}")
    try:
        check_archive(path)
        content = _read_tensors(path)
        check_views(content, path)
        return content
    except MemoryError as error:
        raise ModelError(f"{path} takes more memory than this process may have") from error
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is not a torch file, and was not opened; "
            "save its state_dict alone (safetensors is best)"
        ) from error
    except UNREADABLE as error:
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from error


def _read_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return read_torch(path)


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


def check_numbers(state: State, where: str | Path) -> None:
    """Check that no tensor holds NaN: every score would be NaN, and no message would say so.

    Raises:
        ModelError: a tensor does.
    """
    names = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.isnan().any()]
    if names:
        raise ModelError(
            f"{where} holds NaN in {len(names)} tensors, {names[0]} first: "
            "its training diverged, or the file is damaged; take an earlier checkpoint"
        )


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
