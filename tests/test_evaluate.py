"""The command evaluate.py: mistakes are reported before any work, and results belong to their weights."""

import json
import re
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


def test_a_limit_takes_examples_from_all_of_a_file_and_keeps_their_results_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = random_run(tmp_path / "mine"), write_suites(write_cola(tmp_path / "data"))
    flags = [str(run), f"--data={data}", "--tasks=blimp,cola", "--limit=4", "--seeds=1", "--max-epochs=1"]
    evaluate.main(flags)
    captured = capsys.readouterr()
    assert "Tasks: at most 4 examples of each file; " in captured.out
    assert re.search(r"about \d+ s, less what is stored \(BLiMP \d+ s, cola \d+ s\)", captured.err)
    assert not (run / "results.json").exists()
    apart = run / "evaluation" / "limit-4"
    results = json.loads((apart / "results.json").read_text())
    assert results["blimp"]["num_pairs"] == 3 * 4
    stored = (apart / "evaluation" / "blimp" / "task_0.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["line"] for line in stored] == [1, 3, 6, 8]  # of ten
    evaluate.main([*flags[:2], "--tasks=blimp"])
    assert json.loads((run / "results.json").read_text())["blimp"]["num_pairs"] == 3 * 10
    with pytest.raises(ValueError, match="limit must be above 0"):
        evaluate.main([str(run), "--limit=0"])
