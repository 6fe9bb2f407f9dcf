"""Which device a command runs on, and in which precision."""

import shutil

import pytest
import torch

from mlsm.device import choose_compiling, choose_device, choose_precision


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
        ("off", None, False),
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, True),
    ],
)
def test_precision_on_a_cpu(asked: str, dtype: torch.dtype | None, has_scaler: bool) -> None:
    precision = choose_precision(asked, torch.device("cpu"), width=768)
    assert precision.scaler.is_enabled() == has_scaler
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)


def test_layers_are_compiled_on_a_gpu_where_the_compilers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("mlsm.device.Path.exists", lambda path: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    compiled = [(None, gpu), (True, cpu)], [(None, cpu), (False, gpu)]
    assert [[choose_compiling(*case) for case in cases] for cases in compiled] == [[True] * 2, [False] * 2]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not choose_compiling(None, gpu)
    for device, language in ((cpu, r"C\+\+"), (gpu, "C")):
        with pytest.raises(ValueError, match=f"--compile needs a {language} compiler"):
            choose_compiling(True, device)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("mlsm.device.Path.exists", lambda path: False)
    assert not choose_compiling(None, gpu)
