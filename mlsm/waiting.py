"""Threads that wait for each other without using a processor that another program needs.

PyTorch's threads meet after every operation. One that arrives early spins: it asks for some milliseconds
whether the others are there, and sleeps only then. On a quiet machine this is fastest. Beside a busy program
it is slowest: the thread that all wait for has no processor, because a waiting one occupies it.

PyTorch's binary packages for Linux use libgomp, GCC's OpenMP library. It spins 300,000 times, and 100 times
where it manages more threads than there are processors (libgomp's manual, GOMP_SPINCOUNT). The environment
decides the first number when the library is loaded, but the second can be had at any time, by threads that do
nothing. Here a watcher starts such threads while the machine is crowded, and ends them afterwards. Nothing
else changes: the computing threads are as many as before, and so their sums are rounded as before.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time

from mlsm.threads import busy_seconds, num_processors, others_since

LIBRARY = "libgomp.so.1"  # by its own name; other packages bring it under other names
SETTINGS_OF_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the environment
INTERVAL_S = 1.0
FIRST_INTERVAL_S = 0.25  # before the first update, whose speed is measured
LEAST_SHARE = 0.25  # of a processor; what other programs use below it does not count


def is_crowded(num_threads: int, processors: float, others: float) -> bool:
    """Whether so many threads and the processors that other programs use are more than there are."""
    return others >= LEAST_SHARE and num_threads + others >= processors + LEAST_SHARE


@functools.cache  # one watcher in a process
def watch(num_threads: int) -> None:
    """From now on, let the threads of this process wait asleep whenever the machine is crowded. Does nothing
    for one thread, without libgomp, where the kernel does not say what other programs use, and where the
    environment says how threads wait.
    """
    if num_threads < 2 or any(map(os.environ.get, SETTINGS_OF_WAITING)) or busy_seconds() is None:
        return
    library = loaded_library()
    if library is not None:
        threading.Thread(target=_watch, args=(library, num_threads), daemon=True, name="waiting").start()


def loaded_library() -> ctypes.CDLL | None:
    """libgomp, if this process has loaded it."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD)
        library.GOMP_parallel  # noqa: B018
        return library
    return None


def _watch(library: ctypes.CDLL, num_threads: int) -> None:
    """Start and end idle threads by the load of the machine, until the kernel no longer says what it is."""
    idle, interval, processors = None, FIRST_INTERVAL_S, num_processors()
    while before := busy_seconds():
        time.sleep(interval)
        interval = INTERVAL_S
        if is_crowded(num_threads, processors, others_since(before)):
            idle = idle or IdleThreads(library, num_threads)
        elif idle:
            idle.end()
            idle = None
    if idle:
        idle.end()


class IdleThreads:
    """Threads that libgomp manages and that do nothing, so many that all its threads spin only briefly. They
    are the team of a thread of their own, and end with it.
    """

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        """`num_threads` are in the team that computes."""
        num_missing = len(os.sched_getaffinity(0)) - num_threads + 1
        self._library, self._size = library, 1 + max(1, num_missing)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True, name="idle")
        self._thread.start()

    def _hold(self) -> None:
        nothing = ctypes.CDLL(None).free  # free(NULL), once in each thread
        self._library.GOMP_parallel(nothing, None, self._size, 0)
        self._is_over.wait()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()
