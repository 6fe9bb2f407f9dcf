"""The GPU solver: greedy coordinate descent on the Gram matrix, one program a signal, in Triton.

With c = D^T (x - D a) - lam, the violation of atom j is v_j = max(c_j, -G_jj a_j): what is left to gain, or
what can be taken away. An update moves the atom with the largest |v_j| to its optimum and subtracts (v_j /
G_jj) G_j from c:

    j = argmax |v|;   a_j += v_j / G_jj;   c -= (v_j / G_jj) G_j

A pass computes c afresh for all K atoms from the codes (`products_triton`), and from c the gap that is
returned. Signals whose gap is too large then descend until a bound of their gap, from the c that they update,
is small enough. The next pass computes their gaps from their codes alone, and those that are still too large
descend again. Most signals need two passes. `results/lasso-designs.md` compares other designs.

A descent keeps c and -G_jj a_j in registers, those of a single warp for up to 1,536 atoms, so that an update
has no barrier. At K = 1500 an update takes 440 instructions and reads a row of G, 6 KB, from the L2. On an
H100 the L2 binds, at 917M updates a second in a model, and 199 updates solve a signal. With the products that
is 3M signals a second (`benchmarks/step_model.py`).

**No part of this was timed on a GPU yet**: numerics are tested in Triton's interpreter and in an emulator of
the compiled code, and what a kernel takes is counted in `results/gpu-counts.md`.

All is computed in float32. A code does not depend on the rest of its batch, to the last bit.

Shapes: N signals, D their dimension, K atoms, R open signals of a pass (row r belongs to signal rows_R[r]), W
the atoms of a block. In a descent, a number for each atom is a tuple of vectors `_W`, one for each block.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels.lasso.products_triton import ATOMS_PER_LOAD, direction_, residual
from kernels.lasso.reference import MARGIN, gram

CHUNK = 16_384
"""Signals solved at a time: bounds the buffers for c and the residual whatever N is."""
MAX_PASSES = 20
"""Passes that descend; only a tolerance below the resolution of float32 takes so many."""
CHECK_EVERY = 16
"""Updates between two computations of the gap in a descent, each of which costs three reductions."""
EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)
CERTIFIED, OPEN, STOPPED = (tl.constexpr(state) for state in range(3))
"""What a pass finds of a signal: its gap is small enough; it is too large; it is too large or NaN, and no
updates are left."""

ATOMS_PER_WARP = 128
"""A block has this many atoms for each warp of the program: a piece of 16 bytes for each thread."""
MOST_BLOCKS = 12
"""Blocks whose c and -G_jj a_j fit in registers, 48 atoms a thread."""


def descend_tile(num_atoms: int) -> dict[str, int]:
    """The blocks of a descent, and its launch options: the fewest warps with at most MOST_BLOCKS blocks."""
    num_warps = triton.next_power_of_2(triton.cdiv(num_atoms, ATOMS_PER_WARP * MOST_BLOCKS))
    width = num_warps * ATOMS_PER_WARP
    num_blocks = triton.cdiv(num_atoms, width)
    return {"BLOCK_W": width, "NUM_BLOCKS": num_blocks, "num_warps": num_warps, "num_stages": 1}


@triton.jit
def _load(row_ptr, K, BLOCK_W: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """The K numbers of a row as a tuple of blocks, with zeros after them."""
    blocks: tl.tuple = ()
    for block in tl.static_range(NUM_BLOCKS):
        k = block * BLOCK_W + tl.arange(0, BLOCK_W)
        if block < NUM_BLOCKS - 1:
            row_W = tl.load(row_ptr + k)
        else:
            row_W = tl.load(row_ptr + k, mask=k < K, other=0.0)
        blocks += (row_W,)
    return blocks


@triton.jit
def _maximum(x_W):
    """The largest number of a vector that holds none below 0: as integers, floats from 0 on have their order,
    and a warp compares integers in one instruction."""
    return tl.max(x_W.to(tl.int32, bitcast=True), axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _largest_violation(c, lower, BLOCK_W: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """The largest violation v, and its atom j; of several that are equal, always the same one."""
    highest_W = tl.maximum(c[0], lower[0])
    lowest_W = highest_W
    for block in tl.static_range(1, NUM_BLOCKS):
        v_W = tl.maximum(c[block], lower[block])
        highest_W = tl.maximum(highest_W, v_W)
        lowest_W = tl.minimum(lowest_W, v_W)
    gain = _maximum(tl.maximum(highest_W, 0.0))
    loss = _maximum(tl.maximum(-lowest_W, 0.0))
    v = tl.where(gain >= loss, gain, -loss)
    block_W = tl.full((BLOCK_W,), NUM_BLOCKS, tl.int32)
    for block in tl.static_range(NUM_BLOCKS):
        block_W = tl.where(tl.maximum(c[block], lower[block]) == v, block, block_W)
    return v, tl.min(block_W * BLOCK_W + tl.arange(0, BLOCK_W), axis=0)


@triton.jit
def _sum_of_code(lower, inverse_ptr, K, BLOCK_W: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """sum_j a_j, where a_j = -lower_j / G_jj."""
    inverse = _load(inverse_ptr, K, BLOCK_W, NUM_BLOCKS)
    sum_W = tl.zeros((BLOCK_W,), tl.float32)
    for block in tl.static_range(NUM_BLOCKS):
        sum_W -= lower[block] * inverse[block]
    return tl.sum(sum_W, axis=0)


@triton.jit
def _gap(c, lower, inverse_ptr, lam, objective, K, BLOCK_W: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """(1 - s)^2 |r|^2 / 2 + sum_j a_j (lam - s d_j.r), with s = min(1, lam / max_j d_j.r), d_j.r = c_j + lam
    and |r|^2 / 2 = objective - lam sum(a)."""
    highest_W = c[0]
    for block in tl.static_range(1, NUM_BLOCKS):
        highest_W = tl.maximum(highest_W, c[block])
    scale = lam / (lam + tl.maximum(tl.max(highest_W, axis=0), 0.0))
    inverse = _load(inverse_ptr, K, BLOCK_W, NUM_BLOCKS)
    slack_W = tl.zeros((BLOCK_W,), tl.float32)
    for block in tl.static_range(NUM_BLOCKS):
        slack_W -= lower[block] * inverse[block] * (lam - scale * (c[block] + lam))
    half_energy = objective - lam * _sum_of_code(lower, inverse_ptr, K, BLOCK_W, NUM_BLOCKS)
    gap = (1 - scale) * (1 - scale) * half_energy + tl.sum(slack_W, axis=0)
    return tl.where(gap < 0, 0.0, gap)  # unlike a maximum this keeps NaN


@triton.jit
def _descend_kernel(
    signals_ptr,  # (N, D)
    c_ptr,  # (R, K)
    residual_ptr,  # (R, D)
    gram_ptr,  # (K, K)
    diagonal_ptr,  # (K,): G_jj
    inverse_ptr,  # (K,): 1 / G_jj, and 0 for an atom of zeros
    lam_ptr,  # (N,)
    rows_ptr,  # (R,) int64
    codes_ptr,  # (N, K), read and written
    gap_ptr,  # (N,), written: of the codes as they were read
    steps_ptr,  # (N,) int32, read and written
    state_ptr,  # (R,) int32, written: CERTIFIED, OPEN or STOPPED, by that gap
    tol,  # for a gap of codes that were read
    descent_tol,  # for a gap in the descent: a little less, because the next pass computes c in another order
    max_updates,
    D,
    K_OVER_4,
    CHECK_EVERY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Certify the code of a signal; where its gap is too large, descend. One program works on one signal."""
    K = 4 * K_OVER_4
    r = tl.program_id(0).to(tl.int64)
    n = tl.load(rows_ptr + r)
    d = tl.arange(0, BLOCK_D)
    residual_D = tl.load(residual_ptr + r * D + d, mask=d < D, other=0.0)
    # Summed here and not by torch, whose order of summation may depend on the batch.
    signal_D = tl.load(signals_ptr + n * D + d, mask=d < D, other=0.0)
    energy = tl.sum(signal_D * signal_D, axis=0)
    lam = tl.load(lam_ptr + n)

    # In padding c = 0 and a = 0: that is no violation, and the gap's maximum is at least 0 anyway.
    c = _load(c_ptr + r * K, K, BLOCK_W, NUM_BLOCKS)
    codes = _load(codes_ptr + n * K, K, BLOCK_W, NUM_BLOCKS)
    diagonal = _load(diagonal_ptr, K, BLOCK_W, NUM_BLOCKS)
    lower: tl.tuple = ()  # -G_jj a_j, below which no violation is
    longest_W, undefined_W = diagonal[0], 0.0 * c[0]
    for block in tl.static_range(NUM_BLOCKS):
        lower += (-(codes[block] * diagonal[block]),)
        longest_W = tl.maximum(longest_W, diagonal[block])
        undefined_W += 0.0 * c[block]
    # Violations below what float32 resolves of |x| |d| are rounding errors.
    resolution = EPSILON * tl.sqrt(energy * tl.max(longest_W, axis=0))

    objective = 0.5 * tl.sum(residual_D * residual_D, axis=0)
    objective += lam * _sum_of_code(lower, inverse_ptr, K, BLOCK_W, NUM_BLOCKS)
    # A maximum loses NaN. The sum of 0 * c keeps it, so the gap is NaN where a signal or an atom is not
    # finite.
    gap = _gap(c, lower, inverse_ptr, lam, objective, K, BLOCK_W, NUM_BLOCKS) + tl.sum(undefined_W, axis=0)
    tl.store(gap_ptr + n, gap)
    num_updates = tl.load(steps_ptr + n)
    before = num_updates
    is_open = (gap > tol * 0.5 * energy) & (num_updates < max_updates)
    state = tl.where(gap <= tol * 0.5 * energy, CERTIFIED, tl.where(is_open, OPEN, STOPPED))
    tl.store(state_ptr + r, state)

    target = descent_tol * 0.5 * energy
    largest = resolution + 1.0
    while is_open & (gap > target) & (largest > resolution) & (num_updates < max_updates):
        for _ in range(0, CHECK_EVERY):
            v, j = _largest_violation(c, lower, BLOCK_W, NUM_BLOCKS)
            largest = tl.abs(v)
            v = tl.where(num_updates < max_updates, v, 0.0)
            # An atom of zeros has no violation. It is chosen only when no atom has one, and its inverse is 0.
            change = v * tl.load(inverse_ptr + j)
            # The update takes v^2 / (2 G_jj) off the objective, or more where it takes an atom out.
            objective -= 0.5 * v * change
            gram = _load(gram_ptr + j.to(tl.int64) * K, K, BLOCK_W, NUM_BLOCKS)
            v_W = tl.where(tl.arange(0, BLOCK_W) == j % BLOCK_W, v, 0.0)
            c_after: tl.tuple = ()
            lower_after: tl.tuple = ()
            for block in tl.static_range(NUM_BLOCKS):
                c_after += (c[block] - change * gram[block],)
                # As a product, because a choice for each atom would take more instructions.
                is_here = tl.where(j // BLOCK_W == block, 1.0, 0.0)
                lower_after += (lower[block] - is_here * v_W,)
            c, lower = c_after, lower_after
            num_updates += (num_updates < max_updates).to(tl.int32)
        gap = _gap(c, lower, inverse_ptr, lam, objective, K, BLOCK_W, NUM_BLOCKS)
    if num_updates > before:
        inverse = _load(inverse_ptr, K, BLOCK_W, NUM_BLOCKS)
        for block in tl.static_range(NUM_BLOCKS):
            k = block * BLOCK_W + tl.arange(0, BLOCK_W)
            tl.store(codes_ptr + n * K + k, -lower[block] * inverse[block], mask=k < K)
        tl.store(steps_ptr + n, num_updates)


class Atoms(NamedTuple):
    """What the kernels read of a dictionary whose number of atoms K is a multiple of ATOMS_PER_LOAD."""

    dictionary_DK: Tensor
    atoms_KD: Tensor
    gram_KK: Tensor
    diagonal_K: Tensor
    inverse_K: Tensor


def _prepare(dictionary_DK: Tensor, gram_KK: Tensor | None) -> Atoms:
    """The dictionary for the kernels, with atoms of zeros after its own where K is no multiple of 4."""
    gram_KK = gram(dictionary_DK) if gram_KK is None else gram_KK
    if num_missing := -dictionary_DK.shape[1] % ATOMS_PER_LOAD:
        dictionary_DK = F.pad(dictionary_DK, (0, num_missing))
        gram_KK = F.pad(gram_KK, (0, num_missing, 0, num_missing))
    diagonal_K = gram_KK.diagonal().contiguous()
    inverse_K = torch.where(diagonal_K > 0, diagonal_K.reciprocal(), 0.0)
    return Atoms(
        dictionary_DK.contiguous(), dictionary_DK.mT.contiguous(), gram_KK.contiguous(), diagonal_K, inverse_K
    )


def nonneg_triton(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam_N: Tensor,
    tol: float,
    gram_KK: Tensor | None,
    max_updates: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """Codes, gaps and numbers of coordinate updates, in float32, and whether all gaps are small enough.

    A gap is NaN where a signal or an atom is. The host waits for the device once in each pass, to know how
    many signals are open.
    """
    signals_ND, lam_N = signals_ND.contiguous(), lam_N.contiguous()
    num_signals, num_atoms = len(signals_ND), dictionary_DK.shape[1]
    with torch.cuda.device_of(signals_ND):  # Triton launches on the current device
        atoms = _prepare(dictionary_DK, gram_KK)
        codes_NK = signals_ND.new_zeros(num_signals, len(atoms.gram_KK))
        gap_N = signals_ND.new_zeros(num_signals)
        steps_N = torch.zeros(num_signals, dtype=torch.int32, device=signals_ND.device)
        num_stopped = 0
        for first in range(0, num_signals, CHUNK):
            part = slice(first, first + CHUNK)
            num_stopped += _solve_chunk_(
                signals_ND[part], atoms, lam_N[part], tol, max_updates,
                codes_NK[part], gap_N[part], steps_N[part],
            )  # fmt: skip
    return (codes_NK[:, :num_atoms].contiguous(), gap_N, steps_N), not num_stopped


def _solve_chunk_(
    signals_ND: Tensor,
    atoms: Atoms,
    lam_N: Tensor,
    tol: float,
    max_updates: int,
    codes_NK: Tensor,
    gap_N: Tensor,
    steps_N: Tensor,
) -> int:
    """Solve the signals of a chunk, and write codes, gaps and steps into the last three arguments. The result
    is how many signals were stopped with a gap that is too large."""
    num_signals, width = signals_ND.shape
    num_atoms = len(atoms.gram_KK)
    rows_R = torch.arange(num_signals, device=signals_ND.device)
    residual_RD = signals_ND  # the codes are zero
    c_NK = torch.empty_like(codes_NK)
    num_stopped = 0
    for limit in (*[max_updates] * MAX_PASSES, 0):  # the last pass only verifies
        num_open = len(rows_R)
        c_RK = c_NK[:num_open]
        direction_(c_RK, residual_RD, atoms.atoms_KD, lam_N, rows_R)
        state_R = torch.empty(num_open, dtype=torch.int32, device=signals_ND.device)
        _descend_kernel[(num_open,)](
            signals_ptr=signals_ND, c_ptr=c_RK, residual_ptr=residual_RD, gram_ptr=atoms.gram_KK,
            diagonal_ptr=atoms.diagonal_K, inverse_ptr=atoms.inverse_K, lam_ptr=lam_N, rows_ptr=rows_R,
            codes_ptr=codes_NK, gap_ptr=gap_N, steps_ptr=steps_N, state_ptr=state_R, tol=tol,
            descent_tol=MARGIN * tol, max_updates=limit, D=width, K_OVER_4=num_atoms // 4,
            CHECK_EVERY=CHECK_EVERY, BLOCK_D=triton.next_power_of_2(width), **descend_tile(num_atoms),
        )  # fmt: skip
        is_open_R, is_stopped_R = state_R == OPEN.value, state_R == STOPPED.value
        num_open, stopped_now = torch.stack([is_open_R.sum(), is_stopped_R.sum()]).tolist()  # waits
        num_stopped += stopped_now
        if not num_open:
            break
        rows_R = rows_R[is_open_R.byte().argsort(descending=True, stable=True)[:num_open]]
        residual_RD = residual(signals_ND, codes_NK, atoms.dictionary_DK, rows_R)
    return num_stopped
