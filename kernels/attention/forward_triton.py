"""The forward kernel of fused attention: softmax over tiles of keys with a running maximum.

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length distances. Of a
tile: M queries, N keys.
"""

import triton
import triton.language as tl

from kernels.attention.tile_triton import VARYING, dropout_factor, load_rows, masked_scores, sequence_bounds


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q_ptr,  # (T, H, E), as k and v: strides stride_T, stride_H, 1
    k_ptr,
    v_ptr,
    rel_k_ptr,  # (H, R, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    out_ptr,  # (T, H, E), written
    lse_ptr,  # (H, T) float32, written: logarithm to base 2 of the sum of exp(s)
    T,
    H,
    stride_T,
    stride_H,
    max_length,
    scale,
    dropout_p,
    HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out_i = sum_j softmax_j(s_i) v_j. One program computes a block of queries of a sequence and head."""
    sequence, m0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first, length = sequence_bounds(cu_seqlens_ptr, sequence)
    if m0 >= length:
        return
    start = first * stride_T + head.to(tl.int64) * stride_H
    table = head.to(tl.int64) * 2 * max_length * E
    q_ME = load_rows(q_ptr + start, m0, length, stride_T, BLOCK, E)
    i_M = m0 + tl.arange(0, BLOCK)
    max_M = tl.full((BLOCK,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK,), tl.float32)
    out_ME = tl.zeros((BLOCK, E), tl.float32)
    for n0 in range(0, length, BLOCK):
        k_NE = load_rows(k_ptr + start, n0, length, stride_T, BLOCK, E)
        j_N = n0 + tl.arange(0, BLOCK)
        scores_MN = masked_scores(
            q_ME, k_NE, rel_k_ptr + table, rel_q_ptr + table, m0, n0, length, max_length, scale, PRECISION, E,
            BLOCK,
        )  # fmt: skip
        # The first tile has a key for every query. So the maximum is finite from then on.
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        weights_MN *= dropout_factor(
            seed_ptr, sequence, head, i_M[:, None], j_N[None, :], dropout_p, HAS_DROPOUT
        )
        v_NE = load_rows(v_ptr + start, n0, length, stride_T, BLOCK, E)
        out_ME = tl.dot(
            weights_MN.to(v_NE.dtype), v_NE, out_ME * shrink_M[:, None], input_precision=PRECISION
        )
        max_M = new_max_M
    place_ME = ((first + i_M) * H + head)[:, None] * E + tl.arange(0, E)[None, :]
    out_ME = out_ME / sum_M[:, None]
    tl.store(out_ptr + place_ME, out_ME.to(out_ptr.dtype.element_ty), mask=(i_M < length)[:, None])
    lse_place_M = head.to(tl.int64) * T + first + i_M
    tl.store(lse_ptr + lse_place_M, max_M + tl.log2(sum_M), mask=i_M < length)
