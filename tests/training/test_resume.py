"""A text or settings that changed before a resume, and held-out lines that a run's origin was trained on."""

from pathlib import Path

import pytest
from pipeline import flags_for, student_flags
from small_text import NANO_FLAGS, text_flags, write_corpus

import evaluate
import fit_dictionary
import train
from mlsm.files import read_json, write_json
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import read_record


def train_teacher(folder: Path, *more: str) -> Path:
    run = folder / "teacher"
    write_corpus(folder / "text.txt")
    train.main(["--objective=mlm", f"--output={run}", *text_flags(folder), *NANO_FLAGS, *more])
    return run


def train_student(teacher: Path, *more: str) -> Path:
    run = teacher.parent / "student"
    if not list(teacher.glob("dictionary-*")):
        sample = ["--k=24", "--num-tokens=600", "--num-updates=2", "--batch-size=100"]
        fit_dictionary.main([f"--teacher={teacher}", *sample])
    train.main([*student_flags(teacher, "lsm", run), *more])
    return run


def change_text(folder: Path) -> None:
    path = folder / "text.txt"
    path.write_text(path.read_text().replace("cat", "cow"))


def test_a_teacher_does_not_resume_on_changed_text(tmp_path: Path) -> None:
    run = train_teacher(tmp_path)
    (run / MODEL_FILE).unlink()
    change_text(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume .*: the text in .*text\.txt has changed since"):
        train_teacher_again(run, tmp_path)


def train_teacher_again(run: Path, folder: Path) -> None:
    train.main(["--objective=mlm", f"--output={run}", *text_flags(folder), *NANO_FLAGS, "--resume"])


def test_a_student_does_not_resume_on_changed_text(tmp_path: Path) -> None:
    teacher = train_teacher(tmp_path)
    run = train_student(teacher)
    (run / MODEL_FILE).unlink()
    change_text(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume .*: the text in .*text\.txt has changed since"):
        train_student(teacher, "--resume")


def test_a_student_of_other_text_is_allowed_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = train_teacher(tmp_path)
    other = write_corpus(tmp_path / "other.txt", seed=9)
    run = train_student(teacher, f"--corpus={other}")
    sentence = f"{teacher} read another text, which may contain lines that are held out here"
    assert sentence in capsys.readouterr().err
    assert read_record(run).leak == sentence


@pytest.mark.parametrize(("share", "said"), [("0.02", ""), ("0.3", "was trained on"), ("0.004", "holds out")])
def test_held_out_lines_that_the_teacher_was_trained_on_are_said_and_marked(
    share: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = train_teacher(tmp_path, "--heldout-share=0.02")
    run = train_student(teacher, f"--heldout-share={share}", "--sequence-mode=packed")
    leak = read_record(run).leak
    assert said in leak
    assert bool(leak) == bool(said)
    assert not read_record(teacher).leak
    capsys.readouterr()
    if share != "0.004":  # so little text has no line to measure on
        evaluate.main([str(run)])
        shown = capsys.readouterr().out
        assert ("student * " in shown) == bool(said)
        assert (f"* student: {leak}" in shown) == bool(said)


def test_the_note_is_passed_on_to_runs_that_stand_on_a_student(tmp_path: Path) -> None:
    teacher = train_teacher(tmp_path)
    student = train_student(teacher, "--heldout-share=0.3")
    head = tmp_path / "head"
    train.main(flags_for("token-head", teacher, student, head))
    assert "was trained on" in read_record(head).leak


def test_a_run_of_an_earlier_version_is_marked(tmp_path: Path) -> None:
    run = train_teacher(tmp_path)
    assert read_record(run).heldout_note() == ""
    record = read_json(run / "config.json")
    del record["corpus"]["digest"]
    write_json(run / "config.json", record)
    assert "earlier version" in read_record(run).heldout_note()
