"""Each instruction that computes a value, on random numbers and on the edges of its type, against scalar
Python."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("triton")

from ptx.arithmetic import PRED, U32, DType
from ptx.program import Fault
from ptx.references import expected
from ptx.snippets import run
from ptx.values import OPERATIONS, VALUES

REGISTER = {1: "%p", 2: "%rs", 4: "%r", 8: "%rd"}
NUM_THREADS = 256
SHIFTS = (0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 200, 2**32 - 1)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.5,
    3e38,
    -3e38,
    1e-38,
    -1e-40,
    1e-45,
    math.inf,
    -math.inf,
    math.nan,
    65504.0,
    1e-5,
)


def examples(dtype: DType, generator: np.random.Generator) -> NDArray[Any]:
    """Random values, and in other places for each operand the smallest and largest numbers."""
    if dtype == PRED:
        return generator.integers(0, 2, NUM_THREADS).astype(bool)
    if dtype.kind == "f":
        numbers = generator.normal(size=NUM_THREADS) * 10.0 ** generator.integers(-6, 7, NUM_THREADS)
        edges = np.array(FLOATS)
    else:
        numbers = generator.integers(0, 256, NUM_THREADS * dtype.itemsize, np.uint8).view(dtype)
        limits = np.iinfo(dtype)
        edges = np.array([0, 1, limits.max, limits.min, limits.max - 1], dtype)
    numbers[:128] = generator.choice(edges, 128)
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


def operands(opcode: str) -> list[NDArray[Any]]:
    generator = np.random.default_rng(0)
    values = [examples(dtype, generator) for dtype in VALUES[opcode].arguments]
    if opcode.startswith(("shl", "shr")):
        values[1] = generator.choice(SHIFTS, NUM_THREADS).astype(U32)
    if opcode.startswith("bfe"):
        values[1] = generator.integers(0, 32, NUM_THREADS).astype(U32)
        values[2] = generator.integers(1, 33 - values[1].astype(int)).astype(U32)
    return values


@pytest.mark.parametrize("opcode", sorted(VALUES))
def test_value(opcode: str) -> None:
    result, types, _ = VALUES[opcode]
    values = operands(opcode)
    names = [f"{REGISTER[dtype.itemsize]}{number}" for number, dtype in enumerate(types, 1)]
    to = f"{REGISTER[result.itemsize]}9"
    block = run(
        f"{opcode} {to}, {', '.join(names)};", dict(zip(names, values, strict=True)), num_threads=NUM_THREADS
    )
    got = block.registers[to].view(result)
    function = expected(opcode)
    want = [function(*(x.item() for x in row)) for row in zip(*values, strict=True)]
    if result.kind == "f":
        with np.errstate(over="ignore"):
            want_T = np.array(want, np.float64).astype(result)
        np.testing.assert_array_equal(got, want_T)  # which counts NaN as equal, and the zeros
        np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(want_T[got == 0]))
    else:
        width = 1 if result == PRED else 8 * result.itemsize
        unsigned = [int(x) % (1 << width) for x in want]
        np.testing.assert_array_equal(
            got.view(f"u{result.itemsize}"), np.array(unsigned, f"u{result.itemsize}")
        )


def test_moves() -> None:
    assert {opcode for opcode in OPERATIONS if opcode.startswith("mov")} == OPERATIONS.keys() - VALUES.keys()
    for opcode in OPERATIONS.keys() - VALUES.keys():
        size = 1 if opcode == "mov.pred" else int(opcode[-2:]) // 8
        values = np.arange(32, dtype=f"u{size}") % 2 if size == 1 else np.arange(32, dtype=f"u{size}") << 9
        block = run(f"{opcode} {REGISTER[size]}2, {REGISTER[size]}1;", {f"{REGISTER[size]}1": values})
        np.testing.assert_array_equal(block.registers[f"{REGISTER[size]}2"].view(values.dtype), values)


@pytest.mark.parametrize(("whole", "part", "count"), [("b32", "rs", 2), ("b64", "r", 2), ("b64", "rs", 4)])
def test_a_register_is_split_and_joined(whole: str, part: str, count: int) -> None:
    size = int(whole[1:]) // 8
    values = np.random.default_rng(0).integers(0, 256, 32 * size, np.uint8).view(f"u{size}")
    parts = ", ".join(f"%{part}{number}" for number in range(count))
    one, other = f"{REGISTER[size]}10", f"{REGISTER[size]}11"
    block = run(f"mov.{whole} {{{parts}}}, {one}; mov.{whole} {other}, {{{parts}}};", {one: values})
    np.testing.assert_array_equal(block.registers[other], values)
    width = 8 * size // count
    for number in range(count):
        want = [int(x) >> number * width & (1 << width) - 1 for x in values]
        np.testing.assert_array_equal(block.registers[f"%{part}{number}"], want)
    run(f"mov.{whole} {{_, {parts.partition(', ')[2]}}}, {one};", {one: values})  # a part that nobody wants


def test_names_and_numbers() -> None:
    body = """
        mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %nctaid.z; mov.b32 %r4, global_smem;
        mov.b32 %r5, 0f3FC00000; mov.b32 %r6, -2; mov.b16 %rs1, 0x7FFF; mov.pred %p1, -1;
        add.s32 %r7, %r1, 0x10U;
    """
    registers = run(body, index=(1, 2, 0), grid=(4, 5, 6)).registers
    want = {"%r1": range(32), "%r2": 2, "%r3": 6, "%r4": 0, "%r6": 2**32 - 2, "%rs1": 0x7FFF, "%p1": True}
    for name, values in want.items():
        np.testing.assert_array_equal(registers[name], np.broadcast_to(values, 32))
    assert (registers["%r5"].view(np.float32) == 1.5).all()
    np.testing.assert_array_equal(registers["%r7"], np.arange(32) + 16)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("add.s32 %r1, %r2, %r3;", "%r2 is read before it is written"),
        ("mov.u32 %r1, 1; add.s64 %rd1, %r1, %r1;", "%r1 does not have the 8 bytes of the instruction"),
        ("mov.u32 %rd1, 1;", "%rd1 does not have the 4 bytes of the result"),
        ("mov.u32 %r64, 1;", "%r64 does not have the 4 bytes of the result"),
        ("mov.u32 %r1, somewhere;", "somewhere is neither a register nor a number"),
        ("mov.u32 %r1, 20; bfe.u32 %r2, %r1, 20, 13;", "leaves the number"),
    ],
)
def test_what_a_register_cannot_hold(body: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        run(body)
