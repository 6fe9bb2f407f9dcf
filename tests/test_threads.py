"""The number of threads of a command: what decides it, and how the machine is read."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_text import NANO_FLAGS, text_flags, write_corpus

import train
from mlsm import device, threads
from mlsm.config import MOST_THREADS, TrainConfig
from mlsm.device import choose_num_threads
from mlsm.files import read_json, read_tensors
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.threads import SETTINGS_OF_NUMBER, decide

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("default", "processors", "others", "number"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),
        (2, 2, 0.97, 1),
        (2, 2, 2.0, 1),
        (1, 2, 0.0, 1),
        (8, 16, 3.0, 8),  # a processor has two logical ones
        (8, 16, 11.0, 5),
        (64, 64, 3.2, 61),
        (64, 2.0, 0.0, 2),  # a container
        (64, 0.5, 0.0, 1),
    ],
)
def test_as_many_threads_as_processors_are_free(
    default: int, processors: float, others: float, number: int
) -> None:
    choice = decide(default, processors, others, {})
    assert choice.number == number
    assert f"other programs use {others:.1f} of {processors:.3g} processors" in choice.reason
    most = min(default, max(1, round(processors)))
    assert (f"--threads {most}" in choice.reason) == (number < most)


def test_what_was_asked_for_wins_and_then_what_was_before_and_then_the_environment() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    assert decide(3, 4, 4, environment, asked=2, before=5).number == 2
    assert decide(3, 4, 4, environment, before=5).number == 5
    assert decide(3, 4, 4, environment) == (3, "OMP_NUM_THREADS is set")
    assert decide(3, 4, 4, {"MKL_NUM_THREADS": "3"}) == (3, "MKL_NUM_THREADS is set")
    assert decide(3, 4, 4, {"OMP_NUM_THREADS": ""}).number == 1


STAT = """cpu  400 0 0 4000 0 0 0 0 0 0
cpu0 100 20 3 4000 500 6 7 8 90 0
cpu1 50 0 0 4000 0 0 0 0 0 0
cpu12 1000 0 0 4000 0 0 0 0 0 0
intr 5 5
cpuset 7
"""


def test_busy_seconds_are_those_of_the_allowed_processors() -> None:
    """Busy ticks of the line cpu0 are all but idle (4000), waiting for the disk (500) and what counts again
    (90).
    """
    ticks = os.sysconf("SC_CLK_TCK")
    busy = threads._busy_seconds(STAT.splitlines(), {0, 1}, with_nice=True)
    assert math.isclose(busy, (100 + 20 + 3 + 6 + 7 + 8 + 50) / ticks)
    busy = threads._busy_seconds(STAT.splitlines(), {0, 1}, with_nice=False)
    assert math.isclose(busy, (100 + 3 + 6 + 7 + 8 + 50) / ticks)


def test_this_process_is_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([threads.Busy(10.0, 100.0, 50.0), threads.Busy(12.0, 107.0, 54.0)])
    monkeypatch.setattr(threads, "busy_seconds", lambda: next(readings))
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    assert threads.used_by_others(0.0) == 1.5  # (7 - 4) / 2


def test_a_load_of_a_moment_is_not_the_load_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([threads.Busy(10.0, 100.0, 50.0), threads.Busy(12.0, 107.0, 54.0)])
    monkeypatch.setattr(threads, "busy_seconds", lambda: next(readings))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.0, 0.0))
    assert threads.used_by_others(0.0) == 0.2


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs the kernel's /proc/stat")
def test_a_busy_process_is_seen() -> None:
    """It is one of the others, and its time is not less than what it reports itself."""
    code = "import time\nwhile True: pass"
    before = threads.busy_seconds()
    assert before is not None
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.perf_counter() + 60
        while _seconds_of(process.pid) < 0.3 and time.perf_counter() < until:
            time.sleep(0.05)
        now = time.perf_counter()
        assert threads.others_since(before) * (now - before.time) > 0.2
    finally:
        process.kill()
        process.wait()


def _seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_proc_nothing_is_known_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "busy_seconds", lambda: None)
    assert threads.used_by_others(0.0) == 0.0


def test_quotas_of_control_groups(tmp_path: Path) -> None:
    """Version 2 has a quota in a group and in all above it, version 1 in the folder of the controller."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    one = tmp_path / "cpu,cpuacct" / "c"
    one.mkdir(parents=True)
    (one / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu.cfs_period_us").write_text("100000\n")
    (one.parent / "cpu.cfs_quota_us").write_text("-1\n")
    (one.parent / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "membership"
    membership.write_text("5:memory:/a/b\n3:cpu,cpuacct:/c\n0::/a/b\n")
    assert threads._quotas(membership, tmp_path) == [0.5, 1.5, 4.0]
    assert threads._quotas(tmp_path / "none", tmp_path) == []


def test_numbers_that_no_machine_has_are_refused() -> None:
    assert TrainConfig(threads=MOST_THREADS).threads == MOST_THREADS
    for number in (0, -1, MOST_THREADS + 1):
        with pytest.raises(ValueError, match="threads must be between 1 and"):
            TrainConfig(threads=number)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default is two threads, on a machine of two processors, and no watcher is started."""
    for name in SETTINGS_OF_NUMBER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "num_processors", lambda: 2)
    monkeypatch.setattr(device, "watch", lambda number: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def flags(folder: Path, *more: str) -> list[str]:
    write_corpus(folder / "text.txt")
    return ["--objective=mlm", *text_flags(folder), *NANO_FLAGS, *more]


@pytest.mark.usefixtures("two_threads")
def test_a_run_beside_a_busy_program_has_a_thread_less_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is resumed on a quiet machine, and ends with the bits of one that was never stopped."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run in (whole, stopped):
        torch.set_num_threads(2)
        monkeypatch.setattr(device, "used_by_others", lambda: 1.0)
        train.main(flags(tmp_path, f"--output={run}"))
        assert torch.get_num_threads() == 1
        said = capsys.readouterr().err
        assert said.count("threads: 1 (other programs use 1.0 of 2 processors; --threads 2") == 1
        assert read_json(run / "config.json")["num_threads"] == 1
    (stopped / MODEL_FILE).unlink()
    for name in ("step-4", "step-6"):
        (stopped / "checkpoints" / name / MODEL_FILE).unlink()
    torch.set_num_threads(2)
    monkeypatch.setattr(device, "used_by_others", lambda: 0.0)
    train.main(flags(tmp_path, f"--output={stopped}", "--resume"))
    said = capsys.readouterr().err
    assert "threads: 1 (as before" in said
    assert "after update 2" in said
    assert read_json(stopped / "config.json")["num_threads"] == torch.get_num_threads() == 1
    one, other = read_tensors(whole / MODEL_FILE), read_tensors(stopped / MODEL_FILE)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.usefixtures("two_threads")
def test_a_number_that_is_asked_for_is_taken_and_may_change_on_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "used_by_others", lambda: pytest.fail("the machine was measured"))
    run = tmp_path / "run"
    for number, more in ((1, []), (2, ["--resume"])):
        (run / MODEL_FILE).unlink(missing_ok=True)
        train.main(flags(tmp_path, f"--output={run}", f"--threads={number}", *more))
        assert torch.get_num_threads() == number
        assert f"threads: {number} (as asked for)" in capsys.readouterr().err
        assert read_json(run / "config.json")["num_threads"] == number


@pytest.mark.usefixtures("two_threads")
def test_a_gpu_takes_no_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "used_by_others", lambda: pytest.fail("the machine was measured"))
    choose_num_threads(None, torch.device("cuda"))
    assert torch.get_num_threads() == 2
    assert capsys.readouterr().err == ""


def test_the_environment_is_respected(tmp_path: Path) -> None:
    """In a process of its own, because the library of the threads reads it once."""
    command = [sys.executable, str(ROOT / "train.py"), *flags(tmp_path, f"--output={tmp_path / 'run'}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    assert "threads: 1 (OMP_NUM_THREADS is set)" in said
    assert read_json(tmp_path / "run" / "config.json")["num_threads"] == 1
