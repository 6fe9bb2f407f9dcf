"""Counts what a compiled kernel consists of, in the assembly of its GPU: registers, spills, and the
instructions of its inner loop.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from compiling import TARGETS
from occupancy import programs_per_multiprocessor, warps_that_fit
from triton import knobs


class Counts(NamedTuple):
    """One kernel on one target. `loop_` counts instructions in one round of the inner loop, for one warp. A
    kernel without a loop counts as one round."""

    registers: int
    """The number of registers of each thread; on AMD that of the vector registers."""
    spilled: int
    """Bytes of spill traffic (NVIDIA) or spilled vector registers (AMD)."""
    shared: int
    """Bytes of shared memory a program."""
    programs: int
    """The number of programs that one multiprocessor runs at a time."""
    warps: int
    """The number of warps of each program."""
    loop_instructions: int
    loop_barriers: int
    loop_shuffles: int
    """Exchanges between lanes; on AMD also moves across lanes (DPP)."""
    loop_products: int
    """Instructions for tensor cores (matrix cores)."""


class Assembly(NamedTuple):
    """The instructions of a kernel, and how to read them."""

    instructions: list[str]
    labels: dict[str, int]
    """The number of instructions before a label."""
    branch: re.Pattern[str]
    """Finds a branch, with its label as the first group."""
    end: re.Pattern[str]
    """Finds an instruction that ends a thread whatever happens."""


_GUARD = r"(?:@!?U?P\w+\s+)?"
_NVIDIA = {"barriers": r"BAR\b", "shuffles": r"SHFL\b", "products": r"\w*MMA\b"}
_AMD = {
    "barriers": r"s_barrier",
    "shuffles": r"ds_b?permute|ds_swizzle|v_permlane|\w+_dpp",
    "products": r"v_s?mfma",
}


def count(kernel: Any, target: str) -> Counts:
    """Count in a kernel that `compiling.compile_kernel` returned.

    Raises RuntimeError if the assembly does not contain what is counted.
    """
    return (_count_nvidia if TARGETS[target].backend == "cuda" else _count_amd)(kernel, target)


def inner_loop(assembly: Assembly) -> list[str]:
    """The instructions of the largest loop that holds no other loop; all instructions if there is no loop.

    A loop is what lies between a label and a branch back to it. Code that waits apart, after the kernel's
    end, and jumps back into the middle is no loop.
    """
    loops = []
    for last, instruction in enumerate(assembly.instructions):
        target = assembly.branch.match(instruction)
        first = assembly.labels.get(target[1], last + 1) if target else last + 1
        if first < last and not any(map(assembly.end.match, assembly.instructions[first:last])):
            loops.append((first, last))
    ends = [n for n, instruction in enumerate(assembly.instructions) if assembly.end.match(instruction)]
    end = ends[-1] if ends else len(assembly.instructions) - 1
    innermost = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]
    first, last = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, end))
    return assembly.instructions[first : last + 1]


def _loop_counts(assembly: Assembly, patterns: dict[str, str]) -> dict[str, int]:
    loop = inner_loop(assembly)
    counts = {"loop_instructions": len(loop)}
    for name, pattern in patterns.items():
        counts[f"loop_{name}"] = sum(re.match(_GUARD + pattern, line) is not None for line in loop)
    return counts


def read_nvidia(text: str) -> Assembly:
    """Read the assembly of an NVIDIA GPU that nvdisasm wrote."""
    instructions: list[str] = []
    labels = {}
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif statement := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(statement[1])
    return Assembly(instructions, labels, re.compile(_GUARD + r"BRA\b.*`\((\.L\w+)\)"), re.compile(r"EXIT\b"))


def read_amd(text: str) -> Assembly:
    """Read the assembly of an AMD GPU that Triton wrote."""
    instructions: list[str] = []
    labels = {}
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif statement := re.match(r"\t([a-z]\w+\b.*?)\s*(?:;.*)?$", line):
            instructions.append(statement[1])
    branch = re.compile(r"s_c?branch\w*\s+(\.L\w+)")
    return Assembly(instructions, labels, branch, re.compile(r"s_endpgm"))


def _count_nvidia(kernel: Any, target: str) -> Counts:
    architecture = TARGETS[target].arch
    with tempfile.TemporaryDirectory() as directory:
        ptx, cubin = Path(directory, "kernel.ptx"), Path(directory, "kernel.cubin")
        ptx.write_text(kernel.asm["ptx"])
        name = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
        ptxas = knobs.nvidia.ptxas_blackwell if architecture >= 100 else knobs.nvidia.ptxas
        command = [ptxas.path, "-v", f"--gpu-name={name}", str(ptx), "-o", str(cubin)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
        assembly = read_nvidia(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if registers is None or spills is None or not assembly.instructions:
        raise RuntimeError(f"ptxas or nvdisasm reports no registers or no code: {report[-300:]}")
    num_warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    programs = programs_per_multiprocessor(target, num_warps, shared, warps_that_fit(int(registers[1])))
    spilled = int(spills[1]) + int(spills[2])
    return Counts(int(registers[1]), spilled, shared, programs, num_warps, **_loop_counts(assembly, _NVIDIA))


def _count_amd(kernel: Any, target: str) -> Counts:
    text = kernel.asm["amdgcn"]

    def stated(pattern: str) -> int:
        match = re.search(pattern + r":\s+(\d+)", text)
        if match is None:
            raise RuntimeError(f"the {target} assembly has no {pattern}")
        return int(match[1])

    num_warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    waves = 4 * stated("; Occupancy")  # the compiler states those of one of four SIMD units
    programs = programs_per_multiprocessor(target, num_warps, shared, waves)
    registers, spilled = stated(r"\.vgpr_count"), stated(r"\.vgpr_spill_count")
    return Counts(registers, spilled, shared, programs, num_warps, **_loop_counts(read_amd(text), _AMD))
