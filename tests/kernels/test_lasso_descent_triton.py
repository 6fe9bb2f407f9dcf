"""The GPU solver: the codes by their duality gaps.

Where there is no GPU, Triton interprets the kernels.
"""

from unittest import mock

import pytest
import torch
from lasso_problems import common_direction, gaussian, relative_gap, uneven_atoms
from torch.overrides import TorchFunctionMode

pytest.importorskip("triton")

from kernels.lasso import descent_triton, nonneg_lasso, products_triton
from kernels.lasso.solve import MAX_STEPS

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def solve(problem, num_signals, width, num_atoms, lam, device, tol=1e-3, **options):
    signals_ND, dictionary_DK = (t.to(device) for t in problem(num_signals, width, num_atoms))
    result = nonneg_lasso(signals_ND, dictionary_DK, lam, tol=tol, solver="triton", **options)
    return signals_ND, dictionary_DK, result


@pytest.mark.parametrize("problem", [gaussian, common_direction, uneven_atoms])
@pytest.mark.parametrize(
    ("num_signals", "width", "num_atoms", "lam"),
    [(1, 1, 1, 0.1), (3, 5, 7, 0.05), (5, 33, 48, 0.2), (2, 40, 131, 0.2)],
)
def test_every_signal_is_certified(problem, num_signals, width, num_atoms, lam, device):
    signals_ND, dictionary_DK, result = solve(problem, num_signals, width, num_atoms, lam, device)
    gap_N = relative_gap(signals_ND, dictionary_DK, lam, result.codes_NK)
    assert gap_N.max() <= 1e-3
    torch.testing.assert_close(2 * result.gap_N.cpu().double(), gap_N, atol=2e-6, rtol=1e-5)


def test_a_tight_tolerance(device):
    signals_ND, dictionary_DK, result = solve(gaussian, 3, 24, 40, 0.2, device, tol=1e-5)
    assert relative_gap(signals_ND, dictionary_DK, 0.2, result.codes_NK).max() <= 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too large for the interpreter")
def test_a_tight_tolerance_at_the_size_of_the_paper(device):
    signals_ND, dictionary_DK, result = solve(gaussian, 600, 768, 1500, 0.05, device, tol=1e-5)
    assert relative_gap(signals_ND, dictionary_DK, 0.05, result.codes_NK).max() <= 1e-5


class HostWaits(TorchFunctionMode):
    """Notes each call with which the host waits for the values of a tensor."""

    READS = (
        "item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "bincount", "equal",
        *(f"__{name}__" for name in ("bool", "int", "float", "index", "array", "contains", "iter")),
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        is_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for x in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in self.READS or is_mask:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_once_in_each_pass(device, monkeypatch):
    """Kernels do not count: an interpreted one reads its tensors on the host."""
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(3, 16, 30))
    gram_KK, launches, waits = dictionary_DK.mT @ dictionary_DK, [], HostWaits()
    modules = {"_residual": products_triton, "_direction": products_triton, "_descend": descent_triton}
    for name, module in modules.items():
        kernel = f"{name}_kernel"
        original = getattr(module, kernel)

        def launch(grid, original=original, kernel=kernel):
            def run(**arguments):
                before = len(waits.names)
                original[grid](**arguments)
                del waits.names[before:]
                launches.append(kernel)

            return run

        subscripted = mock.MagicMock()
        subscripted.__getitem__.side_effect = launch
        monkeypatch.setattr(module, kernel, subscripted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with waits:
        result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="triton", gram_KK=gram_KK)
    assert relative_gap(signals_ND, dictionary_DK, 0.1, result.codes_NK).max() <= 1e-3
    assert waits.names == ["tolist"] * launches.count("_descend_kernel")
    assert len(waits.names) > 1


def test_it_runs_on_the_card_of_its_tensors(monkeypatch, device):
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(2, 8, 20))
    with mock.patch.object(torch.cuda, "device_of") as device_of:

        def launch(*_):
            device_of.return_value.__enter__.assert_called_once()
            return 0

        launch = mock.Mock(side_effect=launch)
        monkeypatch.setattr(descent_triton, "_solve_chunk_", launch)
        nonneg_lasso(signals_ND, dictionary_DK, 0.3, solver="triton")
    device_of.return_value.__exit__.assert_called_once()
    assert launch.call_count == 1


def test_a_zero_signal_and_a_signal_below_lambda(device):
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(3, 8, 20))
    signals_ND[1] = 0
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.2, solver="triton")
    assert not result.codes_NK[1].any()
    assert result.gap_N[1] == 0
    above = nonneg_lasso(signals_ND, dictionary_DK, 2.0, solver="triton")
    assert not above.codes_NK.any()
    assert not above.steps_N.any()


def test_no_signals(device):
    dictionary_DK = torch.ones(4, 6, device=device)
    assert nonneg_lasso(torch.zeros(0, 4, device=device), dictionary_DK, 0.1, solver="triton")[0].shape == (
        0,
        6,
    )


def test_duplicated_and_zero_atoms(device):
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(4, 16, 30))
    dictionary_DK[:, 10:20] = dictionary_DK[:, :10]
    dictionary_DK[:, [3, 25]] = 0
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.2, solver="triton")
    assert relative_gap(signals_ND, dictionary_DK, 0.2, result.codes_NK).max() <= 1e-3
    assert not result.codes_NK[:, [3, 25]].any()


def test_a_zero_atom_before_the_others_after_convergence(device):
    """After convergence in the middle of a block of updates, the largest violation is 0, at the first
    atom."""
    dictionary_DK = torch.tensor([[0.0, 1.0]], device=device)
    result = nonneg_lasso(torch.ones(1, 1, device=device), dictionary_DK, 0.25, solver="triton")
    assert torch.equal(result.codes_NK.cpu(), torch.tensor([[0.0, 0.75]]))


def test_one_update_moves_one_atom(device):
    _, _, result = solve(gaussian, 3, 16, 50, 0.05, device, max_steps=1)
    assert ((result.codes_NK > 0).sum(1) == 1).all()


def test_no_code_depends_on_the_rest_of_its_batch(device):
    signals_ND, dictionary_DK, together = solve(gaussian, 6, 16, 40, 0.2, device)
    for n in (0, 5):
        alone = nonneg_lasso(signals_ND[n : n + 1], dictionary_DK, 0.2, solver="triton")
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[n : n + 1], part)


def test_more_signals_than_a_chunk(monkeypatch, device):
    signals_ND, dictionary_DK, whole = solve(gaussian, 5, 8, 20, 0.3, device)
    monkeypatch.setattr(descent_triton, "CHUNK", 2)
    parts = nonneg_lasso(signals_ND, dictionary_DK, 0.3, solver="triton")
    for left, right in zip(whole, parts, strict=True):
        assert torch.equal(left, right)


def test_a_code_that_fails_the_verification_descends_again(device, monkeypatch):
    """With a wrong Gram matrix the descent's own gap is wrong. The verification does not read that matrix."""
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(2, 16, 30))
    gram_KK = dictionary_DK.mT @ dictionary_DK
    wrong_KK = gram_KK * 1.01
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.2, tol=1e-4, solver="triton", gram_KK=wrong_KK)
    assert relative_gap(signals_ND, dictionary_DK, 0.2, result.codes_NK).max() <= 1e-4


def test_a_signal_that_is_stopped_early_is_logged(device, caplog, monkeypatch):
    monkeypatch.setitem(MAX_STEPS, "triton", 3)
    signals_ND, dictionary_DK, result = solve(common_direction, 2, 16, 50, 0.05, device, tol=1e-5)
    assert "2 of 2 signals stopped at 3 steps" in caplog.text
    assert (result.steps_N == 3).all()
    gap_N = relative_gap(signals_ND, dictionary_DK, 0.05, result.codes_NK)
    torch.testing.assert_close(2 * result.gap_N.cpu().double(), gap_N, atol=2e-6, rtol=1e-5)


def test_a_signal_without_updates_left_is_verified_once(device, monkeypatch):
    grid, launches = products_triton._grid, []
    monkeypatch.setattr(products_triton, "_grid", lambda *shape: launches.append(shape) or grid(*shape))
    _, _, result = solve(common_direction, 2, 16, 50, 0.05, device, tol=1e-5, max_steps=3)
    assert (result.steps_N == 3).all()
    assert launches == [(2, 52), (2, 16), (2, 52)]  # a pass, the residual, the verification


def test_the_gap_after_the_last_pass_is_that_of_the_code(device, monkeypatch):
    """With a wrong Gram matrix no pass comes near the tolerance, so all passes are used."""
    monkeypatch.setattr(descent_triton, "MAX_PASSES", 2)
    wrong_KK = 1.01 * torch.eye(30, device=device)
    signals_ND, dictionary_DK, result = solve(gaussian, 3, 16, 30, 0.05, device, gram_KK=wrong_KK)
    gap_N = relative_gap(signals_ND, dictionary_DK, 0.05, result.codes_NK)
    assert gap_N.min() > 1e-2
    torch.testing.assert_close(2 * result.gap_N.cpu().double(), gap_N, atol=2e-6, rtol=1e-5)


def test_the_compiled_coder_gives_the_same_bits(device):
    signals_ND, dictionary_DK = (t.to(device) for t in gaussian(2, 8, 20))

    def codes(signals_ND):
        return 2 * nonneg_lasso(signals_ND, dictionary_DK, 0.3, solver="triton").codes_NK

    compiled = torch.compile(codes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(signals_ND), codes(signals_ND))
