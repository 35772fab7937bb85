"""Training on more and larger: activation checkpointing, compilation and sharding, applied to a model from outside.

The model knows nothing of it: names of parameters and keys of the state dict stay what they are. The order is fixed, as in
torchtitan: what is recomputed is compiled, what is compiled is sharded.
"""

from types import MethodType

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.encoder import Block

PARAM_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def parallelize(
    model: nn.Module,
    *,
    activation_checkpointing: bool = False,
    compile: bool = False,
    backend: str = "inductor",
    mesh: DeviceMesh | None = None,
    precision: str = "fp32",
) -> nn.Module:
    """Change `model` in place and return it. Make the optimizer afterwards: sharding replaces the parameters.

    A sharded model is to be called as a whole, `model(x)`: the gathering of weights hangs on that call.

    Args:
        model: anything that holds encoder blocks, such as an objective, on its device.
        activation_checkpointing: keep only the input of every block and compute the rest again in the backward pass.
        compile: compile every block by itself: one small graph serves them all. Raises dynamo's limit of graphs for the
            whole process, because rates of drop path may need a graph each.
        backend: of torch.compile.
        mesh: shard parameters, gradients and optimizer state over these processes, block by block; a process then sees
            its own part of the batch, and gradients are averaged. None: one process.
        precision: with a mesh: "bf16" computes in bfloat16 on float32 parameters, reduces gradients and gives logits in
            float32. Without one, autocast is the caller's.

    Raises:
        ModelError: an unknown precision, or one that needs a mesh.
    """
    if precision not in PARAM_DTYPES:
        raise ModelError(f"precision is {precision!r}; it must be one of {', '.join(PARAM_DTYPES)}")
    if mesh is None and precision != "fp32":
        raise ModelError(
            f"precision {precision!r} is a policy of sharding and needs a mesh; in one process use torch.autocast"
        )
    if activation_checkpointing:
        for block in _blocks(model):
            block.forward = MethodType(_recomputed, block)  # a wrapper module would rename the parameters
    if compile:
        _compile_blocks(_blocks(model), backend)
    if mesh is not None:
        _shard(model, mesh, PARAM_DTYPES[precision])
    return model


def _blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def _recomputed(block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """The block's own forward; of it, only the inputs are kept for the backward pass."""
    return checkpoint(type(block).forward, block, *args, use_reentrant=False)


def _compile_blocks(blocks: list[Block], backend: str) -> None:
    """Blocks that differ in a constant can share no graph, and with `fullgraph` the ninth would be an error."""
    config = torch._dynamo.config
    config.recompile_limit = max(
        config.recompile_limit, 4 * len(blocks)
    )  # training or not, with gradients or not
    for block in blocks:
        block.compile(backend=backend, fullgraph=True)


def _shard(model: nn.Module, mesh: DeviceMesh, param_dtype: torch.dtype | None) -> None:
    """FSDP2: a unit a block, and the root with all the rest; only the root's output goes back to float32."""
    reduce_dtype = param_dtype and torch.float32
    policy = MixedPrecisionPolicy(param_dtype, reduce_dtype)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(
        model, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype, reduce_dtype, output_dtype=reduce_dtype)
    )


def gathered_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU, as the plain model would give it; every process of the mesh must call this.

    Returns:
        Of a sharded model the first process gets it, the others an empty dict.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
