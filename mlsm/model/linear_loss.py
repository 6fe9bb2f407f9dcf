"""Cross-entropy of a linear layer with softmax that never holds its logits whole.

The logits of 25,000 words at all selected positions, their softmax and its gradient are the largest tensors
of a training step. Here the rows go through in chunks: of a chunk, the logits are computed, reduced to a loss
and turned in place into their own gradient, which is multiplied with inputs and weights at once. The work is
that of the ordinary forward and backward pass, the memory one chunk.

Legend: N positions, D width of the inputs, V classes, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 1 << 24  # of the logits held at once: 64 MiB


class LinearLoss(NamedTuple):
    """Sums over the positions."""

    total: Tensor  # in nats; has gradients
    num_agreeing: Tensor  # positions whose most probable class is that of the target


def linear_cross_entropy(
    inputs_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets: Tensor,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> LinearLoss:
    """KL(target || softmax(W x + b)) summed over positions; targets are classes (N) or distributions (N, V).

    For a class that is the cross-entropy; a target of zeros adds nothing. The matrix products follow
    autocast, everything else is float32 (or float64, as the inputs). Raises ValueError for targets of another
    shape.
    """
    shapes = [inputs_ND.shape[:1], (len(inputs_ND), len(weight_VD))]
    if targets.shape not in shapes:
        raise ValueError(f"targets must be {' or '.join(str(tuple(s)) for s in shapes)}, got {targets.shape}")
    size = max(1, chunk_elements // len(weight_VD))
    needs_gradients = torch.is_grad_enabled()  # inside the function it is off, whatever the caller's is
    return LinearLoss(
        *_LinearCrossEntropy.apply(inputs_ND, weight_VD, bias_V, targets, size, needs_gradients)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, where the logits are, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets: Tensor,
        size: int,
        needs_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        gradients = [
            torch.zeros_like(x) if needed and needs_gradients else None
            for x, needed in zip((inputs_ND, weight_VD, bias_V), ctx.needs_input_grad, strict=False)
        ]
        total = torch.zeros((), device=inputs_ND.device, dtype=weight_VD.dtype)
        num_agreeing = torch.zeros((), device=inputs_ND.device, dtype=torch.long)
        for first in range(0, len(inputs_ND), size):
            inputs_CD, target = inputs_ND[first : first + size], targets[first : first + size]
            logits_CV = F.linear(inputs_CD, weight_VD, bias_V).to(weight_VD.dtype)
            log_partition_C = logits_CV.logsumexp(-1)
            if target.ndim == 1:
                num_agreeing += (logits_CV.argmax(-1) == target).sum()
                total += (log_partition_C - logits_CV.gather(1, target[:, None]).squeeze(1)).sum()
            else:
                num_agreeing += (logits_CV.argmax(-1) == target.argmax(-1)).sum()
                mass_C = target.sum(-1)
                total += torch.xlogy(target, target).sum() - torch.sum(target * logits_CV)
                total += torch.dot(mass_C, log_partition_C)
            if all(gradient is None for gradient in gradients):
                continue
            gradient_CV = logits_CV.sub_(log_partition_C[:, None]).exp_()
            if target.ndim == 1:
                gradient_CV[torch.arange(len(target), device=target.device), target] -= 1
            else:
                gradient_CV.mul_(mass_C[:, None]).sub_(target)
            if gradients[0] is not None:
                gradients[0][first : first + size] = gradient_CV @ weight_VD
            if gradients[1] is not None:
                gradients[1] += gradient_CV.mT @ inputs_CD
            if gradients[2] is not None:
                gradients[2] += gradient_CV.sum(0)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(num_agreeing)
        return total, num_agreeing

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if g is None else g * outer[0] for g in ctx.saved_tensors)
        return *gradients, None, None, None
