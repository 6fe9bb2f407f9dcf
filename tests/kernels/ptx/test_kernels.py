"""Every Triton kernel of the project, as compiled for sm_80 and sm_90, executed and compared with float64.

Races, accesses out of bounds or misaligned, and missing lanes fail a test wherever they happen. The default
selection takes a minute. All combinations, and larger shapes, take ten:

    python -m pytest tests/kernels/ptx -m "large or not large"
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from cross_entropy_problems import problem
from lasso_problems import common_direction, gaussian, relative_gap, uneven_atoms
from lasso_products import worst_rows_of_products
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from kernels.cross_entropy import loss
from mlsm.model.linear_loss import linear_cross_entropy
from ptx.cases import TOLERANCE, Attention, CrossEntropy, solve
from ptx.launch import Emulator

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
ALL_WIDTHS = [(BF16, 32), (BF16, 64), (BF16, 128), (F16, 32), (F16, 64), (F16, 128), (F32, 32), (F32, 64)]
large = pytest.mark.large


@pytest.fixture
def emulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Executes what the host code launches, for the target in the test's parameter."""
    emulator = Emulator(request.param)
    emulator.install(monkeypatch)
    return emulator


def attention_cases() -> list[ParameterSet]:
    """Each dtype and width runs usually with bands on one target with dropout and on the other without, and
    without bands once; the rest is large.

    On sm_90 the kernel of bands has up to 32 keys: with more it multiplies by WGMMA instructions of 16 bits,
    which the emulator does not know.
    """
    cases = []
    for number, (dtype, width) in enumerate(ALL_WIDTHS):
        few, many = (20, 1, 0), (20, 0, 1) if dtype == F32 else (1, 0, 33)
        for has_bands in (False, True)[: 1 + (dtype != F32)]:
            for place, (target, has_dropout) in enumerate(itertools.product(("sm80", "sm90"), (False, True))):
                lengths = few if width == 32 or (has_bands and target == "sm90") else many
                case = Attention(dtype, width, lengths, 0.1 * has_dropout, has_bands=has_bands)
                usual = ((0, 3), (1, 2))[number % 2] if has_bands else (number % 4,)
                marks = [] if place in usual else [large]
                cases.append(pytest.param(target, case, marks=marks, id=f"{target}-{case}"))
    more = (
        Attention(BF16, 64, (9, 3, 16), num_heads=2),  # the small tile
        Attention(BF16, 64, (9, 3, 16), num_heads=2, has_bands=False),
        Attention(BF16, 64, (19, 5), num_heads=2, offset=3),
        Attention(BF16, 64, (19, 5), num_heads=2, offset=3, has_bands=False),
    )
    at_large = (
        Attention(BF16, 64, (7, 1, 33, 64, 40), 0.1, num_heads=2),
        Attention(BF16, 64, (7, 1, 33, 64, 40), 0.1, num_heads=2, has_bands=False),
        Attention(BF16, 64, (100, 31, 128), 0.1, num_heads=2),
        Attention(F16, 32, (65, 128)),
        Attention(F16, 128, (100, 31, 128), num_heads=2, has_bands=False),
        Attention(F32, 64, (50, 64), 0.1, num_heads=3, offset=1, has_bands=False),
        Attention(BF16, 64, (300,), has_bands=False),
    )
    return [
        *cases,
        *(pytest.param("sm80", case, id=f"sm80-{case}") for case in more),
        *(
            pytest.param(target, case, marks=large, id=f"{target}-{case}")
            for case in at_large
            for target in (("sm80",) if case.has_bands else ("sm80", "sm90"))
        ),
    ]


@pytest.mark.parametrize(("emulator", "case"), attention_cases(), indirect=["emulator"])
def test_attention_and_its_gradients(emulator: Emulator, case: Attention) -> None:
    got = case.run()
    assert set(emulator.programs) == case.kernels()
    errors = case.worst_rows(got, case.expected())
    assert max(errors.values()) <= TOLERANCE[case.dtype], errors


def cross_entropy_cases() -> list[ParameterSet]:
    """Rows that are one block and rows of several, whose last one is full, cut or a single class."""
    usual = [
        ("sm80", CrossEntropy(BF16, 1500, has_classes=False)),
        ("sm90", CrossEntropy(BF16, 1500, has_classes=False, needs_gradient=False)),
        ("sm90", CrossEntropy(BF16, 25_000, has_classes=True, num_rows=2)),
        ("sm80", CrossEntropy(F16, 131, has_classes=True, num_rows=9)),
        ("sm90", CrossEntropy(F32, 131, has_classes=False, num_rows=9)),
        ("sm80", CrossEntropy(F32, 2049, has_classes=True)),
        ("sm90", CrossEntropy(F16, 4096, has_classes=False)),
        ("sm80", CrossEntropy(BF16, 1, has_classes=False)),
        ("sm90", CrossEntropy(F32, 1, has_classes=True)),
        ("sm80", CrossEntropy(BF16, 1504, has_classes=True, offset=1)),
    ]
    at_large = [
        (target, CrossEntropy(dtype, num_classes, has_classes, 5, needs_gradient))
        for target in ("sm80", "sm90")
        for dtype in (BF16, F16, F32)
        for num_classes in (1, 131, 1500, 25_000)
        for has_classes in (False, True)
        for needs_gradient in (True, False)
    ]
    return [
        pytest.param(target, case, marks=marks, id=f"{target}-{case}")
        for marks, cases in (([], usual), ([large], at_large))
        for target, case in cases
    ]


@pytest.mark.parametrize(("emulator", "case"), cross_entropy_cases(), indirect=["emulator"])
def test_cross_entropy_and_its_gradient(emulator: Emulator, case: CrossEntropy) -> None:
    results = case.run()
    assert emulator.programs == {"loss_kernel": case.num_rows}
    case.check(*results)


def lasso_cases() -> list[ParameterSet]:
    """Target, problem, sizes (signals, width, atoms) and lambda."""
    usual = [
        ("sm80", gaussian, (4, 1, 1), 0.1), ("sm90", gaussian, (4, 1, 1), 0.1),
        ("sm80", common_direction, (2, 40, 131), 0.4), ("sm90", uneven_atoms, (3, 33, 131), 0.4),
        ("sm80", gaussian, (1, 24, 1500), 0.4), ("sm90", gaussian, (1, 24, 1500), 0.4),
        ("sm90", gaussian, (1, 24, 1604), 0.4),  # two warps
    ]  # fmt: skip
    at_large = [
        ("sm80", gaussian, (1, 24, 1504), 0.4), ("sm90", gaussian, (1, 24, 1504), 0.2),
        ("sm80", gaussian, (4, 768, 1500), 0.06),
        ("sm90", common_direction, (4, 256, 1504), 0.2), ("sm80", gaussian, (1, 16, 4096), 0.3),
        ("sm80", gaussian, (130, 48, 200), 0.3),
    ]  # fmt: skip
    return [
        pytest.param(target, problem, sizes, lam, marks=marks, id=f"{target}-{problem.__name__}-{sizes}")
        for marks, cases in (([], usual), ([large], at_large))
        for target, problem, sizes, lam in cases
    ]


@pytest.mark.parametrize(("emulator", "problem", "sizes", "lam"), lasso_cases(), indirect=["emulator"])
def test_codes_are_certified(
    emulator: Emulator,
    problem: Callable[[int, int, int], tuple[Tensor, Tensor]],
    sizes: tuple[int, int, int],
    lam: float,
) -> None:
    signals_ND, dictionary_DK = problem(*sizes)
    result = solve(signals_ND, dictionary_DK, lam)
    gap_N = relative_gap(signals_ND, dictionary_DK, lam, result.codes_NK)
    assert result.steps_N.any()
    assert gap_N.max() <= 1e-3
    torch.testing.assert_close(2 * result.gap_N.double(), gap_N, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("emulator", ["sm80", "sm90"], indirect=True)
def test_zero_atoms_and_inputs_that_are_not_contiguous(emulator: Emulator) -> None:
    signals_ND, dictionary_DK = gaussian(3, 16, 40)
    dictionary_DK[:, [0, 17, 39]] = 0
    signals_ND[1] = 0
    strided_ND, strided_DK = signals_ND.mT.contiguous().mT, torch.stack([dictionary_DK] * 2, 2)[..., 0]
    result = solve(strided_ND, strided_DK, 0.2)
    assert relative_gap(signals_ND, dictionary_DK, 0.2, result.codes_NK).max() <= 1e-3
    assert not result.codes_NK[:, [0, 17, 39]].any()
    assert not result.codes_NK[1].any()


@pytest.mark.parametrize(
    ("emulator", "sizes"),
    [
        ("sm80", (1, 1, 4)),
        ("sm80", (70, 33, 68)),
        ("sm80", (3, 64, 64)),
        ("sm90", (1, 1, 4)),
        ("sm90", (70, 33, 68)),
        pytest.param("sm80", (130, 768, 1500), marks=large),
    ],
    indirect=["emulator"],
)
def test_the_two_products(emulator: Emulator, sizes: tuple[int, int, int]) -> None:
    num_rows, width, num_atoms = sizes
    worst = worst_rows_of_products(num_rows, width, num_atoms)
    assert any(opcode.startswith("wgmma") for opcode in emulator.opcodes) == (emulator.target == "sm90")
    assert max(worst) < 1e-6


@pytest.mark.parametrize("emulator", ["sm90"], indirect=True)
@pytest.mark.parametrize("has_classes", [True, False])
def test_the_loss_of_a_linear_layer_in_bf16(
    emulator: Emulator, has_classes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of each chunk's logits stays in bf16; that of the bias is still summed in float32."""
    monkeypatch.setattr(loss, "_choice", lambda *_: "triton")
    generator = torch.Generator().manual_seed(2)
    given = [torch.randn(shape, generator=generator) for shape in ((7, 16), (131, 16), (131,))]
    _, targets = problem(7, 131, has_classes, F32)
    ours, exact = ([x.to(dtype).requires_grad_() for x in given] for dtype in (F32, torch.float64))
    with torch.autocast("cpu", BF16):
        total = linear_cross_entropy(*ours, targets, chunk_elements=3 * 131).total
    assert emulator.programs == {"loss_kernel": 7}
    want = F.cross_entropy(F.linear(*exact), targets if has_classes else targets.double(), reduction="sum")
    if not has_classes:  # its negative entropy makes it a divergence
        want = want + torch.xlogy(targets, targets).sum()
    assert abs(total - want) < 0.01 * want
    for x, true in zip(torch.autograd.grad(total, ours), torch.autograd.grad(want, exact), strict=True):
        assert x.dtype == F32
        assert (x - true).norm() < 0.01 * true.norm()
