"""The loss that holds no logits equals the one that does, with all gradients, whatever the chunk."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.model.linear_loss import linear_cross_entropy

N, D, V = 23, 6, 11


def problem(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((N, D), (V, D), (V,))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def distributions() -> Tensor:
    """Sparse ones, and a row of zeros."""
    codes_NV = torch.rand((N, V), generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.6
    codes_NV[3] = -1.0
    return F.normalize(codes_NV.clamp_min(0), p=1, dim=1)


CLASSES = torch.randint(V, (N,), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("chunk", [1, 5 * V, N * V, 10_000])
@pytest.mark.parametrize("targets", [CLASSES, distributions()], ids=["classes", "distributions"])
def test_equals_the_loss_on_whole_logits(targets: Tensor, chunk: int) -> None:
    ours, exact = problem(), problem()
    loss = linear_cross_entropy(*ours, targets, chunk)
    logits_NV = F.linear(*exact)
    if targets.ndim == 1:
        expected = F.cross_entropy(logits_NV, targets, reduction="sum")
        top_N = targets
    else:
        expected = F.kl_div(logits_NV.log_softmax(-1), targets, reduction="sum")
        top_N = targets.argmax(-1)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert loss.num_agreeing == (logits_NV.argmax(-1) == top_N).sum() > 0
    (3 * loss.total).backward()
    (3 * expected).backward()
    for own, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-11, atol=1e-12)


def test_frozen_inputs_get_no_gradient() -> None:
    inputs, weight, bias = problem()
    linear_cross_entropy(inputs.detach(), weight, bias, CLASSES).total.backward()
    assert inputs.grad is None
    assert weight.grad is not None


def test_without_autograd_nothing_is_computed_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda x: made.append(x.shape) or plain(x))
    with torch.no_grad():
        assert not linear_cross_entropy(*problem(), CLASSES).total.requires_grad
    assert not made
    linear_cross_entropy(*problem(), CLASSES)
    assert made == [(N, D), (V, D), (V,)]


def test_no_position_is_no_loss() -> None:
    inputs, weight, bias = problem()
    loss = linear_cross_entropy(inputs[:0], weight, bias, CLASSES[:0])
    loss.total.backward()
    assert loss.total == 0.0
    assert not weight.grad.any()


def test_autocast_computes_products_in_bfloat16_and_sums_in_float32() -> None:
    ours, exact = problem(torch.float32), problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*ours, CLASSES)
    expected = F.cross_entropy(F.linear(*exact), CLASSES, reduction="sum")
    assert loss.total.dtype == torch.float32
    assert 0 < (loss.total - expected).detach().abs() < 0.02 * expected.detach()
    loss.total.backward()
    expected.backward()
    for own, true in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert own.grad.dtype == torch.float32
        assert (own.grad - true.grad).norm() < 0.02 * true.grad.norm()


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must be \(23,\) or \(23, 11\), got"):
        linear_cross_entropy(*problem(), CLASSES[:5])
