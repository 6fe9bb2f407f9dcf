"""The definition of the sparse coder: non-negative FISTA in plain PyTorch, in any floating dtype, on any
device.

The C and Triton solvers are optimisations of this file and are tested against it. FISTA also runs where there
is no C compiler and no GPU. Like every solver it takes one lambda per signal and returns (codes, gap, steps).

Shapes: N signals, D their dimension, K atoms.
"""

import torch
from torch import Tensor

CHUNK = 4096
"""Signals solved at a time: bounds the five N x K buffers of an iteration whatever N is."""
CHECK_EVERY = 10
"""Steps between two computations of the gap, which costs as much as a step."""
MARGIN = 0.98
"""The share of a tolerance that solvers aim at, because a gap that is computed in another order rounds
differently."""
POWER_STEPS = 10
"""Steps of the power iteration that checks a given step size."""


def gram(dictionary_DK: Tensor) -> Tensor:
    """D^T D (K, K). It is computed in float64, because the process may have allowed tf32 or bf16 products."""
    wide_DK = dictionary_DK.double()
    return (wide_DK.mT @ wide_DK).to(dictionary_DK.dtype)


def largest_step(dictionary_DK: Tensor) -> float:
    """1 / L, L the largest eigenvalue of D^T D: the longest step with which FISTA converges, in float64.

    Raises ValueError where the dictionary holds NaN or infinity.
    """
    check_atoms(dictionary_DK)
    wide_DK = dictionary_DK.double()
    smaller = wide_DK @ wide_DK.mT if wide_DK.shape[0] <= wide_DK.shape[1] else wide_DK.mT @ wide_DK
    largest = float(torch.linalg.eigvalsh(smaller)[-1]) if smaller.numel() else 0.0
    # A part in a million less: rounded to float32 the step must not exceed 1 / L.
    return (1 - 1e-6) / max(largest, 1e-30)


def check_atoms(dictionary_DK: Tensor) -> None:
    """Raise ValueError where an atom holds NaN or infinity."""
    bad = (~dictionary_DK.isfinite()).any(dim=0).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} atoms of the dictionary hold NaN or infinity: columns {bad[:5].tolist()}"
        )


def check_step(dictionary_DK: Tensor, step: float) -> None:
    """Raise ValueError for a step that cannot be 1 / L.

    A longer step lets FISTA diverge, a much shorter one wastes steps. L itself would cost an eigenvalue
    decomposition at each call, so the check brackets it. L is at most the trace of D^T D and at least the
    Rayleigh quotient of any vector, here of the longest atom after some steps of the power iteration.
    """
    check_atoms(dictionary_DK)
    wide_DK = dictionary_DK.double()
    energy_K = wide_DK.square().sum(dim=0)
    vector_D = wide_DK[:, energy_K.argmax()]
    for _ in range(POWER_STEPS):
        vector_D = torch.nn.functional.normalize(wide_DK @ (wide_DK.mT @ vector_D), dim=0, eps=1e-300)
    lower, upper = float((wide_DK.mT @ vector_D).square().sum()), float(energy_K.sum())
    shortest, longest = 0.99 / max(upper, 1e-30), 1.01 / max(lower, 1e-30)
    if not shortest <= step <= longest:
        raise ValueError(
            f"step = {step:g} is not 1 / L, which lies between {shortest:.3g} and {longest:.3g} here: "
            "leave it out or pass largest_step(dictionary)"
        )


def duality_gap(signals_ND: Tensor, dictionary_DK: Tensor, lam_N: Tensor, codes_NK: Tensor) -> Tensor:
    """primal(a) - dual(u) of each signal, with u = s r, r = x - D a and s = min(1, lam / max_j d_j.r).

    Only positive correlations constrain a non-negative code. So u is feasible (D^T u <= lam), and the gap
    bounds the distance to the optimum. It is written with x = r + D a, which turns a difference of two
    numbers of the size of |x|^2 into a sum of terms that are not negative: (1 - s)^2 |r|^2 / 2 + sum_j a_j
    (lam - s d_j.r).
    """
    residual_ND = signals_ND - codes_NK @ dictionary_DK.mT
    correlation_NK = residual_ND @ dictionary_DK
    strongest_N = correlation_NK.amax(dim=1)
    scale_N = lam_N / torch.maximum(strongest_N, lam_N)
    slack_NK = lam_N[:, None] - scale_N[:, None] * correlation_NK
    return (
        0.5 * (1 - scale_N) ** 2 * residual_ND.square().sum(dim=1) + (codes_NK * slack_NK).sum(dim=1)
    ).clamp_min(0)


def nonneg_fista(
    signals_ND: Tensor, dictionary_DK: Tensor, lam_N: Tensor, tol: float, step: float | None, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """argmin_{a >= 0} 1/2 |x - D a|^2 + lam sum(a), each signal until its own gap <= tol * 1/2 |x|^2.

    FISTA (Beck and Teboulle 2009, eq. 4.1-4.3) with adaptive restart of the momentum (O'Donoghue and Candes
    2015, eq. 13). Raises ValueError for a step that cannot be 1 / L.
    """
    if step is None:
        step = largest_step(dictionary_DK)
    else:
        check_step(dictionary_DK, step)
    parts = [
        _fista_chunk(chunk_ND, dictionary_DK, chunk_lam_N, tol, step, max_steps)
        for chunk_ND, chunk_lam_N in zip(signals_ND.split(CHUNK), lam_N.split(CHUNK), strict=True)
    ]
    codes, gap, steps = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(gap), torch.cat(steps)


def _fista_chunk(
    signals_ND: Tensor, dictionary_DK: Tensor, lam_N: Tensor, tol: float, step: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """FISTA on all signals of a chunk at once. A signal leaves the iteration when its gap is small enough.

    A gap that is NaN ends its signal too, and is returned.
    """
    final_NK = signals_ND.new_zeros(len(signals_ND), dictionary_DK.shape[1])
    final_gap_N = duality_gap(signals_ND, dictionary_DK, lam_N, final_NK)
    final_steps_N = torch.zeros(len(signals_ND), dtype=torch.int32, device=signals_ND.device)
    target_N = tol * 0.5 * signals_ND.square().sum(dim=1)

    # From here on N counts the signals that are still open. open_N has their rows in the results.
    open_N = (final_gap_N > target_N).nonzero()[:, 0]
    signals_ND, lam_N = signals_ND[open_N], lam_N[open_N]
    codes_NK = ahead_NK = final_NK[open_N]
    t_N = signals_ND.new_ones(len(open_N), 1)
    for num_steps in range(1, max_steps + 1):
        if not len(open_N):
            break
        gradient_NK = (ahead_NK @ dictionary_DK.mT - signals_ND) @ dictionary_DK
        previous_NK, codes_NK = codes_NK, (ahead_NK - step * (gradient_NK + lam_N[:, None])).clamp_min(0)
        uphill_N = ((ahead_NK - codes_NK) * (codes_NK - previous_NK)).sum(dim=1, keepdim=True) > 0
        t_previous_N = torch.where(uphill_N, 1.0, t_N)
        t_N = (1 + (1 + 4 * t_previous_N.square()).sqrt()) / 2
        ahead_NK = codes_NK + (t_previous_N - 1) / t_N * (codes_NK - previous_NK)
        if num_steps % CHECK_EVERY == 0 or num_steps == max_steps:
            gap_N = duality_gap(signals_ND, dictionary_DK, lam_N, codes_NK)
            final_NK[open_N], final_gap_N[open_N] = codes_NK, gap_N
            final_steps_N[open_N] = num_steps
            going = (gap_N > target_N[open_N]).nonzero()[:, 0]
            open_N, signals_ND, lam_N = open_N[going], signals_ND[going], lam_N[going]
            codes_NK, ahead_NK, t_N = codes_NK[going], ahead_NK[going], t_N[going]
    return final_NK, final_gap_N, final_steps_N
