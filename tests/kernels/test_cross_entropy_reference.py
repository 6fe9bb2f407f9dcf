"""The definition of the cross-entropy against PyTorch's own functions."""

import pytest
import torch
from cross_entropy_problems import exact_rows, problem

from kernels.cross_entropy.reference import cross_entropy_


@pytest.mark.parametrize("has_classes", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_it_adds_the_sums_and_replaces_logits_by_gradients(has_classes: bool, needs_gradient: bool) -> None:
    logits_NV, targets = problem(9, 17, has_classes, torch.float64)
    targets = targets if has_classes else targets.double()
    want_N, agrees_N, want_NV = exact_rows(logits_NV, targets)
    given_NV, total, num_agreeing = logits_NV.clone(), torch.tensor(3.0).double(), torch.tensor(2)
    cross_entropy_(logits_NV, targets, total, num_agreeing, needs_gradient)
    torch.testing.assert_close(total, want_N.sum() + 3, rtol=1e-12, atol=0)
    assert num_agreeing == agrees_N.sum() + 2 > 2
    want_NV = want_NV if needs_gradient else given_NV
    torch.testing.assert_close(logits_NV, want_NV, rtol=1e-12, atol=1e-14)
