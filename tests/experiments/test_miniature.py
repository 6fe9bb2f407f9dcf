"""The study in miniature: the scripts take its commands, it continues where it stopped, and its page holds
the numbers of the runs.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import study
import study_run
from pipeline import ROOT
from several_commands import MAINS
from small_text import sentences, write_corpus
from task_files import blimp_rows, write_cola, write_lines

import evaluate
import fit_dictionary
import train
from mlsm import cli
from mlsm.config import PRESETS, Preset, tiny
from mlsm.evaluation import grammar
from mlsm.files import read_json, write_json

PARSERS = {"train.py": train.flags, "fit_dictionary.py": fit_dictionary.flags, "evaluate.py": evaluate.parser}


def nano() -> Preset:
    """Two narrow layers."""
    preset = tiny()
    shape = dataclasses.replace(preset.model, width=16, depth=3, num_heads=2, ffn_width=32, vocab_size=80)
    phases = {
        name: dataclasses.replace(getattr(preset, name), batch_size=4, token_budget=96, log_every=2)
        for name in ("teacher", "student", "token_head")
    }
    dictionary = dataclasses.replace(preset.dictionary, k=24, batch_size=100)
    return dataclasses.replace(preset, model=shape, dictionary=dictionary, **phases)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a study of a nano model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", nano)
    texts = sentences(20, seed=1)
    pairs = blimp_rows(texts, [" ".join(reversed(s.split())) for s in texts])
    for folder in ("blimp_filtered", "supplement_filtered"):
        write_lines(tmp_path / "data" / folder / "one.jsonl", pairs)
    write_cola(tmp_path / "data", 40, 20)
    corpus = write_corpus(tmp_path / "text.txt")
    flags = [f"--corpus={corpus}", "--data=data", "--output=study", "--result=page.md", "--jobs=1"]
    return [*flags, "--updates=20"]


def here(done: list[str]) -> study_run.Executor:
    """Runs steps in this process, each once, and notes them."""

    def executor(folder: Path, threads: int) -> Callable[[study.Step], None]:
        def execute(step: study.Step) -> None:
            if step.name not in done:
                script, *flags = step.command
                MAINS[script.removesuffix(".py")](flags)
                write_json(folder / "steps" / f"{step.name}.json", {"command": step.command, "seconds": 1.0})
                done.append(step.name)

        return execute

    return executor


def test_every_command_is_one_that_the_scripts_take(tmp_path: Path) -> None:
    small = study.Study(("text.txt",), 100, "small", 1000, 32, 1e-3, 12, 1500, 0.05, ("cola", "rte"))
    commands = study.Commands(small, tmp_path)
    steps = [
        commands.train_teacher(),
        commands.fit_dictionary(),
        *(step for chain in commands.chains() for step in chain),
    ]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        script, *flags = step.command
        PARSERS[script]().parse_args(flags)
    [half] = [step.command for step in steps if step.name == "train half-width"]
    assert half[-6:] == ["--width", "192", "--num-heads", "3", "--ffn-width", "768"]
    named = {part for step in steps for part in step.command}
    assert {"mlm", "mlsm", "lsm15", "lsm", "token-head", "192", "500", "4500", "0.02", "0.2"} <= named


def test_the_data_is_cut_to_what_the_budget_allows(tmp_path: Path) -> None:
    write_cola(tmp_path, 100, 20)
    text = (tmp_path / "glue_filtered" / "cola.train.jsonl").read_text(encoding="utf-8")
    assert study_run.examples_that_fit(tmp_path, ["cola"], 0.5 * len(text)) == pytest.approx(50, abs=1)
    assert study_run.examples_that_fit(tmp_path, ["cola"], 10.0 * len(text)) == 100
    assert study_run.examples_that_fit(tmp_path, ["cola"], 0) == study.MIN_EXAMPLES


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget=0", "budget must be above 0"),
        ("--jobs=-1", "jobs must be above 0"),
        ("--corpus=nothing.txt", "nothing.txt"),
        ("--data=nowhere", "no .jsonl files in nowhere"),
        ("--glue=mnli-mm", "tasks with a training set"),
        ("--glue=rte", "rte.train.jsonl"),
        ("--report", "no study at study: run it first"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_first(flag: str, message: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match=message):
        study_run.run(cli.parse(study_run.Settings, [*asked, flag], ""), here([]))
    assert not Path("study").exists()


def test_a_step_is_run_once_and_its_failure_names_the_log(tmp_path: Path) -> None:
    execute = study_run.in_a_process(tmp_path, 1)
    step = study.Step("show help", ["train.py", "--version"])
    execute(step)
    [log] = tmp_path.glob("steps/*.log")
    said = log.read_text(encoding="utf-8")
    assert said.startswith("mlsm ")
    execute(step)
    assert log.read_text(encoding="utf-8") == said
    with pytest.raises(ValueError, match=r"exit code 2: see .*steps/wrong\.log"):
        execute(study.Step("wrong", ["train.py", "--nonsense"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_study_and_waits_for_its_commands(number: signal.Signals, tmp_path: Path) -> None:
    late = tmp_path / "late.txt"
    script = "import signal, sys, time, pathlib\ndef save(number, _):\n time.sleep(0.5)\n"
    script += f" pathlib.Path({str(late)!r}).write_text(str(number)); sys.exit()\n"
    script += "signal.signal(signal.SIGTERM, save)\nprint(flush=True)\nwhile True: time.sleep(0.1)"
    before = signal.signal(signal.SIGTERM, study_run.stop_commands)
    # A shell's background jobs ignore it.
    before_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()

            def tell() -> None:
                while process not in study_run._running:
                    time.sleep(0.01)
                time.sleep(0.3)
                os.kill(os.getpid(), number)
                if number == signal.SIGINT:  # a terminal tells both
                    process.terminate()

            threading.Thread(target=tell).start()
            with pytest.raises(KeyboardInterrupt):
                study_run._exit_code(process)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before_interrupt)
    assert late.read_text(encoding="utf-8") == str(int(signal.SIGTERM))


def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "experiments" / "miniature.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(script), "--corpus=x", "--data=x", "--budget=0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: budget must be above 0, got 0\n")


def test_a_small_study_from_text_to_page(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "DICTIONARY_FLAGS", ("--num-tokens", "2000", "--num-updates", "5"))
    # The pictures and the many minimal pairs of each demo would take most of the time.
    monkeypatch.setattr(evaluate, "draw", lambda *_: None)
    monkeypatch.setattr(grammar, "TWINS_PER_PHENOMENON", 4)
    few = {"lsm-random", "mlsm-random", "seed-13", "lam-0.2"}
    every = study.students
    monkeypatch.setattr(study, "students", lambda *a: [s for s in every(*a) if s.name in few])
    done: list[str] = []
    args = cli.parse(study_run.Settings, asked, "")
    study_run.run(args, here(done))
    page = Path("page.md").read_text(encoding="utf-8")
    assert Path("page.png").stat().st_size > 1000
    number = read_json(Path("study/lsm-random-words/results.json"))["blimp"]["average"]
    [row] = [
        line for line in page.splitlines() if line.startswith("| LSM from random weights") and "0." in line
    ][-1:]
    assert f"{number:.3f}" in row
    assert "Not measured" not in page
    before = len(done)
    capsys.readouterr()
    study_run.run(args, here(done))
    assert len(done) == before
    assert "study stays as it began: budget 600, preset tiny, 20 updates; --output" in capsys.readouterr().err
