"""The backward kernels of fused attention: one for queries, one for keys and values, one for the tables.

Each kernel computes the scores again and sums the gradients that it owns in a fixed order. So there are no
atomics, and the same call gives the same bits. With the weights p_ij, the dropout factors f_ij and the scale
1 / sqrt(3 E),

    delta_i = d_out_i.out_i        ds_ij = p_ij (f_ij d_out_i.v_j - delta_i)
    d_q_i = scale sum_j ds_ij (k_j + rel_k[i - j])        d_rel_k[r] = scale sum_i ds_ij q_i, j = i - r
    d_k_j = scale sum_i ds_ij (q_i + rel_q[i - j])        d_rel_q[r] = scale sum_i ds_ij k_j, j = i - r
    d_v_j = sum_i p_ij f_ij d_out_i

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length distances, P
parts of the batch. Of a tile: M queries, N keys or distances.
"""

import triton
import triton.language as tl

from kernels.attention.tile_triton import (
    LOG2_E,
    VARYING,
    dot_T,
    dropout_factors,
    dropout_factors_at,
    load_rows,
    load_window,
    masked_scores,
    read_columns,
    read_rows,
    sequence_bounds,
    spread_columns,
    spread_rows,
    store_rows,
)


@triton.jit
def _load_lse_and_delta(lse_ptr, delta_ptr, place_M, is_query_M):
    """Values with which the weights of queries past the last are 0."""
    lse_M = tl.load(lse_ptr + place_M, mask=is_query_M, other=float("inf"))
    return lse_M, tl.load(delta_ptr + place_M, mask=is_query_M, other=0.0)


@triton.jit(do_not_specialize=VARYING)
def queries_kernel(
    qkv_ptr,  # (T, H, 3, E)
    rel_k_ptr,  # (R, H, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    out_ptr,  # (T, H, E), as d_out
    d_out_ptr,
    lse_ptr,  # (H, T) float32
    delta_ptr,  # (H, T) float32, written
    d_qkv_ptr,  # (T, H, 3, E), of which d_q is written
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
    """delta and d_q. One program computes a block of queries of a sequence and head."""
    sequence, m0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first, length = sequence_bounds(cu_seqlens_ptr, sequence)
    if m0 >= length:
        return
    own = (first * H + head) * E
    q_ptr, k_ptr, v_ptr = qkv_ptr + 3 * own, qkv_ptr + 3 * own + E, qkv_ptr + 3 * own + 2 * E
    rel_k_ptr, rel_q_ptr = rel_k_ptr + head * E, rel_q_ptr + head * E
    i_M = m0 + tl.arange(0, BLOCK)
    row_place_M = head.to(tl.int64) * T + first + i_M
    q_ME = load_rows(q_ptr, m0, length, 3 * H * E, BLOCK, E)
    d_out_ME = load_rows(d_out_ptr + own, m0, length, H * E, BLOCK, E)
    out_ME = load_rows(out_ptr + own, m0, length, H * E, BLOCK, E)
    delta_M = tl.sum(d_out_ME.to(tl.float32) * out_ME.to(tl.float32), axis=1)
    tl.store(delta_ptr + row_place_M, delta_M, mask=i_M < length)
    lse_M = tl.load(lse_ptr + row_place_M, mask=i_M < length, other=float("inf"))
    d_q_ME = tl.zeros((BLOCK, E), tl.float32)
    for n0 in range(0, length, BLOCK):
        k_NE = load_rows(k_ptr, n0, length, 3 * H * E, BLOCK, E)
        scores_MN = masked_scores(
            q_ME, k_NE, rel_k_ptr, rel_q_ptr, m0, n0, length, max_length, scale, PRECISION, H, E, BLOCK
        )  # fmt: skip
        weights_MN = tl.exp2(scores_MN - lse_M[:, None])
        v_NE = load_rows(v_ptr, n0, length, 3 * H * E, BLOCK, E)
        d_weights_MN = dot_T(d_out_ME, v_NE, PRECISION)
        d_weights_MN *= dropout_factors(
            seed_ptr, sequence, head, m0, n0, dropout_p, HAS_DROPOUT, BLOCK, BLOCK
        )
        d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(k_NE.dtype)
        d_q_ME = tl.dot(d_scores_MN, k_NE, d_q_ME, input_precision=PRECISION)
        low_MN, high_MN = spread_rows(d_scores_MN, BLOCK)
        row = m0 - n0 - (BLOCK - 1) + max_length
        low_NE, high_NE = load_window(rel_k_ptr, row, 2 * max_length, H * E, BLOCK, E)
        d_q_ME = tl.dot(low_MN, low_NE, d_q_ME, input_precision=PRECISION)
        d_q_ME = tl.dot(high_MN, high_NE, d_q_ME, input_precision=PRECISION)
    store_rows(d_qkv_ptr + 3 * own, d_q_ME * scale, m0, length, 3 * H * E, BLOCK, E)


@triton.jit(do_not_specialize=VARYING)
def keys_kernel(
    qkv_ptr,  # (T, H, 3, E)
    rel_k_ptr,  # (R, H, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    d_out_ptr,  # (T, H, E)
    lse_ptr,  # (H, T) float32, as delta
    delta_ptr,
    d_qkv_ptr,  # (T, H, 3, E), of which d_k and d_v are written
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
    """d_k and d_v. One program computes a block of keys of a sequence and head."""
    sequence, n0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first, length = sequence_bounds(cu_seqlens_ptr, sequence)
    if n0 >= length:
        return
    own = (first * H + head) * E
    q_ptr, k_ptr, v_ptr = qkv_ptr + 3 * own, qkv_ptr + 3 * own + E, qkv_ptr + 3 * own + 2 * E
    rel_k_ptr, rel_q_ptr = rel_k_ptr + head * E, rel_q_ptr + head * E
    k_NE = load_rows(k_ptr, n0, length, 3 * H * E, BLOCK, E)
    v_NE = load_rows(v_ptr, n0, length, 3 * H * E, BLOCK, E)
    d_k_NE = tl.zeros((BLOCK, E), tl.float32)
    d_v_NE = tl.zeros((BLOCK, E), tl.float32)
    for m0 in range(0, length, BLOCK):
        q_ME = load_rows(q_ptr, m0, length, 3 * H * E, BLOCK, E)
        i_M = m0 + tl.arange(0, BLOCK)
        row_place_M = head.to(tl.int64) * T + first + i_M
        lse_M, delta_M = _load_lse_and_delta(lse_ptr, delta_ptr, row_place_M, i_M < length)
        scores_MN = masked_scores(
            q_ME, k_NE, rel_k_ptr, rel_q_ptr, m0, n0, length, max_length, scale, PRECISION, H, E, BLOCK
        )  # fmt: skip
        weights_MN = tl.exp2(scores_MN - lse_M[:, None])
        d_out_ME = load_rows(d_out_ptr + own, m0, length, H * E, BLOCK, E)
        factor_MN = dropout_factors(seed_ptr, sequence, head, m0, n0, dropout_p, HAS_DROPOUT, BLOCK, BLOCK)
        d_weights_MN = dot_T(d_out_ME, v_NE, PRECISION) * factor_MN
        dropped_MN = (weights_MN * factor_MN).to(v_NE.dtype)
        d_v_NE = tl.dot(tl.trans(dropped_MN), d_out_ME, d_v_NE, input_precision=PRECISION)
        d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(q_ME.dtype)
        d_k_NE = tl.dot(tl.trans(d_scores_MN), q_ME, d_k_NE, input_precision=PRECISION)
        low_MN, high_MN = spread_columns(d_scores_MN, BLOCK)
        row = m0 - n0 - (BLOCK - 1) + max_length
        low_ME, high_ME = load_window(rel_q_ptr, row, 2 * max_length, H * E, BLOCK, E)
        d_k_NE = tl.dot(tl.trans(low_MN), low_ME, d_k_NE, input_precision=PRECISION)
        d_k_NE = tl.dot(tl.trans(high_MN), high_ME, d_k_NE, input_precision=PRECISION)
    store_rows(d_qkv_ptr + 3 * own + E, d_k_NE * scale, n0, length, 3 * H * E, BLOCK, E)
    store_rows(d_qkv_ptr + 3 * own + 2 * E, d_v_NE, n0, length, 3 * H * E, BLOCK, E)


@triton.jit(do_not_specialize=VARYING)
def distances_kernel(
    qkv_ptr,  # (T, H, 3, E)
    rel_k_ptr,  # (R, H, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    d_out_ptr,  # (T, H, E)
    lse_ptr,  # (H, T) float32, as delta
    delta_ptr,
    d_rel_k_ptr,  # (P, R, H, E) float32, written, as d_rel_q: sums over every P-th sequence
    d_rel_q_ptr,
    B,
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
    """d_rel_k and d_rel_q. One program computes a block of distances of a part of the batch and a head.

    Its tiles have queries and *distances*, and the window is one of keys: with r for i - j a score is
    q_i.rel_k[r] + q_i.k[i - r] + rel_q[r].k[i - r], the same sum of products with its operands exchanged.
    """
    part, head = tl.program_id(1), tl.program_id(2)
    r0 = (tl.program_id(0) - tl.num_programs(0) // 2) * BLOCK
    r_N = r0 + tl.arange(0, BLOCK)
    rel_k_ptr, rel_q_ptr = rel_k_ptr + head * E, rel_q_ptr + head * E
    rel_k_NE = load_rows(rel_k_ptr, r0 + max_length, 2 * max_length, H * E, BLOCK, E)
    rel_q_NE = load_rows(rel_q_ptr, r0 + max_length, 2 * max_length, H * E, BLOCK, E)
    d_rel_k_NE = tl.zeros((BLOCK, E), tl.float32)
    d_rel_q_NE = tl.zeros((BLOCK, E), tl.float32)
    for sequence in range(part, B, tl.num_programs(1)):
        first, length = sequence_bounds(cu_seqlens_ptr, sequence)
        own = (first * H + head) * E
        q_ptr, k_ptr, v_ptr = qkv_ptr + 3 * own, qkv_ptr + 3 * own + E, qkv_ptr + 3 * own + 2 * E
        # Only these queries have a key at one of the distances.
        for m0 in range(tl.maximum(r0, 0), tl.minimum(length, length + r0 + (BLOCK - 1)), BLOCK):
            q_ME = load_rows(q_ptr, m0, length, 3 * H * E, BLOCK, E)
            j0 = m0 - r0 - (BLOCK - 1)
            i_M = m0 + tl.arange(0, BLOCK)
            j_MN = i_M[:, None] - r_N[None, :]
            row_place_M = head.to(tl.int64) * T + first + i_M
            lse_M, delta_M = _load_lse_and_delta(lse_ptr, delta_ptr, row_place_M, i_M < length)
            low_NE, high_NE = load_window(k_ptr, j0, length, 3 * H * E, BLOCK, E)
            scores_MN = dot_T(q_ME, rel_k_NE, PRECISION)
            scores_MN += read_rows(q_ME, low_NE, high_NE, PRECISION, BLOCK)
            scores_MN += read_columns(low_NE, high_NE, rel_q_NE, PRECISION, BLOCK)
            is_key_MN = (j_MN >= 0) & (j_MN < length)
            scores_MN = tl.where(is_key_MN, scores_MN * (scale * LOG2_E), float("-inf"))
            weights_MN = tl.exp2(scores_MN - lse_M[:, None])
            d_out_ME = load_rows(d_out_ptr + own, m0, length, H * E, BLOCK, E)
            v_low_NE, v_high_NE = load_window(v_ptr, j0, length, 3 * H * E, BLOCK, E)
            d_weights_MN = read_rows(d_out_ME, v_low_NE, v_high_NE, PRECISION, BLOCK)
            d_weights_MN *= dropout_factors_at(
                seed_ptr, sequence, head, i_M[:, None], j_MN, dropout_p, HAS_DROPOUT
            )
            d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(q_ME.dtype)
            d_rel_k_NE = tl.dot(tl.trans(d_scores_MN), q_ME, d_rel_k_NE, input_precision=PRECISION)
            low_MN, high_MN = spread_columns(d_scores_MN, BLOCK)
            d_rel_q_NE = tl.dot(tl.trans(low_MN), low_NE, d_rel_q_NE, input_precision=PRECISION)
            d_rel_q_NE = tl.dot(tl.trans(high_MN), high_NE, d_rel_q_NE, input_precision=PRECISION)
    start = (part.to(tl.int64) * 2 * max_length * H + head) * E
    row = r0 + max_length
    store_rows(d_rel_k_ptr + start, d_rel_k_NE * scale, row, 2 * max_length, H * E, BLOCK, E)
    store_rows(d_rel_q_ptr + start, d_rel_q_NE * scale, row, 2 * max_length, H * E, BLOCK, E)
