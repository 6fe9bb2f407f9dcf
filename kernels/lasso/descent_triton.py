"""The GPU solver: greedy coordinate descent on the Gram matrix, one program a signal, in Triton.

With c = D^T (x - D a) - lam, the violation of atom j is v_j = max(c_j, -G_jj a_j): what is left to gain, or
what can be taken away. An update moves the atom with the largest |v_j| to its optimum and subtracts (v_j /
G_jj) G_j from c:

    j = argmax |v|;   a_j += v_j / G_jj;   c -= (v_j / G_jj) G_j

A pass computes c afresh for all K atoms from the codes (two matrix products), and from c the gap that is
returned. Signals whose gap is too large then descend, with c and a in registers, until the gap of the c
that they update is small enough. The next pass computes their gaps from their codes alone, and those that
are still too large descend again. Most signals need two passes. `results/lasso-designs.md` compares other
designs.

**No part of this was timed on a GPU yet**: numerics are tested in Triton's interpreter, registers and shared
memory by ahead-of-time compilation.

Precision: all in float32. Products on tensor cores are three tf32 products ("tf32x3"), which has the accuracy
of float32. A row of a product is accumulated in the same order whatever the batch, so a code does not depend
on the rest of its batch, to the last bit.

Shapes: N signals, D their dimension, K atoms, R open signals of a pass (row r belongs to signal rows_R[r]).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lasso.reference import MARGIN, gram

CHUNK = 16_384
"""Signals solved at a time: bounds the buffers for c and the residual whatever N is."""
MAX_PASSES = 20
"""Passes that descend; only a tolerance below the resolution of float32 takes so many."""
CHECK_EVERY = 16
"""Updates between two computations of the gap in a descent, each of which costs two reductions."""
EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)

# The tiles of the two products come from the compile check (no spills, the shared memory of every target),
# not from timings.
PRODUCT_TILE = {"BLOCK_R": 128, "BLOCK_C": 64, "BLOCK_I": 32}
PRODUCT_OPTIONS = {"num_warps": 8, "num_stages": 3}


def descend_options(num_atoms: int) -> tuple[int, dict[str, int]]:
    """BLOCK_K and the launch options of the descent: 16 atoms a thread."""
    block = max(32, triton.next_power_of_2(num_atoms))
    return block, {"num_warps": min(32, max(1, block // 512)), "num_stages": 1}


@triton.jit(do_not_specialize=["R"])  # which shrinks from pass to pass
def _residual_kernel(
    signals_ptr,  # (N, D)
    codes_ptr,  # (N, K)
    atoms_ptr,  # (K, D): the dictionary's transpose, so that neighbours in a tile are neighbours in memory
    rows_ptr,  # (R,) int64
    residual_ptr,  # (R, D), written
    R,
    D,
    K,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """residual[r] = x_n - D a_n, n = rows[r]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.load(rows_ptr + r, mask=r < R, other=0)
    sum_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first in range(0, K, BLOCK_I):
        k = first + tl.arange(0, BLOCK_I)
        codes_RI = tl.load(
            codes_ptr + n[:, None] * K + k[None, :], mask=(r < R)[:, None] & (k < K)[None, :], other=0.0
        )
        atoms_IC = tl.load(
            atoms_ptr + k[:, None].to(tl.int64) * D + d[None, :],
            mask=(k < K)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        sum_RC = tl.dot(codes_RI, atoms_IC, sum_RC, input_precision=PRECISION)
    inside_RC = (r < R)[:, None] & (d < D)[None, :]
    signals_RC = tl.load(signals_ptr + n[:, None] * D + d[None, :], mask=inside_RC, other=0.0)
    tl.store(residual_ptr + r[:, None] * D + d[None, :], signals_RC - sum_RC, mask=inside_RC)


@triton.jit(do_not_specialize=["R"])
def _direction_kernel(
    residual_ptr,  # (R, D)
    dictionary_ptr,  # (D, K)
    lam_ptr,  # (N,)
    rows_ptr,  # (R,) int64
    c_ptr,  # (R, K), written
    R,
    D,
    K,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """c[r] = D^T residual[r] - lam_n, n = rows[r]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sum_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first in range(0, D, BLOCK_I):
        d = first + tl.arange(0, BLOCK_I)
        residual_RI = tl.load(
            residual_ptr + r[:, None] * D + d[None, :], mask=(r < R)[:, None] & (d < D)[None, :], other=0.0
        )
        atoms_IC = tl.load(
            dictionary_ptr + d[:, None].to(tl.int64) * K + k[None, :],
            mask=(d < D)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        sum_RC = tl.dot(residual_RI, atoms_IC, sum_RC, input_precision=PRECISION)
    n = tl.load(rows_ptr + r, mask=r < R, other=0)
    lam_R = tl.load(lam_ptr + n, mask=r < R, other=0.0)
    inside_RC = (r < R)[:, None] & (k < K)[None, :]
    tl.store(c_ptr + r[:, None] * K + k[None, :], sum_RC - lam_R[:, None], mask=inside_RC)


@triton.jit
def _gap(c_K, a_K, lam, residual_energy):
    """(1 - s)^2 |r|^2 / 2 + sum_j a_j (lam - s d_j.r), s = min(1, lam / max_j d_j.r), d_j.r = c_j + lam."""
    scale = lam / (lam + tl.maximum(tl.max(c_K, axis=0), 0.0))
    slack = tl.sum(a_K * (lam - scale * (c_K + lam)), axis=0)
    gap = 0.5 * (1 - scale) * (1 - scale) * residual_energy + slack
    return tl.where(gap < 0, 0.0, gap)  # unlike a maximum this keeps NaN


@triton.jit
def _descend_kernel(
    signals_ptr,  # (N, D)
    c_ptr,  # (R, K)
    residual_ptr,  # (R, D)
    gram_ptr,  # (K, K)
    diagonal_ptr,  # (K,)
    lam_ptr,  # (N,)
    rows_ptr,  # (R,) int64
    codes_ptr,  # (N, K), read and written
    gap_ptr,  # (N,), written: of the codes as they were read
    steps_ptr,  # (N,) int32, read and written
    open_ptr,  # (R,) int32, written: whether that gap is above the tolerance, and updates are left
    tol,  # for a gap of codes that were read
    descent_tol,  # for a gap in the descent: a little less, because the next pass computes c in another order
    max_updates,
    D,
    K,
    CHECK_EVERY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Certify the code of a signal; where its gap is too large, descend. One program works on one signal."""
    r = tl.program_id(0).to(tl.int64)
    n = tl.load(rows_ptr + r)
    k = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    inside = k < K
    # In padding c = 0 and a = 0: that is no violation, and the gap's maximum is at least 0 anyway.
    c_K = tl.load(c_ptr + r * K + k, mask=inside, other=0.0)
    a_K = tl.load(codes_ptr + n * K + k, mask=inside, other=0.0)
    diagonal_K = tl.load(diagonal_ptr + k, mask=inside, other=0.0)
    residual_D = tl.load(residual_ptr + r * D + d, mask=d < D, other=0.0)
    residual_energy = tl.sum(residual_D * residual_D, axis=0)
    # Summed here and not by torch, whose order of summation may depend on the batch.
    signal_D = tl.load(signals_ptr + n * D + d, mask=d < D, other=0.0)
    energy = tl.sum(signal_D * signal_D, axis=0)
    lam = tl.load(lam_ptr + n)
    target = descent_tol * 0.5 * energy
    # Violations below what float32 resolves of |x| |d| are rounding errors.
    resolution = EPSILON * tl.sqrt(energy * tl.max(diagonal_K, axis=0))

    # A maximum loses NaN. The sum of 0 * c keeps it, so the gap is NaN where a signal or an atom is not
    # finite.
    gap = _gap(c_K, a_K, lam, residual_energy) + tl.sum(0.0 * c_K, axis=0)
    tl.store(gap_ptr + n, gap)
    num_updates = tl.load(steps_ptr + n)
    before = num_updates
    is_open = (gap > tol * 0.5 * energy) & (num_updates < max_updates)
    tl.store(open_ptr + r, is_open.to(tl.int32))
    largest = resolution + 1.0
    while is_open & (gap > target) & (largest > resolution) & (num_updates < max_updates):
        for _ in range(0, CHECK_EVERY):
            violation_K = tl.maximum(c_K, -a_K * diagonal_K)
            largest, j = tl.max(tl.abs(violation_K), axis=0, return_indices=True)
            # An atom of zeros has no violation. It is chosen only when no atom has one, and is not updated.
            diagonal = tl.load(diagonal_ptr + j)
            gram_K = tl.load(gram_ptr + j.to(tl.int64) * K + k, mask=inside, other=0.0)
            violation = tl.sum(tl.where(k == j, violation_K, 0.0), axis=0)
            is_update = (diagonal > 0) & (num_updates < max_updates)
            change = tl.where(is_update, violation, 0.0) / tl.where(is_update, diagonal, 1.0)
            # |x - D (a + t e_j)|^2 = |r|^2 - 2 t d_j.r + t^2 G_jj
            correlation = tl.sum(tl.where(k == j, c_K, 0.0), axis=0) + lam
            residual_energy += change * (change * diagonal - 2 * correlation)
            a_K = tl.where(k == j, tl.maximum(a_K + change, 0.0), a_K)
            c_K -= change * gram_K
            num_updates += (num_updates < max_updates).to(tl.int32)
        gap = _gap(c_K, a_K, lam, residual_energy)
    changed = num_updates > before
    tl.store(codes_ptr + n * K + k, a_K, mask=inside & changed)
    tl.store(steps_ptr + n, num_updates)


def nonneg_triton(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam_N: Tensor,
    tol: float,
    gram_KK: Tensor | None,
    max_updates: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, gaps and numbers of coordinate updates, in float32. A gap is NaN where a signal or an atom
    is."""
    signals_ND, dictionary_DK, lam_N = signals_ND.contiguous(), dictionary_DK.contiguous(), lam_N.contiguous()
    gram_KK = gram(dictionary_DK) if gram_KK is None else gram_KK.contiguous()
    diagonal_K = gram_KK.diagonal().contiguous()
    atoms_KD = dictionary_DK.mT.contiguous()
    num_signals = len(signals_ND)
    codes_NK = signals_ND.new_zeros(num_signals, dictionary_DK.shape[1])
    gap_N = signals_ND.new_zeros(num_signals)
    steps_N = torch.zeros(num_signals, dtype=torch.int32, device=signals_ND.device)
    with torch.cuda.device_of(signals_ND):  # Triton launches on the current device
        for first in range(0, num_signals, CHUNK):
            part = slice(first, first + CHUNK)
            _solve_chunk_(
                signals_ND[part], dictionary_DK, atoms_KD, lam_N[part], tol, gram_KK, diagonal_K, max_updates,
                codes_NK[part], gap_N[part], steps_N[part],
            )  # fmt: skip
    return codes_NK, gap_N, steps_N


def _solve_chunk_(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    atoms_KD: Tensor,
    lam_N: Tensor,
    tol: float,
    gram_KK: Tensor,
    diagonal_K: Tensor,
    max_updates: int,
    codes_NK: Tensor,
    gap_N: Tensor,
    steps_N: Tensor,
) -> None:
    """Solve the signals of a chunk, and write codes, gaps and steps into the last three arguments."""
    num_signals, width = signals_ND.shape
    num_atoms = dictionary_DK.shape[1]
    precision = "ieee" if torch.version.hip or not signals_ND.is_cuda else "tf32x3"
    block_k, options = descend_options(num_atoms)
    rows_R = torch.arange(num_signals, device=signals_ND.device)
    residual_RD = signals_ND  # the codes are zero
    c_NK = signals_ND.new_empty(num_signals, num_atoms)
    for limit in (*[max_updates] * MAX_PASSES, 0):  # the last pass only verifies
        num_open = len(rows_R)
        c_RK = c_NK[:num_open]
        _direction_kernel[_product_grid(num_open, num_atoms)](
            residual_ptr=residual_RD, dictionary_ptr=dictionary_DK, lam_ptr=lam_N, rows_ptr=rows_R,
            c_ptr=c_RK, R=num_open, D=width, K=num_atoms, PRECISION=precision,
            **PRODUCT_TILE, **PRODUCT_OPTIONS,
        )  # fmt: skip
        open_R = torch.empty(num_open, dtype=torch.int32, device=signals_ND.device)
        _descend_kernel[(num_open,)](
            signals_ptr=signals_ND, c_ptr=c_RK, residual_ptr=residual_RD, gram_ptr=gram_KK,
            diagonal_ptr=diagonal_K, lam_ptr=lam_N, rows_ptr=rows_R, codes_ptr=codes_NK, gap_ptr=gap_N,
            steps_ptr=steps_N, open_ptr=open_R, tol=tol, descent_tol=MARGIN * tol, max_updates=limit,
            D=width, K=num_atoms, CHECK_EVERY=CHECK_EVERY, BLOCK_D=triton.next_power_of_2(width),
            BLOCK_K=block_k, **options,
        )  # fmt: skip
        rows_R = rows_R[open_R.bool()]
        if not len(rows_R):
            return
        residual_RD = signals_ND.new_empty(len(rows_R), width)
        _residual_kernel[_product_grid(len(rows_R), width)](
            signals_ptr=signals_ND, codes_ptr=codes_NK, atoms_ptr=atoms_KD, rows_ptr=rows_R,
            residual_ptr=residual_RD, R=len(rows_R), D=width, K=num_atoms, PRECISION=precision,
            **PRODUCT_TILE, **PRODUCT_OPTIONS,
        )  # fmt: skip


def _product_grid(num_rows: int, num_columns: int) -> tuple[int, int]:
    return triton.cdiv(num_rows, PRODUCT_TILE["BLOCK_R"]), triton.cdiv(num_columns, PRODUCT_TILE["BLOCK_C"])
