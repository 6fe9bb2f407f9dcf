"""PTX instructions that the 32 threads of a warp execute together: shuffles, reductions, matrix products on
tensor cores, and the loads and stores of their operands.

All of them demand that no lane is missing. Which lane holds which elements of a matrix: PTX ISA 8.7, "Matrix
Fragments for mma.m16n8k8" and "mma.m16n8k16". With g = lane / 4 and t = lane % 4, a lane has rows g and g + 8
of A, column g of B, and columns 2 t and 2 t + 1 of the accumulator.

Legend: T threads of the block, W warps, L = 32 lanes; of a product (M, K) x (K, N).
"""

import numpy as np

from ptx.arithmetic import F16, F32, F64, U16, U32, DType, bf16_to_float
from ptx.block import WARP, Block, Execute, Mask, Vector
from ptx.program import Fault, Instruction, Operand

LANE = np.arange(WARP)
GROUP, PLACE = LANE // 4, LANE % 4


def _by_warp(x_T: Vector) -> Vector:
    return x_T.reshape(-1, WARP)


def _demand_everyone(block: Block, mask: Mask) -> None:
    if not mask.all():
        raise Fault(f"{len(mask) - mask.sum()} lanes are missing")


def _demand_whole_warps(block: Block, members: Operand, mask: Mask) -> None:
    active_WL = _by_warp(mask)
    if (block.read(members, U32) != 0xFFFFFFFF).any() or (active_WL.any(1) & ~active_WL.all(1)).any():
        raise Fault("lanes of a warp are missing")


def _synchronise_warp(block: Block, instruction: Instruction, mask: Mask) -> None:
    """bar.warp.sync: the threads of a warp count as ordered anyway."""
    _demand_whole_warps(block, instruction.operands[0], mask)


def _shuffle(mode: str) -> Execute:
    """shfl.sync: each thread reads another lane's register."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        to, source, lane, clamp, members = instruction.operands
        _demand_whole_warps(block, members, mask)
        if (block.read(clamp, U32) != WARP - 1).any():
            raise Fault("a shuffle of a part of a warp")
        operand_T = block.read(lane, U32).astype(np.int64)
        from_T = block.lane_T ^ operand_T if mode == "bfly" else operand_T
        if (from_T[mask] >= WARP).any():
            raise Fault("a shuffle from a lane that does not exist")
        block.write(to, block.read(source, U32)[block.warp_T * WARP + from_T % WARP], mask)

    return execute


def _reduce(combine: np.ufunc) -> Execute:
    """redux.sync: each thread gets the extreme of the signed integers of its warp."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        to, source, members = instruction.operands
        _demand_whole_warps(block, members, mask)
        extreme_W = combine.reduce(_by_warp(block.read(source, U32)).view(np.int32), axis=1)
        block.write(to, extreme_W.view(U32)[block.warp_T], mask)

    return execute


def _load_matrices(is_transposed: bool, count: int) -> Execute:
    """ldmatrix: lanes 8 i to 8 i + 7 name the rows of matrix i, 8 x 8 of 16 bits; lane l gets two neighbours
    of row l / 4 (of column l / 4, transposed)."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        _demand_everyone(block, mask)
        registers, place = instruction.operands
        asks_T = block.lane_T < 8 * count
        place_T = block.addresses(place, U32).astype(np.int64)
        rows = block.shared.load(place_T[asks_T], 16, block.warp_T[asks_T])
        rows = np.ascontiguousarray(rows).view(U16).reshape(-1, count, 8, 8)
        if is_transposed:
            rows = rows.swapaxes(2, 3)
        for i, register in enumerate(registers):
            pair_WL2 = np.ascontiguousarray(rows[:, i]).reshape(-1, WARP, 2)
            block.write(register, pair_WL2.view(U32).reshape(-1), mask)

    return execute


def _store_matrices(is_transposed: bool, count: int) -> Execute:
    """stmatrix: the reverse of ldmatrix."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        _demand_everyone(block, mask)
        place, registers = instruction.operands
        matrices = [block.read(x, U32).copy().view(U16).reshape(-1, 8, 8) for x in registers]
        rows = np.stack(matrices, 1)
        if is_transposed:
            rows = rows.swapaxes(2, 3)
        asks_T = block.lane_T < 8 * count
        place_T = block.addresses(place, U32).astype(np.int64)
        data = np.ascontiguousarray(rows).reshape(-1, 8).view(np.uint8)
        block.shared.store(place_T[asks_T], data, block.warp_T[asks_T])

    return execute


def _halves(dtype: DType, words_WL: Vector) -> tuple[Vector, Vector]:
    """The two numbers in each word, the lower half first."""
    both = np.ascontiguousarray(words_WL).view(U16)
    low, high = both[:, 0::2].copy(), both[:, 1::2].copy()
    if dtype == F16:
        return low.view(F16).astype(F64), high.view(F16).astype(F64)
    return bf16_to_float(low).astype(F64), bf16_to_float(high).astype(F64)


def _multiply_16_bits(dtype: DType) -> Execute:
    """mma.m16n8k16: numbers of 16 bits, two a register."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        _, left, right, _ = instruction.operands
        num_warps = len(mask) // WARP
        a_WMK, b_WKN = np.empty((num_warps, 16, 16)), np.empty((num_warps, 16, 8))
        for register, (row, column) in zip(left, ((0, 0), (8, 0), (0, 8), (8, 8)), strict=True):
            low_WL, high_WL = _halves(dtype, _by_warp(block.read(register, U32)))
            a_WMK[:, GROUP + row, 2 * PLACE + column] = low_WL
            a_WMK[:, GROUP + row, 2 * PLACE + column + 1] = high_WL
        for register, row in zip(right, (0, 8), strict=True):
            low_WL, high_WL = _halves(dtype, _by_warp(block.read(register, U32)))
            b_WKN[:, 2 * PLACE + row, GROUP] = low_WL
            b_WKN[:, 2 * PLACE + row + 1, GROUP] = high_WL
        _accumulate(block, instruction, mask, a_WMK @ b_WKN)

    return execute


def _multiply_tf32(block: Block, instruction: Instruction, mask: Mask) -> None:
    """mma.m16n8k8 of tf32: float32 registers whose last 13 bits are not read."""
    _, left, right, _ = instruction.operands
    num_warps = len(mask) // WARP
    a_WMK, b_WKN = np.empty((num_warps, 16, 8)), np.empty((num_warps, 8, 8))

    def number_WL(register: str) -> Vector:
        return _by_warp((block.read(register, U32) & np.uint32(0xFFFFE000)).view(F32))

    for register, (row, column) in zip(left, ((0, 0), (8, 0), (0, 4), (8, 4)), strict=True):
        a_WMK[:, GROUP + row, PLACE + column] = number_WL(register)
    for register, row in zip(right, (0, 4), strict=True):
        b_WKN[:, PLACE + row, GROUP] = number_WL(register)
    _accumulate(block, instruction, mask, a_WMK @ b_WKN)


def _accumulate(block: Block, instruction: Instruction, mask: Mask, product_WMN: Vector) -> None:
    """D = A B + C, summed in float64 and rounded once. (Tensor cores keep fewer bits; how many is not
    documented.)"""
    _demand_everyone(block, mask)
    to, _, _, old = instruction.operands
    for i, (row, column) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
        sum_WL = product_WMN[:, GROUP + row, 2 * PLACE + column] + _by_warp(block.read(old[i], F32))
        block.write(to[i], sum_WL.astype(F32).reshape(-1), mask)


OPERATIONS: dict[str, Execute] = {
    "bar.warp.sync": _synchronise_warp,
    "shfl.sync.bfly.b32": _shuffle("bfly"),
    "shfl.sync.idx.b32": _shuffle("idx"),
    "redux.sync.max.s32": _reduce(np.maximum),
    "redux.sync.min.s32": _reduce(np.minimum),
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": _multiply_16_bits(U16),
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": _multiply_16_bits(F16),
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": _multiply_tf32,
}
for _count in (1, 2, 4):
    for _name, _is_transposed in (("", False), (".trans", True)):
        OPERATIONS[f"ldmatrix.sync.aligned.m8n8.x{_count}{_name}.shared.b16"] = _load_matrices(
            _is_transposed, _count
        )
        OPERATIONS[f"stmatrix.sync.aligned.m8n8.x{_count}{_name}.shared.b16"] = _store_matrices(
            _is_transposed, _count
        )
