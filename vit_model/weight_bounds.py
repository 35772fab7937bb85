"""Judge files of weights before their tensors are made: a small file must not take much memory."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wordsworth.vit_model.config import ModelError

MOST_TIMES = 50  # by which the content of an archive may be larger than the archive
ALWAYS_BYTES = 64 << 20  # of content that any archive may have
MOST_PARAMETERS = 3  # a model built for a file may have so many times the numbers of the file
ALWAYS_NUMBERS = 64 << 20
AGAIN = "the file is damaged, or made to fill the memory"


def check_archive(path: Path) -> None:
    """Check that an archive (.npz, or torch's) does not inflate to a multiple of its size.

    Raises:
        ModelError: it does, or an array claims more bytes than its member has.
    """
    if not zipfile.is_zipfile(path):
        return
    most = _most_bytes(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        num_bytes = sum(member.file_size for member in members)
        if num_bytes > most:
            raise ModelError(
                f"{path} has {path.stat().st_size:,} bytes and would inflate to {num_bytes:,}: {AGAIN}"
            )
        for member in members:
            if member.filename.endswith(".npy"):
                _check_array(archive, member, path)


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Check that an array's header claims no more than its member holds."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > member.file_size and not dtype.hasobject:
        raise ModelError(
            f"{path}: {member.filename} claims {num_bytes:,} bytes and has {member.file_size:,}: {AGAIN}"
        )


def check_views(content: Any, path: Path) -> None:
    """Check that tensors are no larger than what the file holds: a view may repeat one number without end.

    Args:
        content: tensors by name, or dictionaries of these by name.
        path: the file.

    Raises:
        ModelError: the tensors would take a multiple of the file's size.
    """
    num_bytes = 0
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor) and not value.is_meta and value.layout == torch.strided:
            num_bytes += value.numel() * value.element_size()
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values()
    if num_bytes > _most_bytes(path):
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes, and its tensors would take {num_bytes:,}: {AGAIN}"
        )


def _most_bytes(path: Path) -> int:
    return ALWAYS_BYTES + MOST_TIMES * path.stat().st_size


def check_model_size(net: nn.Module, num_numbers: int, where: object) -> None:
    """Check that a model is of about the size of the weights that it is to have, before it takes memory.

    Args:
        net: the model on torch's meta device.
        num_numbers: of all tensors of the file.
        where: the file, in messages.

    Raises:
        ModelError: the model is far larger: its config is of another model.
    """
    wanted = sum(tensor.numel() for tensor in (*net.parameters(), *net.buffers()))
    if wanted > ALWAYS_NUMBERS + MOST_PARAMETERS * num_numbers:
        raise ModelError(
            f"{where} holds {num_numbers:,} numbers, and the config describes a model of {wanted:,}: "
            "they are not of one model"
        )


def count_numbers(content: Any) -> int:
    """Return the numbers in all tensors of a file, as `weights.read_content` gives it."""
    if isinstance(content, torch.Tensor):
        return content.numel()
    if isinstance(content, dict):
        return sum(map(count_numbers, content.values()))
    return 0
