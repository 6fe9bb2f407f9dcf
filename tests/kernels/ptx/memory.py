"""Global and shared memory of the emulator. Every access is checked: bounds, alignment, and races.

A race is two accesses to one byte, at least one of them a store, by two agents that nothing orders. In
shared memory the agents are the warps of a block, and a barrier orders what lies before it and after it. (The
threads of one warp count as ordered.) In global memory the agents are the programs of a launch, and nothing
orders them: these kernels have no atomics.

Legend: n active threads, S bytes of an access of one thread (1 to 16, a power of two). Places are int64 byte
positions from the memory's start, data is uint8.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ptx.program import Fault

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
NOBODY, SEVERAL = -1, -2
ALIGNMENT = 16
"""Bytes of the widest access; memory is a multiple of it."""
ARGUMENT_BITS = 40
"""Each tensor argument has its own range of 2^40 addresses, so that no overrun lands in another tensor."""


class Memory:
    """Bytes with a record of who touched each since the last point of order."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.writer = np.full(len(data), NOBODY, np.int32)
        self.reader = np.full(len(data), NOBODY, np.int32)

    def load(self, place_n: Integers, size: int, agent_n: Integers) -> Bytes:
        """Data (n, S). Raises Fault if another agent stored some of it."""
        row_n, agent_n1 = place_n // size, agent_n[:, None]
        self._demand(self.writer, row_n, size, agent_n1, "loads what another stored")
        reader = self.reader.reshape(-1, size)
        before_nS = reader[row_n]
        self._record(reader, row_n, np.where(before_nS == NOBODY, agent_n1, before_nS), agent_n1)
        return self.data.reshape(-1, size)[row_n]

    def claim(self, place_n: Integers, size: int, agent_n: Integers) -> None:
        """Record a store. Raises Fault if another agent loaded or stored some of it before."""
        row_n, agent_n1 = place_n // size, agent_n[:, None]
        self._demand(self.writer, row_n, size, agent_n1, "stores what another stored")
        self._demand(self.reader, row_n, size, agent_n1, "stores what another loaded")
        self._record(self.writer.reshape(-1, size), row_n, agent_n1, agent_n1)

    def put(self, place_n: Integers, data_nS: Bytes) -> None:
        row_n = place_n // data_nS.shape[1]
        rows = self.data.reshape(-1, data_nS.shape[1])
        rows[row_n] = data_nS
        if (rows[row_n] != data_nS).any():
            raise Fault("race: two threads store different values in one place")

    def forget(self) -> None:
        """All accesses so far are ordered before all that follow."""
        self.writer.fill(NOBODY)
        self.reader.fill(NOBODY)

    @staticmethod
    def _record(rows: NDArray[np.int32], row_n: Integers, agents: Integers, agent_n1: Integers) -> None:
        """Bytes that more than one agent touches become those of several, also in one instruction."""
        rows[row_n] = agents
        n, s = np.nonzero(rows[row_n] != agent_n1)
        rows[row_n[n], s] = SEVERAL

    @staticmethod
    def _demand(record: NDArray[np.int32], row_n: Integers, size: int, agent_n1: Integers, what: str) -> None:
        """Raise Fault if the record of some byte names another agent."""
        before_nS = record.reshape(-1, size)[row_n]
        bad = (before_nS != NOBODY) & (before_nS != agent_n1)
        if bad.any():
            n, s = np.argwhere(bad)[0]
            raise Fault(f"race: {agent_n1[n, 0]} {what} ({before_nS[n, s]}), byte {row_n[n] * size + s}")


class SharedMemory(Memory):
    """The shared memory of one block, with asynchronous copies that are still on their way."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(np.full(-(-num_bytes // ALIGNMENT) * ALIGNMENT, 0xFF, np.uint8))  # NaN
        self.num_bytes = num_bytes
        self.was_stored = np.zeros(len(self.data), bool)
        self.is_awaited = np.zeros(len(self.data), bool)
        """Bytes that an asynchronous copy has not written yet."""
        self.is_being_read = np.zeros(len(self.data), bool)
        """Bytes that an asynchronous matrix product may still read."""
        self.is_unfenced = np.zeros(len(self.data), bool)
        """Bytes whose last store asynchronous instructions need not see yet."""

    def load(self, place_n: Integers, size: int, agent_n: Integers) -> Bytes:
        self._check(place_n, size)
        if not self.was_stored.reshape(-1, size)[place_n // size].all():
            raise Fault("shared memory is loaded that was never stored")
        return super().load(place_n, size, agent_n)

    def store(self, place_n: Integers, data_nS: Bytes, agent_n: Integers) -> None:
        size = data_nS.shape[1]
        self._check(place_n, size)
        if self.is_being_read.reshape(-1, size)[place_n // size].any():
            raise Fault("race: an asynchronous product that reads these bytes has not ended")
        self.claim(place_n, size, agent_n)
        self.put(place_n, data_nS)
        self.was_stored.reshape(-1, size)[place_n // size] = True
        self.is_unfenced.reshape(-1, size)[place_n // size] = True

    def load_for_product(self, place_n: Integers, size: int, agent_n: Integers) -> Bytes:
        """What an asynchronous matrix product reads, now or until it is waited for."""
        data_nS = self.load(place_n, size, agent_n)
        if self.is_unfenced.reshape(-1, size)[place_n // size].any():
            raise Fault("no fence.proxy.async after the store of what an asynchronous product reads")
        self.is_being_read.reshape(-1, size)[place_n // size] = True
        return data_nS

    def await_copy(self, place_n: Integers, size: int, agent_n: Integers) -> None:
        """An asynchronous copy begins: nobody may touch its bytes until it ends."""
        self._check(place_n, size)
        if self.is_being_read.reshape(-1, size)[place_n // size].any():
            raise Fault("race: an asynchronous product that reads these bytes has not ended")
        self.claim(place_n, size, agent_n)
        self.is_awaited.reshape(-1, size)[place_n // size] = True

    def end_copy(self, place_n: Integers, data_nS: Bytes, agent_n: Integers) -> None:
        """The copy is visible to the warp that waited for it, and to others after a barrier."""
        self.is_awaited.reshape(-1, data_nS.shape[1])[place_n // data_nS.shape[1]] = False
        self.store(place_n, data_nS, agent_n)

    def _check(self, place_n: Integers, size: int) -> None:
        if (place_n < 0).any() or (place_n + size > self.num_bytes).any():
            raise Fault(f"shared memory has {self.num_bytes} bytes, accessed at {place_n.max()}")
        if (place_n % size).any():
            raise Fault(f"shared memory is accessed at a place that is no multiple of {size}")
        if self.is_awaited.reshape(-1, size)[place_n // size].any():
            raise Fault("race: an asynchronous copy to these bytes has not ended")


class Argument(NamedTuple):
    """A tensor that a kernel was given."""

    name: str
    memory: Memory
    """The bytes of the tensor's storage. Other arguments may share them."""
    is_inside: NDArray[np.bool_]
    """Which bytes of the storage are elements of this tensor."""


class GlobalMemory:
    """The tensors of one launch. Kernels access copies of them; `copy_back_` writes the results back."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._storages: dict[int, tuple[Memory, Bytes]] = {}
        self._arguments = [self._argument(name, tensor) for name, tensor in tensors.items()]
        self.addresses = {
            name: ((number + 1) << ARGUMENT_BITS) + _start(tensor)
            for number, (name, tensor) in enumerate(tensors.items())
        }

    def _argument(self, name: str, tensor: torch.Tensor) -> Argument:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            own = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload]
            padded = np.zeros(-(-len(own) // ALIGNMENT) * ALIGNMENT, np.uint8)
            padded[: len(own)] = own
            self._storages[storage.data_ptr()] = Memory(padded), own
        memory, _ = self._storages[storage.data_ptr()]
        is_inside = torch.zeros(len(memory.data), dtype=torch.bool)
        itemsize = tensor.element_size()
        strides = [stride * itemsize for stride in tensor.stride()]
        is_inside.as_strided((*tensor.shape, itemsize), (*strides, 1), _start(tensor)).fill_(True)
        return Argument(name, memory, is_inside.numpy())

    def load(self, address_n: NDArray[np.uint64], size: int, program: int) -> Bytes:
        data_nS = np.empty((len(address_n), size), np.uint8)
        for argument, which, place_n in self._places(address_n, size):
            data_nS[which] = argument.memory.load(place_n, size, np.full(len(place_n), program))
        return data_nS

    def store(self, address_n: NDArray[np.uint64], data_nS: Bytes, program: int) -> None:
        size = data_nS.shape[1]
        for argument, which, place_n in self._places(address_n, size):
            argument.memory.claim(place_n, size, np.full(len(place_n), program))
            argument.memory.put(place_n, data_nS[which])

    def copy_back_(self) -> None:
        for memory, own in self._storages.values():
            own[:] = memory.data[: len(own)]

    def _places(
        self, address_n: NDArray[np.uint64], size: int
    ) -> list[tuple[Argument, NDArray[np.bool_] | slice, Integers]]:
        """For each argument that is accessed: the argument, its threads, and their places in its storage."""
        number_n = (address_n >> np.uint64(ARGUMENT_BITS)).astype(np.int64) - 1
        all_place_n = (address_n & np.uint64((1 << ARGUMENT_BITS) - 1)).astype(np.int64)
        if (all_place_n % size).any():
            raise Fault(f"global memory is accessed at an address that is no multiple of {size}")
        accesses: list[tuple[Argument, NDArray[np.bool_] | slice, Integers]] = []
        for number in np.unique(number_n):
            which = slice(None) if (number_n == number).all() else number_n == number
            place_n = all_place_n[which]
            if not 0 <= number < len(self._arguments):
                raise Fault(f"address {int(address_n[number_n == number][0]):#x} is in no tensor")
            argument = self._arguments[number]
            if (place_n + size > len(argument.is_inside)).any() or not argument.is_inside.reshape(-1, size)[
                place_n // size
            ].all():
                raise Fault(f"out of bounds of {argument.name}")
            accesses.append((argument, which, place_n))
        return accesses


def _start(tensor: torch.Tensor) -> int:
    """The number of bytes between the start of the tensor's storage, which torch aligns, and the tensor."""
    return int(tensor.storage_offset()) * tensor.element_size()
