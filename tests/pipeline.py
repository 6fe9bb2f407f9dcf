"""Small runs for the tests that need a trained teacher, a dictionary or a student: made once, each in a
second.
"""

import os
import subprocess
import sys
from pathlib import Path

from small_text import NANO_FLAGS, write_corpus

import fit_dictionary
import train

ROOT = Path(__file__).resolve().parent.parent


def nano_teacher(folder: Path) -> Path:
    """folder/runs/teacher with a dictionary of 24 concepts, on a corpus of its own."""
    corpus = write_corpus(folder / "text.txt")
    flags = ["--corpus", str(corpus), "--cache-dir", str(folder / "cache"), *NANO_FLAGS]
    teacher = folder / "runs" / "teacher"
    train.main(
        [
            "--objective=mlm",
            f"--output={teacher}",
            "--learning-rate=0.01",
            "--num-steps=150",
            *flags[:-3],
            *flags[-2:],
        ]
    )
    fit_dictionary.main(
        [f"--teacher={teacher}", "--k=24", "--num-tokens=2000", "--num-updates=20", "--batch-size=100"]
    )
    return teacher


def student_flags(teacher: Path, objective: str, output: Path) -> list[str]:
    """Flags that train a student of the nano teacher from random weights."""
    small = [
        flag
        for flag in NANO_FLAGS
        if flag.startswith(("--batch", "--token", "--num-steps", "--check", "--log"))
    ]
    return [f"--objective={objective}", "--init=random", f"--teacher={teacher}", f"--output={output}", *small]


def run_script(script: str, *flags: str, cwd: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """A script of the project in a process of its own, as a user runs it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *flags]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=check
    )
