"""Fused disentangled attention on flat sequences, forward and backward, in Triton.

    s_ij = (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) / sqrt(3 E);   out_i = sum_j softmax_j(s_i) v_j

Nothing of size L x L or tokens x distances is ever in memory. A square tile of BLOCK queries and keys spans a
window of 2 BLOCK - 1 distances. Both position terms are products with that window of a table,

    (q rel_k^T)[m, w] and (rel_q k^T)[w, n], wanted at w = m - n + BLOCK - 1

and each is made in two halves of BLOCK columns (rows). An entry of the tile needs the lower half where m <= n
and the upper elsewhere, so that one select folds them and one `tl.gather` within a row (column) puts the
folded half straight. The gradient goes back the same way.

Three backward kernels recompute the scores, and each sums what it owns in one order: queries, keys and
values, and distances. The last one walks tiles of queries and *distances*, with the keys as the window: with
r for i - j a score is q_i.rel_k[r] + q_i.k[i - r] + rel_q[r].k[i - r], the same tile with its operands
exchanged. So there are no atomics, and the same call gives the same bits.

The cost in products of BLOCK x BLOCK x E a tile: forward 6 (plain attention: 2), backward 9 + 10 + 10 (plain:
7 without atomics). What was weighed against it, for 32 sequences of 512, 12 heads of 64, bf16:

    q rel_k^T and k rel_q^T of all distances from the BLAS, gathered in the tile: forward 6, backward 19, but
        0.8 GB of products a layer, and as much for their gradients
    the tables' gradients added with atomics by the other two kernels: backward 23, but other bits each time
    the tables' gradients as partial sums of every block of queries: backward 23, but 1.6 GB a table

The distances' kernel leaves partial sums too, of parts of the batch: some 1,024 blocks of BLOCK x E float32,
8 MB a table, whatever the batch. Few distances leave room for many parts, and many need few.

Dropout is not stored but drawn again: whether weight (i, j) is dropped is a Philox number (Salmon et al.
2011; seven rounds, the fewest that passed their tests) of j, i, the head and the sequence's number in the
batch, so that neither the tile nor another sequence changes it.

Scores, softmax and sums in float32, results in the dtype of the inputs; float32 products in float32 accuracy
(three tf32 products on NVIDIA). A sequence's result depends on its batch-mates only through `max_length`,
which picks the tile. **Nothing here has run on a GPU yet**: numerics are tested in Triton's interpreter
(which gets bf16 wrong, so that it is not tested at all), registers and shared memory by ahead-of-time
compilation.

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length distances (row r
is distance r - max_length). Of a tile: M queries, N keys or distances. P parts of the batch.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(math.log2(math.e))
PHILOX_ROUNDS = tl.constexpr(7)
VARYING = ("B", "T", "max_length")
"""Another value at each call: none of them is compiled in."""
NUM_PROGRAMS = 1024
"""Of the distances' kernel, about: enough for every GPU, and a bound for its partial sums."""

# By bytes of a number and width of a head. From the compile check (no spills, shared memory of every target),
# not from timings; larger tiles spill, and so does float32 at 128.
BLOCKS = {2: {32: 32, 64: 32, 128: 16}, 4: {32: 16, 64: 16}}


def launch_options(
    kernel: Any,
    dtype: torch.dtype,
    head_width: int,
    max_length: int,
    is_amd: bool = bool(torch.version.hip),
) -> dict[str, int]:
    """Tile and threads of a kernel (a warp of AMD's has 64).

    Triton lays the warps of a product side by side, and each takes 8 columns: BLOCK / 8 of them fill a tile,
    more repeat the work of others. More are taken where the registers of these do not suffice.
    """
    block = 16 if max_length <= 16 else BLOCKS[dtype.itemsize][head_width]
    needs_registers = dtype.itemsize == 4 or kernel is _distances_kernel
    num_warps = 4 if is_amd else block // (4 if needs_registers else 8)
    return {"BLOCK": block, "num_warps": num_warps, "num_stages": 1}


@triton.jit
def _rows(ptr, first, num_rows, stride, BLOCK: tl.constexpr, E: tl.constexpr):
    """Rows first, first + 1, ... of a matrix; zeros before row 0 and from num_rows on."""
    row = first + tl.arange(0, BLOCK)
    return tl.load(
        ptr + row.to(tl.int64)[:, None] * stride + tl.arange(0, E)[None, :],
        mask=((row >= 0) & (row < num_rows))[:, None],
        other=0.0,
    )


@triton.jit
def _read_rows(low_MN, high_MN, BLOCK: tl.constexpr):
    """Entry (m, n) of a tile from row m of its window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tl.where(n >= m, low_MN, high_MN), (m - n - 1) & (BLOCK - 1), axis=1)


@triton.jit
def _read_columns(low_MN, high_MN, BLOCK: tl.constexpr):
    """Entry (m, n) of a tile from column n of its window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tl.where(m + n >= BLOCK - 1, low_MN, high_MN), (m - n - 1) & (BLOCK - 1), axis=0)


@triton.jit
def _spread_rows(x_MN, BLOCK: tl.constexpr):
    """The transpose of `_read_rows`: both halves of the window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    both_MN = tl.gather(x_MN, (m - n - 1) & (BLOCK - 1), axis=1)
    return tl.where(n >= m, both_MN, 0.0), tl.where(n >= m, 0.0, both_MN)


@triton.jit
def _spread_columns(x_MN, BLOCK: tl.constexpr):
    """The transpose of `_read_columns`: both halves of the window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    both_MN = tl.gather(x_MN, (m + n + 1) & (BLOCK - 1), axis=0)
    return tl.where(m + n >= BLOCK - 1, both_MN, 0.0), tl.where(m + n >= BLOCK - 1, 0.0, both_MN)


@triton.jit
def _dot_T(x_ME, y_NE, PRECISION: tl.constexpr):
    return tl.dot(x_ME, tl.trans(y_NE), input_precision=PRECISION)


@triton.jit
def _position_scores(
    q_ME,
    k_NE,
    rel_k_ptr,
    rel_q_ptr,
    row,
    num_rows,
    PRECISION: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """q_i.rel_k[i - j] + k_j.rel_q[i - j]; `row` of the tables is the first distance of the tile."""
    low_NE = _rows(rel_k_ptr, row, num_rows, E, BLOCK, E)
    high_NE = _rows(rel_k_ptr, row + BLOCK, num_rows, E, BLOCK, E)
    scores_MN = _read_rows(_dot_T(q_ME, low_NE, PRECISION), _dot_T(q_ME, high_NE, PRECISION), BLOCK)
    low_ME = _rows(rel_q_ptr, row, num_rows, E, BLOCK, E)
    high_ME = _rows(rel_q_ptr, row + BLOCK, num_rows, E, BLOCK, E)
    return scores_MN + _read_columns(_dot_T(low_ME, k_NE, PRECISION), _dot_T(high_ME, k_NE, PRECISION), BLOCK)


@triton.jit
def _kept(seed_ptr, sequence, head, i, j, dropout_p):
    """1 / (1 - p) for a weight that is kept, 0 for one that is dropped; i and j broadcast."""
    bits, _, _, _ = tl.philox(tl.load(seed_ptr), j, i, head, sequence, PHILOX_ROUNDS)
    return tl.where(tl.uint_to_uniform_float(bits) >= dropout_p, 1.0 / (1.0 - dropout_p), 0.0)


@triton.jit(do_not_specialize=VARYING)
def _forward_kernel(
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
    """One program a block of queries, sequence and head."""
    sequence, m0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + sequence + 1) - first).to(tl.int32)
    if m0 >= length:
        return
    start = first * stride_T + head.to(tl.int64) * stride_H
    table = head.to(tl.int64) * 2 * max_length * E
    q_ME = _rows(q_ptr + start, m0, length, stride_T, BLOCK, E)
    i_M = m0 + tl.arange(0, BLOCK)
    max_M = tl.full((BLOCK,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK,), tl.float32)
    out_ME = tl.zeros((BLOCK, E), tl.float32)
    for n0 in range(0, length, BLOCK):
        row = m0 - n0 - (BLOCK - 1) + max_length
        k_NE = _rows(k_ptr + start, n0, length, stride_T, BLOCK, E)
        j_N = n0 + tl.arange(0, BLOCK)
        scores_MN = _dot_T(q_ME, k_NE, PRECISION)
        scores_MN += _position_scores(
            q_ME, k_NE, rel_k_ptr + table, rel_q_ptr + table, row, 2 * max_length, PRECISION, E, BLOCK
        )
        scores_MN = tl.where((j_N < length)[None, :], scores_MN * (scale * LOG2_E), float("-inf"))
        # The first tile has a key for every query, so that no maximum stays infinite.
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        if HAS_DROPOUT:
            weights_MN *= _kept(seed_ptr, sequence, head, i_M[:, None], j_N[None, :], dropout_p)
        v_NE = _rows(v_ptr + start, n0, length, stride_T, BLOCK, E)
        out_ME = tl.dot(
            weights_MN.to(v_NE.dtype), v_NE, out_ME * shrink_M[:, None], input_precision=PRECISION
        )
        max_M = new_max_M
    place_ME = ((first + i_M) * H + head)[:, None] * E + tl.arange(0, E)[None, :]
    out_ME = out_ME / sum_M[:, None]
    tl.store(out_ptr + place_ME, out_ME.to(out_ptr.dtype.element_ty), mask=(i_M < length)[:, None])
    lse_place_M = head.to(tl.int64) * T + first + i_M
    tl.store(lse_ptr + lse_place_M, max_M + tl.log2(sum_M), mask=i_M < length)


@triton.jit(do_not_specialize=VARYING)
def _queries_kernel(
    q_ptr,  # (T, H, E), as k and v: strides stride_T, stride_H, 1
    k_ptr,
    v_ptr,
    rel_k_ptr,  # (H, R, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    out_ptr,  # (T, H, E), as d_out
    d_out_ptr,
    lse_ptr,  # (H, T) float32
    delta_ptr,  # (H, T) float32, written: d_out_i.out_i
    d_q_ptr,  # (T, H, E), written
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
    """d_q_i = sum_j ds_ij (k_j + rel_k[i - j]), ds_ij = p_ij (kept_ij d_out_i.v_j - delta_i); one program a
    block of queries, sequence and head.
    """
    sequence, m0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + sequence + 1) - first).to(tl.int32)
    if m0 >= length:
        return
    start = first * stride_T + head.to(tl.int64) * stride_H
    own_start = (first * H + head) * E
    table = head.to(tl.int64) * 2 * max_length * E
    i_M = m0 + tl.arange(0, BLOCK)
    row_place_M = head.to(tl.int64) * T + first + i_M
    q_ME = _rows(q_ptr + start, m0, length, stride_T, BLOCK, E)
    d_out_ME = _rows(d_out_ptr + own_start, m0, length, H * E, BLOCK, E)
    out_ME = _rows(out_ptr + own_start, m0, length, H * E, BLOCK, E)
    delta_M = tl.sum(d_out_ME.to(tl.float32) * out_ME.to(tl.float32), axis=1)
    tl.store(delta_ptr + row_place_M, delta_M, mask=i_M < length)
    lse_M = tl.load(lse_ptr + row_place_M, mask=i_M < length, other=float("inf"))
    d_q_ME = tl.zeros((BLOCK, E), tl.float32)
    for n0 in range(0, length, BLOCK):
        row = m0 - n0 - (BLOCK - 1) + max_length
        k_NE = _rows(k_ptr + start, n0, length, stride_T, BLOCK, E)
        j_N = n0 + tl.arange(0, BLOCK)
        scores_MN = _dot_T(q_ME, k_NE, PRECISION)
        scores_MN += _position_scores(
            q_ME, k_NE, rel_k_ptr + table, rel_q_ptr + table, row, 2 * max_length, PRECISION, E, BLOCK
        )
        scores_MN = tl.where((j_N < length)[None, :], scores_MN * (scale * LOG2_E), float("-inf"))
        weights_MN = tl.exp2(scores_MN - lse_M[:, None])
        v_NE = _rows(v_ptr + start, n0, length, stride_T, BLOCK, E)
        d_weights_MN = _dot_T(d_out_ME, v_NE, PRECISION)
        if HAS_DROPOUT:
            d_weights_MN *= _kept(seed_ptr, sequence, head, i_M[:, None], j_N[None, :], dropout_p)
        d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(k_NE.dtype)
        d_q_ME = tl.dot(d_scores_MN, k_NE, d_q_ME, input_precision=PRECISION)
        low_MN, high_MN = _spread_rows(d_scores_MN, BLOCK)
        low_NE = _rows(rel_k_ptr + table, row, 2 * max_length, E, BLOCK, E)
        d_q_ME = tl.dot(low_MN, low_NE, d_q_ME, input_precision=PRECISION)
        high_NE = _rows(rel_k_ptr + table, row + BLOCK, 2 * max_length, E, BLOCK, E)
        d_q_ME = tl.dot(high_MN, high_NE, d_q_ME, input_precision=PRECISION)
    place_ME = own_start + i_M.to(tl.int64)[:, None] * (H * E) + tl.arange(0, E)[None, :]
    tl.store(d_q_ptr + place_ME, (d_q_ME * scale).to(d_q_ptr.dtype.element_ty), mask=(i_M < length)[:, None])


@triton.jit(do_not_specialize=VARYING)
def _keys_kernel(
    q_ptr,  # (T, H, E), as k and v: strides stride_T, stride_H, 1
    k_ptr,
    v_ptr,
    rel_k_ptr,  # (H, R, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    d_out_ptr,  # (T, H, E)
    lse_ptr,  # (H, T) float32, as delta
    delta_ptr,
    d_k_ptr,  # (T, H, E), written, as d_v
    d_v_ptr,
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
    """d_k_j = sum_i ds_ij (q_i + rel_q[i - j]) and d_v_j = sum_i p_ij kept_ij d_out_i; one program a block of
    keys, sequence and head.
    """
    sequence, n0, head = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2)
    first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + sequence + 1) - first).to(tl.int32)
    if n0 >= length:
        return
    start = first * stride_T + head.to(tl.int64) * stride_H
    own_start = (first * H + head) * E
    table = head.to(tl.int64) * 2 * max_length * E
    j_N = n0 + tl.arange(0, BLOCK)
    k_NE = _rows(k_ptr + start, n0, length, stride_T, BLOCK, E)
    v_NE = _rows(v_ptr + start, n0, length, stride_T, BLOCK, E)
    d_k_NE = tl.zeros((BLOCK, E), tl.float32)
    d_v_NE = tl.zeros((BLOCK, E), tl.float32)
    for m0 in range(0, length, BLOCK):
        row = m0 - n0 - (BLOCK - 1) + max_length
        q_ME = _rows(q_ptr + start, m0, length, stride_T, BLOCK, E)
        i_M = m0 + tl.arange(0, BLOCK)
        row_place_M = head.to(tl.int64) * T + first + i_M
        lse_M = tl.load(lse_ptr + row_place_M, mask=i_M < length, other=float("inf"))
        delta_M = tl.load(delta_ptr + row_place_M, mask=i_M < length, other=0.0)
        scores_MN = _dot_T(q_ME, k_NE, PRECISION)
        scores_MN += _position_scores(
            q_ME, k_NE, rel_k_ptr + table, rel_q_ptr + table, row, 2 * max_length, PRECISION, E, BLOCK
        )
        scores_MN = tl.where((j_N < length)[None, :], scores_MN * (scale * LOG2_E), float("-inf"))
        weights_MN = tl.exp2(scores_MN - lse_M[:, None])
        d_out_ME = _rows(d_out_ptr + own_start, m0, length, H * E, BLOCK, E)
        d_weights_MN = _dot_T(d_out_ME, v_NE, PRECISION)
        kept_weights_MN = weights_MN
        if HAS_DROPOUT:
            kept_MN = _kept(seed_ptr, sequence, head, i_M[:, None], j_N[None, :], dropout_p)
            d_weights_MN *= kept_MN
            kept_weights_MN *= kept_MN
        d_v_NE = tl.dot(tl.trans(kept_weights_MN.to(v_NE.dtype)), d_out_ME, d_v_NE, input_precision=PRECISION)
        d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(q_ME.dtype)
        d_k_NE = tl.dot(tl.trans(d_scores_MN), q_ME, d_k_NE, input_precision=PRECISION)
        low_MN, high_MN = _spread_columns(d_scores_MN, BLOCK)
        low_ME = _rows(rel_q_ptr + table, row, 2 * max_length, E, BLOCK, E)
        d_k_NE = tl.dot(tl.trans(low_MN), low_ME, d_k_NE, input_precision=PRECISION)
        high_ME = _rows(rel_q_ptr + table, row + BLOCK, 2 * max_length, E, BLOCK, E)
        d_k_NE = tl.dot(tl.trans(high_MN), high_ME, d_k_NE, input_precision=PRECISION)
    place_NE = own_start + j_N.to(tl.int64)[:, None] * (H * E) + tl.arange(0, E)[None, :]
    inside_NE = (j_N < length)[:, None]
    tl.store(d_k_ptr + place_NE, (d_k_NE * scale).to(d_k_ptr.dtype.element_ty), mask=inside_NE)
    tl.store(d_v_ptr + place_NE, d_v_NE.to(d_v_ptr.dtype.element_ty), mask=inside_NE)


@triton.jit(do_not_specialize=VARYING)
def _distances_kernel(
    q_ptr,  # (T, H, E), as k and v: strides stride_T, stride_H, 1
    k_ptr,
    v_ptr,
    rel_k_ptr,  # (H, R, E), as rel_q
    rel_q_ptr,
    cu_seqlens_ptr,  # (B + 1,)
    seed_ptr,  # (1,) int64
    d_out_ptr,  # (T, H, E)
    lse_ptr,  # (H, T) float32, as delta
    delta_ptr,
    d_rel_k_ptr,  # (P, H, R, E) float32, written, as d_rel_q: sums over every P-th sequence
    d_rel_q_ptr,
    B,
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
    """d_rel_k[r] = sum_i ds_ij q_i and d_rel_q[r] = sum_i ds_ij k_j, j = i - r; one program a block of
    distances, part of the batch and head.
    """
    part, head = tl.program_id(1), tl.program_id(2)
    r0 = (tl.program_id(0) - tl.num_programs(0) // 2) * BLOCK
    r_N = r0 + tl.arange(0, BLOCK)
    table = head.to(tl.int64) * 2 * max_length * E
    rel_k_NE = _rows(rel_k_ptr + table, r0 + max_length, 2 * max_length, E, BLOCK, E)
    rel_q_NE = _rows(rel_q_ptr + table, r0 + max_length, 2 * max_length, E, BLOCK, E)
    d_rel_k_NE = tl.zeros((BLOCK, E), tl.float32)
    d_rel_q_NE = tl.zeros((BLOCK, E), tl.float32)
    for sequence in range(part, B, tl.num_programs(1)):
        first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + sequence + 1) - first).to(tl.int32)
        start = first * stride_T + head.to(tl.int64) * stride_H
        own_start = (first * H + head) * E
        # Queries that have a key at one of these distances.
        for m0 in range(tl.maximum(r0, 0), tl.minimum(length, length + r0 + (BLOCK - 1)), BLOCK):
            q_ME = _rows(q_ptr + start, m0, length, stride_T, BLOCK, E)
            j0 = m0 - r0 - (BLOCK - 1)
            i_M = m0 + tl.arange(0, BLOCK)
            j_MN = i_M[:, None] - r_N[None, :]
            row_place_M = head.to(tl.int64) * T + first + i_M
            lse_M = tl.load(lse_ptr + row_place_M, mask=i_M < length, other=float("inf"))
            delta_M = tl.load(delta_ptr + row_place_M, mask=i_M < length, other=0.0)
            low_NE = _rows(k_ptr + start, j0, length, stride_T, BLOCK, E)
            high_NE = _rows(k_ptr + start, j0 + BLOCK, length, stride_T, BLOCK, E)
            scores_MN = _dot_T(q_ME, rel_k_NE, PRECISION)
            scores_MN += _read_rows(_dot_T(q_ME, low_NE, PRECISION), _dot_T(q_ME, high_NE, PRECISION), BLOCK)
            scores_MN += _read_columns(
                _dot_T(low_NE, rel_q_NE, PRECISION), _dot_T(high_NE, rel_q_NE, PRECISION), BLOCK
            )
            inside_MN = (j_MN >= 0) & (j_MN < length)
            scores_MN = tl.where(inside_MN, scores_MN * (scale * LOG2_E), float("-inf"))
            weights_MN = tl.exp2(scores_MN - lse_M[:, None])
            d_out_ME = _rows(d_out_ptr + own_start, m0, length, H * E, BLOCK, E)
            v_low_NE = _rows(v_ptr + start, j0, length, stride_T, BLOCK, E)
            v_high_NE = _rows(v_ptr + start, j0 + BLOCK, length, stride_T, BLOCK, E)
            d_weights_MN = _read_rows(
                _dot_T(d_out_ME, v_low_NE, PRECISION), _dot_T(d_out_ME, v_high_NE, PRECISION), BLOCK
            )
            if HAS_DROPOUT:
                d_weights_MN *= _kept(seed_ptr, sequence, head, i_M[:, None], j_MN, dropout_p)
            d_scores_MN = (weights_MN * (d_weights_MN - delta_M[:, None])).to(q_ME.dtype)
            d_rel_k_NE = tl.dot(tl.trans(d_scores_MN), q_ME, d_rel_k_NE, input_precision=PRECISION)
            low_MN, high_MN = _spread_columns(d_scores_MN, BLOCK)
            d_rel_q_NE = tl.dot(tl.trans(low_MN), low_NE, d_rel_q_NE, input_precision=PRECISION)
            d_rel_q_NE = tl.dot(tl.trans(high_MN), high_NE, d_rel_q_NE, input_precision=PRECISION)
    row_N = r_N + max_length
    place_NE = (part.to(tl.int64) * H + head) * 2 * max_length * E
    place_NE += row_N[:, None] * E + tl.arange(0, E)[None, :]
    inside_NE = ((row_N >= 0) & (row_N < 2 * max_length))[:, None]
    tl.store(d_rel_k_ptr + place_NE, d_rel_k_NE * scale, mask=inside_NE)
    tl.store(d_rel_q_ptr + place_NE, d_rel_q_NE * scale, mask=inside_NE)


def _shared_arguments(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> dict[str, Any]:
    """What every kernel takes. Slices of one projection stay where they are; other layouts are copied."""
    if q_THE.stride(2) != 1 or not q_THE.stride() == k_THE.stride() == v_THE.stride():
        q_THE, k_THE, v_THE = q_THE.contiguous(), k_THE.contiguous(), v_THE.contiguous()
    num_tokens, num_heads, head_width = q_THE.shape
    return {
        "q_ptr": q_THE, "k_ptr": k_THE, "v_ptr": v_THE, "rel_k_ptr": rel_k_HRE.contiguous(),
        "rel_q_ptr": rel_q_HRE.contiguous(), "cu_seqlens_ptr": cu_seqlens, "seed_ptr": seed,
        "T": num_tokens, "H": num_heads, "stride_T": q_THE.stride(0), "stride_H": q_THE.stride(1),
        "max_length": rel_k_HRE.shape[1] // 2, "scale": 1 / math.sqrt(3 * head_width),
        "dropout_p": dropout_p, "HAS_DROPOUT": dropout_p > 0, "E": head_width,
        "PRECISION": "tf32x3" if q_THE.is_cuda and not torch.version.hip else "ieee",
    }  # fmt: skip


@torch.library.custom_op("kernels::attention_forward", mutates_args=())
def _forward(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, E) and the logarithms of the softmax's denominators (H, T)."""
    num_tokens, num_heads, head_width = q_THE.shape
    max_length = rel_k_HRE.shape[1] // 2
    out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
    lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=q_THE.device)
    shared = _shared_arguments(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    options = launch_options(_forward_kernel, q_THE.dtype, head_width, max_length)
    grid = (len(cu_seqlens) - 1, triton.cdiv(max_length, options["BLOCK"]), num_heads)
    with torch.cuda.device_of(q_THE):  # Triton launches on the current device
        _forward_kernel[grid](**shared, out_ptr=out_THE, lse_ptr=lse_HT, **options)
    return out_THE, lse_HT


@_forward.register_fake
def _forward_shapes(q_THE: Tensor, *_unused: object) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _ = q_THE.shape
    out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
    return out_THE, q_THE.new_empty(num_heads, num_tokens, dtype=torch.float32)


@torch.library.custom_op("kernels::attention_backward", mutates_args=())
def _backward(
    d_out_THE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, rel_k, rel_q."""
    num_heads, num_distances, head_width = rel_k_HRE.shape
    num_sequences, max_length = len(cu_seqlens) - 1, num_distances // 2
    shared = _shared_arguments(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    d_out_THE = d_out_THE.contiguous()
    delta_HT = torch.empty_like(lse_HT)
    d_q_THE, d_k_THE, d_v_THE = (torch.empty_like(out_THE) for _ in range(3))

    options = launch_options(_queries_kernel, q_THE.dtype, head_width, max_length)  # and keys
    num_blocks = triton.cdiv(max_length, options["BLOCK"])
    num_parts = min(num_sequences, triton.cdiv(NUM_PROGRAMS, 2 * num_blocks * num_heads))
    shape = (num_parts, *rel_k_HRE.shape)
    d_rel_k_PHRE, d_rel_q_PHRE = (
        torch.empty(shape, dtype=torch.float32, device=q_THE.device) for _ in range(2)
    )
    with torch.cuda.device_of(q_THE):
        _queries_kernel[(num_sequences, num_blocks, num_heads)](
            **shared, out_ptr=out_THE, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT,
            d_q_ptr=d_q_THE, **options,
        )  # fmt: skip
        _keys_kernel[(num_sequences, num_blocks, num_heads)](
            **shared, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT, d_k_ptr=d_k_THE,
            d_v_ptr=d_v_THE, **options,
        )  # fmt: skip
        options = launch_options(_distances_kernel, q_THE.dtype, head_width, max_length)
        shared["PRECISION"] = "ieee"  # of float32: the three tf32 products spill here
        _distances_kernel[(2 * num_blocks, num_parts, num_heads)](
            **shared, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT, d_rel_k_ptr=d_rel_k_PHRE,
            d_rel_q_ptr=d_rel_q_PHRE, B=num_sequences, **options,
        )  # fmt: skip
    d_rel_k_HRE, d_rel_q_HRE = (x.sum(0).to(rel_k_HRE.dtype) for x in (d_rel_k_PHRE, d_rel_q_PHRE))
    return d_q_THE, d_k_THE, d_v_THE, d_rel_k_HRE, d_rel_q_HRE


@_backward.register_fake
def _backward_shapes(
    d_out_THE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    *_unused: object,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q_THE, q_THE, q_THE, rel_k_HRE, rel_k_HRE))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout_p = inputs
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, d_out_THE: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_THE, *ctx.saved_tensors, ctx.dropout_p), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


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
    """The same as `attention_reference.disentangled_attention`. The seed of the dropout is drawn on the
    device, so that the host waits for nothing.
    """
    seed = torch.randint(2**63 - 1, (1,), device=q_THE.device) if dropout_p else cu_seqlens[:1]
    out_THE, _ = _forward(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    return out_THE
