"""The report is read again only if it was made from the same inputs, and if its file is whole."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline import nano_teacher, student_flags
from small_text import sentences

import train
from mlsm.pages import concept_source
from mlsm.pages.concept_report import ConceptReport
from mlsm.pages.concept_source import REPORT_FILE, ConceptSource, open_source


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher = nano_teacher(tmp_path_factory.mktemp("source"))
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


def sealed(text: str) -> bytes:
    """The text of a report with the digest of what it holds: as a stranger may write it."""
    import hashlib

    body = text[text.index('"key"') :].removesuffix("\n")
    return f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}",{body}\n'.encode()


def change(edit: Callable[[Any], object]) -> Callable[[str], bytes]:
    """A file of which one value is changed, with the right digest."""

    def changed(text: str) -> bytes:
        values = json.loads(text)
        edit(values)
        return sealed(json.dumps(values, ensure_ascii=False, separators=(",", ":")))

    return changed


DAMAGE: dict[str, Callable[[str], bytes]] = {
    "one digit": lambda text: text.replace("1", "2", 1).encode(),
    "cut": lambda text: text[:-50].encode(),
    "empty": lambda text: b"",
    "not UTF-8": lambda text: text.encode().replace(b"a", b"\xff", 9),
    "deep": lambda text: b"[" * 100_000,
    "no report": change(lambda values: values.pop("pieces")),
    "a text for a number": change(lambda values: values["sources"]["teacher"]["share"].__setitem__(0, "1")),
    "not finite": lambda text: sealed(re.sub(r'"share":\[[\d.e-]+', '"share":[NaN', text, count=1)),
    "a token that is not there": change(
        lambda v: v["sources"]["student"]["tokens"].__setitem__(0, [[9999, 1]])
    ),
    "a leader that is not there": change(lambda v: v["sources"]["student"]["leader"].__setitem__(0, -1)),
    "a list too short": change(lambda v: v["places"].pop()),
    "a context beyond its text": change(lambda v: v["sequences"].__setitem__(slice(None), [[0]])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_no_report(
    damage: str, source: ConceptSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, path = source._key(None), tmp_path / REPORT_FILE
    source.report(source.run)  # computed for the first case only
    text = (source.run / REPORT_FILE).read_text(encoding="utf-8")
    path.write_bytes(sealed(text))
    assert isinstance(concept_source._kept_report(path, key), ConceptReport)
    path.write_bytes(DAMAGE[damage](text))
    assert concept_source._kept_report(path, key) is None
    monkeypatch.setattr(concept_source, "read_concepts", must_not_read)
    with pytest.raises(AssertionError, match="read again"):
        source.report(tmp_path)
