"""PTX instructions that move data between registers, global memory and shared memory.

Legend: n active threads, S bytes of an access of one thread, V registers of a vector access.
"""

import numpy as np

from ptx.arithmetic import U32, U64, DType
from ptx.block import Block, Execute, Mask
from ptx.memory import Bytes
from ptx.pending import Copy
from ptx.program import Address, Fault, Instruction, Operand
from ptx.values import TYPES


def _registers(operand: Operand) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) else (str(operand),)


def _load_parameter(dtype: DType) -> Execute:
    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        to, source = instruction.operands
        if not isinstance(source, Address) or source.base not in block.arguments or source.offset:
            raise Fault(f"{source} is no parameter")
        bits = np.array(block.arguments[source.base], f"u{dtype.itemsize}")
        value_T = np.full(len(mask), bits).view(dtype)
        wider = np.dtype(
            f"{dtype.kind}{block.program.widths[str(to)]}"
        )  # a wide register takes the extended value
        block.write(to, value_T.astype(wider), mask)

    return execute


def _load(space: str, dtype: DType, count: int) -> Execute:
    size = dtype.itemsize * count

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        registers, place = _registers(instruction.operands[0]), instruction.operands[1]
        if space == "shared":
            place_n = block.addresses(place, U32)[mask].astype(np.int64)
            data_nS = block.shared.load(place_n, size, block.warp_T[mask])
        else:
            data_nS = block.memory.load(block.addresses(place, U64)[mask], size, block.number)
        loaded_nV = np.ascontiguousarray(data_nS).view(dtype)
        for register, loaded_n in zip(registers, loaded_nV.T, strict=True):
            value_T = np.zeros(len(mask), dtype)
            value_T[mask] = loaded_n
            block.write(register, value_T, mask)

    return execute


def _store(space: str, dtype: DType, count: int) -> Execute:
    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        place, registers = instruction.operands[0], _registers(instruction.operands[1])
        if len(registers) != count:
            raise Fault(f"{count} registers are stored, not {len(registers)}")
        data_nS: Bytes = np.stack([block.read(x, dtype)[mask] for x in registers], 1).view(np.uint8)
        if space == "shared":
            place_n = block.addresses(place, U32)[mask].astype(np.int64)
            block.shared.store(place_n, data_nS, block.warp_T[mask])
        else:
            block.memory.store(block.addresses(place, U64)[mask], data_nS, block.number)

    return execute


def _begin_copy(block: Block, instruction: Instruction, mask: Mask) -> None:
    """cp.async [shared], [global], size, num_read: the rest of the size is filled with zeros."""
    to, source, size_text, *num_read_text = instruction.operands
    size = int(str(size_text), 0)
    place_n = block.addresses(to, U32)[mask].astype(np.int64)
    data_nS = np.zeros((len(place_n), size), np.uint8)
    num_read_n = block.read(num_read_text[0] if num_read_text else size_text, U32)[mask]
    if not np.isin(num_read_n, (0, size)).all():
        raise Fault("an asynchronous copy of a part")
    reads_n = num_read_n == size
    data_nS[reads_n] = block.memory.load(block.addresses(source, U64)[mask][reads_n], size, block.number)
    block.shared.await_copy(place_n, size, block.warp_T[mask])
    block.copies.open.append(Copy(place_n, data_nS, block.warp_T[mask]))


def _commit_copies(block: Block, instruction: Instruction, mask: Mask) -> None:
    if not mask.all():
        raise Fault("some threads only commit asynchronous copies")
    block.copies.groups.append(block.copies.open)
    block.copies.open = []


def _wait_for_copies(block: Block, instruction: Instruction, mask: Mask) -> None:
    """All groups but the last few end; until now nobody could rely on their data."""
    if not mask.all():
        raise Fault("some threads only wait for asynchronous copies")
    num_left = int(str(instruction.operands[0]))
    groups = block.copies.groups
    ending = groups[: max(0, len(groups) - num_left)]
    block.copies.groups = groups[len(ending) :]
    for group in ending:
        for copy in group:
            block.shared.end_copy(copy.place_n, copy.data_nS, copy.warp_n)


OPERATIONS: dict[str, Execute] = {
    "cp.async.ca.shared.global": _begin_copy,
    "cp.async.cg.shared.global": _begin_copy,
    "cp.async.commit_group": _commit_copies,
    "cp.async.wait_group": _wait_for_copies,
}
OPERATIONS |= {
    f"ld.param.{kind}": _load_parameter(TYPES[kind]) for kind in ("b32", "u32", "s32", "f32", "b64", "u64")
}
for _space in ("shared", "global"):
    for _kind in ("b16", "b32", "b64"):
        for _name, _count in (("", 1), (".v2", 2), (".v4", 4)):
            if _count * TYPES[_kind].itemsize <= 16:
                OPERATIONS[f"ld.{_space}{_name}.{_kind}"] = _load(_space, TYPES[_kind], _count)
                OPERATIONS[f"st.{_space}{_name}.{_kind}"] = _store(_space, TYPES[_kind], _count)
