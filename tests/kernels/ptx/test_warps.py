"""Shuffles, reductions, matrix products and loads against plain indexing and float64, two warps at once."""

import numpy as np
import pytest

pytest.importorskip("triton")

from ptx.program import Fault
from ptx.snippets import run, snippet
from ptx.warps import OPERATIONS

GENERATOR = np.random.default_rng(0)
NUM_THREADS = 64
LANE = np.arange(NUM_THREADS) % 32
MATRICES = sorted(name for name in OPERATIONS if name.startswith(("ldmatrix", "stmatrix")))
SHUFFLES = {"shfl.sync.bfly.b32", "shfl.sync.idx.b32", "bar.warp.sync"}
REDUCTIONS = {"redux.sync.max.s32": max, "redux.sync.min.s32": min}
PRODUCTS = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of numbers that bfloat16 holds exactly."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def packed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)


def test_every_instruction_of_warps_is_tested() -> None:
    assert OPERATIONS.keys() == {*MATRICES, *SHUFFLES, *REDUCTIONS, *PRODUCTS}


@pytest.mark.parametrize("mask", [1, 2, 16, 31])
def test_butterfly_shuffle(mask: int) -> None:
    values = GENERATOR.integers(0, 2**32, NUM_THREADS, np.uint32)
    block = run(f"shfl.sync.bfly.b32 %r2, %r1, {mask}, 31, -1;", {"%r1": values}, num_threads=NUM_THREADS)
    want = [values[thread // 32 * 32 + (thread % 32 ^ mask)] for thread in range(NUM_THREADS)]
    np.testing.assert_array_equal(block.registers["%r2"], want)


def test_indexed_shuffle() -> None:
    values = GENERATOR.integers(0, 2**32, NUM_THREADS, np.uint32)
    lane = GENERATOR.integers(0, 32, NUM_THREADS).astype(np.uint32)
    registers = {"%r1": values, "%r3": lane}
    block = run(
        "shfl.sync.idx.b32 %r2, %r1, %r3, 31, -1; bar.warp.sync -1;", registers, num_threads=NUM_THREADS
    )
    np.testing.assert_array_equal(block.registers["%r2"], values[np.arange(NUM_THREADS) // 32 * 32 + lane])


@pytest.mark.parametrize("opcode", REDUCTIONS)
def test_reduction_of_a_warp(opcode: str) -> None:
    values = GENERATOR.integers(-(2**31), 2**31, NUM_THREADS).astype(np.int32)
    block = run(f"{opcode} %r2, %r1, -1;", {"%r1": values.view(np.uint32)}, num_threads=NUM_THREADS)
    want = [REDUCTIONS[opcode](values[thread // 32 * 32 :][:32]) for thread in range(NUM_THREADS)]
    np.testing.assert_array_equal(block.registers["%r2"].view(np.int32), want)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@%p1 shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;", "lanes of a warp are missing"),
        ("@%p1 redux.sync.max.s32 %r2, %r1, -1;", "lanes of a warp are missing"),
        ("redux.sync.min.s32 %r2, %r1, 0x0000FFFF;", "lanes of a warp are missing"),
        ("@%p1 bar.warp.sync -1;", "lanes of a warp are missing"),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 31, 0x0000FFFF;", "lanes of a warp are missing"),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 15, -1;", "a part of a warp"),
        ("shfl.sync.idx.b32 %r2, %r1, 32, 31, -1;", "a lane that does not exist"),
        (
            "@%p1 mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%r1, %r1, %r1, %r1}, {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%r1, %r1, %r1, %r1};",
            "1 lanes are missing",
        ),
        ("@%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];", "1 lanes are missing"),
        ("@%p1 stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};", "1 lanes are missing"),
    ],
)  # fmt: skip
def test_missing_lanes(body: str, message: str) -> None:
    registers = {"%r1": np.zeros(NUM_THREADS, np.uint32), "%p1": np.arange(NUM_THREADS) != 40}
    with pytest.raises(Fault, match=message):
        run(body, registers, num_threads=NUM_THREADS)


def test_a_whole_warp_may_be_missing_in_a_shuffle() -> None:
    registers = {"%r1": np.arange(NUM_THREADS, dtype=np.uint32), "%p1": np.arange(NUM_THREADS) < 32}
    block = run("@%p1 shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;", registers, num_threads=NUM_THREADS)
    want = [thread ^ 1 if thread < 32 else thread for thread in range(NUM_THREADS)]
    np.testing.assert_array_equal(block.registers["%r1"], want)


@pytest.mark.parametrize("opcode", MATRICES)
def test_matrix_transfer(opcode: str) -> None:
    """Lane l holds elements (l / 4, 2 (l % 4)) and the next one; transposed, of the transposed matrix."""
    count = int(opcode.split(".x")[1][0])
    num_rows = 2 * count * 8
    matrices = GENERATOR.integers(0, 2**16, (2, count, 8, 8)).astype(np.uint16)
    order = GENERATOR.permutation(num_rows)  # where in shared memory each row lies, in units of 16 bytes
    place = np.zeros(NUM_THREADS, np.uint32)
    place[8 * count > LANE] = order * 16
    seen = matrices.swapaxes(2, 3) if "trans" in opcode else matrices
    warp, row, column = np.arange(NUM_THREADS) // 32, LANE // 4, LANE % 4 * 2
    words = [packed(seen[warp, i, row, column], seen[warp, i, row, column + 1]) for i in range(count)]
    rows_in_memory = np.zeros((num_rows, 8), np.uint16)
    rows_in_memory[order] = matrices.reshape(num_rows, 8)
    names = [f"%r{10 + i}" for i in range(count)]
    vector = "{" + ", ".join(names) + "}"
    is_load = opcode.startswith("ld")
    registers = {"%r1": place} | ({} if is_load else dict(zip(names, words, strict=True)))
    text = f"{opcode} {vector}, [%r1];" if is_load else f"{opcode} [%r1], {vector};"
    block = snippet(text, registers, num_threads=NUM_THREADS, num_shared_bytes=16 * num_rows)
    if is_load:
        block.shared.data[:] = rows_in_memory.view(np.uint8).reshape(-1)
        block.shared.was_stored[:] = True
    block.run()
    if is_load:
        for name, word in zip(names, words, strict=True):
            np.testing.assert_array_equal(block.registers[name], word)
    else:
        np.testing.assert_array_equal(block.shared.data.view(np.uint16).reshape(num_rows, 8), rows_in_memory)


@pytest.mark.parametrize("opcode", sorted(PRODUCTS))
def test_matrix_product(opcode: str) -> None:
    """The fragments as in the PTX ISA: register i of lane l holds these elements of A, B and C."""
    group, place = LANE // 4, LANE % 4
    warp = np.arange(NUM_THREADS) // 32
    depth = 16 if "k16" in opcode else 8
    a = GENERATOR.integers(-128, 128, (2, 16, depth)) / 8  # exact in eight bits of mantissa
    b = GENERATOR.integers(-128, 128, (2, depth, 8)) / 64
    c = GENERATOR.normal(size=(2, 16, 8)).astype(np.float32)
    if depth == 16:
        bits = to_bf16 if "bf16" in opcode else lambda x: x.astype(np.float16).view(np.uint16)
        of_a = [
            packed(*(bits(a[warp, group + 8 * (i % 2), 2 * place + 8 * (i // 2) + j]) for j in (0, 1)))
            for i in range(4)
        ]
        of_b = [packed(*(bits(b[warp, 2 * place + 8 * i + j, group]) for j in (0, 1))) for i in range(2)]
    else:
        noise = GENERATOR.integers(0, 1 << 13, NUM_THREADS, np.uint32)  # in bits that are not read
        of_a = [
            a[warp, group + 8 * (i % 2), place + 4 * (i // 2)].astype(np.float32).view(np.uint32) | noise
            for i in range(4)
        ]
        of_b = [b[warp, place + 4 * i, group].astype(np.float32).view(np.uint32) | noise for i in range(2)]
    of_c = [c[warp, group + 8 * (i // 2), 2 * place + i % 2].view(np.uint32) for i in range(4)]
    registers = {f"%r{number}": bits_T for number, bits_T in enumerate(of_a + of_b + of_c)}
    text = (
        "{{%r20, %r21, %r22, %r23}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};".format()
    )
    block = run(f"{opcode} {text}", registers, num_threads=NUM_THREADS)
    want = (np.einsum("wmk,wkn->wmn", a, b) + c).astype(np.float32)
    for i in range(4):
        got = block.registers[f"%r{20 + i}"].view(np.float32)
        np.testing.assert_array_equal(got, want[warp, group + 8 * (i // 2), 2 * place + i % 2])
