"""Compare our model with another library's: tokens, logits, loss, gradients and one optimiser step, in single
and double precision.

The other library's tensors get our names by the table under test, gradients as well as weights. So a gradient
in a wrong place is a wrong table.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from wordsworth.vit_model.foreign.translate import translate

FP32 = {"atol": 1e-5, "rtol": 1e-4}
FP64 = {"atol": 1e-12, "rtol": 0}


def images(size: tuple[int, int] = (32, 32), batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[1])


def translated(named: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the other library's gradients or weights under our names. A parameter without a gradient is
    left out."""
    known = {name: named.get(name, torch.zeros_like(tensor)) for name, tensor in like.items()}
    return translate(known, "theirs").state


def tokens_after_blocks(blocks: nn.Module, call: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs of the blocks, and of the call."""
    seen = []
    hooks = [
        b.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for b in blocks
    ]
    with torch.no_grad():
        seen.append(call())
    for hook in hooks:
        hook.remove()
    return seen


def assert_outputs(
    ours: nn.Module, theirs: nn.Module, call: Callable, blocks: Callable, size=(32, 32)
) -> None:
    """Compare the tokens after every block and the outputs, in both precisions."""
    for dtype, close in ((torch.float32, FP32), (torch.float64, FP64)):
        mine, other, x = deepcopy(ours).to(dtype), deepcopy(theirs).to(dtype), images(size).to(dtype)
        found = tokens_after_blocks(mine.blocks, lambda m=mine, x=x: m(x))
        expected = tokens_after_blocks(blocks(other), lambda o=other, x=x: call(o, x))
        assert len(found) == len(expected) > 2 and expected[-1].std() > 1e-2
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, **close)


def assert_training(ours: nn.Module, theirs: nn.Module, call: Callable, size=(32, 32)) -> None:
    """Compare loss, gradients and a step of SGD."""
    for dtype, close in ((torch.float32, FP32), (torch.float64, FP64)):
        mine, other, x = deepcopy(ours).to(dtype), deepcopy(theirs).to(dtype), images(size).to(dtype)
        losses = loss_of(mine(x)), loss_of(call(other, x))
        torch.testing.assert_close(*losses, **close)
        for loss in losses:
            loss.backward()
        like = dict({name: p.detach() for name, p in other.named_parameters()})
        gradients = dict({name: p.grad for name, p in other.named_parameters() if p.grad is not None})
        expected = translated(gradients, like)
        for name, parameter in mine.named_parameters():
            _assert_gradient(name, parameter.grad, expected[name], 1e-5 if dtype is torch.float32 else 1e-11)
        for model in (mine, other):
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        after = translated(dict({name: p.detach() for name, p in other.named_parameters()}), like)
        for name, parameter in mine.named_parameters():
            torch.testing.assert_close(
                parameter.detach(), after[name], **close, msg=lambda text, name=name: f"{name}: {text}"
            )


def _assert_gradient(name: str, found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    if name.endswith(
        ("qkv.bias", "kv.bias")
    ):  # the loss does not depend on k's bias (softmax is shift invariant): only noise
        parts = 3 if name.endswith("qkv.bias") else 2
        k = parts - 2
        torch.testing.assert_close(found.chunk(parts)[k], expected.chunk(parts)[k], atol=1e-6, rtol=0)
        found, expected = (
            torch.cat([p for i, p in enumerate(g.chunk(parts)) if i != k]) for g in (found, expected)
        )
    assert (found - expected).abs().max() <= relative * expected.abs().max() + 1e-12, name


def coarse(model: nn.Module) -> nn.Module:
    """Return weights of few digits. Sums of two such weights are exact, so folded weights can be compared
    to 1e-12."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 1024).round() / 1024)
    return model
