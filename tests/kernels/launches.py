"""The devices on which host code launches its Triton kernels, without running them."""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor


def record_devices(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *kernels: str) -> list[torch.device]:
    """Replace kernels of a module. Each launch adds the device that is current then to the list returned."""
    current: list[torch.device] = []
    launched_on: list[torch.device] = []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in kernels:
        kernel = mock.MagicMock()
        kernel.__getitem__.return_value.side_effect = lambda **_: launched_on.extend(current)
        monkeypatch.setattr(module, name, kernel)
    return launched_on
