"""What a shell and its user rely on: help, versions, exit codes, plain lines in a log file, no colours."""

import argparse
import dataclasses
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline import student_flags
from small_runs import random_run
from small_text import write_corpus
from test_layout import modules

import evaluate
import fit_dictionary
import train
from mlsm import __version__, cli, command_line
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.training.objectives import OBJECTIVES

# Modules with a main(argv). `mlsm` runs the others, and the commands of experiments/ the modules behind them.
BEHIND = {
    "experiments.dictionaries": "dictionary_study",
    "experiments.recipe": "recipe_search",
    "experiments.strong_teacher": "teaching",
    "experiments.study": "study_run",
}
COMMANDS = sorted(
    BEHIND.get(name, name)
    for name, path in modules().items()
    if '__name__ == "__main__"' in path.read_text() and not name.startswith(("benchmarks.", "mlsm.__main__"))
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a dictionary of 20 concepts, beside a text."""
    folder = tmp_path_factory.mktemp("shell")
    run = random_run(folder / "teacher")
    write_corpus(folder / "text.txt", count=200)
    sample = ["--k=20", "--num-tokens=900", "--num-updates=2", "--batch-size=90"]
    fit_dictionary.main([f"--teacher={run}", *text_flags(run), *sample])
    return run


def text_flags(teacher: Path) -> list[str]:
    folder = teacher.parent
    return [f"--corpus={folder / 'text.txt'}", f"--cache-dir={folder / 'cache'}", "--max-length=32"]


def test_there_are_commands() -> None:
    assert {"train", "fit_dictionary", "evaluate", "mlsm.export"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_version_and_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(command).main
    for flag, expected in (("--version", f"mlsm {__version__}\n"), ("--help", "exit codes: 0 done; 2 ")):
        with pytest.raises(SystemExit) as stopped:
            main([flag])
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[argparse.ArgumentParser] = []

    def keep(self: argparse.ArgumentParser, *_: Any) -> None:
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(command_line, "_read_settings", keep)
    with pytest.raises(SystemExit):
        importlib.import_module(command).main([])
    assert [action.dest for action in parsers[0]._actions if not action.help] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_has_its_exit_code(
    number: signal.Signals,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_rate = train.set_learning_rate_

    def interrupted(optimizer: Any, step: int, config: Any) -> float:
        if step == 2:
            os.kill(os.getpid(), number)
        return set_rate(optimizer, step, config)

    monkeypatch.setattr(train, "set_learning_rate_", interrupted)
    flags = [*student_flags(teacher, "lsm", tmp_path / "run"), *text_flags(teacher), "--checkpoint-every=100"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        cli.run(train.main)
    assert stopped.value.code == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == "stopped after update 2; continue with --resume"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    train.main([*flags, "--resume"])
    assert "resuming" in capsys.readouterr().err
    train.main([*flags, f"--output={tmp_path / 'whole'}"])
    resumed, whole = ((tmp_path / name / MODEL_FILE).read_bytes() for name in ("run", "whole"))
    assert resumed == whole


def test_a_signal_within_an_update_drops_the_micro_batches_that_were_computed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*student_flags(teacher, "lsm", tmp_path / "run"), *text_flags(teacher), "--token-budget=40"]
    loss, num_computed = OBJECTIVES["lsm"].loss, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal num_computed
        num_computed += 1
        if num_computed == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)

    monkeypatch.setitem(OBJECTIVES, "lsm", dataclasses.replace(OBJECTIVES["lsm"], loss=interrupted))
    with pytest.raises(cli.Stopped, match="stopped after update 0; continue with --resume"):
        train.main(flags)
    assert num_computed == 2  # of at least eight
    assert not (tmp_path / "run" / "checkpoints").exists()
    train.main([*flags, "--resume"])
    assert num_computed > 6 * 8


@pytest.mark.parametrize(
    ("objective", "idle"),
    [
        ("lsm", ["--vocab-size", "--mask-share", "--mlm-weight"]),
        ("mlsm", ["--vocab-size", "--mlm-weight"]),
        ("mlm+mlsm", ["--vocab-size"]),
    ],
)
def test_flags_without_effect_are_named(
    objective: str, idle: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--vocab-size=70",
        "--mask-share=0.5",
        "--mlm-weight=2",
        "--code-tolerance=0.01",
        "--dropout=0.1",
    ]
    flags += [*text_flags(teacher), "--num-steps=1"]
    train.main([*student_flags(teacher, objective, tmp_path / "run"), *flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("without effect: ")]
    assert [line.split(" (")[0].split(": ")[1].split(", ") for line in lines] == [idle]


def test_flags_without_effect_on_words_and_scores_are_named(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(tmp_path / "runs" / "student", num_concepts=6)
    flags = [f"--output={tmp_path / 'words'}", *text_flags(teacher), "--num-steps=1", "--batch-size=4"]
    flags += ["--teacher=x", "--solver=fista"]
    train.main(["--objective=token-head", f"--init={run}", *flags, "--dropout=0.5"])
    said = capsys.readouterr().err
    assert "without effect: --teacher, --solver, --dropout (with --objective token-head" in said
    with pytest.raises(ValueError, match="--tasks takes"):
        evaluate.main([str(run), "--tasks=no"])
    with pytest.raises(ValueError, match="no run at"):
        evaluate.main([str(tmp_path), "--ties=correct", "--seeds=12", "--paper=10M"])
    said = capsys.readouterr().err
    assert "without effect: --ties (no suite is scored)" in said
    assert "without effect: --seeds (nothing is fine-tuned)" in said
    assert "without effect: --paper (only the demo is measured)" in said
