"""Threads that wait asleep while the machine is crowded: when, and that libgomp does what it is told."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mlsm import waiting
from mlsm.threads import Busy
from mlsm.waiting import SETTINGS_OF_WAITING, IdleThreads, is_crowded, loaded_library

HAS_LIBGOMP = loaded_library() is not None
NO_LIBGOMP = "PyTorch has another OpenMP library here than libgomp"


@pytest.mark.parametrize(
    ("num_threads", "processors", "others", "expected"),
    [
        (2, 2, 0.0, False),
        (2, 2, 0.1, False),
        (2, 2, 0.5, True),
        (1, 2, 1.0, False),
        (1, 2, 1.5, True),
        (8, 16, 8.0, False),
        (8, 16, 9.0, True),
        (64, 64, 1.0, True),
        (2, 1.5, 0.0, False),  # too many threads for a quota are not crowded by others
    ],
)
def test_a_machine_is_crowded(num_threads: int, processors: float, others: float, expected: bool) -> None:
    assert is_crowded(num_threads, processors, others) == expected


class Library:
    """libgomp as the watcher uses it: notes the teams that are started."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def GOMP_parallel(self, function: object, data: None, size: int, flags: int) -> None:
        self.sizes.append(size)


def test_the_watcher_starts_and_ends_idle_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others use 0, 1, 1, 0 and 1 processors, and then nothing is known any more, which ends the watch."""
    loads = iter([0.0, 1.0, 1.0, 0.0, 1.0])
    readings = iter([Busy(0.0, 0.0, 0.0)] * 5)
    monkeypatch.setattr(waiting, "INTERVAL_S", 0.0)
    monkeypatch.setattr(waiting, "FIRST_INTERVAL_S", 0.0)
    monkeypatch.setattr(waiting, "num_processors", lambda: 2)
    monkeypatch.setattr(waiting, "busy_seconds", lambda: next(readings, None))
    monkeypatch.setattr(waiting, "others_since", lambda before: next(loads))
    started, ended = [], []

    class Noted(IdleThreads):
        def __init__(self, *args: object) -> None:
            started.append(len(ended))
            super().__init__(*args)

        def end(self) -> None:
            super().end()
            ended.append(len(started))

    monkeypatch.setattr(waiting, "IdleThreads", Noted)
    waiting._watch(Library(), 2)
    assert (started, ended) == ([0, 1], [1, 2])
    assert not [thread for thread in threading.enumerate() if thread.name == "idle"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs the affinity of a process")
@pytest.mark.parametrize(("num_threads", "num_allowed"), [(2, 2), (1, 4), (8, 2), (3, 64)])
def test_idle_threads_are_enough(num_threads: int, num_allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """libgomp manages the threads that compute and the idle ones, without the two that start a team and are
    not its own, of which it counts the first; that must be more than there are processors.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_allowed)))
    library = Library()
    idle = IdleThreads(library, num_threads)
    idle.end()
    [size] = library.sizes
    assert size >= 2  # a team of one starts no thread
    assert num_threads + size - 1 > num_allowed


@pytest.mark.parametrize("name", SETTINGS_OF_WAITING)
def test_the_environment_is_respected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "passive" if name == "OMP_WAIT_POLICY" else "1000")
    monkeypatch.setattr(waiting, "loaded_library", lambda: pytest.fail("the watcher was started"))
    waiting.watch.__wrapped__(2)


def test_without_a_second_thread_or_without_libgomp_there_is_no_watcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in SETTINGS_OF_WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "loaded_library", lambda: None)
    before = threading.active_count()
    waiting.watch.__wrapped__(1)
    waiting.watch.__wrapped__(2)
    assert threading.active_count() == before
    monkeypatch.undo()
    monkeypatch.setattr(waiting, "LIBRARY", "libgomp-that-does-not-exist.so")
    assert loaded_library() is None


@pytest.mark.skipif(not HAS_LIBGOMP, reason=NO_LIBGOMP)
def test_libgomp_comes_from_pytorch() -> None:
    """Packages beside PyTorch bring a libgomp of their own, which does not manage PyTorch's threads."""
    path = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not path.exists():
        pytest.skip("this PyTorch uses the libgomp of the system")
    import ctypes

    library = loaded_library()
    assert library is not None
    assert library._handle == ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)._handle


COUNT = """
import os, torch
from mlsm.waiting import IdleThreads, loaded_library

def num_threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
numbers_N = torch.linspace(0, 1, 1_000_000)
mean = numbers_N.mean()
before = num_threads()
idle = IdleThreads(loaded_library(), 2)
while num_threads() < before + 2:  # the thread that holds the team, and the rest of the team
    pass
assert torch.equal(numbers_N.mean(), mean)
idle.end()
while num_threads() > before:
    pass
assert torch.equal(numbers_N.mean(), mean)
"""


@pytest.mark.skipif(not HAS_LIBGOMP, reason=NO_LIBGOMP)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_idle_threads_begin_and_end_and_change_no_number() -> None:
    subprocess.run([sys.executable, "-c", COUNT], check=True, timeout=120)
