"""Dropout on a CPU: the share that it drops, the scale of the rest, and the mask of its gradient."""

import pytest
import torch

from kernels.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (5, 128, 33)])
def test_an_element_is_zero_or_scaled(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    x = (torch.rand(shape) + 1).requires_grad_()
    out = dropout(x, p)
    ratio = (out / x).detach()
    kept = ratio != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, ratio, rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.7])
def test_the_share_and_the_mean_are_kept(p: float) -> None:
    torch.manual_seed(3)
    out = dropout(torch.ones(1000, 1001), p)
    deviation = (p * (1 - p) / out.numel()) ** 0.5
    assert abs(float((out == 0).float().mean()) - p) < 5 * deviation + 2**-17
    assert abs(float(out.double().mean()) - 1) < 5 * deviation / (1 - p)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(4)
    dropped = (dropout(torch.ones(1 << 20), 0.5) == 0).double()
    for distance in (1, 2, 3, 4, 64):  # four elements share a draw
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert abs(both - 0.25) < 0.003


def test_it_follows_the_seed_and_leaves_everything_at_zero_probability() -> None:
    x = torch.randn(50, 3)
    first, second = (torch.manual_seed(5) and dropout(x, 0.4) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, dropout(x, 0.4))
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p must be at least 0 and less than 1"):
        dropout(torch.ones(3), p)


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_it_can_be_compiled(p: float) -> None:
    """A layer is compiled whole, with its dropout."""
    compiled = torch.compile(lambda x: dropout(x, p), fullgraph=True, backend="aot_eager")
    torch.manual_seed(6)
    ratio = compiled(torch.ones(1000))
    assert abs(float((ratio == 0).float().mean()) - p) < 0.06  # four standard deviations
    torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], 1 / (1 - p)))
