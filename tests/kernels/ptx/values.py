"""PTX instructions that compute a value from registers, thread by thread.

VALUES says for each opcode the type of its result, of its operands, and the function. Approximate
instructions (ex2.approx, sqrt.approx, div.full) are exact to rounding here; a GPU's differ in the last bits.
"""

from typing import NamedTuple

import numpy as np

from ptx.arithmetic import (
    F16,
    F32,
    PRED,
    S16,
    S32,
    S64,
    U16,
    U32,
    U64,
    DType,
    Function,
    bf16_to_float,
    bit_field,
    exp2,
    float_to_bf16,
    float_to_tf32,
    float_to_u32,
    flushing,
    fused_multiply_add,
    larger,
    pair,
    permute_bytes,
    shift_left,
    shift_right,
    smaller,
)  # fmt: skip
from ptx.block import Block, Execute, Mask, Vector
from ptx.program import Instruction

TYPES = {
    "pred": PRED, "b16": U16, "u16": U16, "s16": S16, "f16": F16, "b32": U32, "u32": U32, "s32": S32,
    "f32": F32, "b64": U64, "u64": U64, "s64": S64,
}  # fmt: skip
WIDER = {"u32": U64, "s32": S64}


class Value(NamedTuple):
    result: DType
    arguments: tuple[DType, ...]
    function: Function


def _integers() -> dict[str, Value]:
    two: dict[str, Function] = {
        "add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "min": np.minimum, "max": np.maximum
    }  # fmt: skip
    values: dict[str, Value] = {}
    for kind in ("s32", "u32", "s64", "u64"):
        dtype = TYPES[kind]
        values |= {f"{name}.{kind}": Value(dtype, (dtype,) * 2, function) for name, function in two.items()}
        values[f"mad.lo.{kind}"] = Value(dtype, (dtype,) * 3, lambda x, y, z: x * y + z)
        values[f"shr.{kind}"] = Value(dtype, (dtype, U32), shift_right)
    for kind in ("s32", "s64"):
        values[f"neg.{kind}"] = Value(TYPES[kind], (TYPES[kind],), np.negative)
    for kind, wide in WIDER.items():
        dtype = TYPES[kind]

        def product(x: Vector, y: Vector, wide: DType = wide) -> Vector:
            return x.astype(wide) * y.astype(wide)

        values[f"mul.wide.{kind}"] = Value(wide, (dtype, dtype), product)
        values[f"mad.wide.{kind}"] = Value(
            wide, (dtype, dtype, wide), lambda x, y, z, product=product: product(x, y) + z
        )
        values[f"mul.hi.{kind}"] = Value(
            dtype, (dtype, dtype), lambda x, y, product=product: (product(x, y) >> 32).astype(x.dtype)
        )
        values[f"bfe.{kind}"] = Value(dtype, (dtype, U32, U32), bit_field)
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        for other in ("u16", "s16", "u32", "s32", "u64", "s64"):
            to = TYPES[kind]
            values[f"cvt.{kind}.{other}"] = Value(to, (TYPES[other],), lambda x, to=to: x.astype(to))
    return values | {"shr.u16": Value(U16, (U16, U32), shift_right)}


def _bits() -> dict[str, Value]:
    two: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    values = {"prmt.b32": Value(U32, (U32, U32, U32), permute_bytes)}
    for kind in ("b16", "b32", "b64", "pred"):
        dtype = TYPES[kind]
        values |= {f"{name}.{kind}": Value(dtype, (dtype,) * 2, function) for name, function in two.items()}
        values[f"not.{kind}"] = Value(dtype, (dtype,), np.invert)
        if kind != "pred":
            values[f"shl.{kind}"] = Value(dtype, (dtype, U32), shift_left)
    return values


def _floats() -> dict[str, Value]:
    functions: dict[str, tuple[int, Function]] = {
        "add": (2, np.add), "sub": (2, np.subtract), "mul": (2, np.multiply), "max": (2, larger),
        "min": (2, smaller), "div.full": (2, np.divide), "div.rn": (2, np.divide), "neg": (1, np.negative),
        "abs": (1, np.abs), "sqrt.rn": (1, np.sqrt), "ex2.approx.ftz": (1, flushing(exp2)),
        "sqrt.approx.ftz": (1, flushing(np.sqrt)), "lg2.approx.ftz": (1, flushing(np.log2)),
        "fma.rn": (3, fused_multiply_add), "fma.rn.ftz": (3, flushing(fused_multiply_add)),
    }  # fmt: skip
    return {
        f"{name}.f32": Value(F32, (F32,) * count, function) for name, (count, function) in functions.items()
    }


def _roundings() -> dict[str, Value]:
    return {
        "cvt.rn.f32.s32": Value(F32, (S32,), lambda x: x.astype(F32)),
        "cvt.rn.f32.u32": Value(F32, (U32,), lambda x: x.astype(F32)),
        "cvt.rzi.u32.f32": Value(U32, (F32,), float_to_u32),
        "cvt.f32.f16": Value(F32, (F16,), lambda x: x.astype(F32)),
        "cvt.rn.f16.f32": Value(F16, (F32,), lambda x: x.astype(F16)),
        "cvt.f32.bf16": Value(F32, (U16,), bf16_to_float),
        "cvt.rn.bf16.f32": Value(U16, (F32,), float_to_bf16),
        "cvt.rn.bf16x2.f32": Value(
            U32, (F32, F32), lambda high, low: pair(float_to_bf16(high), float_to_bf16(low))
        ),
        "cvt.rn.f16x2.f32": Value(
            U32, (F32, F32), lambda high, low: pair(high.astype(F16).view(U16), low.astype(F16).view(U16))
        ),
        "cvt.rna.tf32.f32": Value(U32, (F32,), float_to_tf32),
    }


def _comparisons() -> dict[str, Value]:
    compare: dict[str, Function] = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
        "ge": np.greater_equal,
    }  # fmt: skip

    def is_nan(x: Vector, y: Vector) -> Vector:
        return np.isnan(x) | np.isnan(y)

    values = {
        f"setp.{name}.{kind}": Value(PRED, (TYPES[kind],) * 2, function)
        for kind in ("s32", "u32", "s64", "u64", "b16", "b32", "b64")
        for name, function in compare.items()
        if kind[0] != "b" or name in ("eq", "ne")
    }
    for name, function in compare.items():  # false with a NaN, and true with a "u" after the name
        values[f"setp.{name}.f32"] = Value(
            PRED, (F32, F32), lambda x, y, function=function: function(x, y) & ~is_nan(x, y)
        )
        values[f"setp.{name}u.f32"] = Value(
            PRED, (F32, F32), lambda x, y, function=function: function(x, y) | is_nan(x, y)
        )
    values["setp.num.f32"] = Value(PRED, (F32, F32), lambda x, y: ~is_nan(x, y))
    values["setp.nan.f32"] = Value(PRED, (F32, F32), is_nan)
    for kind in ("b16", "b32", "b64", "f32"):
        dtype = TYPES[kind]
        values[f"selp.{kind}"] = Value(dtype, (dtype, dtype, PRED), lambda x, y, which: np.where(which, x, y))
    return values


VALUES = _integers() | _bits() | _floats() | _roundings() | _comparisons()


def _execute(value: Value) -> Execute:
    _, types, function = value

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
