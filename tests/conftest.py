"""What all tests share: where kernels run, and memory that shows when it is read before it was written."""

import os
from pathlib import Path

import pytest
import torch

ENVIRONMENT = dict(os.environ)
NUM_GPUS = torch.cuda.device_count()  # does not initialise CUDA, so that it can still be hidden

# The tensors of the tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, help="how often test_kills.py kills each run (default: 20 and 5)")
    parser.addoption(
        "--organisers",
        nargs=2,
        metavar=("PYTHON", "STRICT"),
        help="compute anew what test_organisers.py compares with: a Python with transformers 4.51.3, and the "
        "folder strict of babylm-org/babylm-eval (July 2026)",
    )
    parser.addoption(
        "--gpu", action="store_true", help="run Triton kernels on the GPU (default: interpreted)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no GPU: commands would train on it, in its precision. One process either interprets Triton
    kernels or compiles them, decided by the first import of triton (which torch.compile imports too).
    """
    if not config.getoption("gpu"):
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    elif not NUM_GPUS:
        raise pytest.UsageError("--gpu: torch sees no GPU")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smallest teacher, with a dictionary, in a folder of the module's own."""
    from pipeline import nano_teacher  # here, because it imports triton: see `pytest_configure`

    return nano_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def gpu_environment() -> dict[str, str]:
    """The environment of a separate process that sees the GPUs."""
    if not NUM_GPUS:
        pytest.skip("needs a GPU")
    return ENVIRONMENT


@pytest.fixture
def device() -> str:
    """Where Triton kernels run: on the GPU, or interpreted on the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like hand out NaN, so that a kernel that leaves a hole is seen.
    The idea is flash-linear-attention's."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def poisoned(*args: object, _plain=plain, **kwargs: object) -> torch.Tensor:
            tensor = _plain(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)
