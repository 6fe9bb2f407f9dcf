"""Small runs for the tests that need a trained teacher, a dictionary or a student. Each is trained once,
in a second.
"""

import atexit
import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from small_text import NANO_FLAGS, write_corpus

import fit_dictionary
import train
from mlsm.files import read_json
from mlsm.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent


def nano_teacher(folder: Path) -> Path:
    """folder/runs/teacher with a dictionary of 24 concepts, on a corpus of its own. It is trained once in a
    process, and copied.
    """
    trained = _trained_nano_teacher()
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    teacher = folder / "runs" / "teacher"
    config = teacher / "config.json"
    config.write_text(config.read_text().replace(str(trained), str(folder)))
    return teacher


@functools.cache
def _trained_nano_teacher() -> Path:
    """The folder of `nano_teacher` that the others are copied from."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
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
    return folder


def student_flags(teacher: Path, objective: str, output: Path) -> list[str]:
    """Flags that train a student of the nano teacher from random weights."""
    small = [
        flag
        for flag in NANO_FLAGS
        if flag.startswith(("--batch", "--token", "--num-steps", "--check", "--log"))
    ]
    return [f"--objective={objective}", "--init=random", f"--teacher={teacher}", f"--output={output}", *small]


def flags_for(objective: str, teacher: Path, student: Path, output: Path) -> list[str]:
    """Flags of a short run of any objective."""
    flags = student_flags(teacher, objective, output)
    if objective == "token-head":
        flags = [f for f in flags if not f.startswith(("--init", "--teacher"))] + [f"--init={student}"]
    if objective == "mlm":
        data = read_json(teacher / "config.json")["data"]
        flags = [f"--corpus={data['corpus'][0]}", f"--cache-dir={data['cache_dir']}", *NANO_FLAGS]
        flags += ["--objective=mlm", f"--output={output}"]
    return flags


def run_script(script: str, *flags: str, cwd: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """A script of the project in a process of its own, as a user runs it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *flags]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=check
    )


def wait_for(happened: Callable[[], object]) -> None:
    """Return as soon as the condition is true."""
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def learnt(run: Path) -> list[dict[str, float]]:
    """The metrics of a run without those that are times."""
    varying = ("seconds", "processor_seconds", "tokens_per_s", "coding_share")
    return [{k: v for k, v in line.items() if k not in varying} for line in read_metrics(run)]


def close(one: object, two: object, tolerance: float) -> bool:
    """Whether two values of JSON are equal up to the rounding of their numbers."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[name], two[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(close, one, two, itertools.repeat(tolerance)))
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= tolerance * max(1, abs(one))
    return one == two
