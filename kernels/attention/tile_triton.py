"""The pieces that the four attention kernels share: a square tile of scores, its distances, its dropout mask.

A tile has BLOCK queries (or, in the kernel of the tables' gradients, BLOCK queries and BLOCK distances). Its
BLOCK x BLOCK entries span a window of 2 BLOCK - 1 distances. Both position terms are products with that
window of a table of distances,

    (q rel_k^T)[m, w] and (rel_q k^T)[w, n], of which entry (m, n) needs w = m - n + BLOCK - 1.

Each product is computed in two halves of BLOCK columns (rows). Entry (m, n) needs the lower half where
m <= n and the upper half elsewhere. So one `tl.where` merges the halves, and one `tl.gather` within a row
(column) moves each entry of the merged half to its place. Gradients take the same way backwards.

Legend: M queries and N keys (or distances) of a tile, E width of a head.
"""

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))
PHILOX_ROUNDS = tl.constexpr(7)
"""The fewest rounds of Philox 4x32 that passed the statistical tests of Salmon et al. 2011."""
VARYING = ("B", "T", "max_length")
"""Kernel arguments that differ from call to call. Triton compiles no special version for any value."""


@triton.jit
def sequence_bounds(cu_seqlens_ptr, sequence):
    """The first token of a sequence (int64) and its number of tokens."""
    first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    return first, (tl.load(cu_seqlens_ptr + sequence + 1) - first).to(tl.int32)


@triton.jit
def load_rows(ptr, first, num_rows, stride, BLOCK: tl.constexpr, E: tl.constexpr):
    """Rows first, first + 1, ... of a matrix, with zeros for rows before 0 and from num_rows on."""
    row = first + tl.arange(0, BLOCK)
    return tl.load(
        ptr + row.to(tl.int64)[:, None] * stride + tl.arange(0, E)[None, :],
        mask=((row >= 0) & (row < num_rows))[:, None],
        other=0.0,
    )


@triton.jit
def store_rows(ptr, x, first, num_rows, stride, BLOCK: tl.constexpr, E: tl.constexpr):
    """Store x as rows first, first + 1, ... of a matrix, but for rows before 0 and from num_rows on."""
    row = first + tl.arange(0, BLOCK)
    place = row.to(tl.int64)[:, None] * stride + tl.arange(0, E)[None, :]
    tl.store(ptr + place, x.to(ptr.dtype.element_ty), mask=((row >= 0) & (row < num_rows))[:, None])


@triton.jit
def load_window(ptr, first, num_rows, stride, BLOCK: tl.constexpr, E: tl.constexpr):
    """Both halves of a window of 2 BLOCK rows."""
    low = load_rows(ptr, first, num_rows, stride, BLOCK, E)
    return low, load_rows(ptr, first + BLOCK, num_rows, stride, BLOCK, E)


@triton.jit
def dot_T(x_ME, y_NE, PRECISION: tl.constexpr):
    return tl.dot(x_ME, tl.trans(y_NE), input_precision=PRECISION)


@triton.jit
def read_rows(x_ME, low_NE, high_NE, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """Entry (m, n) is the product of row m of x with row m - n + BLOCK - 1 of a window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    merged_MN = tl.where(n >= m, dot_T(x_ME, low_NE, PRECISION), dot_T(x_ME, high_NE, PRECISION))
    return tl.gather(merged_MN, (m - n - 1) & (BLOCK - 1), axis=1)


@triton.jit
def read_columns(low_ME, high_ME, y_NE, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """Entry (m, n) is the product of row m - n + BLOCK - 1 of a window with row n of y."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    low_MN, high_MN = dot_T(low_ME, y_NE, PRECISION), dot_T(high_ME, y_NE, PRECISION)
    merged_MN = tl.where(m + n >= BLOCK - 1, low_MN, high_MN)
    return tl.gather(merged_MN, (m - n - 1) & (BLOCK - 1), axis=0)


@triton.jit
def spread_rows(x_MN, BLOCK: tl.constexpr):
    """The transpose of the merge and gather of `read_rows`: the tile as both halves of a window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    both_MN = tl.gather(x_MN, (m - n - 1) & (BLOCK - 1), axis=1)
    return tl.where(n >= m, both_MN, 0.0), tl.where(n >= m, 0.0, both_MN)


@triton.jit
def spread_columns(x_MN, BLOCK: tl.constexpr):
    """The transpose of the merge and gather of `read_columns`: the tile as both halves of a window."""
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    both_MN = tl.gather(x_MN, (m + n + 1) & (BLOCK - 1), axis=0)
    return tl.where(m + n >= BLOCK - 1, both_MN, 0.0), tl.where(m + n >= BLOCK - 1, 0.0, both_MN)


@triton.jit
def masked_scores(
    q_ME,
    k_NE,
    rel_k_ptr,  # (R, H, E), of which the first head is read, as rel_q
    rel_q_ptr,
    m0,
    n0,
    length,
    max_length,
    scale,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores of queries m0, m0 + 1, ... and keys n0, n0 + 1, ... times log2(e): weights are powers of 2.

    Entry (m, n) is scale * (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]), and -inf for keys past the last.
    """
    row = m0 - n0 - (BLOCK - 1) + max_length
    # Position terms are summed first: another order of the sum spills registers at float32 heads of 64
    # (sm90).
    content_MN = dot_T(q_ME, k_NE, PRECISION)
    low_NE, high_NE = load_window(rel_k_ptr, row, 2 * max_length, H * E, BLOCK, E)
    position_MN = read_rows(q_ME, low_NE, high_NE, PRECISION, BLOCK)
    low_ME, high_ME = load_window(rel_q_ptr, row, 2 * max_length, H * E, BLOCK, E)
    position_MN += read_columns(low_ME, high_ME, k_NE, PRECISION, BLOCK)
    scores_MN = content_MN + position_MN
    is_key_N = n0 + tl.arange(0, BLOCK) < length
    return tl.where(is_key_N[None, :], scores_MN * (scale * LOG2_E), float("-inf"))


@triton.jit
def _philox(seed_ptr, sequence, head, i, j):
    """Four random words (uint32), for the weights of queries i and i + 8 with keys j and j + 1.

    Bit 3 of i and bit 0 of j count as 0."""
    return tl.philox(tl.load(seed_ptr), j >> 1, i & ~8, head, sequence, PHILOX_ROUNDS)


@triton.jit
def _factor(word, dropout_p):
    """1 / (1 - p) for a weight that is kept, 0 for one that is dropped."""
    threshold = (tl.to_tensor(dropout_p) * 4294967296.0).to(tl.uint32)
    return tl.where(word >= threshold, 1.0 / (1.0 - dropout_p), 0.0)


@triton.jit
def dropout_factors(
    seed_ptr, sequence, head, m0, n0, dropout_p, HAS_DROPOUT: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    """The dropout factors of a tile of M queries and N keys.

    One call of Philox serves four weights, which lie in one thread: a thread of a tensor core's result holds
    two neighbours in a row and the two that lie 8 rows below. So nothing is exchanged between threads.
    """
    if HAS_DROPOUT:
        row = tl.arange(0, M // 2)
        i = m0 + row // 8 * 16 + row % 8
        j = n0 + 2 * tl.arange(0, N // 2)
        w0, w1, w2, w3 = _philox(seed_ptr, sequence, head, i[:, None], j[None, :])
        upper = tl.join(_factor(w0, dropout_p), _factor(w1, dropout_p)).reshape(M // 2, N)
        lower = tl.join(_factor(w2, dropout_p), _factor(w3, dropout_p)).reshape(M // 2, N)
        factors = tl.join(upper, lower).reshape(M // 16, 8, N, 2).permute(0, 3, 1, 2).reshape(M, N)
    else:
        factors = 1.0
    return factors


@triton.jit
def dropout_factors_at(seed_ptr, sequence, head, i, j, dropout_p, HAS_DROPOUT: tl.constexpr):
    """The same factors for any queries i and keys j, which broadcast. It uses one word of each call."""
    if HAS_DROPOUT:
        w0, w1, w2, w3 = _philox(seed_ptr, sequence, head, i, j)
        is_even = j % 2 == 0
        factors = _factor(
            tl.where(i & 8 != 0, tl.where(is_even, w2, w3), tl.where(is_even, w0, w1)), dropout_p
        )
    else:
        factors = 1.0
    return factors
