"""The matrix products of the GPU's sparse coder against float64.

Where there is no GPU, Triton interprets the kernels.
"""

import pytest
import torch

pytest.importorskip("triton")

from lasso_products import worst_rows_of_products

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(("num_signals", "width", "num_atoms"), [(1, 1, 4), (70, 33, 68), (3, 130, 64)])
def test_the_two_products_against_float64(num_signals: int, width: int, num_atoms: int, device: str) -> None:
    on_nvidia = device == "cuda" and not torch.version.hip
    worst = worst_rows_of_products(num_signals, width, num_atoms, device)
    assert max(worst) < (5e-6 if on_nvidia else 1e-6)
