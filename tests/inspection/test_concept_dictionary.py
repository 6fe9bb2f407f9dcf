"""Concepts one by one are those of the report, and read the text once."""

import os
import shutil
from pathlib import Path

import pytest
from pipeline import student_flags

import mlsm
import train
from mlsm.files import read_json, write_json
from mlsm.pages import concept_source


def test_a_concept_shows_its_words_contexts_and_neighbours(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = mlsm.load(teacher, device="cpu").dictionary
    assert len(dictionary) == 24
    assert repr(dictionary).startswith("24 concepts of layer")
    assert dictionary.atoms_DK.shape[1] == 24
    concept = dictionary.concept(dictionary.by_interest()[0])
    assert concept.interest == max(dictionary.report.sources["teacher"].interest)
    assert concept.tokens[0][1] == max(share for _, share in concept.tokens)
    assert len(concept.nearest) == 5
    assert concept.number not in concept.alike
    for other in concept.alike:
        assert concept.number in dictionary.concept(other).alike
    pieces = {piece.lstrip("▁") for piece in dictionary.report.pieces}
    for context in concept.contexts:
        assert context.text[context.start : context.stop] in pieces
        assert not context.text.startswith(" ")
        assert 0 < context.weight <= 1
    assert concept.label in repr(concept)
    assert (teacher / "concepts.json").exists()
    monkeypatch.setattr(concept_source, "read_concepts", None)  # the second time, no text is read
    assert mlsm.load(teacher, device="cpu").dictionary.concept(concept.number) == concept


def test_a_student_shows_its_own_use(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = teacher.parent / "lsm"
    train.main(student_flags(teacher, "lsm", student))
    os.chmod(student, 0o555)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    dictionary = mlsm.load(student, device="cpu").dictionary
    shares = [dictionary.concept(k).share for k in range(24)]
    assert shares == dictionary.report.sources["student"].share
    assert not (student / "concepts.json").exists()


def test_the_teacher_of_a_student_may_have_moved(teacher: Path, tmp_path: Path) -> None:
    student, moved = tmp_path / "student", tmp_path / "moved"
    shutil.copytree(teacher.parent / "lsm", student)
    shutil.copytree(teacher, moved)
    record = read_json(student / "config.json")
    for name in ("teacher", "dictionary"):
        record["concepts"][name] = str(tmp_path / "gone" / Path(record["concepts"][name]).name)
    write_json(student / "config.json", record)
    with pytest.raises(ValueError, match="dictionary"):
        mlsm.load(student, device="cpu").dictionary.atoms_DK.sum()
    found = mlsm.load(student, device="cpu", teacher=moved).dictionary
    assert found.atoms_DK.equal(mlsm.load(teacher, device="cpu").dictionary.atoms_DK)
    assert "teacher" in found.report.sources
    with pytest.raises(ValueError, match="teacher is for students"):
        mlsm.load(teacher, teacher=moved)
    with pytest.raises(TypeError, match="teacher must be a path"):
        mlsm.load(student, teacher=3)


def test_what_is_no_concept(teacher: Path) -> None:
    dictionary = mlsm.load(teacher, device="cpu").dictionary
    for wrong in ("3", None, 3.0, [3], True):
        with pytest.raises(TypeError, match="a concept is an int"):
            dictionary.concept(wrong)
    for number in (-1, 24):
        with pytest.raises(IndexError, match="there is no concept"):
            dictionary.concept(number)
