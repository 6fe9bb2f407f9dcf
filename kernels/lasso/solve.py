"""`nonneg_lasso`, the sparse coder: it checks the arguments, scales the signals and runs a solver.

For each signal x it returns argmin_{a >= 0} 1/2 |x - D a|^2 + lam * sum(a), stopped where the duality gap of
that signal is at most tol * 1/2 |x|^2. The returned gap was computed from the returned code against all K
atoms. No signal's code depends on the other signals of its batch: bit for bit with "descent" and "triton", up
to rounding with "fista", where a BLAS multiplies the whole batch.

Shapes: N signals, D their dimension, K atoms. Computed, accumulated and stored in the dtype of the signals,
outside any autocast: float32 with every solver, float64 with "fista" only. No gradient flows through codes.

Range: a problem is solved with its signal scaled to a norm near 1, so no size of a signal costs precision.
But the gap is proportional to |x|^2. In float32 it is right for norms from 1e-15 to 1e15; for signals below
about 1e-19 it underflows to 0, and above about 1e19 it overflows to infinity. Codes are right beyond that,
from 1e-30 to 1e30.

Memory: at most 3 N K floats beside the arguments and the Gram matrix, with "descent" and "fista" little more
than the N K of the codes. 1,000,000 float32 signals of width 384 on 1,500 atoms, 6 GB of codes, fit 8 GiB in
one call when they have unit norm (others are copied once). Wider signals are better coded a slice at a time.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import Candidate, choose, logger, triton_obstacle
from kernels.lasso.descent_cpu import nonneg_descent
from kernels.lasso.descent_cpu import obstacle as why_no_descent
from kernels.lasso.reference import MARGIN, check_atoms, nonneg_fista
from kernels.solvers import MAX_STEPS

LARGEST_FOR_TRITON = 8192
"""Atoms. A code lies in the registers of one program; more atoms are not compiled in any test."""

ELEMENTS_ON_ONE_THREAD = 32_768
"""torch's grain size (at::internal::GRAIN_SIZE): elementwise work up to here is not parallel."""


class LassoResult(NamedTuple):
    codes_NK: Tensor
    """Non-negative, exactly zero off the support."""
    gap_N: Tensor
    """Duality gap of each code, in units of the objective."""
    steps_N: Tensor
    """int32: FISTA steps, or coordinate updates for "descent" and "triton"."""


def nonneg_lasso(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam: float,
    *,
    tol: float = 1e-3,
    solver: str = "auto",
    gram_KK: Tensor | None = None,
    step: float | None = None,
    max_steps: int | None = None,
) -> LassoResult:
    """Codes of all signals. `solver` is "auto", "fista", "descent" (CPU) or "triton" (GPU).

    gram_KK = D^T D and step = 1 / L (L its largest eigenvalue) belong to the dictionary; without them each
    call computes what its solver needs. A signal that reaches max_steps is returned as it is, with its gap.
    At the default limit of MAX_STEPS a warning is logged as well.

    Raises ValueError for shapes, dtypes and devices that do not fit together, for NaN or infinity in a tensor
    that the solver reads, for a step that cannot be 1 / L ("fista" only, the others need none), and for a
    solver that is unknown or cannot run here. lam must be positive: with lam = 0 no multiple of the residual
    is a dual point, so no gap could be computed.
    """
    _check_arguments(signals_ND, dictionary_DK, lam, tol, gram_KK, step, max_steps)
    # A compiler cannot trace a data-dependent stopping rule: inside torch.compile the coder is one operator.
    solve = _solve_operator if torch.compiler.is_compiling() else _solve
    return LassoResult(*solve(signals_ND, dictionary_DK, lam, tol, solver, gram_KK, step, max_steps))


def _check_arguments(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam: float,
    tol: float,
    gram_KK: Tensor | None,
    step: float | None,
    max_steps: int | None,
) -> None:
    """Check what does not need the values of a tensor. `_solve` finds those that are not finite by their
    gaps."""
    if signals_ND.ndim != 2 or dictionary_DK.ndim != 2 or signals_ND.shape[1] != dictionary_DK.shape[0]:
        raise ValueError(
            "signals (N, D) and dictionary (D, K) do not fit: "
            f"{tuple(signals_ND.shape)}, {tuple(dictionary_DK.shape)}"
        )
    if 0 in dictionary_DK.shape:
        raise ValueError(f"the dictionary is empty: {tuple(dictionary_DK.shape)}")
    if signals_ND.dtype not in (torch.float32, torch.float64) or signals_ND.dtype != dictionary_DK.dtype:
        raise ValueError(
            "signals and dictionary must both be float32 or both float64, "
            f"got {signals_ND.dtype} and {dictionary_DK.dtype}"
        )
    if signals_ND.device != dictionary_DK.device:
        raise ValueError(f"signals are on {signals_ND.device}, the dictionary on {dictionary_DK.device}")
    if not (lam > 0 and math.isfinite(lam)):
        raise ValueError(f"lam must be positive and finite, got {lam}")
    if not (tol > 0 and math.isfinite(tol)):
        raise ValueError(f"tol must be positive and finite, got {tol}")
    if step is not None and not (step > 0 and math.isfinite(step)):
        raise ValueError(f"step = 1 / L must be positive and finite, got {step}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    num_atoms = dictionary_DK.shape[1]
    if gram_KK is not None:
        if gram_KK.shape != (num_atoms, num_atoms):
            raise ValueError(f"gram must be ({num_atoms}, {num_atoms}), got {tuple(gram_KK.shape)}")
        if gram_KK.dtype != signals_ND.dtype or gram_KK.device != signals_ND.device:
            raise ValueError(
                f"gram is {gram_KK.dtype} on {gram_KK.device}, "
                f"signals are {signals_ND.dtype} on {signals_ND.device}"
            )


@torch.no_grad()
def _solve(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam: float,
    tol: float,
    solver: str,
    gram_KK: Tensor | None,
    step: float | None,
    max_steps: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, gaps and steps by the chosen solver, from signals that are scaled to norms between 0.7 and 1.4.

    The problem is homogeneous: (x, lam, a) and (x / c, lam / c, a / c) are one problem. c is a power of two,
    so that scaling there and back rounds nothing.
    """
    solver = choose("nonneg_lasso", _candidates(signals_ND, dictionary_DK.shape[1]), solver)
    if not len(signals_ND):
        codes_NK = signals_ND.new_zeros(0, dictionary_DK.shape[1])
        return codes_NK, signals_ND.new_zeros(0), torch.zeros(0, dtype=torch.int32, device=signals_ND.device)
    norm_N = _norms(signals_ND)
    root2_norm_N = norm_N * math.sqrt(2)
    unit_N = (root2_norm_N / (2 * root2_norm_N.frexp().mantissa)).clamp(2.0**-100, 2.0**100)
    unit_N = torch.where(unit_N > 0, unit_N, 1).to(signals_ND.dtype)  # 1 for a signal of zeros or NaN
    # The host does not wait for a GPU to tell that no signal needs scaling.
    is_scaled = signals_ND.is_cuda or bool((unit_N != 1).any())
    scaled_ND = signals_ND / unit_N[:, None] if is_scaled else signals_ND
    lam_N = (lam / unit_N).clamp_max(1e30)  # every lambda far above lambda_max gives the same code

    limit = MAX_STEPS[solver] if max_steps is None else min(max_steps, 2**31 - 1)
    aim = max(MARGIN * tol - 8 * torch.finfo(signals_ND.dtype).eps, 0.5 * tol)
    is_certified = False  # as far as the host knows
    with torch.autocast(signals_ND.device.type, enabled=False):
        if solver == "descent":
            result = nonneg_descent(scaled_ND, dictionary_DK, lam_N, aim, gram_KK, limit)
        elif solver == "triton":
            # Imported here, so that a machine without triton can import this module.
            from kernels.lasso.descent_triton import nonneg_triton

            result, is_certified = nonneg_triton(scaled_ND, dictionary_DK, lam_N, aim, gram_KK, limit)
        else:
            result = nonneg_fista(scaled_ND, dictionary_DK, lam_N, aim, step, limit)
    codes_NK, gap_N, steps_N = result

    target_N = tol * 0.5 * (norm_N / unit_N) ** 2
    is_open_N = ~(gap_N <= target_N)
    if not is_certified and bool(is_open_N.any()):
        has_gaps = bool(gap_N.isfinite().all())
        if not has_gaps or max_steps is None:
            _check_values(signals_ND, dictionary_DK, gram_KK)
        if not has_gaps:
            raise ValueError(
                f"{solver!r} left the range of {gap_N.dtype}: scale the atoms to norms near 1, and leave out "
                "gram and step if they are not those of the dictionary"
            )
        if max_steps is None:
            worst = float((gap_N / target_N.clamp_min(1e-30)).max()) * tol
            logger.warning(
                "nonneg_lasso: %d of %d signals stopped at %d steps above tol %g, the worst at %.2e",
                int(is_open_N.sum()), len(gap_N), limit, tol, worst,
            )  # fmt: skip
    if is_scaled:
        codes_NK.mul_(unit_N[:, None])
        gap_N = gap_N * unit_N * unit_N
    return codes_NK, gap_N, steps_N


def _norms(signals_ND: Tensor) -> Tensor:
    """L2 norms (N,) in float64, whose squares do not overflow.

    On a CPU slice by slice: a larger operation wakes torch's OpenMP threads, which wait for each other by
    spinning. On a machine with other work that took three times as long as the codes. And a million signals
    in float64 would not fit beside their codes.
    """
    if signals_ND.device.type != "cpu":
        return torch.linalg.vector_norm(signals_ND, dim=1, dtype=torch.float64)
    slices = signals_ND.split(max(1, ELEMENTS_ON_ONE_THREAD // signals_ND.shape[1]))
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in slices])


def _check_values(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor | None) -> None:
    """Raise ValueError for a tensor with NaN or infinity.

    This takes longer than the code of a signal, so it is left to calls whose gaps show that something is
    wrong."""
    bad = (~signals_ND.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(signals_ND)} signals hold NaN or infinity: rows {bad[:5].tolist()}"
        )
    check_atoms(dictionary_DK)
    if gram_KK is not None and not bool(gram_KK.isfinite().all()):
        raise ValueError("the Gram matrix holds NaN or infinity: leave it out or pass gram(dictionary)")


def _candidates(signals_ND: Tensor, num_atoms: int) -> list[Candidate]:
    """The solvers in order of preference for these signals."""
    device, dtype = signals_ND.device.type, signals_ND.dtype

    def why_no_triton() -> str | None:
        if dtype != torch.float32:
            return f"it is for float32, not {dtype}"
        if num_atoms > LARGEST_FOR_TRITON:
            return f"it handles at most {LARGEST_FOR_TRITON} atoms, not {num_atoms}"
        return triton_obstacle(signals_ND.device)

    def descent_obstacle() -> str | None:
        if device != "cpu" or dtype != torch.float32:
            return f"it is for float32 on a CPU, not {dtype} on {device}"
        return why_no_descent()

    triton = Candidate(
        "triton", "coordinate descent on the GPU", why_no_triton, expected=dtype != torch.float32
    )
    descent = Candidate(
        "descent", "coordinate descent in C, the fastest on a CPU", descent_obstacle,
        expected=dtype != torch.float32,
    )  # fmt: skip
    fista = Candidate("fista", "plain PyTorch, runs anywhere", lambda: None)
    return [triton, fista, descent] if device == "cuda" else [descent, fista, triton]


_solve_operator = torch.library.custom_op("kernels::nonneg_lasso", _solve, mutates_args=())


@_solve_operator.register_fake
def _solve_shapes(
    signals_ND: Tensor, dictionary_DK: Tensor, *_unused: object
) -> tuple[Tensor, Tensor, Tensor]:
    num_signals = signals_ND.shape[0]
    return (
        signals_ND.new_empty(num_signals, dictionary_DK.shape[1]),
        signals_ND.new_empty(num_signals),
        signals_ND.new_empty(num_signals, dtype=torch.int32),
    )
