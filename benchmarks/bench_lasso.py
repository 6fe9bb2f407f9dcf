"""The sparse coder against its peers on real signals: tokens per second, and beside each the duality gap it
bought.

    pytest benchmarks/bench_lasso.py --benchmark-enable        writes results/lasso.md

Every solver of a setting is timed in the same run with the same threads: ours, SPAMS (LARS in C++, what a
user of a CPU would pick), scikit-learn, and the original recipe (dense FISTA, 100 steps from zero, no
stopping rule, 1 / L computed at each call). Dictionaries are learnt by SPAMS on other rows of the same
signals, so they favour no solver. What a dictionary stores (Gram matrix, 1 / L) is given to ours, as in
training. SPAMS computes what it needs of the Gram matrix in each call; with a few signals a call it is timed
with a given Gram matrix as well.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import result_page
import torch
from paper_recipe import original_fista
from signals import NUM_MOST, coding_problem
from step_model import GPUS
from torch import Tensor

from kernels.lasso import duality_gap, nonneg_lasso

ROUNDS = 5


class Setting(NamedTuple):
    width: int
    num_atoms: int
    lam: float = 0.05


class Row(NamedTuple):
    setting: Setting
    solver: str
    num_signals: int
    seconds: float
    gap_N: Tensor
    """The duality gap of each signal over 1/2 |x|^2, computed in float64 from the codes alone."""
    num_nonzero: float
    at_once: int | None = None
    """The number of signals in each call; None if one call takes all of them."""
    bound_seconds: float | None = None
    """A lower bound of the time on this GPU (`gpu_bound`)."""


SETTINGS = [
    *(Setting(width, 1500) for width in (384, 768, 128)),
    *(Setting(384, num_atoms) for num_atoms in (256, 4096)),
    *(Setting(384, 1500, lam) for lam in (0.02, 0.1, 0.2)),
]
BASE = SETTINGS[0]


def ours(solver: str) -> Callable[..., Tensor]:
    def solve(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
        result = nonneg_lasso(signals_ND, dictionary_DK, lam, solver=solver, gram_KK=gram_KK, step=step)
        return result.codes_NK

    return solve


@functools.cache
def column_major(matrix: Tensor) -> np.ndarray:
    """What SPAMS takes. It is converted once and not in each call, as a user would do it."""
    return np.asfortranarray(matrix.numpy())


def spams_lars(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
    import spams

    codes_KN = spams.lasso(
        np.asfortranarray(signals_ND.mT.numpy()),
        column_major(dictionary_DK),
        lambda1=lam,
        pos=True,
        numThreads=torch.get_num_threads(),
    )
    return torch.from_numpy(codes_KN.toarray().T)


def spams_lars_with_gram(
    signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float
) -> Tensor:
    import spams

    codes_KN = spams.lasso(
        np.asfortranarray(signals_ND.mT.numpy()),
        Q=column_major(gram_KK),
        q=(signals_ND @ dictionary_DK).numpy().T,
        lambda1=lam,
        pos=True,
        numThreads=torch.get_num_threads(),
    )
    return torch.from_numpy(codes_KN.toarray().T)


def scikit_learn(algorithm: str) -> Callable[..., Tensor]:
    def solve(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
        from sklearn.decomposition import sparse_encode

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a few signals that did not converge; the gap column tells
            codes_NK = sparse_encode(
                signals_ND.numpy(),
                dictionary_DK.mT.contiguous().numpy(),
                algorithm=algorithm,
                alpha=lam,
                positive=True,
                n_jobs=torch.get_num_threads(),
            )
        return torch.from_numpy(np.ascontiguousarray(codes_NK)).clamp_min(0)

    return solve


def recipe(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
    return original_fista(signals_ND, dictionary_DK, lam)


SOLVERS: dict[str, tuple[Callable[..., Tensor], int]] = {  # and how many signals they get
    "ours (descent)": (ours("descent"), 4096),
    "ours (fista, no compiler)": (ours("fista"), 64),
    "SPAMS lasso": (spams_lars, 1024),
    "scikit-learn lasso_lars": (scikit_learn("lasso_lars"), 32),
    "scikit-learn lasso_cd": (scikit_learn("lasso_cd"), 32),
    "original recipe, 100 steps": (recipe, 128),
}
rows: list[Row] = []


def measure(
    benchmark,
    setting: Setting,
    name: str,
    solve: Callable[..., Tensor],
    num_signals: int,
    device: str = "cpu",
    at_once: int | None = None,
) -> Row:
    def calls(signals_ND: Tensor, *arguments: object) -> Tensor:
        return torch.cat([solve(part_ND, *arguments) for part_ND in signals_ND.split(at_once or num_signals)])

    signals_ND, dictionary_DK, gram_KK, step = coding_problem(setting.width, setting.num_atoms, num_signals)
    tensors = (signals_ND.to(device), dictionary_DK.to(device), gram_KK.to(device))
    codes_NK = benchmark.pedantic(
        calls if at_once else solve, args=(*tensors, step, setting.lam), rounds=ROUNDS, warmup_rounds=1
    ).cpu()
    wide_ND, wide_DK, wide_NK = signals_ND.double(), dictionary_DK.double(), codes_NK.double()
    lam_N = torch.full((num_signals,), setting.lam, dtype=torch.float64)
    gap_N = duality_gap(wide_ND, wide_DK, lam_N, wide_NK) / (0.5 * wide_ND.square().sum(1))
    seconds = benchmark.stats.stats.min if benchmark.stats else float("nan")
    num_nonzero = float((codes_NK > 0).sum(1).double().mean())
    row = Row(setting, name, num_signals, seconds, gap_N, num_nonzero, at_once)
    rows.append(row)
    benchmark.extra_info |= {"tokens_per_s": num_signals / seconds, "worst_gap": float(gap_N.max())}
    return row


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"d{s.width}-k{s.num_atoms}-lam{s.lam}")
def test_solvers(benchmark, setting, name):
    row = measure(benchmark, setting, name, *SOLVERS[name])
    if name.startswith("ours"):
        assert row.gap_N.max() <= 1e-3


FEW = {
    "ours (descent)": ours("descent"),
    "SPAMS lasso": spams_lars,
    "SPAMS lasso, Gram given": spams_lars_with_gram,
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_few_signals_a_call(benchmark, at_once, name):
    """128 signals are coded in calls of `at_once` signals each, one call after another."""
    measure(benchmark, BASE, name, FEW[name], 128, at_once=at_once)


@pytest.mark.parametrize("num_signals", [128, 1024, NUM_MOST])
def test_batch_sizes(benchmark, num_signals):
    measure(benchmark, BASE, "ours (descent)", ours("descent"), num_signals)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-5])
def test_tolerances(benchmark, tol):
    def solve(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
        result = nonneg_lasso(signals_ND, dictionary_DK, lam, tol=tol, solver="descent", gram_KK=gram_KK)
        return result.codes_NK

    row = measure(benchmark, BASE, f"ours (descent), tol {tol:g}", solve, 2048)
    assert row.gap_N.max() <= tol


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("setting", SETTINGS[:5], ids=lambda s: f"d{s.width}-k{s.num_atoms}-lam{s.lam}")
@pytest.mark.parametrize("solver", ["triton", "fista"])
def test_gpu(benchmark, setting, solver):
    """A call codes NUM_MOST signals. They and the codes lie on the GPU, and the time includes all of
    the GPU's work."""
    steps = []

    def solve(signals_ND: Tensor, dictionary_DK: Tensor, gram_KK: Tensor, step: float, lam: float) -> Tensor:
        result = nonneg_lasso(signals_ND, dictionary_DK, lam, solver=solver, gram_KK=gram_KK, step=step)
        torch.cuda.synchronize()
        steps.append(result.steps_N)
        return result.codes_NK

    measure(benchmark, setting, f"GPU, {solver}", solve, NUM_MOST, "cuda")
    if solver == "triton":
        bound_seconds = gpu_bound(setting, NUM_MOST, float(steps[-1].double().mean()))
        rows[-1] = rows[-1]._replace(bound_seconds=bound_seconds)


def gpu_bound(setting: Setting, num_signals: int, num_updates: float) -> float | None:
    """A lower bound of the seconds for `num_updates` a signal, at peak rates: a signal is read, its code is
    written, c is computed twice and the residual once in three tf32 products, and each update reads a row of
    the Gram matrix from the L2. `step_model.py` models the same with assumptions that are less optimistic.

    It is None for an unknown GPU.
    """
    name = torch.cuda.get_device_name()
    gpu = next((gpu for model, gpu in GPUS.items() if model in name), None)
    if gpu is None:
        return None
    width, num_atoms = setting.width, setting.num_atoms
    per_signal = (
        4 * (width + num_atoms) / gpu.memory_bytes
        + 3 * 3 * 2 * width * num_atoms / gpu.tf32_flop
        + num_updates * 4 * num_atoms / gpu.cache_bytes
    )
    return num_signals * per_signal


@pytest.fixture(scope="module", autouse=True)
def write_results(request) -> Iterator[None]:
    yield
    if request.config.getoption("benchmark_enable") and len(rows) > 1:
        result_page.write("lasso.md", _text())


def _text() -> str:
    peers: dict[tuple[Setting, int | None], Row] = {}
    for row in rows:
        if row.solver == "SPAMS lasso":
            peers.setdefault((row.setting, row.at_once), row)
    header = ["D", "K", "lambda", "non-zeros", "solver", "signals", "a call", "tokens/s", "x SPAMS"]
    header += ["worst gap", "mean gap"]
    lines = []
    for row in rows:
        peer = peers.get((row.setting, row.at_once))
        ratio = f"{row.num_signals / row.seconds * peer.seconds / peer.num_signals:.2f}" if peer else ""
        lines.append(
            (
                *row.setting,
                f"{row.num_nonzero:.0f}",
                row.solver,
                row.num_signals,
                row.at_once or row.num_signals,
                f"{row.num_signals / row.seconds:,.0f}",
                ratio,
                f"{float(row.gap_N.max()):.1e}",
                f"{float(row.gap_N.mean()):.1e}",
            )
        )
    gpu = _gpu_text()
    return f"""# The sparse coder against its peers

Written by the command below. Real signals (states of a small public encoder) of unit norm. Gaps are relative
to 1/2 |x|^2 and computed in float64 from the codes; ours stops each signal at 1e-3. Best of {ROUNDS} runs
after a warm-up.
{gpu}
{result_page.circumstances("pytest benchmarks/bench_lasso.py --benchmark-enable")}

{result_page.table(header, lines)}
"""


def _gpu_text() -> str:
    """A table of the achieved speeds beside their upper bounds, or a line that says that none was timed."""
    if not torch.cuda.is_available():
        return "\nNo GPU took part: Triton is not timed yet.\n"
    lines = [
        (
            *row.setting,
            f"{row.num_signals / row.seconds:,.0f}",
            f"{row.num_signals / row.bound_seconds:,.0f}",
            f"{row.bound_seconds / row.seconds:.0%}",
        )
        for row in rows
        if row.bound_seconds is not None
    ]
    header = ["D", "K", "lambda", "achieved, tokens/s", "bound, tokens/s", "share"]
    return "\n" + result_page.table(header, lines) + "\n"
