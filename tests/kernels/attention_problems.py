"""Arguments for the tests of disentangled attention."""

import itertools

import torch
from torch import Tensor


def layout(lengths: list[int], device: str = "cpu") -> tuple[Tensor, int]:
    """cu_seqlens and max_length."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)


def arguments(
    num_heads: int, head_width: int, lengths: list[int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """q, k, v (slices of one tensor) and rel_k, rel_q (transposed), as the model passes them."""
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), num_heads, 3, head_width, generator=generator, dtype=torch.float64)
    shape = (2, 2 * max(lengths), num_heads, head_width)
    tables = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [*qkv.to(device, dtype).unbind(2), *tables.to(device, dtype).transpose(1, 2)]
