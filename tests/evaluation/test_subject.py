"""Random weights of the shape of a run."""

import json
from pathlib import Path

from small_runs import random_run
from task_files import write_suites

import evaluate


def test_random_weights_of_a_run_with_a_token_head_can_tell_words_apart(tmp_path: Path) -> None:
    data = write_suites(tmp_path / "data")
    run = random_run(tmp_path / "head", num_concepts=4)
    evaluate.main([str(run), f"--data={data}", "--tasks=blimp", "--baseline"])
    results = json.loads((run / "evaluation" / "random-weights" / "results.json").read_text())
    assert results["blimp"]["num_ties"] < results["blimp"]["num_pairs"]
