"""Branches, barriers and mistakes of one thread block."""

import numpy as np
import pytest

pytest.importorskip("triton")

from ptx import block as block_module
from ptx.program import Fault, parse
from ptx.snippets import BODY_LINE, run

THREAD = np.arange(64, dtype=np.uint32)


def test_threads_that_branch_apart_meet_again() -> None:
    """Thread t runs a loop t times; odd threads then double the result."""
    body = """
        mov.u32 %r1, %tid.x; mov.u32 %r2, 0; mov.u32 %r3, 0;
    $LOOP:
        setp.ge.u32 %p1, %r3, %r1;
        @%p1 bra $DONE;
        add.s32 %r2, %r2, 3;
        add.s32 %r3, %r3, 1;
        bra.uni $LOOP;
    $DONE:
        and.b32 %r4, %r1, 1;
        setp.eq.b32 %p2, %r4, 0;
        @%p2 bra $END;
        shl.b32 %r2, %r2, 1;
    $END:
        bar.sync 0;
        mov.u32 %r5, %r2;
    """
    registers = run(body, num_threads=64).registers
    np.testing.assert_array_equal(registers["%r5"], 3 * THREAD * (1 + THREAD % 2))


def test_guards() -> None:
    body = "setp.lt.u32 %p1, %r1, 40; mov.u32 %r2, 5; @%p1 mov.u32 %r2, 6; @!%p1 add.s32 %r2, %r2, %r1;"
    registers = run(body, {"%r1": THREAD}, num_threads=64).registers
    np.testing.assert_array_equal(registers["%r2"], np.where(THREAD < 40, 6, 5 + THREAD))


def test_a_barrier_orders_two_warps() -> None:
    exchange = "st.shared.b32 [%r1], %r2; {} ld.shared.b32 %r4, [%r3];"
    registers = {"%r1": 4 * THREAD, "%r2": THREAD, "%r3": 4 * (63 - THREAD)}
    options = {"num_threads": 64, "num_shared_bytes": 256}
    block = run(exchange.format("bar.sync 0;"), registers, **options)
    np.testing.assert_array_equal(block.registers["%r4"], 63 - THREAD)
    assert block.executed["bar.sync"] == 1
    for instead in ("", "bar.warp.sync -1;"):
        with pytest.raises(Fault, match=r"race: \d loads what another stored"):
            run(exchange.format(instead), registers, **options)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@%p1 bra $A;\n bar.sync 0;\n$A:\n", "63 of 64 threads reach this barrier"),
        ("@%p1 ret;\n bar.sync 0;\n", "63 of 64 threads reach this barrier"),
        (
            "@%p1 bra $A;\n bar.sync 0;\n bra $B;\n$A:\n bar.sync 0;\n$B:\n",
            "63 of 64 threads reach this barrier",
        ),
        ("bar.sync 1;", "a barrier of another kind"),
        ("@%p1 bar.sync 0;", "a barrier of another kind"),
    ],
)
def test_a_barrier_that_not_all_threads_reach(body: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        run(body, {"%p1": THREAD == 10}, num_threads=64)


def test_an_unknown_instruction_names_its_line() -> None:
    with pytest.raises(
        Fault, match=rf"snippet, line {BODY_LINE + 1}: unknown instruction: sin.approx.f32 %r1, %r1"
    ):
        run("mov.u32 %r1, 1;\nsin.approx.f32 %r1, %r1;")
    for opcode in ("add.sat.s32", "add.rz.f32", "mov.v2.u32"):  # a modifier is never passed over
        with pytest.raises(Fault, match="unknown instruction"):
            run(f"mov.u32 %r1, 1; {opcode} %r1, %r1, %r1;")


def test_a_loop_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(Fault, match="snippet does not end"):
        run("$A:\n bra $A;")


@pytest.mark.parametrize("text", ["", ".visible .entry f(\n)\n{\n\tret;\n}\n"])
def test_a_text_that_is_no_kernel(text: str) -> None:
    with pytest.raises(Fault, match="no kernel"):
        parse(text)


def test_the_text_is_read() -> None:
    program = parse(
        ".visible .entry f(\n\t.param .u64 .ptr .global .align 1 f_param_0,\n\t.param .f32 f_param_1\n)\n"
        ".reqntid 128\n"
        "{\n\t.reg .b32 \t%r<3>;\n$A: $B:\n\t.loc 1 2 3\n"
        "\tmov.u32 %r1, 0x0; @!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + -8 ]; // a comment; of two\n"
        "\tret;\n}\n"
    )
    assert program.parameters == {"f_param_0": "u64", "f_param_1": "f32"}
    assert program.num_threads == 128
    assert program.labels == {"$A": 0, "$B": 0}
    assert program.widths == {"%r0": 4, "%r1": 4, "%r2": 4}
    first, load, last = program.instructions
    assert (first.opcode, first.operands, first.guard, first.line) == ("mov.u32", ("%r1", "0x0"), None, 10)
    assert load.operands == (("%r1", "%r2"), ("%rd1", -8))
    assert load.guard == ("%p1", False)
    assert (last.opcode, last.line) == ("ret", 11)
