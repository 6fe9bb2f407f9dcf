"""Every implementation of disentangled attention against the float64 reference: values and all gradients."""

import pytest
import torch
from torch import Tensor

from kernels import attention_reference
from kernels.attention import IMPLEMENTATIONS, disentangled_attention

SHAPES = {  # (B, H, L, E), lengths
    "one token": ((1, 1, 1, 4), [1]),
    "no padding": ((2, 3, 16, 8), [16, 16]),
    "awkward": ((3, 2, 37, 5), [37, 1, 19]),
    "long": ((1, 1, 130, 3), [97]),
}


def arguments(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, rel_k, rel_q with random values; q, k and v are slices of one tensor, as the model passes
    them.
    """
    num_sequences, num_heads, num_positions, head_width = shape
    generator = torch.Generator().manual_seed(num_positions)
    qkv = torch.randn(
        num_sequences, num_positions, num_heads, 3, head_width, generator=generator, dtype=dtype
    )
    table = (num_heads, 2 * num_positions, head_width)
    tables = [torch.randn(table, generator=generator, dtype=dtype) for _ in range(2)]
    return [*qkv.permute(3, 0, 2, 1, 4), *tables]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS.keys() - {"reference"}))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_reference(shape: str, name: str, dtype: torch.dtype, tolerance: float) -> None:
    size, lengths = SHAPES[shape]
    lengths_B = torch.tensor(lengths)
    is_real_BHLE = (torch.arange(size[2]) < lengths_B[:, None])[:, None, :, None].expand(size)
    ours = [x.to(dtype).clone(memory_format=torch.preserve_format) for x in arguments(size, torch.float64)]
    exact = arguments(size, torch.float64)
    for x in (*ours, *exact):
        x.requires_grad_()
    out = disentangled_attention(*ours, lengths_B, implementation=name)
    expected = attention_reference.disentangled_attention(*exact, lengths_B)
    weight_BHLE = (
        torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * is_real_BHLE
    )
    assert ((out - expected) * is_real_BHLE).abs().max() <= tolerance * 10
    (out * weight_BHLE.to(dtype)).sum().backward()
    (expected * weight_BHLE).sum().backward()
    for own, true in zip(ours, exact, strict=True):
        assert own.grad is not None
        assert true.grad is not None
        worst_row = (own.grad - true.grad).norm(dim=-1).max()
        assert worst_row <= tolerance * (1 + true.grad.norm(dim=-1).max())


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_keys_beyond_the_length_are_never_read(name: str) -> None:
    q, k, v, rel_k, rel_q = arguments((2, 2, 12, 4), torch.float64)
    lengths_B = torch.tensor([12, 5])
    before = disentangled_attention(q, k, v, rel_k, rel_q, lengths_B, implementation=name)
    k[1, :, 5:] = 1e6
    v[1, :, 5:] = 1e6
    after = disentangled_attention(q, k, v, rel_k, rel_q, lengths_B, implementation=name)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[1, :, :5], before[1, :, :5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_dropout_keeps_the_mean_and_drops_its_share(name: str) -> None:
    q, k, _, rel_k, rel_q = arguments((4, 4, 32, 32), torch.float64)
    v = torch.ones_like(q)  # so that the output is the sum of the kept weights
    torch.manual_seed(3)
    out = disentangled_attention(
        q * 0, k * 0, v, rel_k, rel_q, torch.full((4,), 32), dropout_p=0.25, implementation=name
    )
    kept = out[..., 0] * 0.75 * 32  # uniform weights: the number of keys kept of 32
    torch.testing.assert_close(kept, kept.round(), atol=1e-6, rtol=0)
    assert abs(float(kept.mean()) / 32 - 0.75) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 2, 7, 4)}, "share a shape"),
        ({"rel_k": (2, 15, 4)}, "rel_k, rel_q must be"),
        ({"lengths": (3,)}, "lengths must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {
        "q": (2, 2, 8, 4),
        "k": (2, 2, 8, 4),
        "v": (2, 2, 8, 4),
        "rel_k": (2, 16, 4),
        "rel_q": (2, 16, 4),
    }
    shapes |= {"lengths": (2,)} | change
    with pytest.raises(ValueError, match=message):
        disentangled_attention(*(torch.ones(shape) for shape in shapes.values()))
    with pytest.raises(ValueError, match="'magic', choose from"):
        disentangled_attention(
            *arguments((1, 1, 2, 3), torch.float64), torch.tensor([2]), implementation="magic"
        )
