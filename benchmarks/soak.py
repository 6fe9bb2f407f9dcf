"""A long run of the preset tiny, to see whether its memory, open files or threads grow.

    PYTHONPATH=. python benchmarks/soak.py --minutes 120       writes results/soak.md

The run learns words and concepts at once on the embedded corpus (mlm+mlsm, so that teacher and coder take
part) with dropout and frequent checkpoints. It is a process of its own, which is observed through /proc. Its
teacher makes only a few updates, because its quality does not matter here.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import result_page

from mlsm.log import read_metrics

SECONDS_BETWEEN_SAMPLES = 10
MINUTES_A_ROW = 10
CHECKPOINT_EVERY, LOG_EVERY = 20, 5  # updates
TEACHER = ["--objective=mlm", "--num-steps=20"]
DICTIONARY = ["--k=200", "--num-tokens=20000", "--num-updates=20"]
STUDENT = ["--objective=mlm+mlsm", "--init=random", "--dropout=0.1"]
STUDENT += ["--num-steps=1000000", "--warmup-share=0.0001"]


class Sample(NamedTuple):
    """What the process uses at one moment."""

    minute: float  # since its first update
    mib: float  # resident memory
    files: int  # open handles
    threads: int
    updates: int


def sample(pid: int, minute: float, updates: int) -> Sample:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mib = int(status["VmRSS"].split()[0]) / 1024
    return Sample(minute, mib, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), updates)


def command(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(result_page.REPOSITORY / script), *flags]


def soak(folder: Path, minutes: float) -> list[Sample]:
    """Train for so many minutes and take a sample every ten seconds. Raises RuntimeError if training ends."""
    subprocess.run(command("train.py", *TEACHER), cwd=folder, check=True)
    subprocess.run(command("fit_dictionary.py", *DICTIONARY), cwd=folder, check=True)
    often = [f"--checkpoint-every={CHECKPOINT_EVERY}", f"--log-every={LOG_EVERY}", "--output=run"]
    training = subprocess.Popen(command("train.py", *STUDENT, *often), cwd=folder)
    samples: list[Sample] = []
    started = None
    try:
        while not samples or samples[-1].minute < minutes:
            time.sleep(SECONDS_BETWEEN_SAMPLES if started else 1)
            if training.poll() is not None:
                raise RuntimeError(f"training ended with exit code {training.returncode}")
            if metrics := read_metrics(folder / "run"):
                started = started or time.monotonic()
                minute = (time.monotonic() - started) / 60
                samples.append(sample(training.pid, minute, metrics[-1]["step"]))
        training.send_signal(signal.SIGTERM)
        if (code := training.wait(timeout=300)) != 128 + signal.SIGTERM:
            raise RuntimeError(f"training answered SIGTERM with exit code {code}")
    finally:
        training.kill()
        training.wait()
    return samples


def slope(samples: Sequence[Sample], name: str) -> float:
    """Growth per hour, by least squares."""
    hours = [s.minute / 60 for s in samples]
    return float(np.polyfit(hours, [getattr(s, name) for s in samples], 1)[0])


def text(samples: Sequence[Sample], minutes: float, warm_up: float, circumstances: str) -> str:
    warm = [s for s in samples if s.minute >= warm_up]
    summary = [
        (
            title,
            f"{getattr(warm[0], name):.0f}",
            f"{getattr(warm[-1], name):.0f}",
            f"{slope(warm, name):+.2f}",
        )
        for title, name in [("resident MiB", "mib"), ("open files", "files"), ("threads", "threads")]
    ]
    rows = []
    for begin in range(0, int(samples[-1].minute) + 1, MINUTES_A_ROW):
        if these := [s for s in samples if begin <= s.minute < begin + MINUTES_A_ROW]:
            mib, files, threads = ([getattr(s, n) for s in these] for n in ("mib", "files", "threads"))
            rows.append(
                (
                    f"{begin} to {begin + MINUTES_A_ROW}",
                    these[-1].updates,
                    these[-1].updates // CHECKPOINT_EVERY,
                    f"{np.mean(mib):.1f}",
                    f"{max(mib):.1f}",
                    f"{min(files)} to {max(files)}",
                    f"{min(threads)} to {max(threads)}",
                )
            )
    header = ["minutes", "updates", "checkpoints", "mean MiB", "largest MiB", "open files", "threads"]
    return f"""# Does a long run grow?

Written by the command below: mlm+mlsm with the preset tiny on the embedded corpus for {minutes:g} minutes, a
checkpoint every {CHECKPOINT_EVERY} updates; another process took a sample every {SECONDS_BETWEEN_SAMPLES} s.
While a checkpoint is written one more file is open.

{circumstances}

After {warm_up:g} minutes of warming up; growth by least squares:

{result_page.table(["", f"at minute {warm_up:g}", "at the end", "growth per hour"], summary)}

{result_page.table(header, rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120, help="of training (default: 120)")
    parser.add_argument(
        "--warm-up", type=float, default=10, help="minutes that growth leaves out (default: 10)"
    )
    args = parser.parse_args()
    circumstances = result_page.circumstances(
        f"PYTHONPATH=. python benchmarks/soak.py --minutes {args.minutes:g}"
    )  # of the commit that starts
    with tempfile.TemporaryDirectory() as folder:
        samples = soak(Path(folder), args.minutes)
    result_page.write("soak.md", text(samples, args.minutes, args.warm_up, circumstances))


if __name__ == "__main__":
    main()
