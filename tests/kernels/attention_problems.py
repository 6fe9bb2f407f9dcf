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
    """qkv (T, H, 3, E), rel_k and rel_q (R, H, E)."""
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), num_heads, 3, head_width, generator=generator, dtype=torch.float64)
    shape = (2, 2 * max(lengths), num_heads, head_width)
    tables = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [x.to(device, dtype) for x in (qkv, *tables)]
