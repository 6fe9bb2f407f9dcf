"""The device of a command, and the precision of its forward passes."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from mlsm import distributed


def choose_device(asked: str) -> torch.device:
    """The device of a run; of many processes on a machine each has its own GPU. Raises ValueError for a GPU
    that is not there.
    """
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {asked!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {asked!r}")
    if device.type == "cuda" and (number := distributed.local_rank()) is not None:
        if device.index is not None:
            raise ValueError(
                f"--device {asked} is one GPU for {distributed.world_size()} processes; use cuda"
            )
        device = torch.device("cuda", number)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {device}: PyTorch sees {torch.cuda.device_count()} GPUs here; use --device cpu"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # NCCL and Triton work on the current one
    return device


class Precision(NamedTuple):
    """Autocast dtype (None: float32 throughout) and the scaler that fp16 needs."""

    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    device_type: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context for forward passes."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.dtype)


def choose_precision(asked: str, device: torch.device) -> Precision:
    """bf16 where the GPU has it, else fp16 with a loss scale; float32 on a CPU unless asked otherwise."""
    if asked == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        asked = "off" if device.type == "cpu" else "bf16" if has_bf16 else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[asked]
    return Precision(dtype, torch.amp.GradScaler(device.type, enabled=asked == "fp16"), device.type)
