"""Cross-entropy of a linear layer with softmax, in chunks of positions.

The logits of 25,000 words at all selected positions, their softmax and its gradient would be the largest
tensors of a training step. Here only those of one chunk exist at a time: `kernels.cross_entropy` reduces its
logits to a loss and replaces them by their gradient, which is multiplied with inputs and weights at once. The
work is that of an ordinary forward and backward pass.

Legend: N positions, D width of the inputs, V classes, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cross_entropy import cross_entropy_, is_fused

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in float32


class LinearLoss(NamedTuple):
    """Sums over the positions."""

    total: Tensor  # in nats; has gradients
    num_agreeing: Tensor  # positions where prediction and target have the same most probable class


def linear_cross_entropy(
    inputs_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets: Tensor,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> LinearLoss:
    """KL(target || softmax(W x + b)) summed over positions; targets are classes (N) or distributions (N, V).

    For a class that is the cross-entropy. A target of zeros adds nothing to the loss and agrees with no
    prediction. The matrix products follow autocast, everything else has the dtype of the weights. On a GPU
    with autocast to bf16 the gradient of the logits is rounded to bf16, as the products with it need it.
    Raises ValueError for targets of another shape.
    """
    shapes = [inputs_ND.shape[:1], (len(inputs_ND), len(weight_VD))]
    if targets.shape not in shapes:
        raise ValueError(f"targets must be {' or '.join(str(tuple(s)) for s in shapes)}, got {targets.shape}")
    chunk_size = max(1, chunk_elements // len(weight_VD))
    needs_gradients = torch.is_grad_enabled()  # always off inside an autograd.Function
    return LinearLoss(
        *_LinearCrossEntropy.apply(inputs_ND, weight_VD, bias_V, targets, chunk_size, needs_gradients)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are computed in the forward pass, where the logits are, and scaled in the backward pass.
    They keep the dtype of the weights until then, so that a loss scale comes before any rounding to fp16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets: Tensor,
        chunk_size: int,
        needs_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        """The sums of `LinearLoss`; `chunk_size` counts positions."""
        dtype, device = weight_VD.dtype, weight_VD.device
        gradients = [
            torch.zeros_like(x, dtype=dtype) if is_needed and needs_gradients else None
            for x, is_needed in zip((inputs_ND, weight_VD, bias_V), ctx.needs_input_grad, strict=False)
        ]
        has_gradients = any(gradient is not None for gradient in gradients)
        total = torch.zeros((), device=device, dtype=dtype)
        num_agreeing = torch.zeros((), device=device, dtype=torch.long)
        for start in range(0, len(inputs_ND), chunk_size):
            chunk = slice(start, start + chunk_size)
            inputs_CD, target = inputs_ND[chunk], targets[chunk]
            rows_CV = F.linear(inputs_CD, weight_VD, bias_V)
            if not _holds_gradient(rows_CV):
                rows_CV = rows_CV.to(dtype)
            cross_entropy_(rows_CV, target, total, num_agreeing, has_gradients)
            if not has_gradients:
                continue
            gradient_CV = rows_CV  # which has replaced the logits
            if gradients[0] is not None:
                gradients[0][chunk] = _product(gradient_CV, weight_VD)
            if gradients[1] is not None:
                gradients[1] += _product(gradient_CV.mT, inputs_CD)
            if gradients[2] is not None:
                gradients[2] += gradient_CV.sum(0, dtype=dtype)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(num_agreeing)
        return total, num_agreeing

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Autograd casts the gradients to the dtypes of their tensors."""
        gradients = (None if g is None else g * outer[0] for g in ctx.saved_tensors)
        return *gradients, None, None, None


def _holds_gradient(logits_CV: Tensor) -> bool:
    """Whether the gradient of the logits can replace them in their dtype: in bf16, which has the range of
    float32, where the fused kernel computes in float32. For fp16 see `_product`.
    """
    return logits_CV.dtype == torch.bfloat16 and is_fused(logits_CV.device, logits_CV.dtype)


def _product(rows_IJ: Tensor, matrix_JK: Tensor) -> Tensor:
    """rows_IJ @ matrix_JK as autocast computes it. In fp16 each row is divided by its norm first, and the
    product multiplied by it.

    Gradients of rare classes are smaller than any number of fp16. A loss scale or a fixed power of two would
    raise all classes alike: large enough for the rarest, it makes the products of frequent ones overflow.
    Rows of norm 1 have products of at most sqrt(J) times the largest entry of the matrix.
    """
    kind = rows_IJ.device.type
    if not (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16):
        return rows_IJ @ matrix_JK
    # Entries whose squares float32 cannot hold have no norm: at this bound they stay below 1.
    norm_I1 = torch.linalg.vector_norm(rows_IJ, dim=1, keepdim=True).clamp_min(1e-18)
    return ((rows_IJ / norm_I1) @ matrix_JK) * norm_I1
