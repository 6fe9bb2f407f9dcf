"""The two matrix products in a pass of the GPU's sparse coder, in Triton.

Precision: all in float32. Products on tensor cores are three tf32 products ("tf32x3"), which has the accuracy
of float32. A row of a product is accumulated in the same order whatever the batch, so a code does not depend
on the rest of its batch, to the last bit.

Shapes: N signals, D their dimension, K atoms, a multiple of ATOMS_PER_LOAD, R open signals of a pass (row r
belongs to signal rows_R[r]).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ATOMS_PER_LOAD = 4
"""The kernels are given K / 4, so that the compiler knows that each row of K numbers can be read in pieces of
16 bytes."""

# From the compile check (no spills, the shared memory of every target), not from timings.
TILE = {"BLOCK_R": 128, "BLOCK_C": 64, "BLOCK_I": 32}
OPTIONS = {"num_warps": 8, "num_stages": 3}


@triton.jit(do_not_specialize=["R"])  # which shrinks from pass to pass
def _residual_kernel(
    signals_ptr,  # (N, D)
    codes_ptr,  # (N, K)
    dictionary_ptr,  # (D, K)
    rows_ptr,  # (R,) int64
    residual_ptr,  # (R, D), written
    R,
    D,
    K_OVER_4,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """residual[r] = x_n - D a_n, n = rows[r]."""
    K = 4 * K_OVER_4
    # Programs that run at the same time share their rows, so that all rows come from memory once. The atoms
    # are read again and again, and stay in the L2.
    d = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.load(rows_ptr + r, mask=r < R, other=0)
    sum_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first in range(0, K, BLOCK_I):
        k = first + tl.arange(0, BLOCK_I)
        codes_RI = tl.load(
            codes_ptr + n[:, None] * K + k[None, :], mask=(r < R)[:, None] & (k < K)[None, :], other=0.0
        )
        atoms_IC = tl.load(
            dictionary_ptr + d[None, :].to(tl.int64) * K + k[:, None],
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
    atoms_ptr,  # (K, D): the dictionary's transpose, so that what is summed over lies together in memory
    lam_ptr,  # (N,)
    rows_ptr,  # (R,) int64
    c_ptr,  # (R, K), written
    R,
    D,
    K_OVER_4,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """c[r] = D^T residual[r] - lam_n, n = rows[r]."""
    K = 4 * K_OVER_4
    k = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    sum_RC = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first in range(0, D, BLOCK_I):
        d = first + tl.arange(0, BLOCK_I)
        residual_RI = tl.load(
            residual_ptr + r[:, None] * D + d[None, :], mask=(r < R)[:, None] & (d < D)[None, :], other=0.0
        )
        atoms_IC = tl.load(
            atoms_ptr + k[None, :].to(tl.int64) * D + d[:, None],
            mask=(d < D)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        sum_RC = tl.dot(residual_RI, atoms_IC, sum_RC, input_precision=PRECISION)
    n = tl.load(rows_ptr + r, mask=r < R, other=0)
    lam_R = tl.load(lam_ptr + n, mask=r < R, other=0.0)
    inside_RC = (r < R)[:, None] & (k < K)[None, :]
    tl.store(c_ptr + r[:, None] * K + k[None, :], sum_RC - lam_R[:, None], mask=inside_RC)


def residual(signals_ND: Tensor, codes_NK: Tensor, dictionary_DK: Tensor, rows_R: Tensor) -> Tensor:
    """x - D a (R, D) of the signals `rows_R`."""
    num_rows, (width, num_atoms) = len(rows_R), dictionary_DK.shape
    residual_RD = signals_ND.new_empty(num_rows, width)
    _residual_kernel[_grid(num_rows, width)](
        signals_ptr=signals_ND, codes_ptr=codes_NK, dictionary_ptr=dictionary_DK, rows_ptr=rows_R,
        residual_ptr=residual_RD, R=num_rows, D=width, K_OVER_4=num_atoms // 4,
        PRECISION=_precision(signals_ND), **TILE, **OPTIONS,
    )  # fmt: skip
    return residual_RD


def direction_(c_RK: Tensor, residual_RD: Tensor, atoms_KD: Tensor, lam_N: Tensor, rows_R: Tensor) -> None:
    """Write D^T r - lam of the signals `rows_R` into `c_RK`, from their residuals r."""
    num_rows, (num_atoms, width) = len(rows_R), atoms_KD.shape
    _direction_kernel[_grid(num_rows, num_atoms)](
        residual_ptr=residual_RD, atoms_ptr=atoms_KD, lam_ptr=lam_N, rows_ptr=rows_R, c_ptr=c_RK, R=num_rows,
        D=width, K_OVER_4=num_atoms // 4, PRECISION=_precision(residual_RD), **TILE, **OPTIONS,
    )  # fmt: skip


def _grid(num_rows: int, num_columns: int) -> tuple[int, int]:
    return triton.cdiv(num_columns, TILE["BLOCK_C"]), triton.cdiv(num_rows, TILE["BLOCK_R"])


def _precision(x: Tensor) -> str:
    return "ieee" if torch.version.hip or not x.is_cuda else "tf32x3"
