"""PTX instructions that compute a value from registers, thread by thread.

VALUES says for each opcode the type of its result, of its operands, and the function. Approximate
instructions (ex2.approx, sqrt.approx, div.full) are exact to rounding here; a GPU's differ in the last bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ptx.block import Block, Execute, Mask, Vector
from ptx.program import Fault, Instruction

DType = np.dtype[Any]
PRED, U16, S16, F16 = (np.dtype(kind) for kind in (bool, np.uint16, np.int16, np.float16))
U32, S32, F32 = (np.dtype(kind) for kind in (np.uint32, np.int32, np.float32))
U64, S64, F64 = (np.dtype(kind) for kind in (np.uint64, np.int64, np.float64))
TYPES = {
    "pred": PRED, "b16": U16, "u16": U16, "s16": S16, "f16": F16, "b32": U32, "u32": U32, "s32": S32,
    "f32": F32, "b64": U64, "u64": U64, "s64": S64,
}  # fmt: skip
INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
WIDER = {U16: U32, S16: S32, U32: U64, S32: S64}
SMALLEST_NORMAL = np.finfo(F32).smallest_normal


class Value(NamedTuple):
    result: DType
    arguments: tuple[DType, ...]
    function: Callable[..., Vector]


def bf16_to_float(bits: Vector) -> Vector:
    return (bits.astype(U32) << 16).view(F32)


def float_to_bf16(x: Vector) -> Vector:
    """Round to nearest, ties to even; NaN becomes 0x7fff."""
    bits = x.view(U32).astype(U64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(U16)


def float_to_tf32(x: Vector) -> Vector:
    """Round to 10 bits of mantissa, ties away from zero; infinity and NaN stay."""
    bits = x.view(U32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits).astype(U32)


def _flush(x: Vector) -> Vector:
    """Subnormal numbers become zeros of their sign, as `.ftz` asks."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def _flushing(function: Callable[..., Vector]) -> Callable[..., Vector]:
    return lambda *values: _flush(function(*map(_flush, values)))


def _fma(x: Vector, y: Vector, z: Vector) -> Vector:
    """One rounding: the product of two float32 is exact in float64."""
    return (x.astype(F64) * y.astype(F64) + z.astype(F64)).astype(F32)


def _exp2(x: Vector) -> Vector:
    return np.exp2(x.astype(F64)).astype(F32)


def _max(x: Vector, y: Vector) -> Vector:
    """The other one if one is NaN; 0 is larger than -0."""
    return np.where(x == y, (x.view(U32) & y.view(U32)).view(F32), np.fmax(x, y))


def _min(x: Vector, y: Vector) -> Vector:
    """The other one if one is NaN; -0 is smaller than 0."""
    return np.where(x == y, (x.view(U32) | y.view(U32)).view(F32), np.fmin(x, y))


def _shift_left(x: Vector, amount: Vector) -> Vector:
    """Amounts from the width on give 0."""
    width = 8 * x.dtype.itemsize
    return np.where(amount < width, x << np.minimum(amount, width - 1).astype(x.dtype), 0).astype(x.dtype)


def _shift_right(x: Vector, amount: Vector) -> Vector:
    """Amounts from the width on give 0, or copies of the sign."""
    width = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(amount, width - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(amount < width, shifted, 0).astype(x.dtype)


def _bit_field(x: Vector, start: Vector, length: Vector) -> Vector:
    """bfe for a field within the number, the only kind that Triton emits."""
    if ((length == 0) | (start + length > 32)).any():
        raise Fault("a bit field that is empty or leaves the number")
    width = np.uint32(32)
    at_the_top = x << (width - start - length).astype(x.dtype)
    return at_the_top >> (width - length).astype(x.dtype)


def _permute_bytes(x: Vector, y: Vector, selector: Vector) -> Vector:
    """prmt: byte i of the result is the byte that nibble i names of the eight of y:x; its bit 3 asks for
    copies of that byte's sign."""
    both = x.astype(U64) | y.astype(U64) << np.uint64(32)
    result = np.zeros_like(x)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> ((nibble & np.uint32(7)).astype(U64) * np.uint64(8))).astype(np.uint8)
        byte = np.where(nibble & np.uint32(8), (byte.view(np.int8) >> 7).view(np.uint8), byte)
        result |= byte.astype(U32) << np.uint32(8 * i)
    return result


def _integers(values: dict[str, Value]) -> None:
    for kind in ("s32", "u32", "s64", "u64"):
        dtype = TYPES[kind]
        for name, function in (("add", np.add), ("sub", np.subtract), ("mul.lo", np.multiply)):
            values[f"{name}.{kind}"] = Value(dtype, (dtype, dtype), function)
        for name, function in (("min", np.minimum), ("max", np.maximum)):
            values[f"{name}.{kind}"] = Value(dtype, (dtype, dtype), function)
        values[f"mad.lo.{kind}"] = Value(dtype, (dtype,) * 3, lambda x, y, z: x * y + z)
        values[f"shr.{kind}"] = Value(dtype, (dtype, U32), _shift_right)
    for kind in ("s32", "s64"):
        values[f"neg.{kind}"] = Value(TYPES[kind], (TYPES[kind],), np.negative)
    for kind in ("s32", "u32"):
        dtype, wide = TYPES[kind], WIDER[TYPES[kind]]
        values[f"mul.wide.{kind}"] = Value(
            wide, (dtype, dtype), lambda x, y, wide=wide: x.astype(wide) * y.astype(wide)
        )
        values[f"mad.wide.{kind}"] = Value(
            wide, (dtype, dtype, wide), lambda x, y, z, wide=wide: x.astype(wide) * y.astype(wide) + z
        )
        values[f"mul.hi.{kind}"] = Value(
            dtype, (dtype, dtype),
            lambda x, y, wide=wide: (x.astype(wide) * y.astype(wide) >> wide.type(32)).astype(x.dtype),
        )  # fmt: skip
        values[f"bfe.{kind}"] = Value(dtype, (dtype, U32, U32), _bit_field)
    for kind in INTEGERS:
        for other in INTEGERS:
            to, source = TYPES[kind], TYPES[other]
            values[f"cvt.{kind}.{other}"] = Value(to, (source,), lambda x, to=to: x.astype(to))
    values["shr.u16"] = Value(U16, (U16, U32), _shift_right)


def _bits(values: dict[str, Value]) -> None:
    for kind in ("b16", "b32", "b64", "pred"):
        dtype = TYPES[kind]
        for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
            values[f"{name}.{kind}"] = Value(dtype, (dtype, dtype), function)
        values[f"not.{kind}"] = Value(dtype, (dtype,), np.invert)
        if kind != "pred":
            values[f"shl.{kind}"] = Value(dtype, (dtype, U32), _shift_left)
    values["prmt.b32"] = Value(U32, (U32, U32, U32), _permute_bytes)


def _floats(values: dict[str, Value]) -> None:
    for name, function in (
        ("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("max", _max), ("min", _min),
        ("div.full", np.divide), ("div.rn", np.divide),
    ):  # fmt: skip
        values[f"{name}.f32"] = Value(F32, (F32, F32), function)
    for name, function in (("neg", np.negative), ("abs", np.abs), ("sqrt.rn", np.sqrt)):
        values[f"{name}.f32"] = Value(F32, (F32,), function)
    for name, function in (("ex2", _exp2), ("sqrt", np.sqrt), ("lg2", np.log2)):
        values[f"{name}.approx.ftz.f32"] = Value(F32, (F32,), _flushing(function))
    values["fma.rn.f32"] = Value(F32, (F32,) * 3, _fma)
    values["fma.rn.ftz.f32"] = Value(F32, (F32,) * 3, _flushing(_fma))
    for kind in ("s32", "u32"):
        values[f"cvt.rn.f32.{kind}"] = Value(F32, (TYPES[kind],), lambda x: x.astype(F32))
    values["cvt.f32.f16"] = Value(F32, (F16,), lambda x: x.astype(F32))
    values["cvt.rn.f16.f32"] = Value(F16, (F32,), lambda x: x.astype(F16))
    values["cvt.f32.bf16"] = Value(F32, (U16,), bf16_to_float)
    values["cvt.rn.bf16.f32"] = Value(U16, (F32,), float_to_bf16)
    values["cvt.rn.bf16x2.f32"] = Value(
        U32, (F32, F32), lambda high, low: _pair(float_to_bf16(high), float_to_bf16(low))
    )
    values["cvt.rn.f16x2.f32"] = Value(
        U32, (F32, F32), lambda high, low: _pair(high.astype(F16).view(U16), low.astype(F16).view(U16))
    )
    values["cvt.rna.tf32.f32"] = Value(U32, (F32,), float_to_tf32)


def _pair(high: Vector, low: Vector) -> Vector:
    return high.astype(U32) << np.uint32(16) | low.astype(U32)


def _comparisons(values: dict[str, Value]) -> None:
    ordered: dict[str, Callable[..., Vector]] = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
        "ge": np.greater_equal,
    }  # fmt: skip
    for kind in ("s32", "u32", "s64", "u64"):
        for name, function in ordered.items():
            values[f"setp.{name}.{kind}"] = Value(PRED, (TYPES[kind],) * 2, function)
    for kind in ("b16", "b32", "b64"):
        for name in ("eq", "ne"):
            values[f"setp.{name}.{kind}"] = Value(PRED, (TYPES[kind],) * 2, ordered[name])
    for name, function in ordered.items():  # false with a NaN; with a "u" true with a NaN
        values[f"setp.{name}.f32"] = Value(
            PRED, (F32, F32), lambda x, y, function=function: function(x, y) & ~np.isnan(x) & ~np.isnan(y)
        )
        values[f"setp.{name}u.f32"] = Value(
            PRED, (F32, F32), lambda x, y, function=function: function(x, y) | np.isnan(x) | np.isnan(y)
        )
    values["setp.num.f32"] = Value(PRED, (F32, F32), lambda x, y: ~np.isnan(x) & ~np.isnan(y))
    values["setp.nan.f32"] = Value(PRED, (F32, F32), lambda x, y: np.isnan(x) | np.isnan(y))
    for kind in ("b16", "b32", "b64", "f32"):
        dtype = TYPES[kind]
        values[f"selp.{kind}"] = Value(
            dtype, (dtype, dtype, PRED), lambda x, y, which: np.where(which, x, y)
        )


VALUES: dict[str, Value] = {}
for _add_to in (_integers, _bits, _floats, _comparisons):
    _add_to(VALUES)


def _execute(value: Value) -> Execute:
    result, types, function = value

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        destination, *sources = instruction.operands
        operands = [block.read(x, dtype) for x, dtype in zip(sources, types, strict=True)]
        block.write(destination, function(*operands), mask)

    return execute


def _move(dtype: DType) -> Execute:
    """mov: a copy, the parts of a register into several, or several registers into one."""

    def execute(block: Block, instruction: Instruction, mask: Mask) -> None:
        to, source = instruction.operands
        if isinstance(to, tuple):
            part = np.dtype(f"u{dtype.itemsize // len(to)}")
            parts_TP = block.read(source, dtype).copy().view(part).reshape(len(mask), -1)
            for register, part_T in zip(to, parts_TP.T, strict=True):
                block.write(register, part_T.copy(), mask)
        elif isinstance(source, tuple):
            part = np.dtype(f"u{dtype.itemsize // len(source)}")
            parts_TP = np.stack([block.read(register, part) for register in source], 1)
            block.write(to, parts_TP.view(dtype)[:, 0].copy(), mask)
        else:
            block.write(to, block.read(source, dtype), mask)

    return execute


OPERATIONS: dict[str, Execute] = {opcode: _execute(value) for opcode, value in VALUES.items()}
OPERATIONS |= {
    f"mov.{kind}": _move(TYPES[kind]) for kind in ("pred", "b16", "u16", "b32", "u32", "f32", "b64", "u64")
}
