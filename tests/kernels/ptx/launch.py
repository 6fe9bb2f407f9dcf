"""Runs the kernels that host code launches in the emulator, in place of Triton's interpreter."""

import struct
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from ptx import transfers, values, warps, wgmma
from ptx.block import Block, Execute
from ptx.compiler import Compiled, Pointer, Request, compile_elsewhere
from ptx.memory import ALIGNMENT, GlobalMemory
from ptx.program import Program, parse

OPERATIONS: dict[str, Execute] = (
    values.OPERATIONS | transfers.OPERATIONS | warps.OPERATIONS | wgmma.OPERATIONS
)
OPTIONS = ("num_warps", "num_stages")
Argument = torch.Tensor | bool | int | float
_compile = lru_cache(maxsize=None)(compile_elsewhere)


class Emulator:
    """Executes launches for one target, and counts what they executed."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.programs: Counter[str] = Counter()
        """How many programs of each kernel ran."""
        self.opcodes: Counter[str] = Counter()
        self.change: Callable[[Program], Program] = lambda program: program
        """Applied to each kernel before it runs; a test breaks kernels with it."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make `kernel[grid](...)` run in the emulator, and host code choose as for an NVIDIA GPU."""
        monkeypatch.setattr(
            InterpretedFunction, "run", lambda kernel, **launch: self.launch(kernel, **launch)
        )
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)

    def launch(
        self, kernel: InterpretedFunction, *, grid: tuple[int, ...], warmup: bool, **arguments: Argument
    ) -> None:
        """Execute every program of the grid, one after another."""
        options = {name: int(arguments.pop(name)) for name in OPTIONS if name in arguments}
        name = kernel.fn.__name__
        request = Request(
            kernel.fn.__module__,
            name,
            self.target,
            tuple(map(_described, arguments.items())),
            tuple(options.items()),
        )
        compiled = _compile(request)
        program = self.change(parse(compiled.ptx))
        memory = GlobalMemory({name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)})
        bits = _parameter_bits(program, compiled, memory, arguments)
        extent = (*grid, 1, 1)[:3]
        for z, y, x in product(*map(range, reversed(extent))):
            block = Block(program, OPERATIONS, bits, memory, compiled.num_shared_bytes, (x, y, z), extent)
            block.run()
            self.programs[name] += 1
            self.opcodes += block.executed
        memory.copy_back_()


def _described(item: tuple[str, Argument]) -> tuple[str, Pointer | bool | int | float]:
    name, value = item
    if isinstance(value, torch.Tensor):
        return name, Pointer(value.dtype, value.data_ptr() % ALIGNMENT == 0)
    return name, value


def _parameter_bits(
    program: Program, compiled: Compiled, memory: GlobalMemory, arguments: dict[str, Argument]
) -> dict[str, int]:
    """The parameters of the PTX; those that the compiler added are null pointers."""
    bits = dict.fromkeys(program.parameters, 0)
    for name, (parameter, kind) in zip(compiled.parameters, program.parameters.items(), strict=False):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            bits[parameter] = memory.addresses[name]
        elif kind == "f32":
            bits[parameter] = int.from_bytes(struct.pack("<f", value), "little")
        else:
            bits[parameter] = int(value) & ((1 << int(kind[1:])) - 1)
    return bits
