"""Attention with strided position terms against the reference in float64: values and all gradients."""

import pytest
import torch
from attention_problems import arguments, layout

from kernels.attention.reference import disentangled_attention as reference
from kernels.attention.strided import disentangled_attention

SHAPES = {  # heads, width of a head, lengths
    "one token": (1, 4, [1]),
    "equal lengths": (3, 8, [16, 16]),
    "awkward": (2, 5, [37, 1, 19]),
    "long": (1, 3, [97]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_reference(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    sizes = SHAPES[shape]
    ours = [x.to(dtype).clone(memory_format=torch.preserve_format) for x in arguments(*sizes, torch.float64)]
    exact = arguments(*sizes, torch.float64)
    for x in (*ours, *exact):
        x.requires_grad_()
    out = disentangled_attention(*ours, *layout(sizes[2]))
    expected = reference(*exact, *layout(sizes[2]))
    assert (out - expected).abs().max() <= tolerance * 10
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight.to(dtype)).sum().backward()
    (expected * weight).sum().backward()
    for own, true in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert true.grad is not None
        worst_row = (own.grad - true.grad).norm(dim=-1).max()
        assert worst_row <= tolerance * (1 + true.grad.norm(dim=-1).max())
