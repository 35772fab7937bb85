"""Load the stand-in device in this process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.support.standin import gpu
from tests.support.standin.queues import DEVICE, Faults

POLICIES = ("late", "copies", "1", "2", "3")  # orders in which queues run; the last three are random


@contextlib.contextmanager
def standin(**faults: Any) -> Iterator[torch.device]:
    """Give the device with these faults; afterwards torch has no device again."""
    gpu.register()
    DEVICE.reset(Faults(**faults))
    try:
        yield torch.device(gpu.NAME)
    finally:
        DEVICE.reset(Faults(present=False))
