"""What the experiments share: commands of the project that are each run once, and what a run has taken."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from mlsm.evaluation.tasks import GLUE
from mlsm.files import read_json, write_json
from mlsm.log import read_metrics, say

ROOT = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """A command of the project. It is run once: its name is remembered."""

    name: str
    command: list[str]


Execute = Callable[[Step], None]  # runs a step, unless it was run before
Executor = Callable[[Path, int], Execute]  # makes it, from a directory and a number of threads


def in_a_process(folder: Path, num_threads: int) -> Execute:
    """Run steps as a user would. What a step prints goes to a file of its own."""

    def execute(step: Step) -> None:
        done, log = step_file(folder, step.name), step_file(folder, step.name).with_suffix(".log")
        if done.exists() and read_json(done)["command"] == step.command:
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, str(ROOT / step.command[0]), *step.command[1:]]
        started = time.perf_counter()
        with open(log, "a") as file:
            code = _exit_code(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
        if code:
            raise ValueError(f"{step.name} ended with exit code {code}: see {log}")
        seconds = time.perf_counter() - started
        write_json(done, {"command": step.command, "seconds": seconds})
        say(f"{step.name}: {seconds:.0f} s")

    return execute


def step_file(folder: Path, name: str) -> Path:
    """The file with the command and the wall time of a step that has ended."""
    return folder / "steps" / f"{name.replace(' ', '-')}.json"


_running: set[subprocess.Popen[bytes]] = set()


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process. A terminal sends Ctrl-C to the process too, which then saves its work."""
    _running.add(process)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        _running.discard(process)


def stop_commands(*_: object) -> NoReturn:
    """Pass SIGTERM, which reaches this process alone, to its commands; then stop as after Ctrl-C."""
    for process in [*_running]:
        process.terminate()
    raise KeyboardInterrupt


def processor_seconds(run: Path) -> float:
    """The processor time of a run's updates. Its start and its held-out measurements are not in it."""
    return sum(line.get("processor_seconds", 0.0) for line in read_metrics(run))


def seconds_per_update(run: Path, clock: str = "processor_seconds") -> float:
    """The median over the lines that a run logged. The first line is left out, because memory is allocated
    in its updates.
    """
    lines = [line for line in read_metrics(run) if clock in line]
    pairs = itertools.pairwise(lines)
    return statistics.median(line[clock] / (line["step"] - before["step"]) for before, line in pairs)


def check_training_sets(flag: str, tasks: str) -> None:
    """Raise ValueError if one of the tasks, which commas separate, has no training set of its own."""
    for task in tasks.split(","):
        if task not in GLUE or GLUE[task].trained_on != task:
            raise ValueError(f"{flag} takes tasks with a training set, such as cola,sst2; got {task!r}")
