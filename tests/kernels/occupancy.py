"""How many programs (thread blocks) of a kernel one multiprocessor runs at a time.

NVIDIA's limits: CUDA C++ Programming Guide 13, "Compute Capabilities", table "Technical Specifications per
Compute Capability"; the granularity of registers and of shared memory: cuda_occupancy.h of the CUDA toolkit.
AMD's: CDNA3 Instruction Set Architecture, "Limits", with the number of waves as the compiler states it.
"""

from typing import NamedTuple

KIB = 1024


class Limits(NamedTuple):
    """What one multiprocessor can hold at a time; shared memory is in bytes."""

    num_programs: int
    num_warps: int
    shared: int
    shared_per_program: int
    reserved_per_program: int
    """Bytes of shared memory that the system takes from each program."""


LIMITS = {
    "sm80": Limits(32, 64, 164 * KIB, 163 * KIB, KIB),
    "sm86": Limits(16, 48, 100 * KIB, 99 * KIB, KIB),
    "sm89": Limits(24, 48, 100 * KIB, 99 * KIB, KIB),
    "sm90": Limits(32, 64, 228 * KIB, 227 * KIB, KIB),
    "sm100": Limits(32, 64, 228 * KIB, 227 * KIB, KIB),
    "sm120": Limits(24, 48, 100 * KIB, 99 * KIB, KIB),
    "gfx942": Limits(32, 32, 64 * KIB, 64 * KIB, 0),
}
NUM_PARTITIONS = 4
"""A multiprocessor has so many partitions with registers of their own. A warp (wave) runs in one of them."""
REGISTERS_PER_PARTITION = 16_384
"""An NVIDIA partition has so many registers of 32 bits. A warp of 32 threads gets them in units of 256."""
REGISTER_UNIT = 256
SHARED_UNIT = 128


def warps_that_fit(num_registers: int) -> int:
    """The number of warps for which an NVIDIA multiprocessor has enough registers."""
    per_warp = -(-num_registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    return REGISTERS_PER_PARTITION // per_warp * NUM_PARTITIONS


def programs_per_multiprocessor(target: str, num_warps: int, shared: int, warps_by_registers: int) -> int:
    """The least of what registers, warps, shared memory and programs allow; 0 if one does not fit."""
    limits = LIMITS[target]
    if shared > limits.shared_per_program:
        return 0
    num_programs = min(limits.num_programs, min(limits.num_warps, warps_by_registers) // num_warps)
    per_program = -(-shared // SHARED_UNIT) * SHARED_UNIT + limits.reserved_per_program
    return min(num_programs, limits.shared // per_program) if per_program else num_programs
