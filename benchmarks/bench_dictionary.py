"""Dictionary learning against SPAMS trainDL and against other designs: seconds, and Eq. 1 on held-out
signals.

    pytest benchmarks/bench_dictionary.py --benchmark-enable        writes results/dictionary.md

The paper used SPAMS. Both learners get the same signals, draw the same number of them and use the same
threads; SPAMS gets float32, in which it is faster. The objective is that of converged codes (tol 1e-5) of
6,000 held-out signals. Each learner runs once, because a run is long; other seeds change the objective by
about 0.1 % (see the rows with other seeds).
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import result_page
import torch
from signals import real_signals
from torch import Tensor
from torch.nn.functional import normalize

import mlsm.coding.dictionary
import mlsm.coding.dictionary_learning
from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.dictionary_learning import learn_dictionary
from mlsm.coding.statistics import Statistics

LAM = 0.05
NUM_SAMPLE, NUM_HELDOUT = 100_000, 6_000


class Setting(NamedTuple):
    width: int
    num_atoms: int
    num_draws: int = 60_000


class Row(NamedTuple):
    setting: Setting
    name: str
    seconds: float
    cpu_seconds: float
    """Processor time of all threads, which other work on the machine disturbs less."""
    statistics: Statistics


BASE = Setting(384, 1500)
LONG = BASE._replace(num_draws=150_000)
SETTINGS = [BASE, LONG, Setting(768, 1500), Setting(128, 1500), Setting(384, 500)]
rows: list[Row] = []


def sample_and_heldout(width: int) -> tuple[Tensor, Tensor]:
    """Widths that the encoder has, and 128: the first coordinates of 384."""
    signals_ND = real_signals(NUM_SAMPLE + NUM_HELDOUT, 384 if width == 128 else width)
    signals_ND = normalize(signals_ND[:, :width])
    return signals_ND[:NUM_SAMPLE], signals_ND[NUM_SAMPLE:]


def spams_train(sample_ND: Tensor, setting: Setting) -> Tensor:
    import spams

    atoms_DK = spams.trainDL(
        np.asfortranarray(sample_ND.mT.numpy()),
        K=setting.num_atoms,
        lambda1=LAM,
        iter=setting.num_draws // 400,
        batchsize=400,
        posAlpha=True,
        mode=spams.PENALTY,
        numThreads=torch.get_num_threads(),
        verbose=False,
    )
    return torch.from_numpy(np.ascontiguousarray(atoms_DK))


def ours(batch_size: int = 1000, seed: int = 0, **changes: Any) -> Callable[[Tensor, Setting], Tensor]:
    def train(sample_ND: Tensor, setting: Setting) -> Tensor:
        return learn_dictionary(
            sample_ND,
            setting.num_atoms,
            LAM,
            num_updates=setting.num_draws // batch_size,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(seed),
            **changes,
        )

    return train


def forgetting(power: float) -> Callable[[int], float]:
    return lambda update: (1 - 1 / (update + 1)) ** power


def blocks(**arguments: Any) -> Callable[..., None]:
    return functools.partial(mlsm.coding.dictionary_learning.update_atoms_, **arguments)


TRAINERS = {"SPAMS trainDL, batches of 400": spams_train, "ours": ours()}
VARIANTS: dict[str, tuple[Callable[[Tensor, Setting], Tensor], dict[str, Any]]] = {
    "ours, seed 1": (ours(seed=1), {}),
    "ours, seed 2": (ours(seed=2), {}),
    "ours, batches of 400": (ours(batch_size=400), {}),
    "ours, batches of 3,000": (ours(batch_size=3000), {}),
    "ours, codes to tol 1e-1": (ours(tol=1e-1), {}),
    "ours, codes to tol 1e-3": (ours(tol=1e-3), {}),
    "atoms one by one (Mairal's algorithm 2)": (ours(), {"update_atoms_": blocks(block_size=1, num_steps=1)}),
    "one step a block": (ours(), {"update_atoms_": blocks(num_steps=1)}),
    "one block of all atoms, one step": (ours(), {"update_atoms_": blocks(block_size=1500, num_steps=1)}),
    "one block of all atoms, ten steps": (ours(), {"update_atoms_": blocks(block_size=1500)}),
    "nothing forgotten": (ours(), {"forgetting_factor": forgetting(0)}),
    "forgetting with power 3": (ours(), {"forgetting_factor": forgetting(3)}),
    "forgetting with power 8": (ours(), {"forgetting_factor": forgetting(8)}),
}


def run(benchmark: Any, setting: Setting, name: str, train: Callable[[Tensor, Setting], Tensor]) -> Row:
    sample_ND, heldout_ND = sample_and_heldout(setting.width)
    before, cpu_before = time.perf_counter(), time.process_time()
    atoms_DK = benchmark.pedantic(train, args=(sample_ND, setting), rounds=1)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    dictionary = Dictionary(atoms_DK, LAM, layer=6, teacher="")
    rows.append(Row(setting, name, seconds, cpu_seconds, measure(dictionary, heldout_ND, tol=1e-5)))
    benchmark.extra_info["objective"] = rows[-1].statistics.objective
    return rows[-1]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"d{s.width}-k{s.num_atoms}-{s.num_draws}")
@pytest.mark.parametrize("name", TRAINERS)
def test_against_spams(benchmark, setting, name):
    run(benchmark, setting, name, TRAINERS[name])


@pytest.mark.parametrize(
    ("setting", "name"),
    [*((BASE, name) for name in VARIANTS), *((LONG, name) for name in VARIANTS if "forg" in name)],
)
def test_variants(benchmark, monkeypatch, setting, name):
    train, patches = VARIANTS[name]
    for function, replacement in patches.items():
        monkeypatch.setattr(mlsm.coding.dictionary_learning, function, replacement)
    run(benchmark, setting, name, train)


@pytest.fixture(scope="module", autouse=True)
def write_results(request) -> Iterator[None]:
    yield
    if request.config.getoption("benchmark_enable") and len(rows) > 1:
        result_page.write("dictionary.md", _text())


def _text() -> str:
    peers = {row.setting: row for row in rows if row.name.startswith("SPAMS")}
    header = ["D", "K", "draws", "learner", "objective", "against SPAMS", "CPU seconds"]
    header += ["of SPAMS'", "wall seconds", "non-zeros", "unused atoms"]
    lines = []
    for row in sorted(rows, key=lambda row: SETTINGS.index(row.setting)):
        peer = peers.get(row.setting)
        objective = row.statistics.objective
        lines.append(
            (
                row.setting.width,
                row.setting.num_atoms,
                f"{row.setting.num_draws:,}",
                row.name,
                f"{objective:.5f}",
                f"{objective / peer.statistics.objective - 1:+.2%}" if peer else "",
                f"{row.cpu_seconds:.1f}",
                f"{row.cpu_seconds / peer.cpu_seconds:.2f}" if peer else "",
                f"{row.seconds:.1f}",
                f"{row.statistics.mean_nonzeros:.1f}",
                row.statistics.unused_atoms,
            )
        )
    return f"""# Dictionary learning against SPAMS, and the designs that lost

Written by the command below. Real signals (states of a small public encoder) of unit norm, {NUM_SAMPLE:,} to
learn from; lambda {LAM}. The objective is Eq. 1 as a mean over {NUM_HELDOUT:,} other signals, with converged
codes. Each learner runs once. CPU seconds are those of all threads. Wall seconds can be compared only where
they are close to the CPU seconds divided by the number of threads, that is, on an idle machine.

{result_page.circumstances("pytest benchmarks/bench_dictionary.py --benchmark-enable")}

{result_page.table(header, lines)}
"""
