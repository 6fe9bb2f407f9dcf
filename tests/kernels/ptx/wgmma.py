"""Asynchronous matrix products of sm_90, which four warps (a warpgroup) execute together: A from registers, B
from shared memory, the sum in registers that may be read again after a wait.

PTX ISA 8.7, "Asynchronous Warpgroup Level Matrix Instructions": a matrix descriptor says where B lies. Its
rows (one for each column of the product) have 128, 64 or 32 bytes, eight rows are neighbours, and the 16-byte
pieces of a row are exchanged ("swizzled") by its number. Not checked: that registers of A stay as they are
until the wait, and wgmma.fence.

Legend: G warpgroups of 128 threads, M = 64 rows, N columns, K = 8 of the inner dimension.
"""

import numpy as np

from ptx.arithmetic import F32, PRED, U32, U64
from ptx.block import Block, Execute, Mask, Vector
from ptx.memory import Integers
from ptx.pending import Sum
from ptx.program import Fault, Instruction

WARPGROUP = 128
PIECE = 16
"""Swizzling moves pieces of so many bytes."""
BYTES_OF_A_ROW = {1: 128, 2: 64, 3: 32}
"""The bytes of a row in shared memory for each mode of swizzling in a matrix descriptor."""
_THREAD = np.arange(WARPGROUP)
_ROW, _PLACE = _THREAD // 32 * 16 + _THREAD % 32 // 4, _THREAD % 4


def places_of_b(descriptor: int, num_columns: int) -> Integers:
    """Where the pieces of B's rows lie (N, 2)."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    mode, base = descriptor >> 62, descriptor >> 49 & 7
    if mode not in BYTES_OF_A_ROW or base:
        raise Fault(f"a matrix descriptor of an unknown kind: {descriptor:#x}")
    size = BYTES_OF_A_ROW[mode]
    row_N1, piece_2 = np.arange(num_columns)[:, None], np.arange(2)
    place_N2 = start + row_N1 // 8 * stride + row_N1 % 8 * size + piece_2 * PIECE
    return place_N2 ^ ((place_N2 >> 7) % (size // PIECE) * PIECE)


def _multiply_tf32(num_columns: int) -> Execute:
    """wgmma.mma_async.m64nNk8: D = A B, or D += A B."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        to, left, descriptor, is_added, *signs = instruction.operands
        if signs != ["1", "1"] or not mask.all() or len(mask) % WARPGROUP:
            raise Fault("a product with signs or with missing lanes")
        products = block.products
        descriptor_GT = block.read(descriptor, U64).reshape(-1, WARPGROUP)
        if (descriptor_GT != descriptor_GT[:, :1]).any():
            raise Fault("the threads of a warpgroup name different matrices")
        b_GNK = np.empty((len(descriptor_GT), num_columns, 8))
        for group, number in enumerate(descriptor_GT[:, 0]):
            place_n = places_of_b(int(number), num_columns).reshape(-1)
            for warp in range(4 * group, 4 * group + 4):
                data = block.shared.load_for_product(place_n, PIECE, np.full(len(place_n), warp))
            b_GNK[group] = _tf32(np.ascontiguousarray(data).view(U32)).reshape(num_columns, 8)
            products.places.setdefault(products.num_groups, []).append(place_n)
        a_GMK = np.empty((len(descriptor_GT), 64, 8))
        for register, (row, column) in zip(left, ((0, 0), (8, 0), (0, 4), (8, 4)), strict=True):
            a_GMK[:, _ROW + row, _PLACE + column] = _tf32(block.read(register, U32)).reshape(-1, WARPGROUP)
        product_GMN = a_GMK @ b_GNK.swapaxes(1, 2)
        keeps_T = block.read(is_added, PRED)
        for i, register in enumerate(to):
            rows_T, columns_T = _ROW + i % 4 // 2 * 8, i // 4 * 8 + 2 * _PLACE + i % 2
            sum_T = product_GMN[:, rows_T, columns_T].reshape(-1)
            if keeps_T.any():
                sum_T = sum_T + np.where(keeps_T, _accumulator(block, register), 0)
            products.sums[register] = Sum(sum_T.astype(F32), products.num_groups)
            block.registers.pop(register, None)  # nobody may read it before a wait

    return execute


def _tf32(words: Vector) -> Vector:
    return (words & np.uint32(0xFFFFE000)).view(F32)


def _accumulator(block: Block, register: str) -> Vector:
    held = block.products.sums.get(register)
    return block.read(register, F32) if held is None else held.value_T


def _commit(block: Block, instruction: Instruction, mask: Mask) -> None:
    block.products.num_groups += 1


def _wait(block: Block, instruction: Instruction, mask: Mask) -> None:
    """All groups but the last few end."""
    products = block.products
    first_left = products.num_groups - int(str(instruction.operands[0]))
    for group in [group for group in products.places if group < first_left]:
        for place_n in products.places.pop(group):
            block.shared.is_being_read.reshape(-1, PIECE)[place_n // PIECE] = False
    for place_n in (place_n for group in products.places.values() for place_n in group):
        block.shared.is_being_read.reshape(-1, PIECE)[place_n // PIECE] = (
            True  # also read by one that goes on
        )
    for register in [name for name, held in products.sums.items() if held.group < first_left]:
        block.registers[register] = products.sums.pop(register).value_T


def _fence_shared(block: Block, instruction: Instruction, mask: Mask) -> None:
    """What was stored is visible to asynchronous instructions."""
    if not mask.all():
        raise Fault("some threads only fence")
    block.shared.is_unfenced[:] = False


def _fence_registers(block: Block, instruction: Instruction, mask: Mask) -> None:
    """wgmma.fence orders accesses to registers, which are in order here."""


OPERATIONS: dict[str, Execute] = {
    "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32": _multiply_tf32(64),
    "wgmma.commit_group.sync.aligned": _commit,
    "wgmma.wait_group.sync.aligned": _wait,
    "wgmma.fence.sync.aligned": _fence_registers,
    "fence.proxy.async.shared::cta": _fence_shared,
}
