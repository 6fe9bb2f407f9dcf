"""Fused attention against the definition in float64: output and every gradient, with dropout and without.

Where there is no GPU, Triton interprets the kernels. Its interpreter computes bf16 wrongly, so bf16 is
tested on GPUs only."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from attention_problems import arguments as any_arguments
from attention_problems import layout
from torch import Tensor

pytest.importorskip("triton")

from kernels.attention import disentangled_attention, fused_triton, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_tiles")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton interprets no bf16"),
    ),
]


def use_tiles_of(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(fused_triton, "launch_options", lambda *_: options)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small tiles, short sequences have several of them and end inside one."""
    use_tiles_of(16, monkeypatch)


def arguments(
    num_heads: int, head_width: int, lengths: list[int], device: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return any_arguments(num_heads, head_width, lengths, dtype, device)


def weight_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


def fused(tensors: list[Tensor], lengths: list[int], dropout_p: float = 0.0) -> list[Tensor]:
    """Output and the five gradients."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    where = layout(lengths, tensors[0].device.type)
    out = disentangled_attention(*tensors, *where, dropout_p=dropout_p, implementation="triton")
    return [out.detach(), *torch.autograd.grad(out, tensors, weight_like(out))]


def defined(tensors: list[Tensor], lengths: list[int], dropout_p: float = 0.0) -> list[Tensor]:
    """The same from the definition, in float64."""
    tensors = [x.detach().double().requires_grad_() for x in tensors]
    where = layout(lengths, tensors[0].device.type)
    out = reference.disentangled_attention(*tensors, *where, dropout_p=dropout_p)
    return [out.detach(), *torch.autograd.grad(out, tensors, weight_like(out))]


def check(got: list[Tensor], want: list[Tensor]) -> None:
    """The worst row, on the scale of the largest."""
    for name, own, true in zip(("out", "q", "k", "v", "rel_k", "rel_q"), got, want, strict=True):
        worst = (own.double() - true).norm(dim=-1).max() / (1 + true.norm(dim=-1).max())
        assert worst <= TOLERANCE[own.dtype], (name, float(worst))


def kept(num_heads: int, lengths: list[int], dropout_p: float, seed: int, device: str) -> Iterator[Tensor]:
    """The weights (H, L, L) of each sequence that the fused dropout keeps, 1 or 0.

    With equal scores and one-hot values the output is the kept weights.
    """
    q, k, v, rel_k, rel_q = (torch.zeros_like(x) for x in arguments(num_heads, 128, lengths, device))
    for first, length in zip(layout(lengths, device)[0].tolist(), lengths, strict=False):
        v[first : first + length, :, :length] = torch.eye(length, device=device)[:, None]
    torch.manual_seed(seed)
    out = fused_triton.disentangled_attention(
        q, k, v, rel_k, rel_q, *layout(lengths, device), dropout_p=dropout_p
    )
    for part, length in zip(out.split(lengths), lengths, strict=True):
        share_HLL = part[..., :length].transpose(0, 1) * length * (1 - dropout_p)
        torch.testing.assert_close(share_HLL, share_HLL.round(), atol=1e-5, rtol=0)
        yield share_HLL.round()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_heads", "head_width", "lengths"),
    [(1, 32, [1]), (2, 32, [7, 1, 17]), (1, 64, [33]), (1, 64, [16, 20])],
)
def test_equals_the_definition(
    num_heads: int, head_width: int, lengths: list[int], dtype: torch.dtype, device: str
) -> None:
    tensors = arguments(num_heads, head_width, lengths, device, dtype)
    check(fused(tensors, lengths), defined(tensors, lengths))


def test_larger_tiles(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    use_tiles_of(32, monkeypatch)
    tensors = arguments(1, 32, [65], device)
    check(fused(tensors, [65]), defined(tensors, [65]))


def test_kernels_with_tiles_of_different_sizes(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def options(kernel: object, *_: object) -> dict[str, int]:
        block = 16 if kernel is fused_triton.distances_kernel else 32
        return {"BLOCK": block, "num_warps": 4, "num_stages": 1}

    monkeypatch.setattr(fused_triton, "launch_options", options)
    tensors = arguments(1, 32, [40, 9], device)
    check(fused(tensors, [40, 9]), defined(tensors, [40, 9]))


@pytest.mark.parametrize("term", range(3))
def test_each_term_alone(term: int, device: str) -> None:
    """Content, content to position, position to content: the operands of the others are zero."""
    q, k, v, rel_k, rel_q = arguments(1, 32, [21], device)
    off = [(rel_k, rel_q), (k, rel_q), (q, rel_k)][term]
    tensors = [torch.zeros_like(x) if any(x is y for y in off) else x for x in (q, k, v, rel_k, rel_q)]
    check(fused(tensors, [21]), defined(tensors, [21]))


def test_the_gradients_of_the_tables_in_one_part_and_in_many(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    lengths = [3, 18, 5]
    tensors = arguments(1, 32, lengths, device)
    want = defined(tensors, lengths)
    for num_programs in (1, 1024):
        monkeypatch.setattr(fused_triton, "NUM_PROGRAMS", num_programs)
        check(fused(tensors, lengths), want)


def test_other_layouts_are_copied(device: str) -> None:
    q, k, v, rel_k, rel_q = arguments(2, 32, [4, 18], device)
    tensors = [q.contiguous(), k, v.transpose(0, 2).contiguous().transpose(0, 2), rel_k, rel_q.contiguous()]
    check(fused(tensors, [4, 18]), defined(tensors, [4, 18]))


def test_gradients_that_are_not_contiguous(device: str) -> None:
    tensors = [x.detach().requires_grad_() for x in arguments(1, 32, [5], device)]
    disentangled_attention(*tensors, *layout([5], device), implementation="triton").sum().backward()
    row_T1 = tensors[2].grad.sum(-1)[:, 0] / 32  # each query's weights sum to one
    torch.testing.assert_close(row_T1.sum(), torch.tensor(5.0, device=device))


def test_dropout_in_the_backward_is_that_of_the_forward(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    lengths = [5, 18]
    tensors = arguments(1, 32, lengths, device)
    masks = list(kept(1, lengths, 0.3, 7, device))
    torch.manual_seed(7)
    got = fused(tensors, lengths, 0.3)
    remaining = iter(masks)
    monkeypatch.setattr(reference.F, "dropout", lambda weights, p: weights * next(remaining) / (1 - p))
    check(got, defined(tensors, lengths, 0.3))


def test_dropout_drops_its_share_everywhere_anew(device: str) -> None:
    first, second = kept(2, [48, 48], 0.25, 3, device)
    assert not torch.equal(first, next(kept(2, [48, 48], 0.25, 4, device)))
    for mask_HLL in (first, second):
        assert abs(float(mask_HLL.mean()) - 0.75) < 0.02  # 4,608 weights: three standard deviations
        for mean_L in (mask_HLL.mean(1), mask_HLL.mean(2)):
            assert abs(float(mean_L.std()) - (0.75 * 0.25 / 48) ** 0.5) < 0.015
    for one, other in ((first, second), (first[0], first[1]), (first[0], first[0].mT)):
        # Two independent masks agree where both keep or both drop: 0.625 of the time.
        assert abs(float((one == other).double().mean()) - 0.625) < 0.04


def test_dropout_does_not_depend_on_the_tile(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    small = list(kept(1, [35], 0.5, 3, device))
    use_tiles_of(32, monkeypatch)
    for one, other in zip(small, kept(1, [35], 0.5, 3, device), strict=True):
        assert torch.equal(one, other)


def test_no_sequence_depends_on_the_rest_of_its_batch(device: str) -> None:
    """A sequence alone gives the same bits as in a batch. Dropout depends on its number, not its place."""
    lengths, dropout_p = [17, 5], 0.5
    q, k, v, rel_k, rel_q = arguments(1, 32, lengths, device)
    torch.manual_seed(3)
    together = fused([q, k, v, rel_k, rel_q], lengths, dropout_p)
    torch.manual_seed(3)
    alone = fused([q[:17], k[:17], v[:17], rel_k, rel_q], [17], dropout_p)
    for whole, part in zip(together[:4], alone[:4], strict=True):
        assert torch.equal(whole[:17], part)


def test_the_same_seed_gives_the_same_bits(device: str) -> None:
    lengths = [17, 3]
    tensors = arguments(1, 32, lengths, device)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(fused(tensors, lengths, 0.2))
    assert all(map(torch.equal, *results))


def test_compiled_attention_gives_the_same_bits(device: str) -> None:
    """The model is compiled with lengths that vary and heads that do not."""
    q, k, v, rel_k, rel_q = arguments(1, 32, [5, 9], device)
    inputs = [torch.stack([q, k, v], 2).flatten(1).requires_grad_()]
    inputs += [x[0].clone().requires_grad_() for x in (rel_k, rel_q)]

    def attend(qkv_TX: Tensor, rel_k_RE: Tensor, rel_q_RE: Tensor, *where: Tensor | int) -> Tensor:
        q, k, v = qkv_TX.view(-1, 1, 3, 32).unbind(2)
        tables = rel_k_RE.view(1, -1, 32), rel_q_RE.view(1, -1, 32)
        return 2 * disentangled_attention(q, k, v, *tables, *where, implementation="triton")

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    results = []
    for function in (compiled, attend):
        out = function(*inputs, *layout([5, 9], device))
        results.append([out, *torch.autograd.grad(out, inputs, weight_like(out))])
    assert all(map(torch.equal, *results))


def test_the_operators_pass_opcheck(device: str) -> None:
    tensors = [x.clone().requires_grad_() for x in arguments(1, 32, [5, 9], device)]
    seed = torch.tensor([5], device=device)
    arguments_of_forward = (*tensors, layout([5, 9], device)[0], seed, 0.1)
    torch.library.opcheck(torch.ops.kernels.attention_forward, arguments_of_forward)


def test_kernels_run_on_the_card_of_their_tensors(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    current, launched_on = [], []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("forward", "queries", "keys", "distances"):
        kernel = mock.MagicMock()
        kernel.__getitem__.return_value.side_effect = lambda **_: launched_on.extend(current)
        monkeypatch.setattr(fused_triton, f"{name}_kernel", kernel)
    tensors = arguments(1, 32, [5], device)
    fused(tensors, [5])
    assert launched_on == [tensors[0].device] * 4
