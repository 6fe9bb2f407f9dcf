"""The forward kernel of fused attention: softmax over tiles of keys with a running maximum.

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length distances. Of a
tile: M queries, N keys.
"""

import triton
import triton.language as tl

from kernels.attention.tile_triton import (
    VARYING,
    dropout_factors,
    load_rows,
    masked_scores,
    sequence_bounds,
    store_rows,
)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    qkv_ptr,  # (T, H, 3, E)
    rel_k_ptr,  # (R, H, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    out_ptr,  # (T, H, E), written
    lse_ptr,  # (H, T) float32, written: logarithm to base 2 of the sum of exp(s)
    T,
    max_length,
    scale,
    dropout_p,
    HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out_i = sum_j softmax_j(s_i) v_j. One program computes a block of queries of a sequence and head."""
    sequence, m0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first, length = sequence_bounds(cu_seqlens_ptr, sequence)
    if m0 >= length:
        return
    own = (first * H + head) * E
    q_ptr, k_ptr, v_ptr = qkv_ptr + 3 * own, qkv_ptr + 3 * own + E, qkv_ptr + 3 * own + 2 * E
    rel_k_ptr, rel_q_ptr = rel_k_ptr + head * E, rel_q_ptr + head * E
    q_ME = load_rows(q_ptr, m0, length, 3 * H * E, BLOCK, E)
    i_M = m0 + tl.arange(0, BLOCK)
    max_M = tl.full((BLOCK,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK,), tl.float32)
    out_ME = tl.zeros((BLOCK, E), tl.float32)
    for n0 in range(0, length, BLOCK):
        k_NE = load_rows(k_ptr, n0, length, 3 * H * E, BLOCK, E)
        scores_MN = masked_scores(
            q_ME, k_NE, rel_k_ptr, rel_q_ptr, m0, n0, length, max_length, scale, PRECISION, H, E, BLOCK
        )  # fmt: skip
        # The first tile has a key for every query. So the maximum is finite from then on.
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        weights_MN *= dropout_factors(seed_ptr, sequence, head, m0, n0, dropout_p, HAS_DROPOUT, BLOCK, BLOCK)
        v_NE = load_rows(v_ptr, n0, length, 3 * H * E, BLOCK, E)
        out_ME = tl.dot(
            weights_MN.to(v_NE.dtype), v_NE, out_ME * shrink_M[:, None], input_precision=PRECISION
        )
        max_M = new_max_M
    store_rows(out_ptr + own, out_ME / sum_M[:, None], m0, length, H * E, BLOCK, E)
    lse_place_M = head.to(tl.int64) * T + first + i_M
    tl.store(lse_ptr + lse_place_M, max_M + tl.log2(sum_M), mask=i_M < length)
