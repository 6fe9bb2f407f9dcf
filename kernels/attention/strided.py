"""Disentangled attention whose position terms are read as strided views instead of gathered.

For L positions the product of the queries with the table of 2 L distances is an (L, 2 L) matrix, of which
attention needs entry (i, i - j + L). With the table in reverse, that is entry (i, j - i + L - 1). In it,
moving one row down moves one column left. So the L x L block is the same memory with a row stride of 2 L -
1 instead of 2 L: no index tensor, no copy, and a backward pass that writes each entry once.

Strides need a rectangle. So sequences are padded to the longest and the result is cut again, in the copies
that bring the heads to the front and back (each head multiplies its distance table with all sequences in
one product).

Legend: T tokens of all sequences, B sequences, H heads, L tokens of the longest, M = B L, X = 3: query,
key and value, E width of a head, R = 2 L relative distances.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.dropout import dropout


class _Pad(torch.autograd.Function):
    """(T, H, E) to (H, M, E), with zeros in the slots that have no token."""

    @staticmethod
    def forward(ctx: Any, x_THE: Tensor, slot_T: Tensor, num_slots: int) -> Tensor:
        ctx.save_for_backward(slot_T)
        _, num_heads, head_width = x_THE.shape
        return x_THE.new_zeros(num_heads, num_slots, head_width).index_copy_(1, slot_T, x_THE.transpose(0, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slot_T,) = ctx.saved_tensors
        return gradients[0].transpose(0, 1).index_select(0, slot_T), None, None


class _Unpad(torch.autograd.Function):
    """(H, M, E) to (T, H, E). The gradient of torch's own gather would add into slots, though none is read
    twice."""

    @staticmethod
    def forward(ctx: Any, x_HME: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        ctx.num_slots = x_HME.shape[1]
        return x_HME.transpose(0, 1).index_select(0, slot_T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slot_T,) = ctx.saved_tensors
        gradient_HTE = gradients[0].transpose(0, 1)
        num_heads, _, head_width = gradient_HTE.shape
        out_HME = gradient_HTE.new_zeros(num_heads, ctx.num_slots, head_width)
        return out_HME.index_copy_(1, slot_T, gradient_HTE), None


def _diagonals(product_HMR: Tensor, num_sequences: int, first: int) -> Tensor:
    """View a contiguous (H, B L, 2 L) as (H, B, L, L), where entry (a, b) is column b - a + first of row
    a."""
    num_heads, num_rows, num_distances = product_HMR.shape
    num_positions = num_rows // num_sequences
    size = (num_heads, num_sequences, num_positions, num_positions)
    row_stride = num_distances - 1
    stride = (num_rows * num_distances, num_positions * num_distances, row_stride, 1)
    return product_HMR.flatten()[first:].as_strided(size, stride)


def disentangled_attention(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same as `reference.disentangled_attention`, with scores and softmax in the dtype of the inputs."""
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    num_sequences = len(cu_seqlens) - 1
    num_slots = num_sequences * max_length
    is_padded = num_tokens < num_slots
    scale = 1 / math.sqrt(3 * head_width)
    if is_padded:
        lengths_B = cu_seqlens.diff()
        padding_before_B = torch.arange(num_sequences, device=qkv_THXE.device) * max_length - cu_seqlens[:-1]
        slot_T = torch.arange(num_tokens, device=qkv_THXE.device)
        slot_T += padding_before_B.repeat_interleave(lengths_B, output_size=num_tokens)
        q_HME, k_HME, v_HME = (_Pad.apply(x, slot_T, num_slots) for x in qkv_THXE.unbind(2))
    else:
        q_HME, k_HME, v_HME = (x.transpose(0, 1).contiguous() for x in qkv_THXE.unbind(2))
    content_to_position_HBLL = _diagonals(
        torch.bmm(q_HME, (rel_k_RHE * scale).flip(0).permute(1, 2, 0)), num_sequences, max_length - 1
    )
    # The rows are keys here: entry (j, i) is column i - j + L, so the table is not reversed.
    position_to_content_HBLL = _diagonals(
        torch.bmm(k_HME, (rel_q_RHE * scale).permute(1, 2, 0)), num_sequences, max_length
    ).mT
    bias_HBLL = content_to_position_HBLL + position_to_content_HBLL
    if is_padded:
        is_padding_BL = torch.arange(max_length, device=qkv_THXE.device) >= lengths_B[:, None]
        bias_HBLL = bias_HBLL.masked_fill(is_padding_BL[:, None, :], -math.inf)
    rectangle = (num_heads, num_sequences, max_length, head_width)
    q_HBLE, k_HBLE, v_HBLE = (x.view(rectangle) for x in (q_HME, k_HME, v_HME))
    if qkv_THXE.is_cuda:
        out_HBLE = F.scaled_dot_product_attention(
            q_HBLE, k_HBLE, v_HBLE, attn_mask=bias_HBLL, dropout_p=dropout_p, scale=scale
        )
        out_HME = out_HBLE.reshape(q_HME.shape)
    else:
        # For a bias that needs a gradient, SDPA on a CPU is a sequence of these products as well, with a test
        # for rows without any key. Every row has a key here, so leaving out the test is right and faster.
        scores_XLL = torch.baddbmm(
            bias_HBLL.flatten(0, 1), q_HBLE.flatten(0, 1), k_HBLE.flatten(0, 1).mT, alpha=scale
        )
        weights_XLL = dropout(scores_XLL.softmax(-1), dropout_p)
        out_HME = torch.bmm(weights_XLL, v_HBLE.flatten(0, 1)).view(q_HME.shape)
    return _Unpad.apply(out_HME, slot_T) if is_padded else out_HME.transpose(0, 1)
