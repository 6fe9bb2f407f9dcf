"""One thread block: its registers, its branches and its barriers.

All threads run together as vectors. Where they branch apart, the group with the smallest position in the
program runs first, and groups that meet go on as one.

Legend: T threads of the block. Masks are bool (T,).
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.memory import GlobalMemory, SharedMemory
from ptx.pending import Copies, Products
from ptx.program import Address, Fault, Instruction, Operand, Program

Mask = NDArray[np.bool_]
Vector = NDArray[Any]
"""One value a thread (T,), of the type of the instruction at hand."""
Execute = Callable[["Block", Instruction, Mask], None]

MAX_INSTRUCTIONS = 20_000_000
WARP = 32


class Block:
    def __init__(
        self,
        program: Program,
        operations: dict[str, Execute],
        arguments: dict[str, int],
        memory: GlobalMemory,
        num_shared_bytes: int,
        index: tuple[int, int, int] = (0, 0, 0),
        grid: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        """`arguments` are the bits of each parameter; `index` is the block's place in the `grid`."""
        self.program, self.operations, self.arguments, self.memory = program, operations, arguments, memory
        self.shared = SharedMemory(num_shared_bytes)
        self.number = (index[2] * grid[1] + index[1]) * grid[0] + index[0]
        num_threads = program.num_threads
        self.everyone: Mask = np.ones(num_threads, bool)
        self.thread_T = np.arange(num_threads)
        self.warp_T, self.lane_T = self.thread_T // WARP, self.thread_T % WARP
        self.registers: dict[str, Vector] = {}
        self.copies, self.products = Copies(), Products()
        self.executed: Counter[str] = Counter()
        self.barriers: list[int] = []
        """Positions of the barriers that were passed, in order."""
        constants: dict[str, Any] = {"%tid.x": self.thread_T, "global_smem": 0}
        for axis, place, extent in zip("xyz", index, grid, strict=True):
            constants |= {f"%ctaid.{axis}": place, f"%nctaid.{axis}": extent}
        self._names = {
            name: np.broadcast_to(np.uint32(value), (num_threads,)) for name, value in constants.items()
        }

    @np.errstate(all="ignore")  # overflow and NaN are results like others
    def run(self) -> None:
        """Execute to the end. Raises Fault with the line that is at fault."""
        groups = {0: self.everyone}
        waiting: dict[int, Mask] = {}
        for _ in range(MAX_INSTRUCTIONS):
            if not groups:
                if not waiting:
                    return
                groups = self._pass_barrier(waiting)
            position = min(groups)
            active = groups.pop(position)
            instruction = self.program.instructions[position]
            try:
                if instruction.opcode == "bar.sync":
                    waiting[position] = waiting.get(position, False) | active
                    continue
                following = self._step(instruction, position, active)
            except Fault as fault:
                raise Fault(
                    f"{self.program.name}, line {instruction.line}: {fault}: {instruction.text}"
                ) from fault
            for target, mask in following:
                groups[target] = groups[target] | mask if target in groups else mask
        raise Fault(f"{self.program.name} does not end")

    def _step(self, instruction: Instruction, position: int, active: Mask) -> list[tuple[int, Mask]]:
        """Execute an instruction. Returns the positions at which threads go on, each with its threads."""
        mask = active
        if instruction.guard is not None:
            mask = active & (self.read(instruction.guard.register, PREDICATE) == instruction.guard.runs_if)
        opcode = instruction.opcode
        self.executed[opcode] += 1
        if opcode in ("bra", "bra.uni", "ret"):
            following = [(position + 1, active & ~mask)]
            if opcode != "ret":
                following.append((self.program.labels[str(instruction.operands[0])], mask))
            return [(target, threads) for target, threads in following if threads.any()]
        if opcode not in self.operations:
            raise Fault("unknown instruction")
        self.operations[opcode](self, instruction, mask)
        return [(position + 1, active)]

    def _pass_barrier(self, waiting: dict[int, Mask]) -> dict[int, Mask]:
        """Let all threads go on from a barrier. Raises Fault unless the whole block waits at it."""
        (position, mask), *others = waiting.items()
        instruction = self.program.instructions[position]
        where = f"{self.program.name}, line {instruction.line}"
        if others or not mask.all():
            raise Fault(f"{where}: {mask.sum()} of {len(mask)} threads reach this barrier")
        if instruction.operands != ("0",) or instruction.guard is not None:
            raise Fault(f"{where}: a barrier of another kind: {instruction.text}")
        waiting.clear()
        self.executed["bar.sync"] += 1
        self.barriers.append(position)
        self.shared.forget()
        return {position + 1: mask}

    def read(self, operand: Operand, dtype: np.dtype[Any]) -> Vector:
        """The operand's bits as `dtype`, for all threads."""
        name = str(operand)
        held = self.registers.get(name)
        if held is None:
            held = self._names.get(name)
        if held is None:
            if name.startswith("%"):
                raise Fault(f"{name} is read before it is written")
            return _constant(name, dtype, len(self.everyone))
        if held.dtype.itemsize != dtype.itemsize:
            raise Fault(f"{name} does not have the {dtype.itemsize} bytes of the instruction")
        return held.view(dtype)

    def write(self, operand: Operand, value_T: Vector, mask: Mask) -> None:
        """Write the register in the threads whose mask is set. Nothing is written for the operand `_`."""
        name = str(operand)
        if name == "_":
            return
        if self.program.widths.get(name) != value_T.dtype.itemsize:
            raise Fault(f"{name} does not have the {value_T.dtype.itemsize} bytes of the result")
        held = self.registers.get(name)
        if mask is not self.everyone and held is not None:
            value_T = np.where(mask, value_T, held.view(value_T.dtype))
        self.registers[name] = value_T

    def addresses(self, operand: Operand, dtype: np.dtype[Any]) -> Vector:
        """Where each thread accesses memory."""
        if not isinstance(operand, Address):
            raise Fault(f"{operand} is no address")
        base_T = self.read(operand.base, dtype)
        return base_T + np.array(operand.offset).astype(dtype) if operand.offset else base_T


PREDICATE = np.dtype(bool)


@lru_cache(maxsize=4096)
def _constant(text: str, dtype: np.dtype[Any], num_threads: int) -> Vector:
    """A number in the text: 0f3F800000 gives the bits of a float32."""
    try:
        value = int(text[2:], 16) if text.startswith(("0f", "0d")) else int(text.rstrip("U"), 0)
    except ValueError:
        raise Fault(f"{text} is neither a register nor a number") from None
    bits = value & ((1 << (8 * dtype.itemsize)) - 1)
    if dtype == PREDICATE:
        return np.full(num_threads, bool(value))
    constant = np.full(num_threads, bits, np.dtype(f"u{dtype.itemsize}")).view(dtype)
    constant.flags.writeable = False
    return constant
