"""What the runs of a study have measured so far."""

from __future__ import annotations

import functools
import math
import statistics
from pathlib import Path

from study_design import MEASURES, SEEDS, STARTS, Claim
from study_jobs import Jobs
from study_verdicts import Verdict, judge

from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.tables import Spread
from mlsm.evaluation.tasks import SUITES
from mlsm.log import read_metrics


class Findings:
    """The measures of the models of a study. What was not measured yet is None."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.study = jobs, jobs.study
        self._results = functools.cache(read_results)
        self._metrics = functools.cache(read_metrics)

    def value(self, measure: str, name: str, seed: int) -> float | None:
        """A measure of a model and a seed."""
        value = self._value(measure, name, seed)
        return value if value is not None and math.isfinite(value) else None

    def _value(self, measure: str, name: str, seed: int) -> float | None:
        alone, words = self.jobs.run(name, seed), self.jobs.with_words(name, seed)
        if measure == "glue":
            glue = self._limited(alone, self.study.examples).glue
            scores = [glue[task].spread.mean for task in self.study.tasks if task in glue]
            return statistics.fmean(scores) if len(scores) == len(self.study.tasks) else None
        if measure in ("blimp", "bare", "supplement"):
            suites = self._limited(alone if measure == "bare" else words, self.study.pairs).suites
            suite = "blimp" if measure == "bare" else measure
            return suites[suite].average if suite in suites else None
        if name not in STARTS:
            key = {"loss": "heldout_cross_entropy", "accuracy": "heldout_token_accuracy"}[measure]
            return self.last(words, key)
        by_frequency = self._results(alone).demo_baseline
        if measure == "accuracy":
            return by_frequency.get("word accuracy")
        perplexity = by_frequency.get("word perplexity")
        return math.log(perplexity) if perplexity else None

    def _limited(self, run: Path, limit: int) -> Results:
        return self._results(run / "evaluation" / f"limit-{limit}")

    def last(self, run: Path, key: str) -> float | None:
        """The last value of this name that a run has logged."""
        return next((line[key] for line in reversed(self._metrics(run)) if key in line), None)

    def values(self, measure: str, name: str) -> list[float]:
        """A measure of a model with every seed that has it."""
        found = (self.value(measure, name, seed) for seed in SEEDS)
        return [value for value in found if value is not None]

    def least_error(self, measure: str) -> float:
        """The least standard error of a mean: that of the measure, or of sampling its examples, at most."""
        num_examples = {
            "blimp": SUITES["blimp"].num_files * self.study.pairs,
            "glue": sum(min(self.study.examples, size) for size in self.study.task_sizes),
        }
        num_examples["bare"] = num_examples["blimp"]
        sampling = 0.5 / math.sqrt(num_examples[measure]) if measure in num_examples else 0.0
        return max(MEASURES[measure].least_error, sampling)

    def verdict(self, claim: Claim, measure: str) -> Verdict:
        """How a claim is judged by a measure."""

        def signed(name: str, seed: int) -> float | None:
            value = self.value(measure, name, seed)
            return None if value is None else MEASURES[measure].sign * value

        return judge(claim, signed, self.least_error(measure))

    def spent(self, name: str) -> dict[str, float]:
        """Words in millions and minutes, as means over the seeds that are finished: of the model with its
        dictionary and token head, and of all that it stands on with it.
        """
        if name in STARTS:
            return {}
        spent: dict[str, list[float]] = {}
        for seed in SEEDS:
            if self.last(self.jobs.with_words(name, seed), "heldout_cross_entropy") is None:
                continue
            for ending, parts in (
                ("", self.jobs.parts(name, seed)),
                (" in all", self.jobs.stands_on(name, seed)),
            ):
                words = sum(map(self.jobs.words_of, parts)) / 1e6
                spent.setdefault(f"M words{ending}", []).append(words)
                minutes = sum(map(self.jobs.seconds_of, parts)) / 60
                spent.setdefault(f"minutes{ending}", []).append(minutes)
        return {column: statistics.fmean(values) for column, values in spent.items()}

    def targets(self, name: str) -> dict[str, float | str]:
        """What a student learnt from, as means over seeds; nothing for a model without a dictionary."""
        if name in STARTS or not self.jobs.models[name].has_head:
            return {}
        keys = {
            "concepts a target": "nonzeros_per_code",
            "entropy, nats": "heldout_target_entropy",
            "KL, nats": "heldout_concept_kl",
            "gap": "gap_max",
            "time spent coding": "coding_share",
        }
        found: dict[str, list[float]] = {}
        for seed in SEEDS:
            for title, key in keys.items():
                if (value := self.last(self.jobs.run(name, seed), key)) is not None:
                    found.setdefault(title, []).append(value)
            path = self.jobs.dictionary(self.jobs.models[name], seed)
            if found and path.exists() and (measured := Dictionary.load(path).statistics):
                found.setdefault("energy explained", []).append(measured.explained_share)
        means = {title: statistics.fmean(values) for title, values in found.items()}
        return {title: f"{mean:.1e}" if title == "gap" else mean for title, mean in means.items()}


def spread(values: list[float]) -> Spread | None:
    """Mean and deviation of values over seeds; None without any."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
