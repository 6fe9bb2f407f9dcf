"""Cross-entropy of rows of logits in one Triton kernel: loss, agreement, and the gradient in place.

    loss = sum_j p_j (log p_j - x_j + log sum_i exp x_i);   gradient = softmax(x) sum_j p_j - p

A program has one row. It reads the row in blocks twice: first for the maximum and the sum of exponentials,
then for the gradient, which it writes over the logits. A row of up to LARGEST_BLOCK classes is one block,
which stays in registers, so it is read once. Each element of a block keeps a maximum and a sum of its own
over the blocks (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), so that threads
exchange nothing before all blocks are read.

Everything is computed in float32; gradients are rounded to the dtype of the logits. A class outside 0, ...,
V - 1 makes the loss NaN. **No part of this has run on a GPU yet**: the numerics are tested in Triton's
interpreter and by executing the compiled code in an emulator, registers and instructions by ahead-of-time
compilation.

Legend: N rows, V classes, B elements of a block.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 2048
LOWEST = tl.constexpr(-1e38)
"""Stands for logits of -inf in the first block, so that no difference of infinities is computed."""
SMALLEST = tl.constexpr(1.2e-38)
"""The smallest number whose logarithm GPUs compute: smaller ones count as 0 there."""
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _load(row_ptr, column_B, other, V: tl.constexpr):
    return tl.load(row_ptr + column_B, mask=column_B < V, other=other).to(tl.float32)


@triton.jit
def _first_top(top_B, column_B, V: tl.constexpr):
    """The highest of the elements' maxima, and the first column that has it."""
    top = tl.max(top_B)
    return top, tl.min(tl.where(top_B == top, column_B, V))


@triton.jit
def loss_kernel(
    logits_ptr,  # (N, V), replaced by the gradient if NEEDS_GRADIENT
    targets_ptr,  # classes (N,) or distributions (N, V)
    loss_ptr,  # (N,) float32
    agrees_ptr,  # (N,) int32, 1 if target and logits have the same most probable class, else 0
    V: tl.constexpr,
    HAS_CLASSES: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss, agreement and gradient of one row."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    if HAS_CLASSES:
        target = tl.load(targets_ptr + row)
        is_class = (target >= 0) & (target < V)
        target_logit = tl.load(logits_ptr + target, mask=is_class, other=float("nan")).to(tl.float32)
        target = target.to(tl.int32)
    else:
        targets_ptr += row * V

    column_B = tl.arange(0, BLOCK)
    x_B = _load(logits_ptr, column_B, float("-inf"), V)
    top_B, top_column_B = tl.where(x_B < LOWEST, LOWEST, x_B), column_B
    sum_B = tl.full((BLOCK,), 1.0, tl.float32)  # of exp(x - top_B), for each element
    if not HAS_CLASSES:
        p_B = _load(targets_ptr, column_B, 0.0, V)
        top_p_B, mass_B, top_p_column_B = p_B, p_B, column_B
    for start in range(BLOCK, V, BLOCK):
        column_B = start + tl.arange(0, BLOCK)
        x_B = _load(logits_ptr, column_B, float("-inf"), V)
        is_higher_B = x_B > top_B
        smaller_B = tl.exp2(-tl.abs(x_B - top_B) * LOG2_E)
        sum_B = tl.where(is_higher_B, sum_B * smaller_B + 1.0, sum_B + smaller_B)
        top_B = tl.where(is_higher_B, x_B, top_B)
        top_column_B = tl.where(is_higher_B, column_B, top_column_B)
        if not HAS_CLASSES:
            p_B = _load(targets_ptr, column_B, 0.0, V)
            top_p_column_B = tl.where(p_B > top_p_B, column_B, top_p_column_B)
            top_p_B = tl.maximum(top_p_B, p_B)
            mass_B += p_B
    top, top_column = _first_top(top_B, top_column_B, V)
    sum_of_exp = tl.sum(sum_B * tl.exp2((top_B - top) * LOG2_E))  # of x - top
    log_sum = tl.log(sum_of_exp)
    if HAS_CLASSES:
        mass = 1.0
        tl.store(agrees_ptr + row, (top_column == target).to(tl.int32))
        tl.store(loss_ptr + row, log_sum + (top - target_logit))
    else:
        mass = tl.sum(mass_B)
        _, target = _first_top(top_p_B, top_p_column_B, V)
        tl.store(agrees_ptr + row, ((top_column == target) & (mass > 0.0)).to(tl.int32))

    if NEEDS_GRADIENT or not HAS_CLASSES:
        loss_B = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            if V > BLOCK:  # a single block is in registers still
                column_B = start + tl.arange(0, BLOCK)
                x_B = _load(logits_ptr, column_B, float("-inf"), V)
                if not HAS_CLASSES:
                    p_B = _load(targets_ptr, column_B, 0.0, V)
            below_top_B = x_B - top
            if HAS_CLASSES:
                p_B = tl.where(column_B == target, 1.0, 0.0)
            else:
                log_p_B = tl.log2(tl.maximum(p_B, SMALLEST)) * LN_2
                loss_B += p_B * tl.where(p_B > 0.0, log_p_B - (below_top_B - log_sum), 0.0)
            if NEEDS_GRADIENT:
                gradient_B = tl.exp2(below_top_B * LOG2_E) * (mass / sum_of_exp) - p_B
                gradient_B = gradient_B.to(logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + column_B, gradient_B, mask=column_B < V)
        if not HAS_CLASSES:
            tl.store(loss_ptr + row, tl.sum(loss_B))


def launch_options(num_classes: int) -> dict[str, int]:
    """The block and the number of warps for rows of so many classes: 8 or 16 elements for each thread."""
    block = min(LARGEST_BLOCK, max(32, triton.next_power_of_2(num_classes)))
    is_one_block = num_classes <= block
    num_warps = min(4, max(1, block // 512)) if is_one_block else 8
    return {"BLOCK": block, "num_warps": num_warps, "num_stages": 1}


@torch.library.custom_op("kernels::cross_entropy_rows_", mutates_args=("logits_NV",))
def row_losses_(logits_NV: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """The loss of each row, float32, and whether it agrees, int32. The gradient replaces the logits."""
    num_rows, num_classes = logits_NV.shape
    loss_N = torch.empty(num_rows, dtype=torch.float32, device=logits_NV.device)
    agrees_N = torch.empty(num_rows, dtype=torch.int32, device=logits_NV.device)
    if num_rows:
        with torch.cuda.device_of(logits_NV):  # Triton launches on the current device
            loss_kernel[(num_rows,)](
                logits_ptr=logits_NV, targets_ptr=targets.contiguous(), loss_ptr=loss_N, agrees_ptr=agrees_N,
                V=num_classes, HAS_CLASSES=targets.ndim == 1, NEEDS_GRADIENT=needs_gradient,
                **launch_options(num_classes),
            )  # fmt: skip
    return loss_N, agrees_N


@row_losses_.register_fake
def _shapes(logits_NV: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    loss_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
    return loss_N, torch.empty_like(loss_N, dtype=torch.int32)


def cross_entropy_(
    logits_NV: Tensor, targets: Tensor, total: Tensor, num_agreeing: Tensor, needs_gradient: bool
) -> None:
    """The same as `reference.cross_entropy_`, computed in float32."""
    loss_N, agrees_N = row_losses_(logits_NV, targets, needs_gradient)
    total += loss_N.sum()
    num_agreeing += agrees_N.sum()
