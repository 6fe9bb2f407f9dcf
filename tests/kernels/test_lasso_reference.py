"""The definition of the sparse coder: what belongs to a dictionary, the duality gap, and FISTA."""

import pytest
import torch
from lasso_problems import common_direction, gaussian, relative_gap, uneven_atoms

from kernels.lasso import duality_gap, gram, largest_step, nonneg_lasso
from kernels.lasso.reference import check_step

PROBLEMS = [gaussian, common_direction, uneven_atoms]


def largest_eigenvalue(dictionary_DK):
    return float(torch.linalg.svdvals(dictionary_DK.double())[0]) ** 2


def test_the_gram_matrix_does_not_follow_the_precision_of_products():
    _, dictionary_DK = gaussian(1, 33, 70)
    exact_KK = dictionary_DK.double().mT @ dictionary_DK.double()
    torch.set_float32_matmul_precision("medium")
    try:
        assert (gram(dictionary_DK) - exact_KK).abs().max() <= 1e-7
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("width", "num_atoms"), [(2, 1), (8, 30), (30, 8)])
def test_the_largest_step_is_one_over_the_largest_eigenvalue(problem, width, num_atoms):
    _, dictionary_DK = problem(1, width, num_atoms)
    product = largest_step(dictionary_DK) * largest_eigenvalue(dictionary_DK)
    assert 1 - 2e-6 < product < 1


def test_a_dictionary_that_is_not_finite_has_no_step():
    with pytest.raises(ValueError, match=r"1 atoms of the dictionary hold NaN or infinity: columns \[2\]"):
        largest_step(torch.tensor([[1.0, 0.5, float("nan")]]))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("width", "num_atoms"), [(2, 1), (8, 30), (30, 8)])
def test_a_step_that_cannot_be_right_is_refused(problem, width, num_atoms):
    signals_ND, dictionary_DK = problem(2, width, num_atoms)
    step = largest_step(dictionary_DK)
    check_step(dictionary_DK, step)
    energy = float(dictionary_DK.square().sum())
    for wrong in (1e300, 2 * step, 0.5 / energy, 1e-300):
        with pytest.raises(ValueError, match="is not 1 / L, which lies between"):
            nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="fista", step=wrong)


def test_atoms_of_zeros_have_a_step():
    check_step(torch.zeros(3, 5), largest_step(torch.zeros(3, 5)))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("lam", [1e-3, 0.1, 0.7])
def test_the_duality_gap_is_primal_minus_dual(problem, lam):
    signals_ND, dictionary_DK = (t.double() for t in problem(7, 12, 30))
    codes_NK = torch.rand(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes_NK[:3] = codes_NK[:3].where(codes_NK[:3] > 0.9, 0)
    codes_NK[0] = 0
    gap_N = duality_gap(signals_ND, dictionary_DK, torch.full((7,), lam, dtype=torch.float64), codes_NK)
    energy_N = 0.5 * signals_ND.square().sum(1)
    expected_N = relative_gap(signals_ND, dictionary_DK, lam, codes_NK) * energy_N
    torch.testing.assert_close(gap_N, expected_N, atol=1e-12, rtol=1e-12)


def test_float64_reaches_optimality_itself():
    signals_ND, dictionary_DK = (t.double() for t in gaussian(10, 24, 90))
    codes_NK = nonneg_lasso(signals_ND, dictionary_DK, 0.1, tol=1e-12, solver="fista").codes_NK
    correlation_NK = (signals_ND - codes_NK @ dictionary_DK.mT) @ dictionary_DK
    assert (correlation_NK <= 0.1 + 1e-6).all()
    assert ((correlation_NK - 0.1).abs()[codes_NK > 0] <= 1e-6).all()


def test_fista_depends_on_the_rest_of_a_batch_by_rounding_only():
    signals_ND, dictionary_DK = gaussian(40, 24, 100)
    together = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="fista")
    for n in (0, 17, 39):
        alone = nonneg_lasso(signals_ND[n : n + 1], dictionary_DK, 0.1, solver="fista")
        assert (alone.codes_NK[0] - together.codes_NK[n]).abs().max() <= 1e-5
        assert alone.steps_N[0] == together.steps_N[n]
