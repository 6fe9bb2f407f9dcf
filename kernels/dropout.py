"""Dropout whose mask takes a CPU half the time of PyTorch's, because it draws 16 random bits for an element.

PyTorch's `bernoulli_` draws 53 on processors that are not Intel's. With 16 bits the probability is a multiple
of 2^-16. The kept elements are scaled by that multiple, so that the mean is exact.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element of `x` to zero with probability `p` (0 <= p < 1, rounded to 2^-16), else divide it
    by 1 - p.

    It draws from torch's generator. On a GPU and in compiled code it is PyTorch's own dropout. Raises
    ValueError for another `p`.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be at least 0 and less than 1, got {p}")
    if p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler refuses `random_`
        return F.dropout(x, p)
    num_dropped = min(round(p * LEVELS), LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    level = draws.view(torch.int16)[: x.numel()].view(x.shape)  # -LEVELS / 2 to LEVELS / 2 - 1
    return x * (level >= num_dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - num_dropped))
