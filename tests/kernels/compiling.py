"""Compiles Triton kernels for GPUs that this machine does not have. No driver is needed: the compilers come
in the triton wheel.

The first import of triton decides whether a process interprets or compiles. This works where TRITON_INTERPRET
was 0 by then.
"""

from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm86": GPUTarget("cuda", 86, 32),
    "sm89": GPUTarget("cuda", 89, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NVIDIA, AMD = tuple(name for name in TARGETS if name.startswith("sm")), ("gfx942",)


class Spec(NamedTuple):
    """A kernel and one launch of it, as the program makes it."""

    kernel: Any
    """A function with @triton.jit."""
    arguments: dict[str, Any]
    """The arguments of the launch by their names. A torch dtype stands for a tensor."""
    options: dict[str, int]
    """The options num_warps and num_stages of the launch."""
    name: str
    """Its name in tables: the kernel and what is special about this launch."""
    targets: tuple[str, ...] = tuple(TARGETS)


class FakeDriver:
    """The driver that a warm-up launch asks for its target. It launches nothing."""

    def __init__(self, target_name: str) -> None:
        self.target_name = target_name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target_name]

    def get_current_device(self) -> int:
        # Another for each target, because Triton keeps compiled kernels by device.
        return list(TARGETS).index(self.target_name)

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_kernel(kernel: Any, arguments: dict[str, Any], options: dict[str, int], target_name: str) -> Any:
    """Triton's compiled kernel, with the text of each stage in its `asm`."""
    triton.runtime.driver.set_active(FakeDriver(target_name))
    mocked = {
        name: MockTensor(value) if isinstance(value, torch.dtype) else value
        for name, value in arguments.items()
    }
    return kernel.warmup(grid=(1,), **mocked, **options)
