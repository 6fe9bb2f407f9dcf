"""The cells of docs/concepts.ipynb, in order, on small runs of the demo's names."""

import json
from pathlib import Path

import pytest
from pipeline import ROOT, flags_for, nano_teacher

import train


def test_the_cells_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = nano_teacher(tmp_path)
    monkeypatch.chdir(tmp_path)
    student, head = (teacher.parent / name for name in ("lsm-random", "token-head-lsm-random"))
    train.main(flags_for("lsm", teacher, student, student))
    train.main(flags_for("token-head", teacher, student, head))
    notebook = json.loads((ROOT / "docs" / "concepts.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 3
    capsys.readouterr()
    namespace: dict[str, object] = {}
    for cell in cells:
        exec(cell, namespace)
        assert capsys.readouterr().out or cell is cells[0]
