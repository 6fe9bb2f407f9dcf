"""The study: the scripts take its commands, it fits its budget and continues where it stopped, and its page
holds the numbers of its runs.
"""

import dataclasses
import re
from pathlib import Path

import pytest
import study_design
import study_findings
import study_jobs
import study_page
import study_run
import study_verdicts
from nano_studies import here, nano
from outside_checkpoints import write_checkpoint
from small_text import sentences, write_corpus
from steps import Step
from study_design import SEEDS
from study_jobs import Job, Jobs, Study
from study_run import Settings
from task_files import blimp_rows, write_cola, write_lines

import evaluate
import fit_dictionary
import train
from mlsm import command_line
from mlsm.config import PRESETS, baby, tiny
from mlsm.evaluation import grammar
from mlsm.files import read_json
from mlsm.runs.checkpoint import words_name
from mlsm.runs.record import read_record

PARSERS = {"train.py": train.flags, "fit_dictionary.py": fit_dictionary.flags, "evaluate.py": evaluate.parser}
SECONDS = {"dictionary": 30.0, "head": 0.3, "mlm teacher": 0.1, "mlm outside": 0.2, "token": 1e-4}


def whole_study(preset: str = "tiny", strong_teacher: str = "encoder") -> Study:
    """A study of all questions, for one day of a core."""
    kinds = {
        study_jobs.kind_of(m) for m in study_design.models(PRESETS[preset](), True).values() if m.has_head
    }
    return Study(
        corpus=("text.txt",), data="data", preset=preset, budget=1440.0, device="cpu",
        questions=(1, 2, 3, 4, 5, 6), tasks=("cola", "rte"), task_tokens=70.0, task_sizes=(200, 200),
        strong_teacher=strong_teacher, seconds=SECONDS | dict.fromkeys(kinds, 0.2),
    )  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a study of a nano model, with few examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", nano)
    monkeypatch.setattr(study_run, "SPEED_UPDATES", 4)
    for module in (study_jobs, study_design):
        monkeypatch.setattr(module, "HELDOUT_SHARE", 0.05)
    # The pictures and the many minimal pairs of each demo would take most of the time.
    monkeypatch.setattr(evaluate, "draw", lambda *_: None)
    monkeypatch.setattr(grammar, "TWINS_PER_PHENOMENON", 2)
    texts = sentences(20, seed=1)
    pairs = blimp_rows(texts, [" ".join(reversed(s.split())) for s in texts])
    for folder in ("blimp_filtered", "supplement_filtered"):
        write_lines(tmp_path / "data" / folder / "one.jsonl", pairs)
    write_cola(tmp_path / "data", 40, 20)
    corpus = write_corpus(tmp_path / "text.txt")
    flags = [f"--corpus={corpus}", "--data=data", "--output=study", "--result=page.md", "--jobs=1"]
    return [*flags, "--updates=8", "--pairs=3", "--examples=16", "--tasks=cola"]


@pytest.mark.parametrize("preset", [tiny, baby])
def test_the_declaration_names_only_what_it_declares(preset: object) -> None:
    assert callable(preset)
    for has_strong in (False, True):
        models = study_design.models(preset(), has_strong)
        rows = models.keys() | ({*study_design.STARTS} if has_strong else {study_design.RANDOM})
        questions = study_design.questions(models)
        assert {*questions} == {*range(1, 7)}
        assert {row for question in questions.values() for row in question.rows} == rows - {
            "strong-random"
        } | ({"strong-random"} if has_strong else set())
        for question in questions.values():
            for claim in question.claims:
                assert {claim.model, *claim.bar} | ({claim.other} - {""}) <= {*question.rows}
                assert {*(claim.measures or question.measures)} <= {*study_design.MEASURES}


def test_every_command_is_one_that_the_scripts_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(whole_study(), tmp_path)
    monkeypatch.setattr(jobs, "_as_long_as", lambda *_: ["--words", "1000"])
    every, seen = jobs.all(), set[str]()
    for job in every:
        assert {*job.needs} <= seen, "a job comes after those that it needs"
        seen.add(job.name)
        script, *flags = job.command()
        PARSERS[script]().parse_args(flags)
    assert len(seen) == len(every)
    trained = {
        job.row: job.command() for job in every if job.name.startswith("train") and "words" not in job.name
    }
    assert {"--width", "96", "--num-heads", "1"} <= {*trained["half-width"]}
    assert trained["mlm-teacher"][4] == str(tmp_path / f"teacher-{SEEDS[-1]}")
    assert trained["lsm-teacher"][4] == "teacher"
    named = {part for job in every for part in job.command()}
    assert {"mlm", "mlsm", "lsm15", "lsm", "token-head", "500", "4500", "0.02", "0.2", "100", "25"} <= named


def test_the_sizes_use_the_budget() -> None:
    settings = Settings(corpus=(Path("text.txt"),), data=Path("data"))
    study = study_run.sized(whole_study(), settings)
    jobs = Jobs(study, Path()).all()
    expected = {kind: sum(job.seconds for job in jobs if job.kind == kind) for kind in study_run.KINDS}
    shares = (study_design.TRAINING_SHARE, study_design.PAIRS_SHARE, study_design.FINE_TUNING_SHARE)
    for share, seconds in zip(shares, expected.values(), strict=True):
        assert seconds == pytest.approx(share * 60 * study.budget, rel=0.08)
    fewer = study_run.sized(dataclasses.replace(whole_study(strong_teacher=""), questions=(1,)), settings)
    assert fewer.num_updates > 2 * study.num_updates
    [row] = [
        line for line in study_run.plan_text(Jobs(study, Path()), jobs, 2).splitlines() if "all  " in line
    ]
    assert sum(map(float, row.split()[2:])) == pytest.approx(study.budget, rel=0.08)


def test_jobs_run_in_order_side_by_side_and_an_error_stops_those_that_need_it() -> None:
    def job(name: str, *needs: str) -> Job:
        return Job(name, needs, lambda: [name], name, "training", 1.0)

    def execute(step: Step) -> None:
        if step.name == "broken":
            raise ValueError("no more memory")
        done.append(step.name)

    jobs = [job("a"), job("broken"), job("b", "a"), job("c", "broken"), job("d", "c"), job("e", "a", "b")]
    for num_at_once in (1, 3):
        done: list[str] = []
        errors = study_run.run_all(jobs, execute, num_at_once)
        assert done == ["a", "b", "e"]
        assert errors == {"broken": "no more memory", "c": "c needs broken", "d": "d needs c"}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget=0", "budget must be above 0"),
        ("--jobs=-1", "jobs must be above 0"),
        ("--questions=1,7", "--questions takes numbers from 1 to 6"),
        ("--corpus=nothing.txt", "nothing.txt"),
        ("--data=nowhere", "no .jsonl files in nowhere"),
        ("--tasks=mnli-mm", "tasks with a training set"),
        ("--tasks=rte", "rte.train.jsonl"),
        ("--strong-teacher=nowhere", "nowhere"),
        ("--report", "no study at study: run it first"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_first(flag: str, message: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match=message):
        study_run.run(command_line.parse(Settings, [*asked, flag], ""), here([]))
    assert not Path("study/study.json").exists()


def test_a_small_study_from_text_to_page(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The question with a strong teacher, with two seeds. The study continues where it stopped, and the page
    of a part says what is missing.
    """
    for module in (study_findings, study_jobs, study_page, study_run, study_verdicts):
        monkeypatch.setattr(module, "SEEDS", SEEDS[:2])
    write_checkpoint(Path("bert"), "bert")
    done: list[str] = []
    settings = command_line.parse(Settings, [*asked, "--questions=6", "--strong-teacher=bert"], "")
    study_run.run(dataclasses.replace(settings, plan=True), here(done))
    assert not Path("study/study.json").exists()
    assert re.search(r"^lsm-random .*\nmlm-words ", capsys.readouterr().out, re.MULTILINE)

    run_all = study_run.run_all
    monkeypatch.setattr(study_run, "run_all", lambda jobs, *args: run_all(jobs[:9], *args))
    study_run.run(settings, here(done))
    assert re.search(r"\*\*Unfinished\*\*: \d+ of \d+ commands", Path("page.md").read_text(encoding="utf-8"))
    monkeypatch.setattr(study_run, "run_all", run_all)
    study_run.run(settings, here(done))
    page = Path("page.md").read_text(encoding="utf-8")
    assert "nfinished" not in page
    assert Path("page-6.png").stat().st_size > 1000
    row = next(line for line in page.splitlines() if line.startswith("| LSM from random weights |"))
    runs = [Path(f"study/lsm-random-{seed}-words") for seed in SEEDS[:2]]
    scores = [read_json(run / "evaluation/limit-3/results.json")["blimp"]["average"] for run in runs]
    assert f"{sum(scores) / 2:.3f} ±" in row
    assert not [*Path("study").glob("*/checkpoints/step-*")]

    study = study_run.load_or_begin(settings, here([]))
    jobs = Jobs(study, Path("study"))
    parts = jobs.stands_on("lsm-random", 12)
    own = ["lsm-random-12", "lsm-random-12-words", "dictionary-usual-12.safetensors"]
    assert [part.name for part in parts] == ["teacher-12", *own]
    words, hours = (read_record(Path(f"study/mlm-{equal}-12")).train for equal in ("words", "hours"))
    assert int(words.words or 0) == sum(map(jobs.words_of, parts))
    update_s = jobs.seconds_of(Path("study/teacher-12")) / 8
    assert hours.num_steps == round(sum(map(jobs.seconds_of, parts)) / update_s) > 8
    start = read_record(Path("study/strong-mlm-hours-12")).train.init
    assert start == f"study/strong-12/checkpoints/{words_name(0)}"

    every = Jobs(dataclasses.replace(study, questions=(1, 2, 3, 4, 5, 6)), Path("study"))
    study_page.write(every, every.all(), Path("all.md"))
    whole = Path("all.md").read_text(encoding="utf-8")
    assert [number for number in range(1, 7) if f"\n## {number}. " in whole] == [*range(1, 7)]
    entropy = study_findings.Findings(every).targets("lsm-random")["entropy, nats"]
    assert f"| {entropy:.3f} |" in whole
    before = len(done)
    capsys.readouterr()
    study_run.run(settings, here(done))
    assert len(done) == before
    assert (
        "study stays as it began: budget 1200, preset tiny, questions 6; --output" in capsys.readouterr().err
    )
