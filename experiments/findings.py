"""What the directories of a study hold so far: the facts and the results of its runs."""

from __future__ import annotations

import math
import statistics

from study import Commands

from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.tables import Spread
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
        self._of_random_weights = read_results(commands.teacher / "evaluation" / "random-weights")

    def value(self, name: str, measure: str) -> float | None:
        """The average of a zero-shot suite, or a measure of the demo."""
        results = self._results(name)
        if measure in ("blimp", "supplement"):
            return results.suites[measure].average if measure in results.suites else None
        return results.demo.get(measure)

    def glue(self, name: str, task: str) -> Spread | None:
        """The score of a fine-tuning task over seeds."""
        result = self._results(name).glue.get(task)
        return result.spread if result and result.spread.num_seeds else None

    def glue_average(self, name: str) -> Spread | None:
        """The average over tasks of each seed, over seeds; None while a task or a seed is missing."""
        averages = []
        for seed in self.study.seeds:
            results = [self._results(name).glue.get(task) for task in self.study.glue]
            seeds = [result.seeds.get(seed) if result else None for result in results]
            scores = [one.score for one in seeds if one and one.score is not None]
            if not scores or len(scores) < len(self.study.glue):
                return None
            averages.append(statistics.fmean(scores))
        deviation = statistics.stdev(averages) if len(averages) > 1 else 0.0
        return Spread(statistics.fmean(averages), deviation, len(averages)) if averages else None

    @property
    def blimp_error(self) -> float:
        """Standard error of an average over BLiMP's files by sampling alone, at most."""
        return math.sqrt(0.25 / (NUM_BLIMP_FILES * self.study.pairs_a_file))

    def _results(self, name: str) -> Results:
        """The results of a run, or of random weights; empty if there are none."""
        if name == RANDOM_WEIGHTS:
            return self._of_random_weights
        return self.runs[name].results if name in self.runs else Results()
