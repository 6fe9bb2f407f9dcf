"""Runs with the metrics of a training that did not take place."""

import dataclasses
import json
from pathlib import Path

from small_runs import random_run

from mlsm.config import TrainConfig
from mlsm.files import write_json


def logged_run(folder: Path, *, objective: str = "lsm", num_lines: int = 5, has_clock: bool = True) -> Path:
    """A finished run with `num_lines` lines of metrics, ten updates and two seconds each."""
    run = random_run(folder, num_concepts=8)
    config = json.loads((run / "config.json").read_text())
    train = TrainConfig(objective=objective, num_steps=10 * num_lines, batch_size=4)
    write_json(run / "config.json", config | {"train": dataclasses.asdict(train)})
    clock = {"seconds": 2.0} if has_clock else {}
    lines = [
        {"step": 10 * n, "concept_kl": 5 / n, "gap_max": 1e-3, "tokens_per_s": 100.0 * n, **clock,
         "words_seen": 70 * n, "epoch": 0.5 * n, "learning_rate": 1e-3, "gradient_norm": 1.0}
        for n in range(1, num_lines + 1)
    ]  # fmt: skip
    lines.append({"step": 10 * num_lines, "heldout_concept_kl": 1.25})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
