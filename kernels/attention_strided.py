"""Disentangled attention without a gather: the position terms are diagonals, read as strided views, added
inside SDPA.

For L positions the product of the queries with the table of 2 L distances is an (L, 2 L) matrix of which
attention needs entry (i, i - j + L). With the table in reverse, that is entry (i, j - i + L - 1): moving one
row down moves one column left, so the wanted L x L block is the same memory read with a row stride of 2 L - 1
instead of 2 L. No index tensor, no copy, and a backward pass that writes each entry once.

Heads come first in memory, so that each head multiplies its own distance table with all sequences in one
product.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _diagonals(product_HMR: Tensor, num_sequences: int, first: int) -> Tensor:
    """View (H, B L, 2 L) as (H, B, L, L) with entry (a, b) = column b - a + first of row a. Needs contiguous
    memory.
    """
    num_heads, num_rows, num_distances = product_HMR.shape
    num_positions = num_rows // num_sequences
    size = (num_heads, num_sequences, num_positions, num_positions)
    row_stride = num_distances - 1
    stride = (num_rows * num_distances, num_positions * num_distances, row_stride, 1)
    return product_HMR.as_strided(size, stride, product_HMR.storage_offset() + first)


def disentangled_attention(
    q_BHLE: Tensor,
    k_BHLE: Tensor,
    v_BHLE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    lengths_B: Tensor,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same as `attention_reference.disentangled_attention`; scores and softmax in the dtype of the
    inputs.
    """
    num_sequences, _, num_positions, head_width = q_BHLE.shape
    scale = 1 / math.sqrt(3 * head_width)
    q_HBLE, k_HBLE, v_HBLE = (x.transpose(0, 1).contiguous() for x in (q_BHLE, k_BHLE, v_BHLE))
    q_HME, k_HME = q_HBLE.flatten(1, 2), k_HBLE.flatten(1, 2)
    content_to_position_HBLL = _diagonals(
        torch.bmm(q_HME, (rel_k_HRE * scale).flip(1).mT), num_sequences, num_positions - 1
    )
    # rows are keys here: entry (j, i) = column i - j + L, which is the table in its own order
    position_to_content_HBLL = _diagonals(
        torch.bmm(k_HME, (rel_q_HRE * scale).mT), num_sequences, num_positions
    ).mT
    bias_HBLL = content_to_position_HBLL + position_to_content_HBLL
    is_padding_BL = torch.arange(num_positions, device=q_BHLE.device) >= lengths_B[:, None]
    bias_HBLL = bias_HBLL.masked_fill(is_padding_BL[:, None, :], -math.inf)
    if q_BHLE.is_cuda:
        out_HBLE = F.scaled_dot_product_attention(
            q_HBLE, k_HBLE, v_HBLE, attn_mask=bias_HBLL, dropout_p=dropout_p, scale=scale
        )
        return out_HBLE.transpose(0, 1)
    # A bias that needs a gradient leaves a CPU only the composite SDPA, which also guards against rows
    # without any key; there are none here (every sequence has a first token), and leaving that out is faster.
    scores_MLL = torch.baddbmm(
        bias_HBLL.flatten(0, 1), q_HBLE.flatten(0, 1), k_HBLE.flatten(0, 1).mT, alpha=scale
    )
    weights_MLL = F.dropout(scores_MLL.softmax(-1), dropout_p)
    out_MLE = torch.bmm(weights_MLL, v_HBLE.flatten(0, 1))
    return out_MLE.view_as(q_HBLE).transpose(0, 1)
