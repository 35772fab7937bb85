"""The stand-in device in this process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.support.standin import gpu
from tests.support.standin.queues import DEVICE, Faults

POLICIES = ("late", "copies", "1", "2", "3")  # orders in which queues run: the last three are random ones


@contextlib.contextmanager
def standin(**faults: Any) -> Iterator[torch.device]:
    """The device, with these faults; afterwards torch has none again."""
    gpu.register()
    DEVICE.reset(Faults(**faults))
    try:
        yield torch.device(gpu.NAME)
    finally:
        DEVICE.reset(Faults(present=False))
