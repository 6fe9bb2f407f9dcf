"""The examples of docs/extending.md, taken from the page: each applied to a copy of the project and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import ROOT, student_flags
from small_runs import random_run
from small_text import write_corpus

import fit_dictionary
from mlsm.checkpoint import read_json
from mlsm.dictionary import Dictionary
from mlsm.log import read_metrics

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MOST_LINES = 40


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a dictionary of 20 concepts, beside a text."""
    run = random_run(tmp_path_factory.mktemp("extending") / "teacher")
    write_corpus(run.parent / "text.txt", count=200)
    sample = ["--k=20", "--num-tokens=900", "--num-updates=2", "--batch-size=90"]
    fit_dictionary.main([f"--teacher={run}", *text_flags(run), *sample])
    return run


def text_flags(teacher: Path) -> list[str]:
    folder = teacher.parent
    return [f"--corpus={folder / 'text.txt'}", f"--cache-dir={folder / 'cache'}", "--max-length=32"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in ("mlsm", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    return tmp_path


def apply(copy: Path, title: str) -> str:
    """Write the files and apply the patches of a section; returns its command."""
    section = SECTIONS[title]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    added = [line for kind, text in blocks if kind != "sh" for line in text.splitlines()
             if kind != "diff" or re.match(r"\+(?!\+\+ )", line)]  # fmt: skip
    assert len(added) < MOST_LINES
    for kind, text in blocks:
        if kind == "diff":
            subprocess.run(["git", "apply", "-"], input=text, text=True, cwd=copy, check=True)
    for name, text in re.findall(r"In `([\w./]+)`:\n\n```\w+\n(.*?)```", section, re.DOTALL):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    [command] = [text.strip() for kind, text in blocks if kind == "sh"]
    return command


def run(copy: Path, *words: str) -> str:
    """A command of Python, in the copy."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_an_objective(copy: Path, teacher: Path) -> None:
    command = apply(copy, "An objective")
    student = copy / "student"
    run(copy, *command.split()[1:], *student_flags(teacher, "", student)[2:], *text_flags(teacher))
    assert read_json(student / "config.json")["train"]["objective"] == "largest-concept"
    lines = read_metrics(student)
    assert 0 < lines[0]["concept_cross_entropy"] < 10
    assert "heldout_concept_cross_entropy" in lines[-1]


AGREES = """
import sys
import torch
import fit_dictionary
from kernels.lasso import nonneg_lasso
draw = torch.Generator().manual_seed(0)
atoms = torch.nn.functional.normalize(torch.randn(6, 9, generator=draw, dtype=torch.float64), dim=0)
signals = torch.randn(5, 6, generator=draw, dtype=torch.float64)
ours, exact = (nonneg_lasso(signals, atoms, 0.1, tol=1e-9, solver=name) for name in ("ista", "fista"))
assert torch.allclose(ours.codes_NK, exact.codes_NK, atol=1e-3)
assert (ours.gap_N <= 1e-9 * 0.5 * signals.square().sum(1)).all() and (ours.steps_N > 0).all()
fit_dictionary.main(sys.argv[1:])
"""


def test_a_solver(copy: Path, teacher: Path) -> None:
    script, *flags = apply(copy, "A solver of the sparse codes").split()[1:]
    assert script == "fit_dictionary.py"
    sample = ["--k=12", "--num-tokens=500", "--num-updates=2", "--batch-size=100"]
    output = copy / "ista.safetensors"
    run(
        copy,
        "-c",
        AGREES,
        *flags,
        f"--teacher={teacher}",
        f"--output={output}",
        *sample,
        *text_flags(teacher),
    )
    assert Dictionary.load(output).atoms_DK.shape[1] == 12


def test_an_evaluation_task(copy: Path, teacher: Path) -> None:
    command = apply(copy, "An evaluation task")
    told = run(copy, *command.replace("runs/teacher", str(teacher)).split()[1:])
    assert "agreement" in told
    assert len(read_json(teacher / "results.json")["agreement"]["subtasks"]) == 1
