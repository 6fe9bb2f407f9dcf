"""Attention in C against the reference in float64: values and all gradients, with dropout and without, on
vectors of every width.
"""

import functools
from collections.abc import Iterator

import pytest
import torch
from attention_problems import arguments, layout
from dropout_mask import masks
from torch import Tensor

from kernels.attention import fused_cpu, reference
from kernels.attention.fused_cpu import disentangled_attention

SHAPES = {  # heads, width of a head, lengths
    "one token": (1, 4, [1]),
    "equal lengths": (3, 8, [16, 16]),
    "awkward": (2, 5, [37, 1, 19, 8, 9]),
    "an empty sequence": (1, 32, [7, 0, 3]),
    "more parts than tasks": (33, 1, [2, 3, 1]),
    "long": (1, 64, [131]),
}
LANES = {"this processor": (), "4": ("-DLANES=4",), "8": ("-DLANES=8",), "16": ("-DLANES=16",)}
"""The width of a vector: that of this processor, and those that the compiler makes of its instructions."""


@pytest.fixture(params=LANES)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    library = functools.partial(fused_cpu._library, LANES[request.param])
    monkeypatch.setattr(fused_cpu, "_library", library)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def results(tensors: list[Tensor], lengths: list[int], dropout_p: float = 0.0, attend=disentangled_attention):
    """The output and the gradients of qkv, rel_k and rel_q."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    out = attend(*tensors, *layout(lengths), dropout_p=dropout_p)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, tensors, weight.to(out.dtype))]


def check(got: list[Tensor], exact: list[Tensor]) -> None:
    """The worst row, on the scale of the largest."""
    for name, own, true in zip(("out", "qkv", "rel_k", "rel_q"), got, exact, strict=True):
        worst = (own - true).norm(dim=-1).max() / (1 + true.norm(dim=-1).max())
        assert worst <= 2e-6, (name, float(worst))


def both(sizes: tuple[int, int, list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Arguments in float32 and the same in float64."""
    single = arguments(*sizes, torch.float32)
    return single, [x.double() for x in single]


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: str) -> None:
    single, double = both(SHAPES[shape])
    lengths = SHAPES[shape][2]
    check(results(single, lengths), results(double, lengths, attend=reference.disentangled_attention))


@pytest.mark.parametrize("term", range(3))
def test_each_term_alone(term: int) -> None:
    """Content, content to position, position to content: the operands of the others are zero."""
    single, _ = both(SHAPES["awkward"])
    qkv, rel_k, rel_q = single
    for x in [(rel_k, rel_q), (qkv[:, :, 1], rel_q), (qkv[:, :, 0], rel_k)][term]:
        x.zero_()
    double = [x.double() for x in single]
    lengths = SHAPES["awkward"][2]
    check(results(single, lengths), results(double, lengths, attend=reference.disentangled_attention))


@pytest.mark.usefixtures("lanes")
def test_dropout_is_that_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the Triton kernels as well, for the same seed."""
    lengths = [5, 35, 17]
    single, double = both((2, 8, lengths))
    torch.manual_seed(7)
    seed = int(torch.randint(2**63 - 1, (1,)))
    remaining = iter(masks(seed, 2, lengths, 0.3))
    torch.manual_seed(7)
    got = results(single, lengths, 0.3)
    monkeypatch.setattr(reference.F, "dropout", lambda weights, p: weights * next(remaining) / (1 - p))
    check(got, results(double, lengths, 0.3, reference.disentangled_attention))


@pytest.mark.parametrize("threads", [2, 40], indirect=True)
def test_the_number_of_threads_changes_no_bit(threads: None) -> None:
    lengths = [3 * n % 29 + 1 for n in range(50)]
    single, _ = both((3, 8, lengths))
    torch.manual_seed(1)
    several = results(single, lengths, 0.2)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    assert all(map(torch.equal, several, results(single, lengths, 0.2)))


def test_a_sequence_alone_has_the_bits_that_it_has_in_a_batch() -> None:
    single, _ = both((2, 8, [12, 30, 5]))
    together = disentangled_attention(*single, *layout([12, 30, 5]))
    alone = disentangled_attention(single[0][12:42], *single[1:], *layout([30]))
    assert torch.equal(together[12:42], alone)


def test_without_gradients_nothing_is_kept() -> None:
    single, _ = both(SHAPES["awkward"])
    where = layout(SHAPES["awkward"][2])[0]
    out, weights = fused_cpu._forward(*single, where, where[:1], 0.0, False)
    assert weights.numel() == 0
    assert torch.equal(out, results(single, SHAPES["awkward"][2])[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", range(3))
def test_what_is_not_finite_is_not_hidden(part: int, value: float) -> None:
    single, _ = both((1, 8, [9, 20]))
    single[0][4, 0, part, 3] = value
    for dropout_p in (0.0, 0.5):
        out, d_qkv, *_ = results(single, [9, 20], dropout_p)
        assert not out[:9].isfinite().all()
        assert not d_qkv[:9].isfinite().all()
        assert out[9:].isfinite().all()


def test_scores_far_apart() -> None:
    """Weights of 1, and others that float32 cannot hold."""
    single, _ = both((1, 8, [20]))
    single[0][:] *= 100
    double = [x.double() for x in single]
    out, exact = (f(*x, *layout([20])) for f, x in (
        (disentangled_attention, single), (reference.disentangled_attention, double),
    ))  # fmt: skip
    assert (out - exact).norm(dim=-1).max() <= 1e-3 * exact.norm(dim=-1).max()


def test_other_layouts_are_copied() -> None:
    single, _ = both((2, 8, [4, 18]))
    other = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in single]
    assert all(map(torch.equal, results(single, [4, 18]), results(other, [4, 18])))


@pytest.mark.parametrize("ends", [[0, 9, 20], [0, 5, 4, 22], [1, 9, 22], [0, 17, 22]])
def test_sequences_that_are_no_part_of_the_tokens_are_refused(ends: list[int]) -> None:
    single, _ = both((1, 8, [9, 13]))
    with pytest.raises(ValueError, match="cu_seqlens must ascend from 0 to 22 by at most 13"):
        disentangled_attention(*single, torch.tensor(ends, dtype=torch.int32), 13)


def test_the_operators_pass_opcheck() -> None:
    tensors = [x.requires_grad_() for x in both((1, 8, [7, 7]))[0]]  # every kept number is a weight
    where = layout([7, 7])[0]
    torch.library.opcheck(
        torch.ops.kernels.attention_forward_cpu, (*tensors, where, torch.tensor([5]), 0.1, True)
    )
