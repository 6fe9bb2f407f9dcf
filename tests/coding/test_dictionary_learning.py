"""Learning the dictionary: what its result must satisfy, and the atom update against a textbook version.

Shape suffixes as in mlsm/coding/dictionary_learning.py.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import LAM, NUM_ATOMS, WIDTH, Planted, learn, learnt_dictionary, planted_problem, seeded
from torch import Tensor
from torch.nn.functional import normalize

import mlsm.coding.dictionary_learning
from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.dictionary_learning import replace_atoms_, row_batches, update_atoms_


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem()


@pytest.fixture(scope="module")
def learnt() -> Dictionary:
    return learnt_dictionary()


def test_planted_atoms_are_found(planted: Planted, learnt: Dictionary) -> None:
    true_DK, _, _ = planted
    cosine_KK = true_DK.mT @ normalize(learnt.atoms_DK, dim=0)
    assert (cosine_KK.amax(dim=1) > 0.98).float().mean() >= 0.9


def test_learning_lowers_the_objective_on_signals_left_out(planted, learnt: Dictionary) -> None:
    true_DK, sample_ND, heldout_ND = planted
    signals_as_atoms = Dictionary(sample_ND[:NUM_ATOMS].mT, LAM, layer=6, teacher="cafe")
    best = measure(Dictionary(true_DK, LAM, layer=6, teacher="cafe"), heldout_ND).objective
    assert learnt.statistics is not None
    assert learnt.statistics.objective < 0.6 * measure(signals_as_atoms, heldout_ND).objective
    assert learnt.statistics.objective < 1.1 * best


def test_atoms_lie_in_the_unit_ball(learnt: Dictionary) -> None:
    assert float(learnt.atoms_DK.norm(dim=0).max()) <= 1 + 1e-6


def test_atoms_of_long_signals_lie_in_the_unit_ball_though_no_code_used_them(planted) -> None:
    atoms_DK = learn(5 * planted[1], num_atoms=300, num_updates=1, batch_size=1)
    assert float(atoms_DK.norm(dim=0).max()) <= 1 + 1e-6


def test_same_seed_same_atoms_to_the_bit_for_any_number_of_threads(planted) -> None:
    _, sample_ND, _ = planted
    once = learn(sample_ND)
    try:
        torch.set_num_threads(2)
        again = learn(sample_ND)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(once, again)
    assert not torch.equal(once, learn(sample_ND, generator=seeded(2)))


def test_learning_leaves_its_sample_and_the_global_seed_alone(planted) -> None:
    sample_ND = planted[1].clone()
    state = torch.get_rng_state()
    learn(sample_ND, num_updates=3)
    assert torch.equal(sample_ND, planted[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_may_be_memory_mapped(planted, tmp_path: Path) -> None:
    _, sample_ND, _ = planted
    np.save(tmp_path / "sample.npy", sample_ND.numpy())
    mapped_ND = torch.from_numpy(np.load(tmp_path / "sample.npy", mmap_mode="c"))
    assert torch.equal(learn(mapped_ND, num_updates=5), learn(sample_ND, num_updates=5))


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of atoms that are replaced, filled as they are."""
    counts: list[int] = []

    def counted(*arguments: Tensor) -> None:
        counts.append(len(arguments[3]))
        replace_atoms_(*arguments)

    monkeypatch.setattr(mlsm.coding.dictionary_learning, "replace_atoms_", counted)
    return counts


def test_atoms_that_serve_too_few_draws_are_replaced(
    planted, replaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(planted[1])
    assert not replaced
    monkeypatch.setattr(mlsm.coding.dictionary_learning, "IDLE_DRAWS", 2)
    atoms_DK = learn(planted[1], batch_size=3)
    assert replaced
    assert float(atoms_DK.norm(dim=0).max()) <= 1 + 1e-6


def test_a_replaced_atom_has_its_time_before_it_is_replaced_again(
    replaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All signals are one: a few copies of it serve every draw, the other atoms none."""
    monkeypatch.setattr(mlsm.coding.dictionary_learning, "IDLE_DRAWS", 120)
    sample_ND = normalize(torch.ones(100, WIDTH))
    learn(sample_ND, batch_size=50, num_updates=9)  # 150 idle draws after each third update
    assert 0 < sum(replaced) <= 3 * (NUM_ATOMS - 1)


def test_a_dead_atom_becomes_the_worst_coded_signal_and_leaves_the_sums() -> None:
    atoms_KD, code_gram_KK, code_signal_KD = sums_of_codes(6, 100, 0.5)
    before_KD, signals_ND = atoms_KD.clone(), torch.randn(5, WIDTH, generator=seeded(), dtype=torch.float64)
    error_N = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3])
    dead_J = torch.tensor([7, 30])
    replace_atoms_(atoms_KD, code_gram_KK, code_signal_KD, dead_J, signals_ND, error_N)
    assert torch.allclose(atoms_KD[dead_J], normalize(signals_ND[[1, 3]]))
    is_alive_K = torch.ones(NUM_ATOMS, dtype=torch.bool).index_fill(0, dead_J, False)
    assert torch.equal(atoms_KD[is_alive_K], before_KD[is_alive_K])
    for sums in (code_gram_KK, code_gram_KK.mT, code_signal_KD):
        assert not sums[dead_J].any()
        assert sums[is_alive_K].any()


def test_the_progress_bar_counts_every_update(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = mock.MagicMock()
    monkeypatch.setattr(mlsm.coding.dictionary_learning, "progress", bar)
    learn(planted[1], num_updates=7, batch_size=30)
    assert bar.call_args.args[0] == bar().__enter__().update.call_count == 7


def test_batches_hold_each_row_once_a_pass() -> None:
    batches = row_batches(10, 3, seeded())
    one_pass = torch.cat([next(batches) for _ in range(3)])
    assert len(set(one_pass.tolist())) == 9
    assert len(next(batches)) == 3


def test_batch_larger_than_the_sample_is_the_whole_sample(planted) -> None:
    whole, larger = (learn(planted[1][:100], batch_size=size, num_updates=2) for size in (100, 1000))
    assert torch.equal(whole, larger)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_atoms": 4501}, "4501 atoms need at least as many signals, the sample has 4500"),
        ({"num_atoms": 0}, "at least 1, got 0"),
        ({"num_updates": 0}, "at least 1, got 40, 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"solver": "magic"}, "magic"),
    ],
)
def test_impossible_requests_are_refused(planted, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn(planted[1], **changes)


def test_nan_in_the_sample_is_refused(planted) -> None:
    sample_ND = planted[1].clone()
    sample_ND[:, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        learn(sample_ND)


def test_objective_is_no_worse_than_spams(planted) -> None:
    """The bar of benchmarks/bench_dictionary.py (SPAMS + 0.5 %) at a size for tests."""
    spams = pytest.importorskip("spams")
    _, sample_ND, heldout_ND = planted
    theirs_DK = spams.trainDL(
        np.asfortranarray(sample_ND.numpy().T),
        K=NUM_ATOMS,
        lambda1=LAM,
        iter=60,
        batchsize=200,
        posAlpha=True,
        mode=spams.PENALTY,
        numThreads=1,
        verbose=False,
    )
    theirs = Dictionary(torch.from_numpy(np.ascontiguousarray(theirs_DK)), LAM, layer=1, teacher="")
    ours = Dictionary(learn(sample_ND, num_updates=60), LAM, layer=1, teacher="")
    bar = 1.005 * measure(theirs, heldout_ND, tol=1e-4).objective
    assert measure(ours, heldout_ND, tol=1e-4).objective <= bar


# The atom update


def sums_of_codes(seed: int, num: int, density: float) -> tuple[Tensor, Tensor, Tensor]:
    """(atoms, sum a a^T, sum a x^T) in float64, of random codes; at a low density some atoms have none."""
    generator = seeded(seed)
    codes_NK = torch.rand(num, NUM_ATOMS, generator=generator, dtype=torch.float64)
    codes_NK *= torch.rand(num, NUM_ATOMS, generator=generator) < density
    signals_ND = torch.randn(num, WIDTH, generator=generator, dtype=torch.float64)
    atoms_KD = normalize(torch.randn(NUM_ATOMS, WIDTH, generator=generator, dtype=torch.float64))
    return atoms_KD, codes_NK.mT @ codes_NK, codes_NK.mT @ signals_ND


def quadratic(atoms_KD: Tensor, code_gram_KK: Tensor, code_signal_KD: Tensor) -> float:
    return float(0.5 * ((code_gram_KK @ atoms_KD) * atoms_KD).sum() - (atoms_KD * code_signal_KD).sum())


def atoms_one_by_one(atoms_KD: Tensor, code_gram_KK: Tensor, code_signal_KD: Tensor) -> Tensor:
    """Mairal et al. (2009), algorithm 2, as it is printed."""
    atoms_DK = atoms_KD.mT.clone()
    for j in range(len(atoms_KD)):
        if code_gram_KK[j, j] > 0:
            u = atoms_DK[:, j] + (code_signal_KD[j] - atoms_DK @ code_gram_KK[:, j]) / code_gram_KK[j, j]
            atoms_DK[:, j] = u / max(float(u.norm()), 1)
    return atoms_DK.mT


@pytest.mark.parametrize("density", [0.03, 0.3, 1.0])
def test_update_by_single_atoms_is_the_textbook_sweep(density: float) -> None:
    atoms_KD, *sums = sums_of_codes(3, 50, density)
    expected_KD = atoms_one_by_one(atoms_KD, *sums)
    update_atoms_(atoms_KD, *sums, block_size=1)
    assert torch.allclose(atoms_KD, expected_KD, rtol=0, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 200), st.floats(0.01, 1), st.integers(1, 64))
@settings(deadline=None, max_examples=60)
def test_no_update_raises_the_objective(seed: int, num: int, density: float, block_size: int) -> None:
    atoms_KD, *sums = sums_of_codes(seed, num, density)
    before = quadratic(atoms_KD, *sums)
    update_atoms_(atoms_KD, *sums, block_size=block_size)
    assert quadratic(atoms_KD, *sums) <= before + 1e-9 * abs(before)
    assert float(atoms_KD.norm(dim=1).max()) <= 1 + 1e-12


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_all_block_sizes_end_at_the_one_minimum(block_size: int) -> None:
    atoms_KD, *sums = sums_of_codes(4, 500, 0.1)
    for _ in range(300):
        update_atoms_(atoms_KD, *sums, block_size=block_size)
    # Optimality on the ball: a step along the negative gradient, projected, goes nowhere.
    code_gram_KK, code_signal_KD = sums
    stepped_KD = atoms_KD - 1e-2 * (code_gram_KK @ atoms_KD - code_signal_KD)
    projected_KD = stepped_KD / stepped_KD.norm(dim=1, keepdim=True).clamp_min(1)
    assert float((projected_KD - atoms_KD).abs().max()) < 1e-8


def test_atoms_without_codes_stay_where_they_are() -> None:
    atoms_KD, *sums = sums_of_codes(5, 4, 0.1)
    before_KD = atoms_KD.clone()
    update_atoms_(atoms_KD, *sums)
    is_idle_K = sums[0].diagonal() == 0
    assert is_idle_K.any()
    assert torch.allclose(atoms_KD[is_idle_K], before_KD[is_idle_K], rtol=0, atol=1e-15)
