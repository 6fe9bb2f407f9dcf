"""Disentangled attention as any device runs it, against the float64 reference: values and all gradients."""

import itertools

import pytest
import torch
from torch import Tensor

from kernels.attention import disentangled_attention, reference

IMPLEMENTATIONS = ("reference", "strided")

SHAPES = {  # heads, width of a head, lengths
    "one token": (1, 4, [1]),
    "equal lengths": (3, 8, [16, 16]),
    "awkward": (2, 5, [37, 1, 19]),
    "long": (1, 3, [97]),
}


def layout(lengths: list[int]) -> tuple[Tensor, int]:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), max(lengths)


def arguments(num_heads: int, head_width: int, lengths: list[int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, rel_k, rel_q with random values; q, k and v are slices of one tensor, as the model passes
    them.
    """
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), num_heads, 3, head_width, generator=generator, dtype=dtype)
    table = (num_heads, 2 * max(lengths), head_width)
    return [*qkv.unbind(2), *(torch.randn(table, generator=generator, dtype=dtype) for _ in range(2))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["strided"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_reference(shape: str, name: str, dtype: torch.dtype, tolerance: float) -> None:
    sizes = SHAPES[shape]
    ours = [x.to(dtype).clone(memory_format=torch.preserve_format) for x in arguments(*sizes, torch.float64)]
    exact = arguments(*sizes, torch.float64)
    for x in (*ours, *exact):
        x.requires_grad_()
    out = disentangled_attention(*ours, *layout(sizes[2]), implementation=name)
    expected = reference.disentangled_attention(*exact, *layout(sizes[2]))
    assert (out - expected).abs().max() <= tolerance * 10
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight.to(dtype)).sum().backward()
    (expected * weight).sum().backward()
    for own, true in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert true.grad is not None
        worst_row = (own.grad - true.grad).norm(dim=-1).max()
        assert worst_row <= tolerance * (1 + true.grad.norm(dim=-1).max())


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_other_sequences_are_never_read(name: str) -> None:
    lengths = [12, 5]
    q, k, v, rel_k, rel_q = arguments(2, 4, lengths, torch.float64)
    before = disentangled_attention(q, k, v, rel_k, rel_q, *layout(lengths), implementation=name)
    k[12:] = 1e6
    v[12:] = 1e6
    after = disentangled_attention(q, k, v, rel_k, rel_q, *layout(lengths), implementation=name)
    torch.testing.assert_close(after[:12], before[:12], rtol=0, atol=0)
    assert (after[12:] != before[12:]).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_dropout_keeps_the_mean_and_drops_its_share(name: str) -> None:
    lengths = [32] * 4
    q, k, _, rel_k, rel_q = arguments(4, 32, lengths, torch.float64)
    v = torch.ones_like(q)  # so that the output is the sum of the kept weights
    torch.manual_seed(3)
    out = disentangled_attention(
        q * 0, k * 0, v, rel_k, rel_q, *layout(lengths), dropout_p=0.25, implementation=name
    )
    kept = out[..., 0] * 0.75 * 32  # uniform weights: the number of keys kept of 32
    torch.testing.assert_close(kept, kept.round(), atol=1e-6, rtol=0)
    assert abs(float(kept.mean()) / 32 - 0.75) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (7, 2, 4)}, "share a shape"),
        ({"rel_k": (2, 15, 4)}, "rel_k, rel_q must be"),
        ({"cu_seqlens": (1,)}, "cu_seqlens must have 2 to 9 entries"),
        ({"q": (20, 2, 4), "k": (20, 2, 4), "v": (20, 2, 4)}, "some are longer than 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4), "rel_k": (2, 16, 4), "rel_q": (2, 16, 4)}
    shapes |= {"cu_seqlens": (3,)} | change
    with pytest.raises(ValueError, match=message):
        disentangled_attention(*(torch.ones(shape) for shape in shapes.values()), 8)


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0])
def test_a_share_to_drop_that_is_none_is_refused(dropout_p: float) -> None:
    with pytest.raises(ValueError, match="dropout_p must be at least 0 and less than 1"):
        disentangled_attention(*arguments(1, 3, [2], torch.float64), *layout([2]), dropout_p=dropout_p)


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="'magic', choose from"):
        disentangled_attention(*arguments(1, 3, [2], torch.float64), *layout([2]), implementation="magic")
