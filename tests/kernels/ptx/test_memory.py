"""The memory's checks: bounds, alignment and races, in shared memory and between programs."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ptx.memory import ARGUMENT_BITS, GlobalMemory, SharedMemory
from ptx.program import Fault

ZERO, ONE = np.array([0]), np.array([1])
WORD = np.full((1, 4), 7, np.uint8)


def places(*places: int) -> np.ndarray:
    return np.array(places)


@pytest.fixture
def shared() -> SharedMemory:
    memory = SharedMemory(40)
    memory.store(places(0, 4), np.zeros((2, 4), np.uint8), places(0, 0))
    memory.forget()  # a barrier
    return memory


def test_many_warps_may_load_what_was_stored_before_a_barrier(shared: SharedMemory) -> None:
    for warp in (0, 1, 2):
        assert not shared.load(ZERO, 4, np.array([warp])).any()


def test_a_warp_may_load_and_store_its_own(shared: SharedMemory) -> None:
    shared.load(ZERO, 4, ONE)
    shared.store(ZERO, WORD, ONE)
    shared.store(ZERO, WORD + 1, ONE)
    assert (shared.load(ZERO, 4, ONE) == 8).all()


@pytest.mark.parametrize(
    ("first", "second"), [("store", "load"), ("load", "store"), ("store", "store"), ("loads", "store")]
)
def test_a_race_between_warps(shared: SharedMemory, first: str, second: str) -> None:
    def access(kind: str, warp: np.ndarray) -> None:
        if kind == "store":
            shared.store(ZERO, WORD, warp)
        else:
            shared.load(ZERO, 4, warp)

    access(first.rstrip("s"), ZERO)
    if first == "loads":
        access("load", ONE)
    with pytest.raises(Fault, match="race"):
        access(second, ONE if first != "loads" else ZERO)


def test_part_of_a_word_is_enough_for_a_race(shared: SharedMemory) -> None:
    shared.store(places(2), WORD[:, :2], ZERO)
    shared.load(places(0), 2, ONE)
    with pytest.raises(Fault, match="race: 1 loads what another stored"):
        shared.load(places(0), 4, ONE)


def test_warps_of_one_instruction(shared: SharedMemory) -> None:
    """Two warps may store the same value in one place. Neither may load it before a barrier."""
    shared.load(places(0, 0), 4, places(0, 1))
    with pytest.raises(Fault, match="race: 1 stores what another loaded"):
        shared.store(ZERO, WORD, ONE)
    shared.forget()
    shared.store(places(0, 0), np.repeat(WORD, 2, 0), places(0, 1))
    with pytest.raises(Fault, match="race: 1 loads what another stored"):
        shared.load(ZERO, 4, ONE)
    shared.forget()
    with pytest.raises(Fault, match="two threads store different values"):
        shared.store(places(0, 0), np.arange(8, dtype=np.uint8).reshape(2, 4), places(0, 1))


@pytest.mark.parametrize(
    ("place", "size", "message"),
    [
        (-4, 4, "has 40 bytes"), (40, 4, "has 40 bytes"), (32, 16, "has 40 bytes"),
        (2, 4, "no multiple of 4"), (8, 16, "no multiple of 16"), (8, 4, "never stored"),
    ],
)  # fmt: skip
def test_where_shared_memory_cannot_be_loaded(
    shared: SharedMemory, place: int, size: int, message: str
) -> None:
    with pytest.raises(Fault, match=message):
        shared.load(places(place), size, ZERO)


def test_an_asynchronous_copy_is_a_store_at_both_its_ends(shared: SharedMemory) -> None:
    shared.load(ZERO, 4, ONE)
    with pytest.raises(Fault, match="race: 0 stores what another loaded"):
        shared.await_copy(ZERO, 4, ZERO)
    shared.forget()
    shared.await_copy(ZERO, 4, ZERO)
    shared.forget()
    shared.end_copy(ZERO, WORD, ZERO)
    assert (shared.load(ZERO, 4, ZERO) == 7).all()
    with pytest.raises(Fault, match="race: 1 loads what another stored"):
        shared.load(ZERO, 4, ONE)


def matrix() -> tuple[torch.Tensor, GlobalMemory, int]:
    """Four rows of two int32 out of eight, and the address of the first."""
    tensor = torch.arange(32, dtype=torch.int32).view(4, 8)[:, 3:5]
    memory = GlobalMemory({"other": torch.zeros(4), "x": tensor})
    return tensor, memory, memory.addresses["x"]


def at(address: int) -> np.ndarray:
    return np.array([address], np.uint64)


def test_a_slice_of_a_tensor() -> None:
    tensor, memory, start = matrix()
    assert start == (2 << ARGUMENT_BITS) + 12
    assert memory.load(at(start + 36), 4, 0).view(np.int32) == tensor[1, 1]
    memory.store(at(start + 36), WORD, 0)
    assert tensor[1, 1] == 12  # until the launch ends
    memory.copy_back_()
    assert tensor[1, 1] == 0x07070707


@pytest.mark.parametrize("offset", [-4, 8, 28, 96 + 8, 1 << 20])
def test_between_the_rows_of_a_slice_is_out_of_bounds(offset: int) -> None:
    _, memory, start = matrix()
    with pytest.raises(Fault, match="out of bounds of x"):
        memory.load(at(start + offset), 4, 0)
    with pytest.raises(Fault, match="out of bounds of x"):
        memory.store(at(start + offset), WORD, 0)


def test_a_vector_must_lie_within_a_tensor_and_be_aligned() -> None:
    memory = GlobalMemory({"x": torch.zeros(7)})
    start = memory.addresses["x"]
    memory.load(at(start), 16, 0)
    with pytest.raises(Fault, match="out of bounds of x"):
        memory.load(at(start + 16), 16, 0)
    with pytest.raises(Fault, match="no multiple of 16"):
        memory.load(at(start + 4), 16, 0)


def test_no_tensor_is_at_address_zero() -> None:
    with pytest.raises(Fault, match="is in no tensor"):
        matrix()[1].load(at(8), 4, 0)


@pytest.mark.parametrize(("first", "second"), [("store", "load"), ("load", "store"), ("store", "store")])
def test_a_race_between_programs(first: str, second: str) -> None:
    """A race is noticed although the two accesses use two arguments that share their memory."""
    whole = torch.zeros(8)
    memory = GlobalMemory({"whole": whole, "part": whole[2:4]})
    for number, (kind, name) in enumerate(((first, "whole"), (second, "part"))):
        address = at(memory.addresses[name] + (8 if name == "whole" else 0))
        if number == 1:
            with pytest.raises(Fault, match="race: 1"):
                memory.load(address, 4, 1) if kind == "load" else memory.store(address, WORD, 1)
        elif kind == "load":
            memory.load(address, 4, 0)
        else:
            memory.store(address, WORD, 0)
