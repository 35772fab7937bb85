"""Apply activation checkpointing, compilation and sharding to a model, for more devices and larger models.

The code of the model knows none of the three: names of parameters and keys of the state dict stay. The order
is fixed, as in torchtitan: recomputed blocks are compiled, compiled blocks are sharded.
"""

from types import MethodType

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from wordsworth.vit_model.config import ModelError, check_choice
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
    """Change `model` in place and return the model.

    Make the optimizer afterwards: sharding replaces the parameters. Call a sharded model as a whole,
    `model(x)`: that call gathers the weights.

    Args:
        model: anything that holds encoder blocks, such as an objective, on its device.
        activation_checkpointing: keep only the input of every block and compute the rest again in the
            backward pass.
        compile: compile every block by itself, so that one small graph serves all blocks. This raises
            dynamo's limit of graphs for the whole process, because each rate of drop path may need its own
            graph.
        backend: of torch.compile.
        mesh: shard parameters, gradients and optimizer state over these processes, block by block. A process
            then sees its own part of the batch, and gradients are averaged. None: one process.
        precision: "fp32" or "bf16". "bf16" needs a mesh: it computes in bfloat16 on float32 parameters,
            reduces gradients in float32 and gives logits in float32. Without a mesh, the caller uses
            autocast.

    Raises:
        ModelError: an unknown precision, or "bf16" without a mesh.
    """
    _check_precision(precision, mesh)
    if activation_checkpointing:
        for block in _blocks(model):
            # Not a wrapper module, which would rename the parameters.
            block.forward = MethodType(_recomputed, block)  # type: ignore[method-assign]  # replaced on purpose
    if compile:
        _compile_blocks(_blocks(model), backend)
    if mesh is not None:
        _shard(model, mesh, PARAM_DTYPES[precision])
    return model


def _check_precision(precision: str, mesh: DeviceMesh | None) -> None:
    check_choice("precision", precision, PARAM_DTYPES)
    if mesh is None and precision != "fp32":
        advice = "in one process use torch.autocast"
        raise ModelError(f"precision {precision!r} is a policy of sharding and needs a mesh; {advice}")


def _blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def _recomputed(block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """Run the forward of a block and keep only the inputs for the backward pass."""
    return checkpoint(type(block).forward, block, *args, use_reentrant=False)


def _compile_blocks(blocks: list[Block], backend: str) -> None:
    """Compile every block by itself.

    Blocks that differ in a constant share no graph. With `fullgraph`, dynamo's limit would make the ninth
    graph an error.
    """
    config = torch._dynamo.config
    graphs = 4 * len(blocks)  # for each block: in training or not, with gradients or not
    config.recompile_limit = max(config.recompile_limit, graphs)
    for block in blocks:
        block.compile(backend=backend, fullgraph=True)


def _shard(model: nn.Module, mesh: DeviceMesh, param_dtype: torch.dtype | None) -> None:
    """Shard by FSDP2: every block by itself, then the root with the rest.

    Only the output of the root becomes float32.
    """
    reduce_dtype = None if param_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype, reduce_dtype)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root_policy = MixedPrecisionPolicy(param_dtype, reduce_dtype, output_dtype=reduce_dtype)
    fully_shard(model, mesh=mesh, mp_policy=root_policy)


def gathered_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the whole state dict on the CPU, as a plain model has it. Every process of the mesh calls this.

    Returns:
        The state dict. For a sharded model only the first process gets it, and every other process an empty
        dict.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
