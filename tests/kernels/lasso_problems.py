"""Problems for the tests of the sparse coder, and the duality gap in float64, independent of any solver."""

import torch
from torch import Tensor

from kernels.lasso import LassoResult

ROUNDING = 2e-6
"""Error of a float32 gap, relative to 1/2 |x|^2, for a lam far above the resolution of float32."""


def gaussian(num_signals: int, width: int, num_atoms: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit signals on unit atoms, both random directions."""
    generator = torch.Generator().manual_seed(seed)
    signals_ND = torch.randn(num_signals, width, generator=generator)
    dictionary_DK = torch.randn(width, num_atoms, generator=generator)
    return torch.nn.functional.normalize(signals_ND), torch.nn.functional.normalize(dictionary_DK, dim=0)


def common_direction(num_signals: int, width: int, num_atoms: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signals and atoms that share a direction, as hidden states do: L is large, and the atoms are
    coherent."""
    signals_ND, dictionary_DK = gaussian(num_signals, width, num_atoms, seed)
    common_D = torch.nn.functional.normalize(torch.ones(width), dim=0)
    return (
        torch.nn.functional.normalize(signals_ND + common_D),
        torch.nn.functional.normalize(dictionary_DK + common_D[:, None], dim=0),
    )


def uneven_atoms(num_signals: int, width: int, num_atoms: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit signals on atoms of norms from 0.25 to 4."""
    signals_ND, dictionary_DK = gaussian(num_signals, width, num_atoms, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return signals_ND, dictionary_DK * 4 ** (2 * torch.rand(num_atoms, generator=generator) - 1)


def relative_gap(signals_ND: Tensor, dictionary_DK: Tensor, lam: float, codes_NK: Tensor) -> Tensor:
    """The duality gap of each code over 1/2 |x|^2, primal minus dual in float64. It is 0 for a zero signal
    with a zero code."""
    signals_ND, dictionary_DK, codes_NK = (t.cpu().double() for t in (signals_ND, dictionary_DK, codes_NK))
    assert (codes_NK >= 0).all()
    residual_ND = signals_ND - codes_NK @ dictionary_DK.mT
    primal_N = 0.5 * residual_ND.square().sum(1) + lam * codes_NK.sum(1)
    strongest_N = (residual_ND @ dictionary_DK).amax(1).clamp_min(lam)
    dual_point_ND = residual_ND * (lam / strongest_N)[:, None]
    dual_N = 0.5 * signals_ND.square().sum(1) - 0.5 * (signals_ND - dual_point_ND).square().sum(1)
    energy_N = 0.5 * signals_ND.square().sum(1)
    return torch.where(energy_N > 0, (primal_N - dual_N) / energy_N.clamp_min(1e-300), primal_N)


def check_contract(
    signals_ND: Tensor, dictionary_DK: Tensor, result: LassoResult, lam: float, tol: float
) -> None:
    """Assert that codes are not negative and within the tolerance, and that each gap is that of its code."""
    assert result.codes_NK.shape == (len(signals_ND), dictionary_DK.shape[1])
    gap_N = relative_gap(signals_ND, dictionary_DK, lam, result.codes_NK)
    assert gap_N.max() <= tol
    energy_N = 0.5 * signals_ND.double().square().sum(1)
    allowed_N = ROUNDING * (1 + 1e-3 / lam) * energy_N
    assert ((result.gap_N.double() - gap_N * energy_N).abs() <= allowed_N).all()
