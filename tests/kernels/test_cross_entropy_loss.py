"""`cross_entropy_`: which implementation runs, and what is refused."""

import importlib.util

import pytest
import torch
from cross_entropy_problems import problem

from kernels.cross_entropy import cross_entropy_, is_fused

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def compute(logits_NV: torch.Tensor, targets: torch.Tensor, implementation: str = "auto") -> None:
    sums = torch.zeros(()), torch.zeros((), dtype=torch.long)
    cross_entropy_(logits_NV, targets, *sums, True, implementation=implementation)


@needs_triton
@pytest.mark.parametrize(
    ("device", "capability", "dtype", "want"),
    [
        (CPU, (9, 0), torch.float32, False),
        (CUDA, (9, 0), torch.bfloat16, True),
        (CUDA, (8, 0), torch.float32, True),
        (CUDA, (7, 5), torch.float16, False),
        (CUDA, (9, 0), torch.float64, False),
    ],
)
def test_the_fused_kernel_runs_where_it_can(
    device: torch.device,
    capability: tuple[int, int],
    dtype: torch.dtype,
    want: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: {CUDA: capability}[asked])
    assert is_fused(device, dtype) == want


@needs_triton
def test_it_is_not_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton' cannot run here: the tensors are on cpu, not on a GPU"):
        compute(*problem(3, 5, True, torch.float32), "triton")


def test_without_triton_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_fused(CUDA, torch.bfloat16)


def test_what_does_not_fit_is_refused() -> None:
    logits_NV, classes_N = problem(3, 5, True, torch.float32)
    with pytest.raises(ValueError, match=r"got \(3, 5\), \(2,\)"):
        compute(logits_NV, classes_N[:2])
    with pytest.raises(ValueError, match=r"call .contiguous\(\)"):
        compute(logits_NV.mT.contiguous().mT, classes_N)
    with pytest.raises(ValueError, match="'magic', choose from"):
        compute(logits_NV, classes_N, "magic")
