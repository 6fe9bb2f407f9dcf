"""The fused cross-entropy against float64: each row's loss and agreement, each entry of the gradient.

Where there is no GPU, Triton interprets the kernel. Its interpreter computes bf16 wrongly, so bf16 is tested
on GPUs and, as compiled code, in the emulator.
"""

import pytest
import torch
from cross_entropy_problems import GRADIENT_TOLERANCE, exact_rows, problem
from launches import record_devices
from torch import Tensor

pytest.importorskip("triton")

from kernels.cross_entropy import cross_entropy_, loss_triton
from kernels.cross_entropy.loss_triton import launch_options, row_losses_

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton interprets no bf16"),
    ),
]


def check(logits_NV: Tensor, targets: Tensor) -> None:
    want_N, want_agrees_N, want_NV = exact_rows(logits_NV, targets)
    loss_N, agrees_N = row_losses_(logits_NV, targets, True)
    torch.testing.assert_close(loss_N.double(), want_N, rtol=2e-6, atol=4e-6)
    assert torch.equal(agrees_N.bool(), want_agrees_N)
    torch.testing.assert_close(logits_NV.double(), want_NV, **GRADIENT_TOLERANCE[logits_NV.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_classes", [True, False])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(1, 1), (9, 131), (3, 1500), (2, 4097), (2, 25_000)])
def test_equals_float64(
    num_rows: int, num_classes: int, has_classes: bool, dtype: torch.dtype, device: str
) -> None:
    check(*problem(num_rows, num_classes, has_classes, dtype, device))


@pytest.mark.parametrize("has_classes", [True, False])
def test_many_blocks_equal_float64(has_classes: bool, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(loss_triton, "LARGEST_BLOCK", 32)
    for num_classes in (32, 33, 64, 127):
        check(*problem(5, num_classes, has_classes, torch.float32, device))


@pytest.mark.parametrize("has_classes", [True, False])
def test_infinite_and_huge_logits(has_classes: bool, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """A logit of -inf has no probability. Differences of 1e30 are no NaN."""
    monkeypatch.setattr(loss_triton, "LARGEST_BLOCK", 32)
    logits_NV, targets = problem(4, 70, has_classes, torch.float32, device)
    logits_NV[2] = -1e30
    logits_NV[2, 69] = 0.0
    logits_NV[3, 1:40] = -torch.inf
    logits_NV[3, 0] = 1e30
    want_NV = exact_rows(logits_NV, targets)[2]
    row_losses_(logits_NV, targets, True)
    torch.testing.assert_close(logits_NV.double(), want_NV, **GRADIENT_TOLERANCE[torch.float32])


@pytest.mark.parametrize("block", [32, 2048])
@pytest.mark.parametrize("has_classes", [True, False])
def test_the_first_of_equal_classes_counts(
    block: int, has_classes: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(loss_triton, "LARGEST_BLOCK", block)
    logits_NV = torch.zeros(4, 100, device=device)
    logits_NV[:, [7, 39, 71]] = 1.0  # with blocks of 32 the same element of three blocks
    classes_N = torch.tensor([7, 39, 71, 0], device=device)
    targets = classes_N
    if not has_classes:
        targets = torch.nn.functional.one_hot(classes_N, 100).float() / 2
        targets[0, 71], targets[1, 3] = 0.5, 0.5
    assert row_losses_(logits_NV, targets, False)[1].tolist() == [1, 0, 0, 0]


def test_a_class_that_does_not_exist_makes_the_loss_nan(device: str) -> None:
    logits_NV, targets = problem(3, 20, True, torch.float32, device)
    targets[:2] = torch.tensor([-1, 20])
    assert row_losses_(logits_NV, targets, True)[0].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("has_classes", [True, False])
def test_sums_are_added_and_logits_stay_without_gradients(has_classes: bool, device: str) -> None:
    logits_NV, targets = problem(9, 50, has_classes, torch.float32, device)
    given_NV, want_N = logits_NV.clone(), exact_rows(logits_NV, targets)[0]
    total, num_agreeing = torch.tensor(3.0, device=device), torch.tensor(2, device=device)
    for _ in range(2):
        cross_entropy_(logits_NV, targets, total, num_agreeing, False, implementation="triton")
    assert torch.equal(logits_NV, given_NV)
    torch.testing.assert_close(total.double(), 2 * want_N.sum() + 3, rtol=1e-6, atol=0)
    assert num_agreeing == 2 * exact_rows(logits_NV, targets)[1].sum() + 2
    cross_entropy_(logits_NV[:0], targets[:0], total, num_agreeing, True, implementation="triton")
    assert torch.equal(logits_NV, given_NV)


def test_no_row_depends_on_the_others(device: str) -> None:
    logits_NV, targets = problem(5, 300, False, torch.float32, device)
    alone_1V = logits_NV[3:4].clone()
    loss_N, _ = row_losses_(logits_NV, targets, True)
    assert torch.equal(row_losses_(alone_1V, targets[3:4], True)[0], loss_N[3:4])
    assert torch.equal(alone_1V, logits_NV[3:4])


@pytest.mark.parametrize(
    ("num_classes", "block", "num_warps"), [(1, 32, 1), (131, 256, 1), (1500, 2048, 4), (25_000, 2048, 8)]
)
def test_blocks_and_warps(num_classes: int, block: int, num_warps: int) -> None:
    assert launch_options(num_classes) == {"BLOCK": block, "num_warps": num_warps, "num_stages": 1}


def test_the_operator_passes_opcheck(device: str) -> None:
    for has_classes in (True, False):
        torch.library.opcheck(row_losses_, (*problem(4, 20, has_classes, torch.float32, device), True))


def test_compiled_it_gives_the_same_bits(device: str) -> None:
    def double_loss(logits_NV: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = 2 * logits_NV
        loss_N, _ = row_losses_(logits_NV, targets, True)
        return loss_N, logits_NV

    arguments = problem(4, 20, False, torch.float32, device)
    compiled = torch.compile(double_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(*arguments), double_loss(*arguments)))


def test_the_kernel_runs_on_the_card_of_its_tensors(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    launched_on = record_devices(monkeypatch, loss_triton, "loss_kernel")
    logits_NV, targets = problem(2, 8, True, torch.float32, device)
    row_losses_(logits_NV, targets, True)
    assert launched_on == [logits_NV.device]
