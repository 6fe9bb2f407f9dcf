"""The solver in C: hard problems, and independence of the batch."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from lasso_problems import check_contract, common_direction, gaussian, relative_gap, uneven_atoms

from kernels.lasso import descent_cpu, nonneg_lasso

quick = hypothesis.settings(derandomize=True, max_examples=30, deadline=None, database=None)


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
    """Without Newton steps this takes four times the updates."""
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
def test_no_code_depends_on_the_rest_of_the_batch_or_on_threads(num_signals, width, num_atoms, data):
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


def test_a_gram_matrix_that_is_no_number_is_refused():
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    gram_KK = torch.full((20, 20), float("nan"))
    with pytest.raises(ValueError, match="the Gram matrix holds NaN or infinity"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", gram_KK=gram_KK)


def test_one_update_moves_one_atom():
    signals_ND, dictionary_DK = gaussian(3, 16, 50)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", max_steps=1)
    assert ((result.codes_NK > 0).sum(1) == 1).all()
    assert (result.steps_N == 1).all()
