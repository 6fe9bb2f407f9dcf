"""The sparse coder behind its door, all solvers that run on a CPU: what must be true of any answer, not what
came out."""

import logging
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from lasso_problems import common_direction, gaussian, relative_gap, uneven_atoms

from kernels.lasso import descent_cpu, largest_step, nonneg_lasso
from kernels.lasso.solve import MAX_STEPS

SOLVERS = ["fista", "descent"]
ROUNDING = 2e-6
"""Of a float32 gap, relative to 1/2 |x|^2, while lam is large against float32's resolution of a
correlation."""
quick = hypothesis.settings(derandomize=True, max_examples=30, deadline=None, database=None)


def check_contract(signals_ND, dictionary_DK, result, lam, tol):
    """The whole contract of one call."""
    assert result.codes_NK.shape == (len(signals_ND), dictionary_DK.shape[1])
    assert (result.codes_NK >= 0).all()
    gap_N = relative_gap(signals_ND, dictionary_DK, lam, result.codes_NK)
    assert gap_N.max() <= tol
    energy_N = 0.5 * signals_ND.double().square().sum(1)
    allowed_N = ROUNDING * (1 + 1e-3 / lam) * energy_N
    assert ((result.gap_N.double() - gap_N * energy_N).abs() <= allowed_N).all()


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


def test_float64_reaches_optimality_itself():
    signals_ND, dictionary_DK = (t.double() for t in gaussian(10, 24, 90))
    codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.1, tol=1e-12, solver="fista").codes_NK
    correlation_NK = (signals_ND - codes_NK @ dictionary_DK.mT) @ dictionary_DK
    assert (correlation_NK <= 0.1 + 1e-6).all()
    assert ((correlation_NK - 0.1).abs()[codes_NK > 0] <= 1e-6).all()


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


@pytest.mark.parametrize("solver", SOLVERS)
def test_huge_and_small_signals_in_one_batch(solver):
    signals_ND, dictionary_DK = gaussian(6, 16, 50)
    signals_ND *= torch.tensor([1e-6, 1.0, 1e3, 1e6, 1e12, 1e18])[:, None]
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    assert relative_gap(signals_ND, dictionary_DK, 0.1, result.codes_NK).max() <= 1e-3


def test_a_support_larger_than_the_first_working_set():
    generator = torch.Generator().manual_seed(0)
    dictionary_DK = torch.nn.functional.normalize(torch.randn(700, 900, generator=generator), dim=0)
    signals_ND = torch.nn.functional.normalize(torch.rand(2, 900, generator=generator) @ dictionary_DK.mT)
    result = nonneg_lasso(signals_ND, dictionary_DK, 1e-3, solver="descent")
    assert (result.codes_NK > 0).sum(1).min() > first_capacity()
    check_contract(signals_ND, dictionary_DK, result, 1e-3, 1e-3)


def first_capacity() -> int:
    line = next(line for line in descent_cpu.SOURCE.read_text().splitlines() if "ATOMS_AT_FIRST" in line)
    return int(line.split()[2])


def test_atoms_that_are_nearly_one_atom():
    """Sweeps crawl here; Newton steps finish (without them: ten times the updates)."""
    generator = torch.Generator().manual_seed(0)
    dictionary_DK = torch.nn.functional.normalize(1 + 0.05 * torch.randn(64, 500, generator=generator), dim=0)
    signals_ND = torch.nn.functional.normalize(torch.rand(20, 500, generator=generator) @ dictionary_DK.mT)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.01, solver="descent")
    check_contract(signals_ND, dictionary_DK, result, 0.01, 1e-3)
    assert result.steps_N.max() < 4000


def test_more_atoms_than_any_array_was_made_for():
    signals_ND, dictionary_DK = gaussian(4, 12, 5003)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_strided_arguments(solver):
    signals_ND, dictionary_DK = gaussian(7, 16, 50)
    plain = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver)
    strided = nonneg_lasso(
        signals_ND.mT.contiguous().mT, dictionary_DK.mT.contiguous().mT, 0.1, solver=solver
    )
    assert (plain.codes_NK - strided.codes_NK).abs().max() <= 1e-5


@quick
@hypothesis.given(
    num_signals=st.integers(1, 70),
    width=st.integers(1, 40),
    num_atoms=st.integers(1, 120),
    lam=st.floats(0.01, 0.8),
    scale=st.floats(1e-3, 1e3),
    problem=st.sampled_from([gaussian, common_direction, uneven_atoms]),
    seed=st.integers(0, 1000),
)
def test_descent_is_certified_on_anything(num_signals, width, num_atoms, lam, scale, problem, seed):
    signals_ND, dictionary_DK = problem(num_signals, width, num_atoms, seed)
    result = nonneg_lasso(signals_ND * scale, dictionary_DK, lam * scale, solver="descent")
    gap_N = relative_gap(signals_ND * scale, dictionary_DK, lam * scale, result.codes_NK)
    assert gap_N.max() <= 1e-3


@quick
@hypothesis.given(
    num_signals=st.integers(2, 150), width=st.integers(1, 40), num_atoms=st.integers(1, 120), data=st.data()
)
def test_no_descent_depends_on_batch_mates_or_threads(num_signals, width, num_atoms, data):
    signals_ND, dictionary_DK = gaussian(num_signals, width, num_atoms)
    together = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")
    some = data.draw(st.lists(st.integers(0, num_signals - 1), min_size=1, max_size=6))
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        apart = nonneg_lasso(signals_ND[some], dictionary_DK, 0.1, solver="descent")
    finally:
        torch.set_num_threads(num_threads)
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[some], part)


def test_fista_depends_on_batch_mates_by_rounding_only():
    signals_ND, dictionary_DK = gaussian(40, 24, 100)
    together = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="fista")
    for n in (0, 17, 39):
        alone = nonneg_lasso(signals_ND[n : n + 1], dictionary_DK, 0.1, solver="fista")
        assert (alone.codes_NK[0] - together.codes_NK[n]).abs().max() <= 1e-5
        assert alone.steps_N[0] == together.steps_N[n]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_signal_that_was_stopped_early_says_so_unless_asked_to(solver, caplog, monkeypatch):
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


def test_a_gram_matrix_that_is_no_number_ends_with_a_warning(caplog):
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    gram_KK = torch.full((20, 20), float("nan"))
    nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", gram_KK=gram_KK)
    assert "3 of 3 signals stopped" in caplog.text


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_lambda_beyond_all_bounds(solver):
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    result = nonneg_lasso(signals_ND * 1e-30, dictionary_DK, 1e30, solver=solver)
    assert not result.codes_NK.any()
    assert not result.gap_N.any()


def test_one_update_moves_one_atom():
    signals_ND, dictionary_DK = gaussian(3, 16, 50)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", max_steps=1)
    assert ((result.codes_NK > 0).sum(1) == 1).all()
    assert (result.steps_N == 1).all()


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
    reason = descent_cpu.load_library(find=lambda name: None)
    assert reason == "no C compiler (cc, gcc or clang) on this machine"
    monkeypatch.setattr("kernels.lasso.solve.why_no_descent", lambda: reason)
    monkeypatch.setattr("kernels.backend._already_said", set())
    with caplog.at_level(logging.INFO, "kernels"):
        result = nonneg_lasso(signals_ND, dictionary_DK, 0.1)
        nonneg_lasso(signals_ND, dictionary_DK, 0.1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert reason in caplog.text
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)
    with pytest.raises(ValueError, match="'descent' cannot run here: no C compiler"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")


def test_a_compiler_that_fails_is_an_obstacle_with_its_message(tmp_path):
    broken = tmp_path / "cc"
    broken.write_text(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 1; else echo 'no such target' >&2; exit 1; fi\n"
    )
    broken.chmod(0o755)
    reason = descent_cpu.load_library(lambda name: str(broken), tmp_path)
    assert isinstance(reason, str)
    assert "could not compile descent.c: no such target" in reason


def test_two_processes_may_compile_at_once(tmp_path):
    script = (
        "import pathlib, shutil, sys; from kernels.lasso.descent_cpu import load_library\n"
        "assert not isinstance(load_library(shutil.which, pathlib.Path(sys.argv[1])), str)"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


def test_importing_the_door_imports_no_triton_and_compiles_nothing(tmp_path):
    script = "import sys, kernels.lasso; assert not {'triton', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_is_at_most_three_times_the_codes(solver):
    """A million signals a slice at a time fit 8 GiB only if a slice costs no more than it returns, a few
    times over."""
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
def test_the_coder_survives_torch_compile(solver):
    signals_ND, dictionary_DK = gaussian(6, 8, 20)

    def targets(signals_ND):
        codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver=solver).codes_NK
        return codes_NK / codes_NK.sum(1, keepdim=True).clamp_min(1e-12)

    compiled = torch.compile(targets, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(signals_ND), targets(signals_ND))


def test_the_operator_keeps_its_promises():
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
