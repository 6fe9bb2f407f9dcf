"""How many threads a command computes in on a CPU: as many as there are processors that nobody else uses.

A thread more than that is worse than useless. The threads meet after every operation, so the one that has to
share its processor with another program holds up all others (results/threads.md).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

SAMPLE_S = 0.25  # the kernel counts in hundredths of a second
SETTINGS_OF_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the environment; PyTorch reads both
_NICE, _IDLE, _WAITING_FOR_DISK = 1, 3, 4  # fields of a line of /proc/stat, after its name
_NUM_FIELDS = 8  # those after them count time again


class Choice(NamedTuple):
    """A number of threads, and why."""

    number: int
    reason: str


def decide(
    default: int,
    processors: float,
    others: float,
    environment: Mapping[str, str],
    *,
    asked: int | None = None,
    before: int | None = None,
) -> Choice:
    """The number of threads: that of --threads, else that of the run which is resumed, else that of the
    environment, else the default of PyTorch, but not more than the `processors` that this process may use
    without those that other programs keep busy (both are numbers of processors, and may be fractions).
    """
    if asked:
        return Choice(asked, "as asked for")
    if before:
        return Choice(before, "as before, so that the run ends as if it had not been stopped")
    if given := [name for name in SETTINGS_OF_NUMBER if environment.get(name)]:
        return Choice(default, f"{given[0]} is set")
    most = max(1, min(default, round(processors)))
    number = max(1, min(default, round(processors - others)))
    reason = f"other programs use {others:.1f} of {processors:.3g} processors"
    return Choice(number, reason if number == most else f"{reason}; --threads {most} uses all the same")


def num_processors() -> float:
    """The processors that this process may use: those of its affinity, and not more than its control groups
    grant.
    """
    return min([len(_allowed()), *_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def used_by_others(seconds: float = SAMPLE_S) -> float:
    """The processors that other programs use: on average over so many seconds from now, and not more than
    over the last minute. 0 where the kernel does not say.
    """
    before = busy_seconds()
    time.sleep(seconds)
    return min(others_since(before), os.getloadavg()[0]) if before else 0.0


class Busy(NamedTuple):
    """Seconds that processors have worked, up to a time."""

    time: float
    all: float  # of the processors that this process may use, for every program but those with a nice value
    own: float  # of this process


def busy_seconds() -> Busy | None:
    """What the processors have worked so far; None where the kernel does not say (it is not Linux)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    all_programs = os.nice(0) > 0  # those with a nice value give way to this process, unless it has one, too
    busy = _busy_seconds(lines, _allowed(), with_nice=all_programs)
    return Busy(time.perf_counter(), busy, time.process_time())


def others_since(before: Busy) -> float:
    """The processors that other programs used on average since then."""
    now = busy_seconds() or before
    spent = (now.all - before.all) - (now.own - before.own)
    return max(0.0, spent / max(now.time - before.time, 1e-9))


def _busy_seconds(lines: Collection[str], processors: Collection[int], *, with_nice: bool) -> float:
    """The seconds that these processors have worked, from the lines of /proc/stat; `with_nice` also for
    programs with a nice value above 0.
    """
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in processors:
            numbers = [int(field) for field in fields[:_NUM_FIELDS]]
            ticks += sum(numbers) - numbers[_IDLE] - numbers[_WAITING_FOR_DISK]
            ticks -= 0 if with_nice else numbers[_NICE]
    return ticks / os.sysconf("SC_CLK_TCK")


def _allowed() -> set[int]:
    """The numbers of the processors of this process's affinity."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas(membership: Path, root: Path) -> list[float]:
    """The processors that each control group of this process grants; a group without a limit is left out.
    `membership` is the process's /proc/self/cgroup, and `root` the folder of all groups.
    """
    quotas = []
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / controllers if controllers else root  # version 1 has a folder for each controller
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                quotas += _quota(folder)
                if folder == base:
                    break
    return quotas


def _quota(group: Path) -> list[float]:
    """The processors that a control group of version 2 or 1 grants, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    return []
