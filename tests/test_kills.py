"""A run that is killed many times, at random moments, ends bit for bit as one that never was.

pytest tests/test_kills.py -rP --kills 20       so often for every objective, and how many struck a checkpoint
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from pipeline import flags_for, learnt, wait_for

from mlsm.runs.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from mlsm.training.objectives import OBJECTIVES

EVERY = 3  # updates between two checkpoints
KILLS = {"lsm": 20}  # of the others: a few, as each takes a third of a second
FEW_KILLS = 5
CHECKPOINT_S = 0.01  # about as long as one is written


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("trainer"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def student(teacher: Path, trainer: ForkServer) -> Path:
    path = teacher.parent / "lsm-random"
    trainer.start("train", *flags_for("lsm", teacher, path, path))
    assert trainer.wait() == 0
    return path


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(
    objective: str,
    trainer: ForkServer,
    teacher: Path,
    student: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    num_kills = pytestconfig.getoption("--kills") or KILLS.get(objective, FEW_KILLS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*flags_for(objective, teacher, student, killed), "--learning-rate=0.003", "--log-every=1"]
    flags += [f"--num-steps={4 * EVERY * num_kills}", f"--checkpoint-every={EVERY}"]
    if objective == "mlm+mlsm":
        flags.append("--eval-every=5")
    if objective != "token-head":  # a frozen student keeps its settings
        flags.append("--dropout=0.1")
    started = time.monotonic()
    trainer.start("train", *[*flags, f"--output={whole}", "--checkpoint-every=100000", "--eval-every=0"])
    assert trainer.wait() == 0
    interval_s = (time.monotonic() - started) / (4 * num_kills)

    draw = random.Random(objective)
    num_struck = sum(
        kill(trainer, [*flags, "--resume"], killed, draw, interval_s, in_checkpoint=number % 2 == 1)
        for number in range(num_kills)
    )
    print(f"{objective}: {num_kills} kills, {num_struck} while a checkpoint was written")
    assert num_struck > 0 or num_kills == FEW_KILLS  # which may all miss
    assert not (killed / MODEL_FILE).exists()
    trainer.start("train", *[*flags, "--resume"])
    assert trainer.wait() == 0
    last = f"checkpoints/step-{4 * EVERY * num_kills}"
    for name in (MODEL_FILE, f"{last}/{OPTIMIZER_FILE}"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    lines = learnt(killed)
    assert [line for line in lines if not is_heldout(line) or line["step"] == lines[-1]["step"]] == learnt(
        whole
    )
    if objective == "mlm+mlsm":
        measured = [line["step"] for line in lines if is_heldout(line)]
        assert measured == [*range(5, measured[-1], 5), measured[-1]]


def is_heldout(line: dict[str, float]) -> bool:
    return any(name.startswith("heldout_") for name in line)


def kill(
    trainer: ForkServer,
    flags: list[str],
    run: Path,
    draw: random.Random,
    interval_s: float,
    *,
    in_checkpoint: bool,
) -> bool:
    """Start a run, let it write none, one or two checkpoints, and kill it in the next one or anywhere
    thereabouts. Returns whether it was writing one.
    """
    since_ns = time.time_ns()
    enough = newest_step(run) + EVERY * draw.randrange(3)
    moment_s = draw.random() * (CHECKPOINT_S if in_checkpoint else 1.5 * interval_s)
    pid = trainer.start("train", *flags)
    wait_for(lambda: newest_step(run) >= enough)
    if in_checkpoint:
        wait_for(lambda: is_writing(run, since_ns))
    moment_s += time.monotonic()
    wait_for(lambda: time.monotonic() >= moment_s or newest_step(run) >= enough + 2 * EVERY)
    os.kill(pid, signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL
    return is_writing(run, since_ns)


def newest_step(run: Path) -> int:
    return max((int(path.name[len("step-") :]) for path in run.glob("checkpoints/step-*")), default=0)


def is_writing(run: Path, since_ns: int) -> bool:
    """Whether there is a checkpoint that is not whole, and is none of a run that was killed before."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_ctime_ns >= since_ns for path in run.glob("checkpoints/.step-*.tmp"))
    return False
