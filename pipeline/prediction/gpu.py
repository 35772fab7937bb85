"""Find the GPU of this process, and say what its errors mean and what to do when it cannot be used."""

import platform
import re

import torch

from wordsworth.pipeline.errors import UserError

GiB = 1 << 30  # bytes
# What libraries say in place of torch.OutOfMemoryError when they find no memory for themselves.
NO_MEMORY = re.compile(
    r"out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|"
    r"CUDNN_STATUS_ALLOC_FAILED|HIP_STATUS_ALLOC_FAILED"
)


class DeviceLost(Exception):
    """Report that a GPU answers nothing any more in this process. A new process may find it well again."""


def find_gpu() -> torch.device:
    """Return torch's device for the GPU that Ray has given to this process.

    The device is what torch calls its accelerator: CUDA, ROCm under the name of CUDA, or the backend of
    another vendor.

    Raises:
        UserError: torch has no GPU here, or cannot compute on it; with the node and what to do.
    """
    device = torch.accelerator.current_accelerator()
    if device is None:
        raise UserError(
            f"{node()}: Ray has a GPU here, but this torch ({torch.__version__}) is built without CUDA: "
            "install a CUDA build of torch on that node, or use --device cpu"
        )
    module = torch.get_device_module(device)
    try:
        if not torch.accelerator.is_available():
            module.init()  # it raises what is wrong
            raise RuntimeError("no device is visible to this process")
        torch.ones(1, device=device).add(1).cpu()  # a GPU that is too old fails at its first kernel
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{node()}: the GPU that Ray has here has no memory left ({reason(error)}): "
                "end the processes that hold it (nvidia-smi lists them), or use --device cpu"
            ) from error
        raise UserError(
            f"{node()}: torch {torch.__version__} cannot use the GPU that Ray has here ({reason(error)}): "
            "update its driver, install a build of torch for it, or use --device cpu"
        ) from error
    return device


def own_gpus() -> int:
    """Count the GPUs of this machine that torch can use."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def compute_in(precision: str, device: torch.device) -> None:
    """Make "fp32" mean float32 on a GPU, for the whole process: torch would round convolutions to TF32."""
    if device.type == "cuda" and precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False


def node() -> str:
    """Return the name of this machine for a message."""
    return f"node {platform.node()}"


def gpu_name(device: torch.device) -> str:
    """Return the name of a device and its node for a message, such as "NVIDIA H200 on node a1"."""
    if device.type == "cpu":
        return f"CPU on {node()}"
    return f"{torch.get_device_module(device).get_device_name()} on {node()}"


def memory_of(device: torch.device) -> tuple[float, float, float]:
    """Return GiB of a device's memory: free, in all, and held by this process."""
    module = torch.get_device_module(device)
    free, total = module.mem_get_info()
    return free / GiB, total / GiB, module.memory_reserved() / GiB


def reason(error: BaseException) -> str:
    """Return an error in a few words: the first line of the first error of a chain of consequences."""
    # A capture that ends because of an error raises another one.
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[0][:200]}"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory was too small: by the error itself, or by an error that led to this one."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def answers(device: torch.device) -> bool:
    """Tell whether a device still computes: after an error that stays, every later call raises it again."""
    if device.type == "cpu":
        return True
    try:
        torch.get_device_module(device).synchronize()
        torch.ones(1, device=device).add(1).cpu()
    except Exception as error:
        return is_out_of_memory(error)  # a device without memory is not lost
    return True
