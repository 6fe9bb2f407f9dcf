"""Each instruction that moves data between registers and memory, with threads in shuffled places."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ptx.memory import ARGUMENT_BITS
from ptx.program import Fault
from ptx.snippets import run, snippet
from ptx.transfers import OPERATIONS

GENERATOR = np.random.default_rng(0)
TRANSFERS = sorted(name for name in OPERATIONS if re.match(r"(ld|st)\.(shared|global)", name))
COPIES = {
    "cp.async.ca.shared.global", "cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group"
}  # fmt: skip
TENSOR_ADDRESS = 1 << ARGUMENT_BITS


def test_every_transfer_is_tested() -> None:
    parameters = {name for name in OPERATIONS if name.startswith("ld.param.")}
    assert OPERATIONS.keys() == {*TRANSFERS, *COPIES, *parameters}


def vector(opcode: str) -> tuple[int, int, str]:
    """The bytes of an element, the number of elements, and the operand with their registers."""
    count = int(match[1]) if (match := re.search(r"\.v(\d)", opcode)) else 1
    size = int(opcode[-2:]) // 8
    names = [f"%{ {2: 'rs', 4: 'r', 8: 'rd'}[size] }{number + 10}" for number in range(count)]
    return size, count, "{" + ", ".join(names) + "}" if count > 1 else names[0]


@pytest.mark.parametrize("opcode", TRANSFERS)
def test_transfer(opcode: str) -> None:
    size, count, names = vector(opcode)
    order = GENERATOR.permutation(32)
    content = GENERATOR.integers(0, 256, (32, count, size), np.uint8)
    is_shared, is_load = ".shared" in opcode, opcode.startswith("ld")
    address = "%r1" if is_shared else "%rd1"
    place = order * size * count + (0 if is_shared else TENSOR_ADDRESS)
    registers = {address: place.astype(np.uint32 if is_shared else np.uint64), "%p1": np.arange(32) != 5}
    memory = content if is_load else np.zeros_like(content)
    tensor = torch.from_numpy(memory.reshape(-1).copy())
    if not is_load:
        parts = content[order].view(f"u{size}")[..., 0]
        registers |= dict(zip(names.strip("{}").split(", "), parts.T.copy(), strict=True))
    text = f"@%p1 {opcode} {names}, [{address}+0];" if is_load else f"@%p1 {opcode} [{address}+0], {names};"
    block = snippet(text, registers, num_shared_bytes=memory.size, tensors={"x": tensor})
    block.shared.data[:] = 0xFF
    if is_load:
        block.shared.data[: memory.size] = memory.reshape(-1)
        block.shared.was_stored[:] = True
    block.run()
    block.memory.copy_back_()
    others = np.arange(32) != 5
    if is_load:
        for part, name in enumerate(names.strip("{}").split(", ")):
            want = content[order, part].view(f"u{size}")[:, 0]
            np.testing.assert_array_equal(block.registers[name][others], want[others])
    else:
        stored = block.shared.data[: memory.size] if is_shared else tensor.numpy()
        want = content.copy()
        want[order[5]] = 0xFF if is_shared else 0
        np.testing.assert_array_equal(stored.reshape(content.shape), want)


def test_an_offset_in_the_address() -> None:
    tensor = torch.arange(64, dtype=torch.int32)
    start = np.full(32, TENSOR_ADDRESS + 8, np.uint64) + 4 * np.arange(32, dtype=np.uint64)
    block = run(
        "ld.global.b32 %r1, [%rd1+-8]; ld.global.b32 %r2, [ %rd1 + 16 ];",
        {"%rd1": start},
        tensors={"x": tensor},
    )
    np.testing.assert_array_equal(block.registers["%r1"], np.arange(32))
    np.testing.assert_array_equal(block.registers["%r2"], np.arange(32) + 6)


@pytest.mark.parametrize(
    ("opcode", "register", "want"),
    [
        ("b32", "%r1", 0xFFFFFFFE), ("u32", "%r1", 0xFFFFFFFE), ("s32", "%r1", 0xFFFFFFFE),
        ("f32", "%r1", 0xFFFFFFFE), ("u32", "%rd1", 0xFFFFFFFE), ("s32", "%rd1", 2**64 - 2),
        ("b32", "%rd1", 0xFFFFFFFE),
    ],
)  # fmt: skip
def test_a_parameter_of_32_bits(opcode: str, register: str, want: int) -> None:
    block = run(f"ld.param.{opcode} {register}, [snippet_param_1];", parameters=(5, 0xFFFFFFFE))
    dtype = np.uint32 if register == "%r1" else np.uint64
    np.testing.assert_array_equal(block.registers[register].view(dtype), np.full(32, want, dtype))


@pytest.mark.parametrize("opcode", ["b64", "u64"])
def test_a_parameter_of_64_bits(opcode: str) -> None:
    block = run(f"ld.param.{opcode} %rd1, [snippet_param_0];", parameters=(2**63 + 5, 0))
    np.testing.assert_array_equal(block.registers["%rd1"], np.full(32, 2**63 + 5, np.uint64))


@pytest.mark.parametrize(("opcode", "size"), [("ca", 4), ("ca", 8), ("cg", 16)])
def test_asynchronous_copies_fill_with_zeros(opcode: str, size: int) -> None:
    source = torch.randint(1, 256, (32 * size,), dtype=torch.uint8)
    thread = np.arange(32)
    registers = {
        "%r1": (thread[::-1] * size).astype(np.uint32),
        "%rd1": (TENSOR_ADDRESS + thread * size).astype(np.uint64),
        "%r2": np.where(thread % 3 == 0, 0, size).astype(np.uint32),
        "%p1": thread != 7,
    }
    copy = f"@%p1 cp.async.{opcode}.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], {size:#x}, %r2;"
    block = run(
        copy + "cp.async.commit_group; cp.async.wait_group 0;",
        registers,
        num_shared_bytes=32 * size,
        tensors={"x": source},
    )
    want = source.numpy().reshape(32, size).copy()
    want[::3] = 0
    want[7] = 0xFF
    np.testing.assert_array_equal(block.shared.data.reshape(32, size), want[::-1])


def copies(tail: str) -> np.ndarray:
    """What shared memory holds after two groups of a copy each, and `tail`, is loaded by the copying warp."""
    thread = np.arange(32)
    registers = {
        "%r1": (thread * 4).astype(np.uint32), "%r2": (thread * 4 + 128).astype(np.uint32),
        "%rd1": (TENSOR_ADDRESS + thread * 4).astype(np.uint64),
    }  # fmt: skip
    body = "".join(
        f"cp.async.ca.shared.global [%r{to}], [%rd1], 0x4; cp.async.commit_group;" for to in (1, 2)
    )
    tensors = {"x": torch.arange(32, dtype=torch.int32)}
    return run(body + tail, registers, num_shared_bytes=256, tensors=tensors).registers["%r3"]


def test_groups_of_copies_end_in_order() -> None:
    np.testing.assert_array_equal(copies("cp.async.wait_group 1; ld.shared.b32 %r3, [%r1];"), np.arange(32))
    np.testing.assert_array_equal(copies("cp.async.wait_group 0; ld.shared.b32 %r3, [%r2];"), np.arange(32))


@pytest.mark.parametrize(
    "tail",
    [
        "ld.shared.b32 %r3, [%r1];",
        "cp.async.wait_group 1; ld.shared.b32 %r3, [%r2];",
        "st.shared.b32 [%r1], %r1;",
    ],
)
def test_a_copy_on_its_way_may_not_be_touched(tail: str) -> None:
    with pytest.raises(Fault, match="an asynchronous copy to these bytes has not ended"):
        copies(tail)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("cp.async.ca.shared.global [0], [%rd1], 0x4, 2;", "an asynchronous copy of a part"),
        ("@%p1 cp.async.commit_group;", "some threads only commit"),
        ("@%p1 cp.async.wait_group 0;", "some threads only wait"),
        ("ld.param.b32 %r1, [snippet_param_7];", "is no parameter"),
        ("st.shared.v2.b32 [0], {%r1, %r1, %r1};", "2 registers are stored, not 3"),
    ],
)
def test_what_cannot_be_moved(body: str, message: str) -> None:
    registers = {"%p1": np.arange(32) == 0, "%r1": np.zeros(32, np.uint32), "%rd1": np.zeros(32, np.uint64)}
    with pytest.raises(Fault, match=message):
        run(body, registers, num_shared_bytes=64)
