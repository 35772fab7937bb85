import math

import pytest
import torch
from timm.layers import GELUTanh, QuickGELU
from torch import nn

from wordsworth.vit_model.encoder import GELU_FUNCTIONS, Attention, Block


def test_attention_is_equations_5_to_8_written_head_by_head(tiny, randomised):
    attention = randomised(Attention(tiny)).double()
    z = torch.randn(3, 7, tiny.width, dtype=torch.float64)
    U = attention.qkv.weight.reshape(3, tiny.heads, -1, tiny.width)  # (q k v, heads, D_h, D)
    b = attention.qkv.bias.reshape(3, tiny.heads, -1)
    heads = []
    for head in range(tiny.heads):
        q, k, v = (z @ U[i, head].T + b[i, head] for i in range(3))
        A = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(tiny.width // tiny.heads), dim=-1)
        heads.append(A @ v)
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(z), expected, rtol=0, atol=1e-12)


def test_a_block_normalises_first_and_adds_twice(tiny, randomised):
    block = randomised(Block(tiny))
    z = torch.randn(2, 5, tiny.width)
    z1 = block.attn(block.norm1(z)) + z
    torch.testing.assert_close(block(z), block.mlp(block.norm2(z1)) + z1)


@pytest.mark.parametrize(
    ("name", "reference"), [("exact", nn.GELU()), ("tanh", GELUTanh()), ("quick", QuickGELU())]
)
def test_each_gelu_is_the_one_it_is_named_after(name, reference):
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(GELU_FUNCTIONS[name](x), reference(x), rtol=0, atol=1e-14)
    others = [GELU_FUNCTIONS[other](x) for other in GELU_FUNCTIONS if other != name]
    assert all((reference(x) - other).abs().max() > 1e-4 for other in others)
