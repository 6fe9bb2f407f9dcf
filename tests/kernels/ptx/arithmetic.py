"""What PTX instructions compute where NumPy has no function for it: rounding to bfloat16 and tf32, shifts by
any amount, bytes put in another order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.block import Vector
from ptx.program import Fault

DType = np.dtype[Any]
PRED, U16, S16, F16 = (np.dtype(kind) for kind in (bool, np.uint16, np.int16, np.float16))
U32, S32, F32 = (np.dtype(kind) for kind in (np.uint32, np.int32, np.float32))
U64, S64, F64 = (np.dtype(kind) for kind in (np.uint64, np.int64, np.float64))
SMALLEST_NORMAL = 2.0**-126
"""The smallest positive float32 that is not subnormal."""
Function = Callable[..., Vector]


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


def float_to_u32(x: Vector) -> Vector:
    """Round towards zero. What is out of range becomes the nearest number in it, and NaN becomes 0."""
    return np.clip(np.nan_to_num(x.astype(F64)), 0, 2**32 - 1).astype(U32)


def flush(x: Vector) -> Vector:
    """Subnormal numbers become zeros of their sign, as `.ftz` asks."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def flushing(function: Function) -> Function:
    return lambda *values: flush(function(*map(flush, values)))


def fused_multiply_add(x: Vector, y: Vector, z: Vector) -> Vector:
    """x y + z is rounded once, since the product of two float32 is exact in float64."""
    return (x.astype(F64) * y.astype(F64) + z.astype(F64)).astype(F32)


def exp2(x: Vector) -> Vector:
    return np.exp2(x.astype(F64)).astype(F32)


def larger(x: Vector, y: Vector) -> Vector:
    """The larger number. If one of the two is NaN, it is the other one; 0 is larger than -0."""
    return np.where(x == y, (x.view(U32) & y.view(U32)).view(F32), np.fmax(x, y))


def smaller(x: Vector, y: Vector) -> Vector:
    """The smaller number. If one of the two is NaN, it is the other one; -0 is smaller than 0."""
    return np.where(x == y, (x.view(U32) | y.view(U32)).view(F32), np.fmin(x, y))


def shift_left(x: Vector, amount: Vector) -> Vector:
    """A shift by the number of bits of x or more gives 0."""
    width = 8 * x.dtype.itemsize
    return np.where(amount < width, x << np.minimum(amount, width - 1).astype(x.dtype), 0).astype(x.dtype)


def shift_right(x: Vector, amount: Vector) -> Vector:
    """A shift by the number of bits of x or more gives 0, or copies of the sign if x is signed."""
    width = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(amount, width - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(amount < width, shifted, 0).astype(x.dtype)


def bit_field(x: Vector, start: Vector, length: Vector) -> Vector:
    """The instruction bfe. The field must lie within the number; Triton emits no other kind."""
    if ((length == 0) | (start + length > 32)).any():
        raise Fault("a bit field that is empty or leaves the number")
    width = np.uint32(32)
    at_the_top = x << (width - start - length).astype(x.dtype)
    return at_the_top >> (width - length).astype(x.dtype)


def permute_bytes(x: Vector, y: Vector, selector: Vector) -> Vector:
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


def pair(high: Vector, low: Vector) -> Vector:
    return high.astype(U32) << np.uint32(16) | low.astype(U32)
