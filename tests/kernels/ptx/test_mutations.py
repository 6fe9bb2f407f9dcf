"""Kernels whose barriers and waits are removed one at a time: each loss that matters is noticed.

Triton puts a barrier before each reuse of a part of shared memory. About one in ten changes nothing. Where
each warp stores only in places that it alone has just loaded, no two warps meet, with the barrier or without
it. That is so in the gathers of attention's tiles and where a tile changes its layout. So a second account
decides which barriers are needed: a log of all accesses, by byte and warp, tells for each barrier whether
accesses before it and after it meet. Those, and no others, must be noticed.

All waits for copies must be noticed. Of the waits and fences of sm_90's products, which stand between
products of one sum, some change nothing: no store lies between two fences, and nobody reads a sum between two
products.

How many of each kernel were noticed is printed by

    python -m pytest tests/kernels/ptx/test_mutations.py -rP -m "large or not large"
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lasso_problems import gaussian

pytest.importorskip("triton")

from ptx import launch
from ptx.block import Block
from ptx.cases import Attention, CrossEntropy, solve
from ptx.launch import Emulator
from ptx.memory import Integers, SharedMemory
from ptx.program import Fault, Program

CASES = {
    "bfloat16": lambda: Attention(torch.bfloat16, 64, (40,), has_bands=False).run(),
    "float32": lambda: Attention(torch.float32, 64, (20,), has_bands=False).run(),
    "float16": lambda: Attention(torch.float16, 128, (20,), 0.1, has_bands=False).run(),
    "bands": lambda: Attention(torch.bfloat16, 64, (20,)).run(),
    "bands in rounds": lambda: Attention(torch.bfloat16, 64, (40,), 0.1).run(),
    "coder": lambda: solve(*gaussian(1, 24, 1600), 0.55),  # two warps; with fewer atoms there is no barrier
    "cross-entropy": lambda: CrossEntropy(torch.bfloat16, 1500, has_classes=False, num_rows=1).run(),
}
WAITS = ("cp.async.wait_group", "wgmma.wait_group.sync.aligned", "fence.proxy.async.shared::cta")
"""Instructions other than barriers that order accesses to shared memory."""
SHARE = dict(zip(("bar.sync", *WAITS), (0.7, 1.0, 0.5, 0.3), strict=True))
"""The least share that must be noticed, so that no test passes because nothing is."""


class Log(SharedMemory):
    """Which warps (a bit each) loaded and stored each byte between two barriers."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.epochs: list[np.ndarray] = []
        """The warps that loaded and stored each byte (2, bytes), from one barrier to the next."""
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.epochs.append(np.zeros((2, len(self.data)), np.uint32))

    def load(self, place_n: Integers, size: int, agent_n: Integers) -> np.ndarray:
        self._note(0, place_n, size, agent_n)
        return super().load(place_n, size, agent_n)

    def claim(self, place_n: Integers, size: int, agent_n: Integers) -> None:
        self._note(1, place_n, size, agent_n)
        super().claim(place_n, size, agent_n)

    def _note(self, kind: int, place_n: Integers, size: int, agent_n: Integers) -> None:
        rows = self.epochs[-1][kind].reshape(-1, size)
        np.bitwise_or.at(rows, place_n // size, np.left_shift(1, agent_n).astype(np.uint32)[:, None])


class LoggedBlock(Block):
    needed: ClassVar[set[int]] = set()
    """Positions of the barriers that some block needed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shared = self.log = Log(self.shared.num_bytes)

    def run(self) -> None:
        super().run()
        before = self.log.epochs[0]
        for number, barrier in enumerate(self.barriers):
            if number and barrier != self.barriers[number - 1]:
                before = self.log.epochs[number]
            after = self.log.epochs[number + 1]
            if meet(before, after):
                self.needed.add(barrier)
            before = before | after  # a barrier that is removed from a loop is missing in each round


def meet(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two warps access a byte, one before and one after, and one of them stores."""

    def differ(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        is_one_warp = (some == others) & (some & (some - 1) == 0)
        return (some != 0) & (others != 0) & ~is_one_warp

    (loads_before, stores_before), (loads_after, stores_after) = before, after
    return bool(
        (differ(stores_before, loads_after | stores_after) | differ(loads_before, stores_after)).any()
    )


def recorded_launches(
    emulator: Emulator, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Callable[[], None]]:
    """A function for each kernel that repeats its first launch, on copies of what it was given."""
    repeat: dict[str, Callable[[], None]] = {}
    original = emulator.launch

    def record(kernel: Any, **arguments: Any) -> None:
        detached = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
        given = copy.deepcopy(detached)  # views of one storage stay views of one storage
        repeat.setdefault(kernel.fn.__name__, lambda: original(kernel, **copy.deepcopy(given)))
        original(kernel, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(emulator, "launch", record)
        run()
    return repeat


def without(position: int) -> Callable[[Program], Program]:
    """Replaces an instruction by one that does nothing."""

    def change(program: Program) -> Program:
        instructions = list(program.instructions)
        instructions[position] = instructions[position]._replace(opcode="mov.u32", operands=("_", "0"))
        return program._replace(instructions=tuple(instructions))

    return change


def noticed(emulator: Emulator, repeat: Callable[[], None], positions: list[int]) -> set[int]:
    """The positions of the instructions without which the launch fails."""
    failing = set()
    for position in positions:
        emulator.change = without(position)
        try:
            repeat()
        except Fault:
            failing.add(position)
    return failing


def cases() -> list[object]:
    usual = [("sm80", name) for name in ("bfloat16", "float32", "bands", "coder", "cross-entropy")]
    at_large = [
        ("sm80", "float16"),
        ("sm80", "bands in rounds"),
        *(("sm90", name) for name in CASES if name != "bands in rounds"),
    ]
    return [*usual, *(pytest.param(*case, marks=pytest.mark.large) for case in at_large)]


@pytest.mark.parametrize(("target", "case"), cases())
def test_a_missing_barrier_is_noticed(target: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator(target)
    emulator.install(monkeypatch)
    for name, repeat in recorded_launches(emulator, CASES[case], monkeypatch).items():
        programs: list[Program] = []
        emulator.change = lambda program, seen=programs: seen.append(program) or program
        with monkeypatch.context() as patch:
            patch.setattr(launch, "Block", LoggedBlock)
            LoggedBlock.needed.clear()
            repeat()
        positions: dict[str, list[int]] = {}
        for position, instruction in enumerate(programs[0].instructions):
            positions.setdefault(instruction.opcode, []).append(position)
        noticed_by_opcode = {
            kind: noticed(emulator, repeat, positions.get(kind, [])) for kind in ("bar.sync", *WAITS)
        }
        assert noticed_by_opcode["bar.sync"] == LoggedBlock.needed, name
        for kind, seen in noticed_by_opcode.items():
            num_all = len(positions.get(kind, []))
            print(f"{name} {kind}: {len(seen)} of {num_all} noticed")
            assert len(seen) >= SHARE[kind] * num_all, (name, kind)
