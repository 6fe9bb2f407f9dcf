"""The error of the sparse coder's matrix products in Triton: interpreted, in the emulator, or on a GPU."""

import torch
from torch import Tensor

from kernels.lasso.products_triton import direction_, residual


def worst_rows_of_products(
    num_rows: int, width: int, num_atoms: int, device: str = "cpu"
) -> tuple[float, float]:
    """The relative errors of the worst rows of residual and direction. Two of the signals are left out."""
    generator = torch.Generator().manual_seed(0)
    signals_ND = torch.randn(num_rows + 2, width, generator=generator).to(device)
    codes_NK = torch.randn(num_rows + 2, num_atoms, generator=generator).to(device)
    dictionary_DK = torch.randn(width, num_atoms, generator=generator).to(device)
    lam_N = torch.rand(num_rows + 2, generator=generator).to(device)
    rows_R = torch.randperm(num_rows + 2, generator=generator)[:num_rows].to(device)
    residual_RD = residual(signals_ND, codes_NK, dictionary_DK, rows_R)
    c_RK = torch.empty(num_rows, num_atoms, device=device)
    direction_(c_RK, residual_RD, dictionary_DK.mT.contiguous(), lam_N, rows_R)
    want_RD = signals_ND[rows_R].double() - codes_NK[rows_R].double() @ dictionary_DK.double().mT
    want_RK = want_RD @ dictionary_DK.double() - lam_N[rows_R].double()[:, None]
    return _worst_row(residual_RD, want_RD), _worst_row(c_RK, want_RK)


def _worst_row(got: Tensor, want: Tensor) -> float:
    return float(((got - want).norm(dim=1) / want.norm(dim=1)).max())
