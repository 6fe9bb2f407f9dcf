"""Disentangled attention of DeBERTa v1, as the definition: dense, any dtype, any device. The fast versions
must equal it.

Legend: B sequences, H heads, L positions, E width of a head, R = 2 L relative distances (row r is distance r
- L).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """softmax_j((q_i.k_j + q_i.rel_k[i - j + L] + k_j.rel_q[i - j + L]) / sqrt(3 E)) v_j over the keys j <
    length.

    He et al. 2021, eq. 4, with the index the released weights use for both position terms (the paper's eq. 4
    writes delta(j, i) for the second). Rows of queries beyond a sequence's length carry no meaning.
    """
    num_positions = q_BHLE.shape[2]
    position_L = torch.arange(num_positions, device=q_BHLE.device)
    distance_LL = position_L[:, None] - position_L[None, :] + num_positions
    content_BHLL = q_BHLE @ k_BHLE.mT
    index_BHLL = distance_LL.expand_as(content_BHLL)
    content_to_position_BHLL = (q_BHLE @ rel_k_HRE.mT).gather(-1, index_BHLL)
    position_to_content_BHLL = (k_BHLE @ rel_q_HRE.mT).gather(-1, index_BHLL.mT).mT
    scores_BHLL = content_BHLL + content_to_position_BHLL + position_to_content_BHLL
    scores_BHLL = scores_BHLL / math.sqrt(3 * q_BHLE.shape[-1])
    is_padding_BL = position_L >= lengths_B[:, None]
    scores_BHLL = scores_BHLL.masked_fill(is_padding_BL[:, None, None, :], -math.inf)
    return F.dropout(scores_BHLL.softmax(-1), dropout_p) @ v_BHLE
