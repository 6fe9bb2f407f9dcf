"""The device of a command, the precision of its forward passes, and whether they are compiled."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch

from mlsm import distributed
from mlsm.log import say
from mlsm.threads import decide, num_processors, used_by_others
from mlsm.waiting import watch

LEAST_BF16_WIDTH = 64  # measured on one AVX-512 core: 1.07 times faster at 32, 1.5 at 64, 1.75 at 128


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
    """The dtype of matrix products in forward passes, and the loss scaler that fp16 needs."""

    name: str  # bf16, fp16 or off (float32)
    reason: str  # why it was chosen
    scaler: torch.amp.GradScaler
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context for forward passes."""
        return (
            contextlib.nullcontext() if self.name == "off" else torch.autocast(self.device_type, self.dtype)
        )


def choose_precision(asked: str, device: torch.device, width: int, *, before: str | None = None) -> Precision:
    """The precision that is asked for. "auto" keeps the one that a resumed run had `before`. Otherwise it is
    bf16 on a GPU that has it, else fp16; on a CPU bf16 if the processor multiplies it natively and the model
    is wide enough to gain from it, else float32.
    """
    name, reason = asked, "as asked for"
    if asked == "auto" and before:
        name, reason = before, "as before"
        if device.type == "cpu" and name == "bf16" and not has_native_bf16():
            reason += "; this processor has no native bf16, so it is slow: start anew with --amp off"
    elif asked == "auto" and device.type == "cpu":
        if not has_native_bf16():
            name, reason = "off", "this processor does not multiply bf16 natively"
        elif width < LEAST_BF16_WIDTH:
            name, reason = "off", f"bf16 gains nothing on a CPU below a width of {LEAST_BF16_WIDTH}"
        else:
            name, reason = "bf16", "this processor multiplies it natively"
    elif asked == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name, reason = ("bf16", "this GPU has it") if has_bf16 else ("fp16", "this GPU has no bf16")
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return Precision(name, reason, scaler, device.type)


def choose_compiling(asked: bool | None, device: torch.device) -> bool:
    """Whether the layers are compiled; None, the default, is on a GPU, if nothing that compiling needs is
    missing. Raises ValueError if it is asked for and something is missing.
    """
    missing = _missing_for_compiling(device)
    if asked and missing:
        raise ValueError(f"--compile needs {missing}, which is missing; install it, or use --no-compile")
    return asked if asked is not None else device.type == "cuda" and not missing


def _missing_for_compiling(device: torch.device) -> str | None:
    """What PyTorch's compiler would look for in vain."""
    if device.type == "cpu":
        return None if shutil.which("g++") or shutil.which("clang++") else "a C++ compiler (g++ or clang++)"
    if importlib.util.find_spec("triton") is None:
        return "triton"
    # Triton compiles a few lines of C that launch each kernel.
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "a C compiler (gcc or clang)"
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return None if has_headers else "the C headers of Python (python3-dev)"


def choose_num_threads(asked: int | None, device: torch.device, *, before: int | None = None) -> None:
    """Compute in as many threads as `asked` for, or as a resumed run had `before` (another number rounds sums
    differently), or else as `mlsm.threads.decide` finds best, and print the choice with its reason. On a
    machine that gets crowded later, they wait as `mlsm.waiting` says.
    """
    default, is_on_cpu = torch.get_num_threads(), device.type == "cpu"
    is_open = is_on_cpu and default > 1 and not asked and not before
    others = used_by_others() if is_open else 0.0
    number, reason = decide(default, num_processors(), others, os.environ, asked=asked, before=before)
    if is_on_cpu or number != default:
        say(f"threads: {number} ({reason})")
    if number != default:
        torch.set_num_threads(number)
    if is_on_cpu:
        watch(number)


def has_native_bf16() -> bool:
    """Whether the processor has instructions that multiply bf16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
