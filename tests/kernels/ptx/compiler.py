"""Compiles kernels in a process of its own: the tests' process interprets Triton kernels, and one process
either interprets or compiles, decided by the first import of triton.
"""

import importlib
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

import torch


@dataclass(frozen=True)  # Triton takes a tuple for several arguments
class Pointer:
    """A tensor argument, as far as it matters to the compiler."""

    dtype: torch.dtype
    is_aligned: bool
    """Whether the address is a multiple of 16 bytes, which allows vector accesses."""

    def data_ptr(self) -> int:
        return 0 if self.is_aligned else 1


class Request(NamedTuple):
    module: str
    kernel: str
    """The kernel's name in its module."""
    target: str
    """The GPU architecture, sm80 or sm90."""
    arguments: tuple[tuple[str, Pointer | bool | int | float], ...]
    options: tuple[tuple[str, int], ...]
    """The names and values of the options num_warps and num_stages."""


class Compiled(NamedTuple):
    ptx: str
    num_shared_bytes: int
    parameters: tuple[str, ...]
    """Names of the arguments that are no constants of the compiled code, in order. The compiler adds
    pointers to scratch memory, which these kernels do not use."""


def compile_elsewhere(request: Request) -> Compiled:
    """Compile in the process that is kept for it."""
    return _process().submit(compile_here, request).result()


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def compile_here(request: Request) -> Compiled:
    os.environ["TRITON_INTERPRET"] = "0"
    from compiling import compile_kernel  # imports triton, so not before the line above

    kernel = getattr(importlib.import_module(request.module), request.kernel)
    compiled = compile_kernel(kernel, dict(request.arguments), dict(request.options), request.target)
    constants = {name[0] for name in compiled.src.constants}
    parameters = tuple(name for place, name in enumerate(kernel.arg_names) if place not in constants)
    return Compiled(compiled.asm["ptx"], compiled.metadata.shared, parameters)
