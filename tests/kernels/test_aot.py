"""Every Triton kernel compiles for every target, without spills and within its shared memory, and
takes no more than results/gpu-counts.md says.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import counts_table
from assembly import Counts, inner_loop, read_amd, read_nvidia
from occupancy import LIMITS, programs_per_multiprocessor, warps_that_fit

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "results" / "gpu-counts.md"


def test_kernels_compile_and_take_no_more_than_the_table_says() -> None:
    # In a process of its own, because this one interprets kernels.
    command = [sys.executable, str(HERE / "aot.py"), "--compare", str(TABLE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout


@pytest.mark.parametrize(
    ("target", "num_registers", "num_warps", "shared", "want"),
    [
        ("sm90", 32, 4, 0, 16),  # 64 warps
        ("sm90", 24, 1, 0, 32),  # 32 programs
        ("sm86", 24, 1, 0, 16),
        ("sm90", 233, 4, 12_288, 2),  # 240 registers a thread, after rounding: two warps a partition
        ("sm90", 146, 4, 2048, 3),
        ("sm90", 128, 4, 2048, 4),
        ("sm90", 129, 4, 2048, 3),
        ("sm90", 222, 8, 28_672, 1),
        ("sm90", 64, 4, 65_536, 3),  # three times 65 KiB of 228
        ("sm80", 64, 4, 65_536, 2),
        ("sm86", 64, 4, 102_400, 0),  # 99 KiB a program
    ],
)
def test_how_many_programs_fit(
    target: str, num_registers: int, num_warps: int, shared: int, want: int
) -> None:
    assert programs_per_multiprocessor(target, num_warps, shared, warps_that_fit(num_registers)) == want


def test_limits_of_amd() -> None:
    assert programs_per_multiprocessor("gfx942", 4, 0, 32) == 8
    assert programs_per_multiprocessor("gfx942", 4, 16_384, 32) == 4
    assert all(limits.shared_per_program <= limits.shared for limits in LIMITS.values())


def test_the_inner_loop_of_nvidia_code() -> None:
    """An outer loop holds an inner one. Code that waits apart jumps back into the middle. The kernel ends
    with a branch to itself."""
    lines = [
        "MOV R1, R2",
        ".L_x_1:",
        "IADD R1",
        ".L_x_2:",
        "HMMA.16816.F32 R1",
        "@!P0 BAR.SYNC 0x0",
        ".L_x_5:",
    ]
    lines += ["SHFL.BFLY PT, R1", "@P1 BRA `(.L_x_2)", "@!UP1 BRA `(.L_x_1)", "EXIT", ".L_x_3:", "NANOSLEEP"]
    lines += ["BRA `(.L_x_5)", ".L_x_4:", "BRA `(.L_x_4)"]
    text = "\n".join(
        x if x.startswith(".L") else f"        /*{16 * i:04x}*/    {x} ;" for i, x in enumerate(lines)
    )
    assert inner_loop(read_nvidia(text)) == [lines[4], lines[5], lines[7], lines[8]]


def test_a_kernel_without_a_loop_is_counted_to_its_end() -> None:
    lines = ["MOV R1, R2", "EXIT", ".L_x_1:", "BRA `(.L_x_1)", "NOP"]
    text = "\n".join(x if x.startswith(".L") else f"        /*0000*/    {x} ;" for x in lines)
    assert inner_loop(read_nvidia(text)) == ["MOV R1, R2", "EXIT"]


def test_the_inner_loop_of_amd_code() -> None:
    text = "\ts_mov_b32 s0, 0\n.LBB0_1:   ; %a\n\tv_add_f32_dpp v0, v1 ; note\n\ts_cbranch_scc0 .LBB0_1\n"
    assert inner_loop(read_amd(text)) == ["v_add_f32_dpp v0, v1", "s_cbranch_scc0 .LBB0_1"]


def test_the_table_is_read_as_it_was_written() -> None:
    results = {("a kernel", "sm90"): Counts(*range(1, 10)), ("another", "gfx942"): Counts(*[0] * 9)}
    assert counts_table.read(counts_table.page(results)) == results


@pytest.mark.parametrize(
    ("field", "value", "is_worse"),
    [
        ("loop_instructions", 105, False), ("loop_instructions", 106, True), ("loop_instructions", 50, False),
        ("programs", 3, True), ("programs", 5, False), ("spilled", 8, True), ("loop_barriers", 11, True),
        ("registers", 255, False),
    ],
)  # fmt: skip
def test_what_is_worse(field: str, value: int, is_worse: bool) -> None:
    before = Counts(100, 0, 1024, 4, 4, 100, 10, 20, 30)
    assert bool(counts_table.worse(before, before._replace(**{field: value}))) == is_worse
    assert counts_table.worse(None, before)
