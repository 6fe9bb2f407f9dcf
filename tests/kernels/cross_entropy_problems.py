"""Logits and targets for the tests of the cross-entropy, and the results in float64 from PyTorch's own
functions.

Legend: N rows, V classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GRADIENT_TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 4e-7},
    torch.float16: {"rtol": 6e-4, "atol": 4e-7},
    torch.bfloat16: {"rtol": 4.5e-3, "atol": 4e-7},
}
"""For each entry: the rounding to its dtype, and the error of q - p in float32 where both are almost
equal."""


def problem(
    num_rows: int, num_classes: int, has_classes: bool, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Logits (N, V), and classes (N,) or sparse distributions (N, V) of which the second is all zero. The
    first row agrees with its target, and the last one is almost certain of another class."""
    generator = torch.Generator().manual_seed(num_rows + num_classes)
    logits_NV = 4 * torch.randn(num_rows, num_classes, generator=generator)
    logits_NV[-1, 0] = 40.0
    classes_N = torch.randint(num_classes, (num_rows,), generator=generator)
    logits_NV[0, classes_N[0]] = 20.0
    targets = classes_N
    if not has_classes:
        codes_NV = (torch.rand(num_rows, num_classes, generator=generator) - 0.9).clamp_min(0)
        codes_NV[torch.arange(num_rows), classes_N] = 0.5
        codes_NV[1:2] = 0
        targets = F.normalize(codes_NV, p=1, dim=1)
    return logits_NV.to(device, dtype), targets.to(device)


def exact_rows(logits_NV: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (N,), whether the most probable classes agree (N,), and the gradient (N, V), in float64."""
    logits_NV = logits_NV.detach().double().clone().requires_grad_()
    if targets.ndim == 1:
        loss_N = F.cross_entropy(logits_NV, targets, reduction="none")
        agrees_N = logits_NV.argmax(-1) == targets
    else:
        loss_N = F.kl_div(logits_NV.log_softmax(-1), targets.double(), reduction="none").sum(-1)
        agrees_N = (logits_NV.argmax(-1) == targets.argmax(-1)) & targets.any(-1)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), logits_NV)
    return loss_N.detach(), agrees_N, gradient_NV
