"""What runs on a GPU, in processes of their own: that of the tests hides it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import ROOT, student_flags
from small_text import NANO_FLAGS, write_corpus

from mlsm.log import read_metrics

KERNELS = [str(path) for path in (ROOT / "tests" / "kernels").glob("test_*_triton.py")]


def test_no_other_test_sees_a_gpu(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getoption("gpu") or not torch.cuda.is_available()


def said_by(*command: str, environment: dict[str, str]) -> str:
    """What a command of Python's says until it ends well."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_kernels_on_a_gpu(gpu_environment: dict[str, str]) -> None:
    said_by("-m", "pytest", "--gpu", *KERNELS, environment=gpu_environment)


def test_a_teacher_and_a_student_train_with_the_kernels(
    tmp_path: Path, gpu_environment: dict[str, str]
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    corpus = [f"--corpus={write_corpus(tmp_path / 'text.txt')}", f"--cache-dir={tmp_path / 'cache'}"]
    heads_of_64 = [*NANO_FLAGS, "--width=64", "--num-heads=1"]
    enough = ["--num-steps=150", "--learning-rate=0.01"]
    few = ["--k=24", "--num-tokens=2000", "--num-updates=20", "--batch-size=100"]
    training = [
        ["train.py", "--objective=mlm", f"--output={teacher}", *corpus, *heads_of_64, *enough],
        ["fit_dictionary.py", f"--teacher={teacher}", *few],
        ["train.py", *student_flags(teacher, "lsm", student), *enough],
    ]
    said = "".join(said_by(*command, environment=gpu_environment) for command in training)
    assert "disentangled_attention: triton" in said
    assert "nonneg_lasso: triton" in said
    assert "cross_entropy: triton" in said
    for directory, name in ((teacher, "cross_entropy"), (student, "concept_kl")):
        losses = [line[name] for line in read_metrics(directory) if name in line]
        assert losses[-1] < losses[0]
