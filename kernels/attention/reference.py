"""The definition of disentangled attention (DeBERTa v1), which the fast versions must equal.

It is dense and computes one sequence after another, in any dtype and on any device.

Legend: T tokens of all sequences, H heads, E width of a head, L tokens of one sequence, R = 2 max_length
relative distances (row r is distance r - max_length).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def disentangled_attention(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
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
        q_HLE, k_HLE, v_HLE = (x[first:last].transpose(0, 1) for x in (q_THE, k_THE, v_THE))
        position_L = torch.arange(last - first, device=q_THE.device)
        distance_LL = position_L[:, None] - position_L[None, :] + max_length
        content_HLL = q_HLE @ k_HLE.mT
        index_HLL = distance_LL.expand_as(content_HLL)
        content_to_position_HLL = (q_HLE @ rel_k_HRE.mT).gather(-1, index_HLL)
        position_to_content_HLL = (k_HLE @ rel_q_HRE.mT).gather(-1, index_HLL.mT).mT
        scores_HLL = content_HLL + content_to_position_HLL + position_to_content_HLL
        weights_HLL = (scores_HLL / math.sqrt(3 * q_THE.shape[-1])).softmax(-1)
        outs.append((F.dropout(weights_HLL, dropout_p) @ v_HLE).transpose(0, 1))
    return torch.cat(outs)
