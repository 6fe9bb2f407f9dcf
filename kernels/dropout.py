"""Dropout whose mask costs a CPU half the time: 16 random bits decide on an element, where PyTorch's
`bernoulli_` draws 53 for it outside Intel's processors.

With 16 bits the probability is a multiple of 2^-16; the scale belongs to that multiple, so that the mean is
kept exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with each element zero with probability `p` (to 2^-17), else divided by 1 - p.

    Draws from torch's generator. On a GPU and in compiled code this is PyTorch's own.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler refuses `random_`
        return F.dropout(x, p)
    num_dropped = min(round(p * LEVELS), LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    level = draws.view(torch.int16)[: x.numel()].view(x.shape)  # -LEVELS / 2 to LEVELS / 2 - 1
    return x * (level >= num_dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - num_dropped))
