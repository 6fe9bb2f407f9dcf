"""Runs a few lines of PTX on given registers, for the tests of single instructions."""

from typing import Any

import torch
from numpy.typing import NDArray

from ptx.block import Block
from ptx.launch import OPERATIONS
from ptx.memory import GlobalMemory
from ptx.program import parse

KERNEL = """
.visible .entry snippet(
	.param .u64 .ptr .global .align 1 snippet_param_0,
	.param .u32 snippet_param_1
)
.reqntid {num_threads}
{{
	.reg .pred 	%p<64>;
	.reg .b16 	%rs<64>;
	.reg .b32 	%r<64>;
	.reg .b64 	%rd<64>;
{body}
	ret;
}}
"""
BODY_LINE = KERNEL.partition("{body}")[0].count("\n") + 1
"""The line of the kernel on which the body begins."""


def snippet(
    body: str,
    registers: dict[str, NDArray[Any]] | None = None,
    *,
    num_threads: int = 32,
    num_shared_bytes: int = 0,
    parameters: tuple[int, ...] = (),
    tensors: dict[str, torch.Tensor] | None = None,
    index: tuple[int, int, int] = (0, 0, 0),
    grid: tuple[int, int, int] = (1, 1, 1),
) -> Block:
    """A block that has yet to run, with values in some registers."""
    program = parse(KERNEL.format(num_threads=num_threads, body=body))
    arguments = dict(zip(program.parameters, parameters, strict=False))
    memory = GlobalMemory(tensors or {})
    block = Block(program, OPERATIONS, arguments, memory, num_shared_bytes, index, grid)
    block.registers |= registers or {}
    return block


def run(body: str, registers: dict[str, NDArray[Any]] | None = None, **options: Any) -> Block:
    """The block of `snippet` after it ran."""
    block = snippet(body, registers, **options)
    block.run()
    return block
