"""Imitate a GPU in Python: what CUDA promises and does not promise, on a CPU.

Torch loads this file as it loads any vendor's backend (entry points of the group `torch.backends`). So the
product sees an accelerator and knows nothing of a test. Tensors of the device "standin" hold CPU tensors. An
operation is not computed when it is called: it joins the queue of the current stream. The queues run when
somebody waits, in an order that only streams, events and the policy decide. Three mistakes then give wrong
numbers every time, and not once a month: a value that is read before the wait, a buffer that is filled again
too early, and a stream that does not wait for another stream.

The file imitates:

* streams, events, `wait_stream`, a current stream for every thread, blocking and asynchronous copies (only
  pinned memory is asynchronous; pageable memory is read at once, as CUDA stages it).
* memory: above a bound, an allocation raises torch.OutOfMemoryError; freed memory is overwritten at that
  place of its stream, since another tensor may have it then.
* graphs: a captured operation is recorded and not run; a replay repeats it on the same memory; a replay
  overwrites the outputs of graphs captured after it into the same pool, which may lie where its intermediates
  lie; operations that CUDA forbids during a capture are refused.
* a device that is lost: from then on every call raises torch.AcceleratorError, until the process ends.

The file does not imitate kernels that run at the same time, clocks, bf16 units, several devices, or NCCL.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.support.standin.queues import DEVICE, Block, Event, Faults, Graph, Stream, graph, using

NAME = "standin"
SYNCHRONOUS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
}  # their results decide shapes or branches
WHOLE = {"linear", "scaled_dot_product_attention"}  # computed as a CPU computes them, to the last bit


class Tensor(torch.Tensor):
    """Hold a tensor of the device."""

    @staticmethod
    def __new__(cls, raw: torch.Tensor, block: Block) -> "Tensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, raw: torch.Tensor, block: Block):
        self.raw, self.block = raw, block

    def __repr__(self) -> str:
        return f"standin.Tensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _dispatched(func, args, kwargs or {})


def _dispatched(func: Any, args: tuple, kwargs: dict) -> Any:
    DEVICE.check()
    name = func._schema.name.removeprefix("aten::")
    if name not in WHOLE and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    ):
        found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if name == "copy_":
        return _copied(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if name == "_to_copy":
        return _converted(args[0], **kwargs)
    if name in SYNCHRONOUS:
        DEVICE.stream.synchronize()
        return _wrapped(func(*_raw(args), **_raw(kwargs)))
    if func.is_view:
        return _viewed(func, args, kwargs)
    return _computed(func, args, kwargs)


def _raw(tree: Any) -> Any:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.raw
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    return tree_map(one, tree)


def _wrapped(tree: Any) -> Any:
    return tree_map(
        lambda value: Tensor(value, DEVICE.allocate(value)) if isinstance(value, torch.Tensor) else value,
        tree,
    )


def _viewed(func: Any, args: tuple, kwargs: dict) -> Any:
    base = next(value for value in args if isinstance(value, Tensor))
    found = func(*_raw(args), **_raw(kwargs))
    with torch.inference_mode(base.is_inference()):  # a view is of the kind of its base
        return tree_map(lambda raw: Tensor(raw, base.block) if isinstance(raw, torch.Tensor) else raw, found)


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """Queue an operation: its results have memory at once and values later."""
    raw_args, raw_kwargs = _raw(args), _raw(kwargs)
    flat, tree = tree_flatten((raw_args, raw_kwargs))
    changed = [_argument(func, number, args, kwargs) for number in _changed(func)]
    if changed:  # in place: no new memory
        DEVICE.enqueue(partial(_run, func, flat, tree, None))
        flat_changed = [
            one for value in changed for one in (value if isinstance(value, (list, tuple)) else [value])
        ]
        return (
            None
            if not func._schema.returns
            else (flat_changed[0] if len(changed) == 1 else tuple(flat_changed))
        )
    key = (func, tree, *map(_shape, flat))
    if key not in _layouts:
        found = func(*tree_map(_zeros, raw_args), **tree_map(_zeros, raw_kwargs))
        _layouts[key] = tree_map(_shape, found)
    empty = tree_map(
        lambda shape: (
            torch.empty_strided(*shape[1:3], dtype=shape[3])
            if isinstance(shape, tuple) and shape[:1] == ("tensor",)
            else shape
        ),
        _layouts[key],
        is_leaf=lambda value: isinstance(value, tuple) and value[:1] == ("tensor",),
    )
    outputs = _wrapped(empty)
    DEVICE.enqueue(partial(_run, func, flat, tree, empty))
    return outputs


def _run(func: Any, flat: list, tree: Any, into: Any) -> None:
    args, kwargs = tree_unflatten(flat, tree)
    with (
        torch.inference_mode(torch.is_inference_mode_enabled()),
        torch.no_grad(),
        torch._C._DisableTorchDispatch(),
    ):
        found = func(*args, **kwargs)
        if into is not None:
            for target, value in zip(tree_flatten(into)[0], tree_flatten(found)[0], strict=True):
                if isinstance(target, torch.Tensor):
                    target.copy_(value)


_layouts: dict[Any, Any] = {}  # what an operation gives, by what it is given: shapes, strides and types


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), tuple(value.stride()), value.dtype)
    return value


def _zeros(value: Any) -> Any:
    return (
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).zero_()
        if isinstance(value, torch.Tensor)
        else value
    )


def _changed(func: Any) -> list[int]:
    arguments = func._schema.arguments
    return [
        number
        for number, one in enumerate(arguments)
        if one.alias_info is not None and one.alias_info.is_write
    ]


def _argument(func: Any, number: int, args: tuple, kwargs: dict) -> Any:
    return args[number] if number < len(args) else kwargs[func._schema.arguments[number].name]


def _copied(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    """Run copy_: on the device in order; to and from pinned memory later, if asked for; pageable memory is
    read or written before the call returns."""
    into, of = _raw(target), _raw(source)
    host = target if not isinstance(target, Tensor) else source if not isinstance(source, Tensor) else None
    later = host is None or (non_blocking and _is_pinned(host))
    if host is source and not later:
        if DEVICE.graph is not None:
            DEVICE.wait()
        of = of.clone()
    DEVICE.enqueue(lambda: into.copy_(of))
    if host is target and not later:
        DEVICE.stream.synchronize()
    return target


def _converted(source: torch.Tensor, **asked: Any) -> torch.Tensor:
    """Run _to_copy: another type, another device."""
    device, dtype = asked.get("device") or torch.device(NAME), asked.get("dtype") or source.dtype
    like = torch.empty_like(
        _raw(source), dtype=dtype, memory_format=asked.get("memory_format") or torch.preserve_format
    )
    return _copied(
        _wrapped(like) if torch.device(device).type == NAME else like,
        source,
        asked.get("non_blocking", False),
    )


# ---- pinned memory -----------------------------------------------------------------------------------------

_pinned: dict[int, int] = {}  # addresses of pinned memory and its bytes; they live as long as the process


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    storage = tensor.untyped_storage()
    return _pinned.get(storage.data_ptr()) == storage.nbytes() and storage.nbytes() > 0


def _pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    DEVICE.check()
    if DEVICE.graph is not None:
        DEVICE.wait()
    if DEVICE.faults.pinning_fails:
        raise RuntimeError("standin error: resource already mapped")
    made = tensor.clone()
    storage = made.untyped_storage()
    _pinned[storage.data_ptr()] = storage.nbytes()
    _kept.append(made)
    return made


_kept: list[torch.Tensor] = []  # or another tensor would come to lie at an address that is called pinned


# ---- what torch and the product ask of a backend -----------------------------------------------------------


def look() -> None:
    """Read the faults anew, in a process that knows their file and does not use the device yet."""
    import ray  # here: torch, which loads this, comes first

    if "STANDIN" in os.environ and not DEVICE.allocated:
        faults = Faults(**json.loads(Path(os.environ["STANDIN"]).read_text()))
        if ray.is_initialized():
            faults.node = ray.get_runtime_context().get_node_id()
        if not faults.to_actors and ray.get_runtime_context().get_actor_id():
            faults.present = False
        DEVICE.reset(faults)


class Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return DEVICE.faults.present

    def has_primary_context(self, device_index: int) -> bool:
        return DEVICE.faults.present

    def is_built(self) -> bool:
        return True


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _wrapped(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _wrapped(torch.empty_strided(size, stride, dtype=dtype))


LOWER = (
    "linear",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
    "conv2d",
    "scaled_dot_product_attention",
)  # in autocast's own type
FLOAT32 = (
    "layer_norm",
    "softmax.int",
    "log_softmax.int",
    "cross_entropy_loss",
)  # as autocast has them on CUDA


def _autocast(name: str, dtype: torch.dtype | None) -> Callable[..., Any]:
    """Run an operation on arguments that were cast to `dtype`, or to the type of the autocast block."""
    operation = getattr(torch.ops.aten, name.partition(".")[0])

    def cast(*args: Any, **kwargs: Any) -> Any:
        to = dtype or torch.get_autocast_dtype(NAME)

        def one(value: Any) -> Any:
            return value.to(to) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        with torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        ):
            return operation(*tree_map(one, args), **tree_map(one, kwargs))

    return cast


class Module(ModuleType):
    """Stand for torch.standin."""

    Stream, Event, CUDAGraph, graph = Stream, Event, Graph, graph
    stream = staticmethod(using)

    def current_stream(self, device: Any = None) -> Stream:
        return DEVICE.stream

    def synchronize(self, device: Any = None) -> None:
        DEVICE.synchronize()

    def is_available(self) -> bool:
        look()  # whoever wants the device asks this first
        return DEVICE.faults.present

    def init(self) -> None:
        DEVICE.check()

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return int(DEVICE.faults.present)

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        DEVICE.check()

    def get_device_name(self, device: Any = None) -> str:
        return "Stand-in GPU"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return DEVICE.faults.memory - DEVICE.allocated, 1 << 34

    def memory_reserved(self, device: Any = None) -> int:
        return DEVICE.allocated

    def empty_cache(self) -> None:
        DEVICE.check()

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return DEVICE.faults.bf16

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


_libraries: list[torch.library.Library] = []  # what they register ends with them


def register() -> None:
    """Register the device, as torch.backends' entry point; a second call does nothing."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module(f"torch.{NAME}"), Hooks())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl(
        "_copy_from",
        lambda source, target, non_blocking=False: _copied(target, source, non_blocking),
        "PrivateUse1",
    )
    library.impl("_pin_memory", _pin, "CPU")
    library.impl("is_pinned", _is_pinned, "CPU")
    for name in LOWER:
        library.impl(name, _autocast(name, None), "AutocastPrivateUse1")
    for name in FLOAT32:
        library.impl(name, _autocast(name, torch.float32), "AutocastPrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend((library, others))
