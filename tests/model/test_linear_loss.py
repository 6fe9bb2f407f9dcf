"""The loss that holds no logits equals the one that does, with all gradients, whatever the chunk."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.model.linear_loss import linear_cross_entropy

N, D, V = 23, 6, 11
Grads = list[Tensor]


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
        agrees_N = logits_NV.argmax(-1) == targets
    else:
        expected = F.kl_div(logits_NV.log_softmax(-1), targets, reduction="sum")
        agrees_N = targets.gather(1, logits_NV.argmax(-1)[:, None])[:, 0] == targets.amax(-1)
        agrees_N &= targets.any(-1)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert loss.num_agreeing == agrees_N.sum() > 0
    (3 * loss.total).backward()
    (3 * expected).backward()
    for own, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-11, atol=1e-12)


def test_a_target_of_zeros_agrees_with_no_prediction() -> None:
    inputs, weight, bias = problem()
    predicts_first = bias.detach().index_fill(0, torch.tensor(0), 100.0)
    assert linear_cross_entropy(inputs, weight, predicts_first, torch.zeros(N, V).double()).num_agreeing == 0
    assert (
        linear_cross_entropy(inputs, weight, predicts_first, torch.eye(V).double()[[0] * N]).num_agreeing == N
    )


def test_frozen_inputs_get_no_gradient() -> None:
    inputs, weight, bias = problem()
    linear_cross_entropy(inputs.detach(), weight, bias, CLASSES).total.backward()
    assert inputs.grad is None
    assert weight.grad is not None


def test_without_autograd_nothing_is_computed_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    plain = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda x, **k: shapes.append(x.shape) or plain(x, **k))
    with torch.no_grad():
        assert not linear_cross_entropy(*problem(), CLASSES).total.requires_grad
    assert not shapes
    linear_cross_entropy(*problem(), CLASSES)
    assert shapes == [(N, D), (V, D), (V,)]


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


def rare_classes() -> tuple[list[Tensor], Tensor]:
    """8,000 classes whose frequencies differ by a factor of a million, and positions that follow them."""
    generator = torch.Generator().manual_seed(7)
    bias_V = torch.linspace(0, -14, 8000)
    weight_VD, inputs_ND = (
        torch.randn(8000, 32, generator=generator),
        torch.randn(64, 32, generator=generator),
    )
    classes_N = torch.multinomial(bias_V.softmax(0), 64, replacement=True, generator=generator)
    return [inputs_ND, 0.02 * weight_VD, bias_V], classes_N


def whole_logits_loss(inputs: Tensor, weight: Tensor, bias: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(inputs, weight, bias), classes, reduction="sum")


def chunked_loss(inputs: Tensor, weight: Tensor, bias: Tensor, classes: Tensor) -> Tensor:
    return linear_cross_entropy(inputs, weight, bias, classes, chunk_elements=20 * len(weight)).total


def fp16_gradients(
    loss: Callable[..., Tensor], tensors: list[Tensor], classes: Tensor, scale: float
) -> Grads:
    """The gradients of a loss under fp16 autocast with a loss scale, which is divided out in float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.float16):
        total = loss(*leaves, classes)
    (total * scale).backward()
    return [leaf.grad.double() / scale for leaf in leaves]  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [16.0, 1024.0])
def test_fp16_gradients_of_rare_classes_are_as_good_as_those_of_autocast(scale: float) -> None:
    tensors, classes_N = rare_classes()
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    whole_logits_loss(*exact, classes_N).backward()
    true_VD = exact[1].grad
    assert true_VD is not None
    _, autocast_VD, _ = fp16_gradients(whole_logits_loss, tensors, classes_N, scale)
    _, ours_VD, _ = fp16_gradients(chunked_loss, tensors, classes_N, scale)
    assert not (~ours_VD.any(dim=1) & autocast_VD.any(dim=1)).any()
    rarest = slice(6000, None)
    errors = [(g - true_VD)[rarest].norm() / true_VD[rarest].norm() for g in (ours_VD, autocast_VD)]
    assert errors[0] < 2 * errors[1]
    assert errors[0] < 0.01


def test_fp16_gradients_of_frequent_classes_do_not_overflow() -> None:
    """Sums over 20,000 positions with inputs of 8 are larger than any number of fp16."""
    tensors = [torch.full((20_000, 4), 8.0), torch.zeros(3, 4), torch.zeros(3)]
    gradients = fp16_gradients(chunked_loss, tensors, torch.zeros(20_000, dtype=torch.long), scale=1.0)
    expected_V = torch.tensor([-2 / 3, 1 / 3, 1 / 3]).double() * 20_000
    torch.testing.assert_close(gradients[1], 8 * expected_V[:, None].expand(3, 4), rtol=1e-3, atol=0)


def test_fp16_gradients_of_inputs_are_rounded_after_the_loss_scale() -> None:
    """An almost certain prediction has gradients that would be zero in fp16 without the loss scale."""
    tensors = [torch.ones(1, 4, dtype=torch.float16), torch.full((2, 4), 1e-3), torch.tensor([17.0, 0.0])]
    tensors[1][0] *= 2
    ours, *_ = fp16_gradients(chunked_loss, tensors, torch.tensor([0]), scale=65536.0)
    autocast, *_ = fp16_gradients(whole_logits_loss, tensors, torch.tensor([0]), scale=65536.0)
    assert autocast.all()
    torch.testing.assert_close(ours, autocast, rtol=0.1, atol=0)


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must be \(23,\) or \(23, 11\), got"):
        linear_cross_entropy(*problem(), CLASSES[:5])
