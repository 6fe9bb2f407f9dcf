"""The command evaluate.py: mistakes are reported before any work, and results belong to their weights."""

import json
from pathlib import Path

import pytest
from small_runs import random_run
from task_files import write_cola, write_lines, write_suites

import evaluate


def test_a_missing_file_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    run, data = random_run(tmp_path / "mine"), write_cola(tmp_path, 8, 8)
    with pytest.raises(ValueError, match=r"no file .*rte\.train\.jsonl"):
        evaluate.main([str(run), f"--data={data}", "--tasks=cola,rte"])
    assert not (run / "evaluation" / "glue").exists()


def test_a_mistake_in_the_last_suite_is_said_before_the_first_is_scored(tmp_path: Path) -> None:
    run, data = random_run(tmp_path / "mine"), write_suites(tmp_path / "data")
    write_lines(data / "ewok_filtered" / "sight.jsonl", [{"Domain": "sight"}])
    with pytest.raises(ValueError, match=r"sight\.jsonl, line 1: no field 'Context1'"):
        evaluate.main([str(run), f"--data={data}", "--tasks=blimp,ewok"])
    assert not (run / "evaluation").exists()


def test_tasks_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tasks takes demo, blimp"):
        evaluate.main([str(tmp_path), "--tasks=blimp,glu"])


def test_results_of_other_weights_are_not_kept(tmp_path: Path) -> None:
    run, data = random_run(tmp_path / "mine"), write_suites(tmp_path / "data")
    evaluate.main([str(run), f"--data={data}", "--tasks=blimp"])
    evaluate.main([str(run), f"--data={data}", "--tasks=supplement"])
    assert json.loads((run / "results.json").read_text()).keys() >= {"blimp", "supplement"}
    random_run(run, seed=1)
    evaluate.main([str(run), f"--data={data}", "--tasks=supplement"])
    assert "blimp" not in json.loads((run / "results.json").read_text())
