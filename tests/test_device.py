"""Which device a command runs on, and in which precision."""

import pytest
import torch

from mlsm.device import choose_device, choose_precision


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "", "meta", "cpu:x"])
def test_an_unknown_device_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got"):
        choose_device(asked)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--device cuda:99: PyTorch sees \d+ GPUs here; use --device cpu"):
        choose_device("cuda:99")


@pytest.mark.parametrize(
    ("asked", "dtype", "has_scaler"),
    [
        ("auto", None, False),
        ("off", None, False),
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, True),
    ],
)
def test_precision_on_a_cpu(asked: str, dtype: torch.dtype | None, has_scaler: bool) -> None:
    precision = choose_precision(asked, torch.device("cpu"))
    assert precision.scaler.is_enabled() == has_scaler
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)
