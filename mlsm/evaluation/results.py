"""results.json of a run as a typed record, checked when it is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue import TASKS
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.minimal_pairs import SUITES, SuiteResult
from mlsm.files import read_json
from mlsm.settings import check_fields, from_json

RESULTS_FILE = "results.json"
Numbers = Mapping[str, float]  # by the title of their column


@dataclass(frozen=True)
class Results:
    """All that was measured of a run. What was not measured is empty."""

    weights: str = ""  # identifies the weights that were measured; empty in files that lack it
    demo: Numbers = field(default_factory=dict)
    demo_baseline: Numbers = field(default_factory=dict)
    suites: Mapping[str, SuiteResult] = field(default_factory=dict)  # by the keys of SUITES
    glue: Mapping[str, GlueResult] = field(default_factory=dict)  # by the keys of TASKS

    def __post_init__(self) -> None:
        check_fields(self)

    def updated(self, new: Results) -> Results:
        """These results with new ones, or the new ones alone if these are of other weights."""
        if self.weights and self.weights != new.weights:
            return new
        return Results(
            new.weights,
            new.demo or self.demo,
            new.demo_baseline or self.demo_baseline,
            {**self.suites, **new.suites},
            {**self.glue, **new.glue},
        )


def read_results(folder: Path) -> Results:
    """The results of a run; empty if there is no results.json. Raises ValueError if it is not such a file."""
    path = folder / RESULTS_FILE
    if not path.exists():
        return Results()
    values = read_json(path)
    try:
        json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate cannot be written
        return _results(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program ({error!r}); remove it") from None


def _results(values: dict[str, Any]) -> Results:
    return Results(
        values.get("weights", ""),
        _numbers(values.get("demo", {})),
        _numbers(values.get("demo baseline", {})),
        {name: _suite(values[name]) for name in SUITES if name in values},
        {name: _glue(name, result) for name, result in values.get("glue", {}).items()},
    )


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, number in values.items():
        if not isinstance(number, int | float):
            raise TypeError(f"{name} is not a number: {number!r}")
        numbers[name] = number
    return numbers


def _suite(value: object) -> SuiteResult:
    result = from_json(SuiteResult, value)
    return dataclasses.replace(
        result,
        groups=_numbers(result.groups),
        subtasks=_numbers(result.subtasks),
        average_by_ties=_numbers(result.average_by_ties),
    )


def _glue(name: str, values: Mapping[str, Any]) -> GlueResult:
    if name not in TASKS:
        raise KeyError(name)
    seeds = {}
    for seed, one in values["seeds"].items():
        others = {key: value for key, value in one.items() if key != "scores"}
        seeds[int(seed)] = from_json(SeedResult, {"score": one["scores"], **others})
    return GlueResult(seeds, from_json(FineTuneSettings, values["settings"]))


def results_json(results: Results) -> dict[str, object]:
    """The results as results.json holds them, with the means of GLUE tasks for other programs."""
    values = {
        "weights": results.weights,
        "demo": results.demo,
        "demo baseline": results.demo_baseline,
        **{name: asdict(result) for name, result in results.suites.items()},
        "glue": {name: _glue_json(result) for name, result in results.glue.items()},
    }
    return {name: value for name, value in values.items() if value}


def _glue_json(result: GlueResult) -> dict[str, object]:
    spread = result.spread
    numbers = spread._asdict() if spread.num_seeds else {"mean": None, "failed": spread.failed}
    seeds = {
        seed: {
            "scores": one.score,
            "epoch": one.epoch,
            "failure": one.failure,
            "num_truncated": one.num_truncated,
        }
        for seed, one in result.seeds.items()
    }
    return {**numbers, "seeds": seeds, "settings": asdict(result.settings)}
