"""The study in miniature: the scripts take its commands, it continues where it stopped, and its page holds
the numbers of the runs.
"""

from pathlib import Path

import pytest
import study
import study_run
from nano_studies import here, nano
from small_text import sentences, write_corpus
from task_files import blimp_rows, write_cola, write_lines

import evaluate
import fit_dictionary
import train
from mlsm import command_line
from mlsm.config import PRESETS
from mlsm.evaluation import grammar
from mlsm.files import read_json

PARSERS = {"train.py": train.flags, "fit_dictionary.py": fit_dictionary.flags, "evaluate.py": evaluate.parser}


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
        study_run.run(command_line.parse(study_run.Settings, [*asked, flag], ""), here([]))
    assert not Path("study").exists()


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
    args = command_line.parse(study_run.Settings, asked, "")
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
