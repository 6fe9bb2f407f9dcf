"""Fused attention against the definition in float64: output and every gradient, with dropout and without.

Where there is no GPU, Triton interprets the kernels. Its interpreter computes bf16 wrongly, so bf16 is tested
on GPUs and, as compiled code, in the emulator.
"""

import pytest
import torch
from attention_problems import arguments as any_arguments
from attention_problems import layout
from dropout_mask import masks
from launches import record_devices
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
    """With small tiles, short sequences have several of them and end inside one. Bands are off."""
    use_tiles_of(16, monkeypatch)
    monkeypatch.setattr(fused_triton, "BAND_LENGTHS", {2: {}, 4: {}})


@pytest.fixture
def bands(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of any dtype have bands; set after `small_tiles` has switched them off."""
    monkeypatch.setattr(fused_triton, "BAND_LENGTHS", {size: {32: 128, 64: 128} for size in (2, 4)})


def arguments(
    num_heads: int, head_width: int, lengths: list[int], device: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return any_arguments(num_heads, head_width, lengths, dtype, device)


def weight_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


def fused(tensors: list[Tensor], lengths: list[int], dropout_p: float = 0.0) -> list[Tensor]:
    """Output and the three gradients."""
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
    for name, own, true in zip(("out", "qkv", "rel_k", "rel_q"), got, want, strict=True):
        worst = (own.double() - true).norm(dim=-1).max() / (1 + true.norm(dim=-1).max())
        assert worst <= TOLERANCE[own.dtype], (name, float(worst))


def drawn_seed(seed: int, device: str) -> int:
    """The seed of the dropout of the first call after torch's generator was seeded."""
    torch.manual_seed(seed)
    return int(fused_triton.draw_seed(torch.device(device)))


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


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_heads", "head_width", "lengths"),
    [(1, 32, [1]), (2, 32, [7, 1, 16]), (1, 64, [20, 0, 32]), (1, 32, [3, 33, 9])],
)
def test_with_bands_it_equals_the_definition(
    num_heads: int, head_width: int, lengths: list[int], dtype: torch.dtype, device: str
) -> None:
    tensors = arguments(num_heads, head_width, lengths, device, dtype)
    check(fused(tensors, lengths), defined(tensors, lengths))


@pytest.mark.usefixtures("bands")
def test_bands_and_tiles_have_the_same_dropout(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    lengths = [40, 17]
    tensors = arguments(1, 32, lengths, device)
    results = []
    for longest in (128, 0):
        monkeypatch.setattr(fused_triton, "BAND_LENGTHS", {4: {32: longest}})
        torch.manual_seed(3)
        results.append(fused(tensors, lengths, 0.4))
    check(results[0], [x.double() for x in results[1]])


@pytest.mark.parametrize(
    ("dtype", "head_width", "longest"),
    [(torch.bfloat16, 64, 128), (torch.float16, 32, 128), (torch.bfloat16, 128, 64), (torch.float32, 64, 0)],
)
def test_which_sequences_have_bands(
    dtype: torch.dtype, head_width: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of the fixtures
    for length in (1, 16, 17, 64, 65, 128, 129):
        assert fused_triton.uses_bands(dtype, head_width, length) == (length <= longest)
        if length <= longest:
            assert length <= fused_triton.band_options(length)["BLOCK_N"] < max(2 * length, 17)


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
    qkv, rel_k, rel_q = arguments(1, 32, [21], device)
    for x in [(rel_k, rel_q), (qkv[:, :, 1], rel_q), (qkv[:, :, 0], rel_k)][term]:
        x.zero_()
    check(fused([qkv, rel_k, rel_q], [21]), defined([qkv, rel_k, rel_q], [21]))


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
    tensors = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in arguments(2, 32, [4, 18], device)]
    check(fused(tensors, [4, 18]), defined(tensors, [4, 18]))


def test_gradients_that_are_not_contiguous(device: str) -> None:
    tensors = [x.detach().requires_grad_() for x in arguments(1, 32, [5], device)]
    disentangled_attention(*tensors, *layout([5], device), implementation="triton").sum().backward()
    row_T = tensors[0].grad[:, 0, 2].sum(-1) / 32  # each query's weights sum to one
    torch.testing.assert_close(row_T.sum(), torch.tensor(5.0, device=device))


@pytest.mark.parametrize("block", [16, 32])
def test_dropout_is_that_of_its_definition(block: int, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Output and gradients, so it is the same in all kernels and for all tiles."""
    lengths = [5, 35]
    use_tiles_of(block, monkeypatch)
    tensors = arguments(2, 32, lengths, device)
    remaining = iter(masks(drawn_seed(7, device), 2, lengths, 0.3))
    torch.manual_seed(7)
    got = fused(tensors, lengths, 0.3)
    monkeypatch.setattr(
        reference.F, "dropout", lambda weights, p: weights * next(remaining).to(device) / (1 - p)
    )
    check(got, defined(tensors, lengths, 0.3))


def test_no_sequence_depends_on_the_rest_of_its_batch(device: str) -> None:
    """A sequence alone gives the same bits as in a batch. Dropout depends on its number, not its place."""
    lengths, dropout_p = [17, 5], 0.5
    qkv, *tables = arguments(1, 32, lengths, device)
    torch.manual_seed(3)
    together = fused([qkv, *tables], lengths, dropout_p)
    torch.manual_seed(3)
    alone = fused([qkv[:17], *tables], [17], dropout_p)
    for whole, part in zip(together[:2], alone[:2], strict=True):
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
    inputs = [x.flatten(1).requires_grad_() for x in arguments(1, 32, [5, 9], device)]

    def attend(qkv_TX: Tensor, rel_k_RE: Tensor, rel_q_RE: Tensor, *where: Tensor | int) -> Tensor:
        tables = rel_k_RE.view(-1, 1, 32), rel_q_RE.view(-1, 1, 32)
        return 2 * disentangled_attention(qkv_TX.view(-1, 1, 3, 32), *tables, *where, implementation="triton")

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    results = []
    for function in (compiled, attend):
        out = function(*inputs, *layout([5, 9], device))
        results.append([out, *torch.autograd.grad(out, inputs, weight_like(out))])
    assert all(map(torch.equal, *results))


@pytest.mark.usefixtures("bands")
def test_the_operators_pass_opcheck(device: str) -> None:
    tensors = [x.clone().requires_grad_() for x in arguments(1, 32, [5, 9], device)]
    seed = torch.tensor([5], device=device)
    arguments_of_forward = (*tensors, layout([5, 9], device)[0], seed, 0.1)
    torch.library.opcheck(torch.ops.kernels.attention_forward, arguments_of_forward)


def test_kernels_run_on_the_card_of_their_tensors(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    kernels = [f"{name}_kernel" for name in ("forward", "queries", "keys", "distances", "band")]
    launched_on = record_devices(monkeypatch, fused_triton, *kernels)
    tensors = arguments(1, 32, [5], device)
    fused(tensors, [5])
    assert launched_on == [tensors[0].device] * 4
    monkeypatch.setattr(fused_triton, "BAND_LENGTHS", {4: {32: 128}})
    fused(tensors, [5])
    assert launched_on == [tensors[0].device] * 6
