"""The end of a process: exit codes, one line for a mistake, signals, and output that nobody reads."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipeline import ROOT

from mlsm import cli, distributed

WORK = """
import sys, time
from pathlib import Path
from mlsm import cli
from mlsm.log import progress, say

def main(argv):
    with cli.StopSignals() as signals, progress(3, "working") as bar:
        for _ in range(3):
            say("a line"); print("▁ a row of a table"); bar.update()
        Path(argv[0]).write_text("started")
        while len(argv) > 1 and not signals.received:
            time.sleep(0.01)
    Path(argv[0]).write_text("done")
    if signals.received:
        raise cli.Stopped(signals.received, "stopped")

cli.run(main)
"""


def command(*flags: str) -> list[str]:
    return [sys.executable, "-c", WORK, *flags]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_work_is_done_although_nobody_reads_the_output(tmp_path: Path) -> None:
    """A command whose output nobody reads, as in `train.py ... 2>&1 | head -1`, still does its work."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        command(str(tmp_path / "x")), stdout=writer, stderr=writer, env=ENVIRONMENT, timeout=120
    )
    os.close(writer)
    assert result.returncode == 0
    assert (tmp_path / "x").read_text() == "done"


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_work_is_done_although_the_output_is_closed(closed: str, tmp_path: Path) -> None:
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(str(tmp_path / "x"))]
    result = subprocess.run(words, env=ENVIRONMENT, timeout=120, stdout=subprocess.PIPE)
    assert result.returncode == 0
    assert (tmp_path / "x").read_text() == "done"
    assert (result.stdout != b"") == (closed == "2>&-")


def test_output_in_ascii_ends_no_work(tmp_path: Path) -> None:
    result = subprocess.run(
        command(str(tmp_path / "x")),
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert rb"\u2581 a row of a table" in result.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of a full disk")
def test_a_table_that_could_not_be_written_is_a_mistake_after_the_work(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command(str(tmp_path / "x")), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    assert result.returncode == cli.EXIT_MISTAKE
    assert b"error: cannot write to standard output: No space left on device" in result.stderr
    assert (tmp_path / "x").read_text() == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_to_stop_lets_the_work_end(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(str(tmp_path / "x"), "wait"),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may run under nohup
    )
    wait_for_start(tmp_path / "x")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (tmp_path / "x").read_text() == "done"
    assert said.splitlines()[-1] == b"stopped"


def test_under_nohup_a_closed_terminal_does_not_stop_the_work(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(str(tmp_path / "x"), "wait"),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_start(tmp_path / "x")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def wait_for_start(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_message_is_one_printable_line_of_limited_length() -> None:
    assert cli.one_line(ValueError("a\x1b[2J\n  b\u202e")) == "a\ufffd[2J b\ufffd"
    line = cli.one_line(ValueError("x" * 10_000 + "the end"))
    assert len(line) <= cli.LONGEST_LINE + len(" ... ")
    assert line.endswith("the end")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ConnectionError(distributed.LOST_PROCESS),
    ],
)
def test_a_message_of_every_command_speaks_of_no_other_command(error: Exception) -> None:
    assert ".py" not in cli.one_line(error)
