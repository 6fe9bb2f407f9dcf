"""Asynchronous matrix products of sm_90 against float64, and what may not happen before they end."""

import numpy as np
import pytest

pytest.importorskip("triton")

from ptx.program import Fault
from ptx.snippets import snippet
from ptx.wgmma import OPERATIONS, places_of_b

GENERATOR = np.random.default_rng(0)
NUM_THREADS = 256
PRODUCT = "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32"
SUMS = ", ".join(f"%r{number}" for number in range(20, 52))
A = GENERATOR.integers(-128, 128, (2, 64, 8)) / 8  # of two warpgroups
B = GENERATOR.integers(-128, 128, (2, 64, 8)) / 64  # a row for each column of the product
C = GENERATOR.normal(size=(2, 64, 64)).astype(np.float32)
NUM_BYTES = 2 * 64 * 128


def descriptor(start: int, row_bytes: int) -> int:
    mode = {128: 1, 64: 2, 32: 3}[row_bytes]
    return start >> 4 | (8 * row_bytes >> 4) << 32 | mode << 62


def run(body: str, row_bytes: int = 128, start: int = 0, *, fence: bool = True) -> dict[str, np.ndarray]:
    """The registers after `body`, in which %rd1 describes B, %r0 to %r3 hold A and the sums C."""
    group, warp = np.arange(NUM_THREADS) // 128, np.arange(NUM_THREADS) % 128 // 32
    row, place = 16 * warp + np.arange(NUM_THREADS) % 32 // 4, np.arange(NUM_THREADS) % 4
    size = 64 * row_bytes
    registers = {
        f"%r{20 + i}": C[group, row + i % 4 // 2 * 8, i // 4 * 8 + 2 * place + i % 2] for i in range(32)
    }
    for i, (down, right) in enumerate(((0, 0), (8, 0), (0, 4), (8, 4))):
        registers[f"%r{i}"] = A[group, row + down, place + right].astype(np.float32)
    descriptors = np.array([descriptor(start, row_bytes), descriptor(size + start, row_bytes)], np.uint64)
    registers["%rd1"] = descriptors[group]
    registers |= {"%p1": np.ones(NUM_THREADS, bool), "%r10": np.zeros(NUM_THREADS, np.uint32)}
    block = snippet(body, registers, num_threads=NUM_THREADS, num_shared_bytes=NUM_BYTES)
    words = block.shared.data.view(np.uint32)
    for half in (0, 1):
        for n in range(64):
            for k in range(8):
                # The hardware's address: a row after the other, with three bits exchanged by three others.
                plain = half * size + start + n * row_bytes + 4 * k
                exchanged = plain ^ (plain >> 7 & (row_bytes // 16 - 1)) << 4
                words[exchanged // 4] = B[half, n, k].astype(np.float32).view(np.uint32) | 0x1FFF
    block.shared.was_stored[:] = True
    block.shared.is_unfenced[:] = not fence
    block.run()
    return block.registers


def product(added: str = "%p1") -> str:
    return f"{PRODUCT} {{{SUMS}}}, {{%r0, %r1, %r2, %r3}}, %rd1, {added}, 1, 1;\n"


COMMIT, WAIT = "wgmma.commit_group.sync.aligned;\n", "wgmma.wait_group.sync.aligned {};\n"
FENCE = "fence.proxy.async.shared::cta; wgmma.fence.sync.aligned;\n"


def check_sums(registers: dict[str, np.ndarray], want: np.ndarray) -> None:
    thread = np.arange(NUM_THREADS)
    row, place = thread % 128 // 32 * 16 + thread % 32 // 4, thread % 4
    for i in range(32):
        column = i // 4 * 8 + 2 * place + i % 2
        np.testing.assert_array_equal(
            registers[f"%r{20 + i}"], want[thread // 128, row + i % 4 // 2 * 8, column]
        )


def test_every_instruction_is_tested() -> None:
    names = {text.split()[0].rstrip(";") for text in (PRODUCT, COMMIT, WAIT, *FENCE.split(";")[:2])}
    assert OPERATIONS.keys() == names


@pytest.mark.parametrize(("row_bytes", "start"), [(128, 0), (128, 32), (128, 96), (64, 32), (32, 0)])
def test_product(row_bytes: int, start: int) -> None:
    registers = run(FENCE + product() + COMMIT + WAIT.format(0), row_bytes, start, fence=False)
    check_sums(registers, (A @ B.swapaxes(1, 2) + C).astype(np.float32))


def test_two_products_in_one_accumulator() -> None:
    """The first product overwrites the accumulator, and the second is added to it."""
    registers = run(product("0") + product() + COMMIT + WAIT.format(0))
    check_sums(registers, 2 * (A @ B.swapaxes(1, 2)).astype(np.float32))


def test_a_wait_for_older_groups_only() -> None:
    older, newer = product("0"), product("0").replace(SUMS, SUMS.replace("%r51", "%r52"))
    body = older + COMMIT + newer + COMMIT + WAIT.format(1)
    run(body + "mov.b32 %r60, %r51;")
    with pytest.raises(Fault, match="%r20 is read before it is written"):  # both write it
        run(body + "mov.b32 %r60, %r20;")
    with pytest.raises(Fault, match="an asynchronous product that reads these bytes has not ended"):
        run(body + "setp.eq.b32 %p2, %r10, 1; @%p2 st.shared.b32 [0], %r10; st.shared.b32 [0], %r10;")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (product() + "mov.b32 %r60, %r20;", "%r20 is read before it is written"),
        (product() + COMMIT + "st.shared.b32 [0], %r10;", "reads these bytes has not ended"),
        ("st.shared.b32 [0], %r10; bar.sync 0;" + product(), "no fence.proxy.async"),
        ("@!%p1 " + product(), "missing lanes"),
        ("@!%p1 fence.proxy.async.shared::cta;", "some threads only fence"),
        (product().replace("1, 1;", "-1, 1;"), "a product with signs"),
        ("mov.b64 %rd1, 0;" + product(), "a matrix descriptor of an unknown kind"),
        ("mov.u32 %r60, %tid.x; cvt.u64.u32 %rd1, %r60;" + product(), "name different matrices"),
    ],
)
def test_what_may_not_happen(body: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        run(body)


def test_places_are_all_different() -> None:
    for row_bytes in (128, 64, 32):
        assert len(np.unique(places_of_b(descriptor(0, row_bytes), 64))) == 128
