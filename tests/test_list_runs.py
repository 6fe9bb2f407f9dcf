"""The table of all runs: each state, the numbers of the files, and a line for what is damaged."""

import json
import os
import shutil
from pathlib import Path

import pytest
from logged_runs import logged_run

from mlsm import list_runs
from mlsm.directory import only_process
from mlsm.list_runs import find_runs, state_of
from mlsm.runs.checkpoint import MODEL_FILE


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    logged_run(folder / "a")
    for name in ("b", "c", "d", "study/e"):
        shutil.copytree(folder / "a", folder / name)
        (folder / name / MODEL_FILE).unlink()
    (folder / "b" / "checkpoints" / "step-20").mkdir(parents=True)
    (folder / "b" / "checkpoints" / "step-100").mkdir()
    (folder / "c" / "checkpoints" / "step-20").mkdir(parents=True)
    (folder / "c" / "divergence-step-25.json").write_text("{}")
    return folder


def test_each_state_is_shown(runs: Path) -> None:
    states = {name: state_of(runs / name) for name in ("a", "b", "c", "d")}
    assert states == {
        "a": "finished",
        "b": "resumable at update 100",
        "c": "failed at update 25",
        "d": "not begun",
    }
    with only_process(runs / "b"):
        assert state_of(runs / "b") == "training"
    assert state_of(runs / "b") == "resumable at update 100"
    (runs / "c" / "checkpoints" / "step-30").mkdir()  # it went on
    assert state_of(runs / "c") == "resumable at update 30"


def test_the_table_has_the_numbers_of_the_files_and_names_damage(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "a" / "results.json").write_text(json.dumps({"demo": {"minimal pairs": 0.625}}))
    (runs / "d" / "config.json").write_text("{")
    (runs / "b" / "metrics.jsonl").write_text("\x1b[2J\n")
    list_runs.main([str(runs)])
    title, head, _, *lines = capsys.readouterr().out.splitlines()
    assert title == f"Runs in {runs}"
    assert head.split("  ")[0] == ""
    assert [line.split()[0] for line in lines] == ["a", "c", "study/e", "damaged:", "damaged:"]
    assert lines[0].split() == ["a", "finished", "lsm", "50", "of", "50", "350", "350", "1.250", "0.625"]
    assert "metrics.jsonl, line 1," in lines[3]
    assert "config.json is not JSON" in lines[4]
    assert "\x1b" not in "".join(lines)


def test_runs_are_found_in_folders_and_not_in_runs_or_behind_links(runs: Path, tmp_path: Path) -> None:
    step = runs / "b" / "checkpoints" / "step-100"
    shutil.copy(runs / "b" / "config.json", step)
    os.symlink(tmp_path, runs / "circle")
    assert [str(run.relative_to(runs)) for run in find_runs(runs)] == ["a", "b", "c", "d", "study/e"]
    assert [*find_runs(runs / "a")] == [runs / "a"]


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run in"):
        list_runs.main([str(tmp_path)])
    with pytest.raises(ValueError, match="no folder at"):
        list_runs.main([str(tmp_path / "no")])
