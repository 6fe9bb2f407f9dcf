"""`nonneg_lasso` with every solver: what must be true of any answer, and what is refused."""

import importlib.util
import logging
import math
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from lasso_problems import ROUNDING, check_contract, common_direction, gaussian, relative_gap, uneven_atoms

from kernels.c_library import load_library
from kernels.lasso import descent_cpu, largest_step, nonneg_lasso
from kernels.lasso.solve import MAX_STEPS

SOLVERS = ["fista", "descent"]
"""Triton has its own tests; where it can run, some of these are for it too."""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
WITH_TRITON = [*SOLVERS, pytest.param("triton", marks=needs_triton)]


def device_of(solver: str) -> str:
    """Triton interprets its kernels where there is no GPU."""
    return "cuda" if solver == "triton" and torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", [gaussian, common_direction, uneven_atoms])
@pytest.mark.parametrize(
    ("num_signals", "width", "num_atoms", "lam"),
    [
        (1, 1, 1, 0.1),
        (3, 5, 7, 0.05),
        (9, 33, 48, 0.1),
        (17, 64, 49, 0.05),
        (33, 48, 331, 0.1),
        (5, 24, 1501, 0.1),
        (130, 16, 95, 0.2),
    ],
)
def test_every_signal_is_certified(solver, problem, num_signals, width, num_atoms, lam):
    signals_ND, dictionary_DK = problem(num_signals, width, num_atoms)
    result = nonneg_lasso(signals_ND, dictionary_DK, lam, solver=solver)
    check_contract(signals_ND, dictionary_DK, result, lam, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4, 1e-5])
def test_the_tolerance_is_kept(solver, tol):
    signals_ND, dictionary_DK = gaussian(20, 32, 200)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, tol=tol, solver=solver)
    check_contract(signals_ND, dictionary_DK, result, 0.1, tol)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("lam", [1e-2, 1e-3, 3e-4])
def test_a_small_lambda(solver, lam):
    """The dual point is the residual scaled to lam: the smaller lam, the more of the gap is that scale."""
    signals_ND, dictionary_DK = gaussian(9, 16, 25)
    result = nonneg_lasso(signals_ND, dictionary_DK, lam, solver=solver)
    check_contract(signals_ND, dictionary_DK, result, lam, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_solvers_give_the_same_code(solver):
    signals_ND, dictionary_DK = gaussian(16, 64, 128)  # well conditioned: a small gap means a close code
    exact = nonneg_lasso(signals_ND.double(), dictionary_DK.double(), 0.2, tol=1e-11, solver="fista")
    codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.2, tol=1e-5, solver=solver).codes_NK
    assert (codes_NK - exact.codes_NK).abs().max() < 5e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_stored_gram_and_step_change_nothing(solver):
    signals_ND, dictionary_DK = gaussian(8, 16, 60)
    gram_KK = (dictionary_DK.double().mT @ dictionary_DK.double()).float()
    plain = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    stored = nonneg_lasso(
        signals_ND, dictionary_DK, 0.1, solver=solver, gram_KK=gram_KK, step=largest_step(dictionary_DK)
    )
    assert torch.equal(plain.codes_NK, stored.codes_NK)
    assert torch.equal(plain.gap_N, stored.gap_N)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_signals_have_zero_codes_and_no_gap(solver):
    signals_ND, dictionary_DK = gaussian(5, 8, 20)
    signals_ND[[0, 3]] = 0
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    assert not result.codes_NK[[0, 3]].any()
    assert not result.gap_N[[0, 3]].any()
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_signals(solver):
    _, dictionary_DK = gaussian(1, 8, 20)
    result = nonneg_lasso(torch.zeros(0, 8), dictionary_DK, 0.1, solver=solver)
    assert [tuple(part.shape) for part in result] == [(0, 20), (0,), (0,)]
    assert result.steps_N.dtype == torch.int32


@pytest.mark.parametrize("solver", SOLVERS)
def test_above_lambda_max_all_codes_are_zero(solver):
    signals_ND, dictionary_DK = gaussian(12, 16, 40)
    lambda_max = float((signals_ND @ dictionary_DK).max())
    above = nonneg_lasso(signals_ND, dictionary_DK, lambda_max * 1.001, solver=solver)
    assert not above.codes_NK.any()
    assert not above.steps_N.any()
    below = nonneg_lasso(signals_ND, dictionary_DK, lambda_max * 0.9, tol=1e-6, solver=solver)
    assert below.codes_NK.any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_duplicated_and_zero_atoms(solver):
    signals_ND, dictionary_DK = gaussian(20, 16, 40)
    dictionary_DK[:, 10:20] = dictionary_DK[:, :10]
    dictionary_DK[:, [3, 25]] = 0
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)
    assert not result.codes_NK[:, [3, 25]].any()
    nothing = nonneg_lasso(signals_ND, torch.zeros(16, 40), 0.1, solver=solver)
    assert not nothing.codes_NK.any()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("exponent", [-80, -20, 15, 60])
def test_the_problem_scales_exactly(solver, exponent):
    """(c x, c lam) has the code c a, to the bit for a power of two: no size of signal costs precision."""
    signals_ND, dictionary_DK = gaussian(6, 16, 50)
    plain = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    scaled = nonneg_lasso(signals_ND * 2.0**exponent, dictionary_DK, 0.1 * 2.0**exponent, solver=solver)
    assert torch.equal(scaled.codes_NK, plain.codes_NK * 2.0**exponent)


@pytest.mark.parametrize("solver", WITH_TRITON)
@hypothesis.settings(derandomize=True, max_examples=25, deadline=None, database=None)
@hypothesis.given(
    num_signals=st.integers(1, 3),
    width=st.integers(2, 20),
    num_atoms=st.integers(1, 40),
    problem=st.sampled_from([gaussian, common_direction, uneven_atoms]),
    seed=st.integers(0, 1000),
    tol=st.sampled_from([1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
    share=st.floats(0.94, 1.04),
    exponent=st.floats(-15, 15),
)
@hypothesis.example(2, 16, 36, gaussian, 0, 1e-3, 0.97, 12.0)
def test_the_gap_is_that_of_the_code_where_the_zero_code_is_barely_good_enough(
    solver, num_signals, width, num_atoms, problem, seed, tol, share, exponent
):
    """lambda is such that the gap of the first signal's zero code is `share` of the tolerance."""
    signals_ND, dictionary_DK = problem(num_signals, width, num_atoms, seed)
    lambda_max = float((signals_ND[0] @ dictionary_DK).max())
    hypothesis.assume(lambda_max > 0.05)
    lam = lambda_max * (1 - math.sqrt(share * tol)) * 10**exponent
    signals_ND = (signals_ND.double() * 10**exponent).float()
    on = device_of(solver)
    result = nonneg_lasso(signals_ND.to(on), dictionary_DK.to(on), lam, tol=tol, solver=solver)
    gap_N = relative_gap(signals_ND, dictionary_DK, lam, result.codes_NK)
    returned_N = result.gap_N.cpu().double() / (0.5 * signals_ND.double().square().sum(1))
    assert gap_N.max() <= tol
    assert (returned_N - gap_N).abs().max() <= 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_huge_and_small_signals_in_one_batch(solver):
    signals_ND, dictionary_DK = gaussian(6, 16, 50)
    signals_ND *= torch.tensor([1e-6, 1.0, 1e3, 1e6, 1e12, 1e18])[:, None]
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    assert relative_gap(signals_ND, dictionary_DK, 0.1, result.codes_NK).max() <= 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_strided_arguments(solver):
    signals_ND, dictionary_DK = gaussian(7, 16, 50)
    plain = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    strided = nonneg_lasso(
        signals_ND.mT.contiguous().mT, dictionary_DK.mT.contiguous().mT, 0.1, solver=solver
    )
    assert (plain.codes_NK - strided.codes_NK).abs().max() <= 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_signal_that_is_stopped_early_is_logged_at_the_default_limit_only(solver, caplog, monkeypatch):
    signals_ND, dictionary_DK = common_direction(5, 16, 100)
    with caplog.at_level(logging.WARNING, "kernels"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.05, tol=1e-5, solver=solver, max_steps=3)
        assert not caplog.text
        monkeypatch.setitem(MAX_STEPS, solver, 3)
        result = nonneg_lasso(signals_ND, dictionary_DK, 0.05, tol=1e-5, solver=solver)
    assert "5 of 5 signals stopped at 3 steps" in caplog.text
    assert (result.steps_N <= 3).all()
    gap_N = relative_gap(signals_ND, dictionary_DK, 0.05, result.codes_NK)
    assert gap_N.min() > 1e-5
    torch.testing.assert_close(2 * result.gap_N.double(), gap_N, atol=ROUNDING, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, which interprets Triton
@pytest.mark.parametrize("solver", WITH_TRITON)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("where", "message"), [("signal", r"1 of 3 signals .* rows \[2\]"), ("atom", r"1 atoms .* columns \[7\]")]
)
def test_what_is_not_finite_is_refused(solver, value, where, message):
    signals_ND, dictionary_DK = (t.to(device_of(solver)) for t in gaussian(3, 8, 20))
    step = largest_step(dictionary_DK)
    if where == "signal":
        signals_ND[2, 3] = value
    else:
        dictionary_DK[3, 7] = value
    for given_step in (step, None):
        with pytest.raises(ValueError, match=message):
            nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver, step=given_step)


def test_arithmetic_that_overflows_is_refused():
    dictionary_DK = torch.full((8, 20), 3e38)
    with pytest.raises(ValueError, match=r"'descent' left the range of torch\.float32: scale the atoms"):
        nonneg_lasso(torch.ones(1, 8), dictionary_DK, 0.1, solver="descent")


def test_max_steps_beyond_an_int32():
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent", max_steps=2**64)
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_lambda_beyond_all_bounds(solver):
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    result = nonneg_lasso(signals_ND * 1e-30, dictionary_DK, 1e30, solver=solver)
    assert not result.codes_NK.any()
    assert not result.gap_N.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": -0.1}, "lam must be positive and finite, got -0.1"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"lam": float("nan")}, "lam must be positive and finite, got nan"),
        ({"tol": 0.0}, "tol must be positive and finite, got 0"),
        ({"step": -1.0}, "step = 1 / L must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"signals_ND": torch.zeros(4, 9)}, r"do not fit: \(4, 9\), \(8, 20\)"),
        ({"signals_ND": torch.zeros(8)}, r"do not fit: \(8,\)"),
        ({"dictionary_DK": torch.zeros(8, 0)}, r"the dictionary is empty: \(8, 0\)"),
        ({"signals_ND": torch.zeros(4, 8, dtype=torch.bfloat16)}, "got torch.bfloat16 and torch.float32"),
        ({"signals_ND": torch.zeros(4, 8, dtype=torch.float64)}, "got torch.float64 and torch.float32"),
        (
            {"signals_ND": torch.tensor([[0.0] * 8, [float("nan")] * 8])},
            r"1 of 2 signals hold NaN.*rows \[1\]",
        ),
        (
            {"signals_ND": torch.tensor([[float("inf")] * 8])},
            r"1 of 1 signals hold NaN or infinity: rows \[0\]",
        ),
        ({"dictionary_DK": torch.full((8, 20), float("nan"))}, "20 atoms of the dictionary hold NaN"),
        ({"gram_KK": torch.zeros(19, 20)}, r"gram must be \(20, 20\), got \(19, 20\)"),
        ({"gram_KK": torch.zeros(20, 20, dtype=torch.float64)}, "gram is torch.float64"),
        ({"solver": "magic"}, "no solver 'magic'"),
    ],
)
def test_mistakes_are_refused_with_the_value(change, message):
    signals_ND, dictionary_DK = gaussian(4, 8, 20)
    arguments = {"signals_ND": signals_ND, "dictionary_DK": dictionary_DK, "lam": 0.1} | change
    with pytest.raises(ValueError, match=message):
        nonneg_lasso(**arguments)


def test_descent_in_float64_is_an_error_and_auto_takes_fista():
    signals_ND, dictionary_DK = (t.double() for t in gaussian(4, 8, 20))
    with pytest.raises(ValueError, match="'descent' cannot run here: it is for float32"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")
    assert nonneg_lasso(signals_ND, dictionary_DK, 0.1).codes_NK.dtype == torch.float64


def test_without_a_compiler_fista_runs_and_a_warning_says_so(monkeypatch, caplog):
    signals_ND, dictionary_DK = gaussian(4, 8, 20)
    reason = load_library(descent_cpu.SOURCE, {}, find=lambda name: None)
    assert reason == "no C compiler (cc, gcc or clang) on this machine"
    monkeypatch.setattr("kernels.lasso.solve.why_no_descent", lambda: reason)
    monkeypatch.setattr("kernels.backend._logged", set())
    with caplog.at_level(logging.INFO, "kernels"):
        result = nonneg_lasso(signals_ND, dictionary_DK, 0.1)
        nonneg_lasso(signals_ND, dictionary_DK, 0.1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert reason in caplog.text
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)
    with pytest.raises(ValueError, match="'descent' cannot run here: no C compiler"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")


def test_importing_the_coder_imports_no_triton_and_compiles_nothing(tmp_path):
    script = "import sys, kernels.lasso; assert not {'triton', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_is_at_most_three_times_the_codes(solver):
    """`nonneg_lasso` promises at most 3 N K floats beside its arguments."""
    script = f"""
import resource, torch
from kernels.lasso import nonneg_lasso
generator = torch.Generator().manual_seed(0)
signals_ND = torch.nn.functional.normalize(torch.randn(40_000, 16, generator=generator))
dictionary_DK = torch.nn.functional.normalize(torch.randn(16, 1000, generator=generator), dim=0)
nonneg_lasso(signals_ND[:5000], dictionary_DK, 0.6, tol=1e-2, solver={solver!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.6, tol=1e-2, solver={solver!r}).codes_NK
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert codes_NK.any()
assert grown <= 3 * 4 * codes_NK.numel(), f"{{grown / 4 / codes_NK.numel():.2f}} N K floats"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_compiled_coder_gives_the_same_bits(solver):
    signals_ND, dictionary_DK = gaussian(6, 8, 20)

    def targets(signals_ND):
        codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver).codes_NK
        return codes_NK / codes_NK.sum(1, keepdim=True).clamp_min(1e-12)

    compiled = torch.compile(targets, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(signals_ND), targets(signals_ND))


def test_the_operator_passes_opcheck():
    signals_ND, dictionary_DK = gaussian(6, 8, 20)
    arguments = (signals_ND, dictionary_DK, 0.1, 1e-3, "auto", None, None, None)
    torch.library.opcheck(torch.ops.kernels.nonneg_lasso, arguments)


@pytest.mark.parametrize("solver", SOLVERS)
def test_autocast_does_not_reach_the_coder(solver):
    signals_ND, dictionary_DK = gaussian(6, 24, 50)
    plain = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    assert torch.equal(plain.codes_NK, inside.codes_NK)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_gradient_flows_and_no_argument_changes(solver):
    signals_ND, dictionary_DK = gaussian(6, 24, 50)
    copies = signals_ND.clone(), dictionary_DK.clone()
    result = nonneg_lasso(signals_ND.requires_grad_(), dictionary_DK.requires_grad_(), 0.1, solver=solver)
    assert not result.codes_NK.requires_grad
    assert torch.equal(signals_ND.detach(), copies[0])
    assert torch.equal(dictionary_DK.detach(), copies[1])
