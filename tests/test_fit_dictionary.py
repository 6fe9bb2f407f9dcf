"""fit_dictionary.py knows its text by content: that of the teacher, and that of a dictionary that exists."""

import shutil
from pathlib import Path

import pytest
from small_text import write_corpus

import fit_dictionary
from mlsm.coding.dictionary import Dictionary
from mlsm.config import DataConfig
from mlsm.text.corpus import corpus_digest

SETTINGS = ["--k=24", "--num-tokens=2000", "--num-updates=20", "--batch-size=100"]


def test_a_dictionary_of_other_text_than_its_teachers_is_announced_and_recorded(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_corpus(tmp_path / "other.txt", seed=1)
    fit_dictionary.main(
        [f"--teacher={teacher}", *SETTINGS, f"--corpus={other}", f"--output={tmp_path / 'new.safetensors'}"]
    )
    assert f"the teacher {teacher} read another text" in capsys.readouterr().err
    settings = Dictionary.load(tmp_path / "new.safetensors").settings
    assert settings is not None
    assert settings["text"] == corpus_digest(DataConfig(corpus=(str(other),)))
    fit_dictionary.main([f"--teacher={teacher}", *SETTINGS, f"--output={tmp_path / 'same.safetensors'}"])
    assert "another text" not in capsys.readouterr().err


def test_an_existing_dictionary_is_compared_by_the_content_of_its_text(teacher: Path, tmp_path: Path) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "dictionary.safetensors"
    shutil.copy(teacher.parent.parent / "text.txt", text)
    flags = [f"--teacher={teacher}", *SETTINGS, f"--output={path}"]
    fit_dictionary.main([*flags])
    before = path.read_bytes()
    fit_dictionary.main([*flags, f"--corpus={text}"])  # the same text elsewhere
    text.write_text(text.read_text().replace("The cat", "The dog", 1))
    with pytest.raises(ValueError, match=r"exists; students may .* \(it was learnt with another text\)"):
        fit_dictionary.main([*flags, f"--corpus={text}"])
    assert path.read_bytes() == before


def test_text_that_changed_since_the_teacher_was_trained_is_announced(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = teacher.parent.parent / "text.txt"
    before = text.read_text()
    text.write_text(before.replace("The cat", "The dog", 1))
    try:
        fit_dictionary.main([f"--teacher={teacher}", *SETTINGS, f"--output={tmp_path / 'new.safetensors'}"])
    finally:
        text.write_text(before)
    assert f"the teacher {teacher} read another text" in capsys.readouterr().err
