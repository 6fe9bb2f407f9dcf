"""What instructions of PTX must compute, in scalar Python: integers without bounds, floats in float64.

The values of registers come as int, float or bool. Results of integer type are taken modulo their width.
"""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np

Number = int | float


def to_f32(x: float) -> float:
    """Round to the nearest float32. A number beyond the largest becomes infinity."""
    try:
        return struct.unpack("f", struct.pack("f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def bits_of(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little")


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def fused(x: float, y: float, z: float) -> float:
    if all(map(math.isfinite, (x, y, z))) and x * y + z:
        return to_f32(float(Fraction(x) * Fraction(y) + Fraction(z)))
    return to_f32(x * y + z)


def divided(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)


def nearest_bf16(x: float) -> int:
    """The bits of the nearest bfloat16, which are the upper half of a float32. Ties go to even."""
    if math.isnan(x):
        return 0x7FFF
    bits = bits_of(x)
    lower, rest = bits >> 16, bits & 0xFFFF
    return lower + (rest > 0x8000 or (rest == 0x8000 and lower % 2 == 1))


def nearest_f16(x: float) -> int:
    try:
        return int.from_bytes(struct.pack("<e", x), "little")
    except OverflowError:
        return 0xFC00 if x < 0 else 0x7C00


def nearest_tf32(x: float) -> int:
    """The bits of the nearest tf32, with 11 bits of mantissa. Ties go away from zero."""
    bits = bits_of(x)
    return bits if not math.isfinite(x) else (bits >> 13 << 13) + (0x2000 if bits & 0x1000 else 0)


def permuted(x: int, y: int, selector: int) -> int:
    source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
    nibbles = [selector >> 4 * i & 15 for i in range(4)]
    picked = [(0xFF if source[n & 7] > 127 else 0) if n & 8 else source[n & 7] for n in nibbles]
    return int.from_bytes(picked, "little")


def root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def log2(x: float) -> float:
    return (math.log2(x) if x else -math.inf) if x >= 0 else math.nan


def exp2(x: float) -> float:
    return math.inf if x > 500 else 2.0**x if x > -500 else 0.0 if x == x else x


def _by_size_and_sign(x: Number) -> tuple[Number, float]:
    return x, math.copysign(1, x)


def larger(x: Number, y: Number) -> Number:
    """The larger number. It is NaN only if both are; 0 is larger than -0."""
    return y if x != x else x if y != y else max(x, y, key=_by_size_and_sign)


def smaller(x: Number, y: Number) -> Number:
    return y if x != x else x if y != y else min(x, y, key=_by_size_and_sign)


COMPARE: dict[str, Callable[[Number, Number], bool]] = {
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y and x == x and y == y, "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    "num": lambda x, y: x == x and y == y, "nan": lambda x, y: x != x or y != y,
}  # fmt: skip
COMPARE |= {
    name + "u": lambda x, y, compare=COMPARE[name]: x != x or y != y or compare(x, y)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
EXPECTED: dict[str, Callable[..., Number]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
    "mul.lo": lambda x, y: x * y, "mul.wide": lambda x, y: x * y, "mul.hi": lambda x, y: x * y >> 32,
    "mad.lo": lambda x, y, z: x * y + z, "mad.wide": lambda x, y, z: x * y + z, "min": smaller, "max": larger,
    "neg": lambda x: -x, "abs": abs, "and": lambda x, y: x & y, "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y, "not": lambda x: ~x, "shl": lambda x, n: x << min(n, 64),
    "shr": lambda x, n: x >> min(n, 64), "bfe": lambda x, start, length: (x >> start) & ((1 << length) - 1),
    "prmt": permuted, "div.full": divided, "div.rn": divided, "fma.rn": fused,
    "fma.rn.ftz": lambda *xs: flushed(fused(*map(flushed, xs))), "sqrt.rn": root,
    "sqrt.approx.ftz": lambda x: root(flushed(x)), "ex2.approx.ftz": lambda x: flushed(exp2(flushed(x))),
    "lg2.approx.ftz": lambda x: log2(flushed(x)), "selp": lambda x, y, which: x if which else y,
}  # fmt: skip
EXPECTED_CVT: dict[str, Callable[..., Number]] = {
    "cvt.f32.bf16": lambda bits: struct.unpack("f", (bits << 16).to_bytes(4, "little"))[0],
    "cvt.rn.bf16.f32": nearest_bf16,
    "cvt.rn.f16.f32": lambda x: float(np.uint16(nearest_f16(x)).view(np.float16)),
    "cvt.rn.bf16x2.f32": lambda x, y: nearest_bf16(x) << 16 | nearest_bf16(y),
    "cvt.rn.f16x2.f32": lambda x, y: nearest_f16(x) << 16 | nearest_f16(y),
    "cvt.rna.tf32.f32": nearest_tf32,
    "cvt.rzi.u32.f32": lambda x: math.trunc(min(max(x, 0), 2**32 - 1)) if x == x else 0,
}


def expected(opcode: str) -> Callable[..., Number]:
    """The function of an instruction's operands."""
    if opcode in EXPECTED_CVT:
        return EXPECTED_CVT[opcode]
    if opcode.startswith("cvt"):
        return lambda x: (
            x
        )  # to a wider, narrower or rounded number: the conversion to the result's type does it
    if opcode.startswith("setp"):
        return COMPARE[opcode.split(".")[1]]
    if opcode == "bfe.s32":
        return lambda x, start, length: (
            (((x >> start) + 2 ** (length - 1)) & ((1 << length) - 1)) - 2 ** (length - 1)
        )
    return EXPECTED[opcode.rpartition(".")[0]]
