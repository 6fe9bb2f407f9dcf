"""The report is computed once for the same inputs, and anew for others and if its file is damaged."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from pipeline import student_flags
from small_text import sentences

import train
from mlsm.pages import concept_source
from mlsm.pages.concept_file import REPORT_FILE
from mlsm.pages.concept_source import ConceptSource, open_source


@pytest.fixture(scope="module")
def student(teacher: Path) -> Path:
    train.main(student_flags(teacher, "lsm", teacher.parent / "lsm"))
    return teacher.parent / "lsm"


@pytest.fixture
def source(student: Path) -> ConceptSource:
    return open_source(student, num_tokens=300, device="cpu")


def must_not_read(*_: object, **__: object) -> None:
    raise AssertionError("the text was read again")


def test_the_second_time_nothing_is_computed(
    source: ConceptSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source.report(tmp_path)
    monkeypatch.setattr(concept_source, "read_concepts", must_not_read)
    assert source.report(tmp_path) == first
    for changed in (
        dataclasses.replace(source, seed=13),
        dataclasses.replace(source, num_tokens=200),
        dataclasses.replace(source, data=dataclasses.replace(source.data, heldout_share=0.1)),
        dataclasses.replace(source, teacher=None, dictionary=None),
    ):
        with pytest.raises(AssertionError, match="read again"):
            changed.report(tmp_path)


def test_another_text_or_other_weights_are_read_anew(source: ConceptSource, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("\n".join(sentences(40)), encoding="utf-8")
    data = dataclasses.replace(source.data, corpus=(str(text),), cache_dir=str(tmp_path / "cache"))
    other = dataclasses.replace(source, data=data)
    keys = {source._key(None), other._key(None), source._key(source.dictionary)}
    text.write_text("\n".join(sentences(41)), encoding="utf-8")
    keys.add(other._key(None))
    copy = tmp_path / "run"
    shutil.copytree(source.run, copy)
    moved = dataclasses.replace(source, run=copy)
    assert moved._key(None) == source._key(None)  # a run may be moved
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
    keys.add(moved._key(None))
    assert len(keys) == 5


def test_a_damaged_file_is_computed_anew(
    source: ConceptSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.report(tmp_path)
    path = tmp_path / REPORT_FILE
    path.write_bytes(path.read_bytes()[:-50])
    monkeypatch.setattr(concept_source, "read_concepts", must_not_read)
    with pytest.raises(AssertionError, match="read again"):
        source.report(tmp_path)
