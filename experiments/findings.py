"""What the directories of a study hold so far: the facts and the results of its runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from study import Commands

from mlsm.evaluation.tables import Spread
from mlsm.files import read_json
from mlsm.pages.run_facts import RunFacts, read_facts

NUM_BLIMP_FILES = 67
RANDOM_WEIGHTS = "random weights"  # the name of a model like the teacher that was never trained
TITLES = {"mlsm": "MLSM", "lsm15": "LSM15", "lsm": "LSM"}  # of objectives


class Findings:
    """The runs of a study by name, and their results. What was not measured yet is None."""

    def __init__(self, commands: Commands) -> None:
        self.commands, self.study = commands, commands.study
        names = ["teacher", *(name for s in commands.students for name in (s.name, f"{s.name}-words"))]
        folders = {name: commands.folder / name for name in names}
        self.runs: dict[str, RunFacts] = {
            name: read_facts(run, name) for name, run in folders.items() if (run / "config.json").exists()
        }
        file = commands.teacher / "evaluation" / "random-weights" / "results.json"
        self._of_random_weights: Mapping[str, Any] = read_json(file) if file.exists() else {}

    def value(self, name: str, measure: str) -> float | None:
        """The average of a zero-shot suite, or a measure of the demo."""
        results = self._results(name)
        if measure in ("blimp", "supplement"):
            return results.get(measure, {}).get("average")
        return results.get("demo", {}).get(measure)

    def glue(self, name: str, task: str) -> Spread | None:
        """The score of a fine-tuning task over seeds."""
        result = self._results(name).get("glue", {}).get(task, {})
        if result.get("mean") is None:
            return None
        return Spread(result["mean"], result["deviation"], result["num_seeds"], result["failed"])

    def glue_average(self, name: str) -> Spread | None:
        """The average over tasks of each seed, over seeds; None while a task or a seed is missing."""
        tasks = [
            self._results(name).get("glue", {}).get(task, {}).get("seeds", {}) for task in self.study.glue
        ]
        scores = [[task.get(f"{seed}", {}).get("scores") for task in tasks] for seed in self.study.seeds]
        if not scores or any(score is None for row in scores for score in row):
            return None
        averages = [statistics.fmean(row) for row in scores]
        deviation = statistics.stdev(averages) if len(averages) > 1 else 0.0
        return Spread(statistics.fmean(averages), deviation, len(averages))

    @property
    def blimp_error(self) -> float:
        """Standard error of an average over BLiMP's files by sampling alone, at most."""
        return math.sqrt(0.25 / (NUM_BLIMP_FILES * self.study.pairs_a_file))

    def _results(self, name: str) -> Mapping[str, Any]:
        """results.json of a run, or of random weights; empty without one."""
        if name == RANDOM_WEIGHTS:
            return self._of_random_weights
        return self.runs[name].results if name in self.runs else {}
