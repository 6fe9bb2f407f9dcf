"""The examples of docs/extending.md, taken from the page: applied to a copy of the project and run there."""

import json
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
from mlsm.coding.dictionary import Dictionary
from mlsm.files import read_json
from mlsm.log import read_metrics

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
MOST_LINES = 40
# One process for all: starting three takes longer than what they do.
PROGRAM = """
import json, sys, torch
import evaluate, fit_dictionary, train
from mlsm import export, report
from kernels.lasso import nonneg_lasso
draw = torch.Generator().manual_seed(0)
atoms = torch.nn.functional.normalize(torch.randn(6, 9, generator=draw, dtype=torch.float64), dim=0)
signals = torch.randn(5, 6, generator=draw, dtype=torch.float64)
ours, exact = (nonneg_lasso(signals, atoms, 0.1, tol=1e-9, solver=name) for name in ("ista", "fista"))
assert torch.allclose(ours.codes_NK, exact.codes_NK, atol=1e-3)
assert (ours.gap_N <= 1e-9 * 0.5 * signals.square().sum(1)).all() and (ours.steps_N > 0).all()
for script, *flags in json.loads(sys.argv[1]):
    globals()[script.removesuffix(".py")].main(flags)
evaluate.main(["student"])
report.main(["student", "--output=report.html"])
export.main(["student", "exported"])
"""


def blocks(section: str) -> list[tuple[str, str]]:
    """(kind, text) of the fenced blocks."""
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with all examples, after their commands have run on a small teacher beside it."""
    copy = tmp_path_factory.mktemp("extending")
    for folder in ("mlsm", "kernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    for _, section in SECTIONS:
        for kind, text in blocks(section):
            if kind == "diff":
                subprocess.run(["git", "apply", "-"], input=text, text=True, cwd=copy, check=True)
        for name, text in re.findall(r"In `([\w./]+)`:\n\n```\w+\n(.*?)```", section, re.DOTALL):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_text(text, encoding="utf-8")

    teacher = random_run(copy / "runs" / "teacher")
    corpus = write_corpus(copy / "text.txt", count=200)
    text_flags = [f"--corpus={corpus}", f"--cache-dir={copy / 'cache'}", "--max-length=32"]
    sample = ["--k=20", "--num-tokens=900", "--num-updates=2", "--batch-size=90", *text_flags]
    fit_dictionary.main([f"--teacher={teacher}", *sample])
    further = {
        "train.py": [*student_flags(teacher, "", copy / "student")[2:], *text_flags],
        "fit_dictionary.py": [f"--teacher={teacher}", f"--output={copy / 'ista.safetensors'}", *sample],
        "evaluate.py": [],
    }
    commands = [text.split()[1:] for _, section in SECTIONS for kind, text in blocks(section) if kind == "sh"]
    given = json.dumps([[script, *flags, *further[script]] for script, *flags in commands])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM, given], cwd=copy, env=environment, check=True)
    return copy


@pytest.mark.parametrize(("title", "section"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_an_example_is_short(title: str, section: str) -> None:
    added = [
        line
        for kind, text in blocks(section)
        for line in text.splitlines()
        if kind in ("python", "json") or re.match(r"\+(?!\+\+ )", line)
    ]
    assert 0 < len(added) < MOST_LINES


def test_an_objective(copy: Path) -> None:
    assert read_json(copy / "student" / "config.json")["train"]["objective"] == "largest-concept"
    lines = read_metrics(copy / "student")
    assert 0 < lines[0]["concept_cross_entropy"] < 10
    assert 0 < lines[-1]["heldout_concept_kl"] < 10
    assert read_json(copy / "student" / "results.json")["demo"]["concept KL"] > 0
    assert "largest-concept" in (copy / "report.html").read_text(encoding="utf-8")
    card = (copy / "exported" / "README.md").read_text(encoding="utf-8")
    assert "trained to predict the largest latent concept of every token" in card


def test_a_solver(copy: Path) -> None:
    assert Dictionary.load(copy / "ista.safetensors").atoms_DK.shape[1] == 20


def test_an_evaluation_task(copy: Path) -> None:
    results = read_json(copy / "runs" / "teacher" / "results.json")
    assert list(results["agreement"]["subtasks"]) == ["verbs"]
