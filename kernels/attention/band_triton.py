"""The backward kernel of fused attention for short sequences: all gradients from one set of scores.

Its position terms are read from two bands, matrix products of all tokens and all distances that the BLAS
computes. The kernel writes the gradients of the bands. Further products turn these into the rest of the
gradients. With the names of `backward_triton`, and r = i - j + max_length,

    c2p[i, r] = q_i.rel_k[r]      d_c2p[i, r] = ds_ij      d_q_i = scale (sum_j ds_ij k_j + d_c2p[i] rel_k)
    p2c[j, r] = k_j.rel_q[r]      d_p2c[j, r] = ds_ij      d_k_j = scale (sum_i ds_ij q_i + d_p2c[j] rel_q)
    d_rel_k = scale d_c2p^T q     d_rel_q = scale d_p2c^T k

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, W columns of a band. Of a tile:
M queries, N keys.
"""

import triton
import triton.language as tl

from kernels.attention.tile_triton import (
    LOG2_E,
    VARYING,
    dot_T,
    dropout_factors,
    load_rows,
    sequence_bounds,
    store_rows,
)


@triton.jit
def _zero_rows(band_ptr, length, max_length, N: tl.constexpr, W: tl.constexpr):
    """Zero the columns of all distances, and as many more as make the stores whole."""
    row_N, column_W = tl.arange(0, N), tl.arange(0, W)
    mask_NW = (row_N < length)[:, None] & (column_W < tl.cdiv(2 * max_length, 16) * 16)[None, :]
    zeros_NW = tl.zeros((N, W), band_ptr.dtype.element_ty)
    tl.store(band_ptr + row_N[:, None] * W + column_W[None, :], zeros_NW, mask=mask_NW)


@triton.jit(do_not_specialize=VARYING)
def band_kernel(
    qkv_ptr,  # (T, H, 3, E)
    c2p_ptr,  # (H, T, W), as p2c; of W columns the first 2 max_length are read
    p2c_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    d_out_ptr,  # (T, H, E)
    lse_ptr,  # (H, T) float32
    d_qkv_ptr,  # (T, H, 3, E), written; d_q and d_k without what comes from the bands
    d_c2p_ptr,  # (H, T, W), written, as d_p2c; without the factor scale
    d_p2c_ptr,
    T,
    max_length,
    scale,
    dropout_p,
    HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes a sequence and head. A tile has all keys: no sequence is longer than BLOCK_N."""
    W: tl.constexpr = 2 * BLOCK_N
    sequence, head = tl.program_id(0), tl.program_id(1)
    first, length = sequence_bounds(cu_seqlens_ptr, sequence)
    own = (first * H + head) * E
    q_ptr, k_ptr, v_ptr = qkv_ptr + 3 * own, qkv_ptr + 3 * own + E, qkv_ptr + 3 * own + 2 * E
    row = head.to(tl.int64) * T + first
    c2p_ptr, p2c_ptr = c2p_ptr + row * W + max_length, p2c_ptr + row * W + max_length
    d_c2p_ptr, d_p2c_ptr = d_c2p_ptr + row * W, d_p2c_ptr + row * W
    _zero_rows(d_c2p_ptr, length, max_length, BLOCK_N, W)
    _zero_rows(d_p2c_ptr, length, max_length, BLOCK_N, W)
    tl.debug_barrier()  # other threads write gradients to the same places
    d_c2p_ptr, d_p2c_ptr = d_c2p_ptr + max_length, d_p2c_ptr + max_length
    k_NE = load_rows(k_ptr, 0, length, 3 * H * E, BLOCK_N, E)
    v_NE = load_rows(v_ptr, 0, length, 3 * H * E, BLOCK_N, E)
    d_k_NE = tl.zeros((BLOCK_N, E), tl.float32)
    d_v_NE = tl.zeros((BLOCK_N, E), tl.float32)
    # The place of entry (m, n) in a band, in the form from which the compiler makes one address a thread and
    # constant offsets: int64, and a sum of terms that are not negative.
    m, n = tl.arange(0, BLOCK_M).to(tl.int64)[:, None], tl.arange(0, BLOCK_N).to(tl.int64)[None, :]
    c2p_place_MN = m * (W + 1) + (BLOCK_N - 1 - n)  # m W + m - n, and BLOCK_N - 1
    p2c_place_MN = n * (W - 1) + m  # n W + m - n
    # The compiler removes a loop with constant bounds and one round.
    for m0 in range(0, length if BLOCK_M < BLOCK_N else BLOCK_M, BLOCK_M):
        i_M = m0 + tl.arange(0, BLOCK_M)
        q_ME = load_rows(q_ptr, m0, length, 3 * H * E, BLOCK_M, E)
        d_out_ME = load_rows(d_out_ptr + own, m0, length, H * E, BLOCK_M, E)
        # With this value the weights of queries past the last are 0.
        lse_M = tl.load(lse_ptr + row + i_M, mask=i_M < length, other=float("inf"))
        is_key_N = tl.arange(0, BLOCK_N) < length
        inside_MN = (i_M < length)[:, None] & is_key_N[None, :]
        c2p_start, p2c_start = m0 * (W + 1) - (BLOCK_N - 1), m0
        scores_MN = dot_T(q_ME, k_NE, PRECISION)
        scores_MN += tl.load(c2p_ptr + c2p_start + c2p_place_MN, mask=inside_MN, other=0.0)
        scores_MN += tl.load(p2c_ptr + p2c_start + p2c_place_MN, mask=inside_MN, other=0.0)
        scores_MN = tl.where(is_key_N[None, :], scores_MN * (scale * LOG2_E), float("-inf"))
        weights_MN = tl.exp2(scores_MN - lse_M[:, None])
        factors_MN = dropout_factors(
            seed_ptr, sequence, head, m0, 0, dropout_p, HAS_DROPOUT, BLOCK_M, BLOCK_N
        )
        dropped_MN = (weights_MN * factors_MN).to(v_NE.dtype)
        d_v_NE = tl.dot(tl.trans(dropped_MN), d_out_ME, d_v_NE, input_precision=PRECISION)
        d_weights_MN = dot_T(d_out_ME, v_NE, PRECISION) * factors_MN
        delta_M = tl.sum(weights_MN * d_weights_MN, axis=1)
        d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(k_NE.dtype)
        d_k_NE = tl.dot(tl.trans(d_scores_MN), q_ME, d_k_NE, input_precision=PRECISION)
        d_q_ME = tl.dot(d_scores_MN, k_NE, input_precision=PRECISION)
        store_rows(d_qkv_ptr + 3 * own, d_q_ME * scale, m0, length, 3 * H * E, BLOCK_M, E)
        tl.store(d_c2p_ptr + c2p_start + c2p_place_MN, d_scores_MN, mask=inside_MN)
        tl.store(d_p2c_ptr + p2c_start + p2c_place_MN, d_scores_MN, mask=inside_MN)
    store_rows(d_qkv_ptr + 3 * own + E, d_k_NE * scale, 0, length, 3 * H * E, BLOCK_N, E)
    store_rows(d_qkv_ptr + 3 * own + 2 * E, d_v_NE, 0, length, 3 * H * E, BLOCK_N, E)
