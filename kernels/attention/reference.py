"""The definition of disentangled attention (DeBERTa v1), which the fast versions must equal.

It is dense and computes one sequence after another, in any dtype and on any device.

Legend: T tokens of all sequences, H heads, X = 3: query, key and value, E width of a head, L tokens of one
sequence, R = 2 max_length relative distances (row r is distance r - max_length).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def disentangled_attention(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """out_i = sum_j softmax_j((q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) / sqrt(3 E)) v_j, (T, H, E).

    j are the tokens of i's sequence. This is eq. 4 of He et al. 2021 with the index i - j in both position
    terms, as in the released weights. The paper writes delta(j, i) in the second one.
    """
    outs = []
    for first, last in pairwise(cu_seqlens.tolist()):
        q_HLE, k_HLE, v_HLE = qkv_THXE[first:last].permute(2, 1, 0, 3)
        position_L = torch.arange(last - first, device=qkv_THXE.device)
        distance_LL = position_L[:, None] - position_L[None, :] + max_length
        content_HLL = q_HLE @ k_HLE.mT
        index_HLL = distance_LL.expand_as(content_HLL)
        content_to_position_HLL = (q_HLE @ rel_k_RHE.permute(1, 2, 0)).gather(-1, index_HLL)
        position_to_content_HLL = (k_HLE @ rel_q_RHE.permute(1, 2, 0)).gather(-1, index_HLL.mT).mT
        scores_HLL = content_HLL + content_to_position_HLL + position_to_content_HLL
        weights_HLL = (scores_HLL / math.sqrt(3 * qkv_THXE.shape[-1])).softmax(-1)
        outs.append((F.dropout(weights_HLL, dropout_p) @ v_HLE).transpose(0, 1))
    return torch.cat(outs)
