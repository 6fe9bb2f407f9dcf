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
from lasso_problems import common_direction, gaussian, relative_gap, uneven_atoms
from torch import Tensor

pytest.importorskip("triton")

from ptx.cases import TOLERANCE, Attention, residual_and_direction, solve
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
    generator = torch.Generator().manual_seed(0)
    signals_ND = torch.randn(num_rows + 2, width, generator=generator)
    codes_NK = torch.randn(num_rows + 2, num_atoms, generator=generator)
    dictionary_DK = torch.randn(width, num_atoms, generator=generator)
    lam_N = torch.rand(num_rows + 2, generator=generator)
    rows_R = torch.randperm(num_rows + 2, generator=generator)[:num_rows]
    residual_RD, c_RK = residual_and_direction(signals_ND, codes_NK, dictionary_DK, lam_N, rows_R)
    assert any(opcode.startswith("wgmma") for opcode in emulator.opcodes) == (emulator.target == "sm90")
    want_RD = signals_ND[rows_R].double() - codes_NK[rows_R].double() @ dictionary_DK.double().mT
    want_RK = want_RD @ dictionary_DK.double() - lam_N[rows_R].double()[:, None]
    for got, want in ((residual_RD, want_RD), (c_RK, want_RK)):
        assert ((got - want).norm(dim=1) / want.norm(dim=1)).max() < 1e-6
