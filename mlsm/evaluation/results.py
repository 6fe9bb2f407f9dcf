"""results.json of a run as a typed record, checked when it is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.minimal_pairs import SuiteResult
from mlsm.evaluation.tasks import GLUE, SUITES
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
    glue: Mapping[str, GlueResult] = field(default_factory=dict)  # by the keys of GLUE

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
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program ({error!r}); remove it") from None


def _results(value: object) -> Results:
    values = _object(value)
    parts = {
        "weights": values.get("weights", ""),
        "demo": _numbers(values.get("demo", {})),
        "demo_baseline": _numbers(values.get("demo baseline", {})),
        "suites": {name: _suite(values[name]) for name in SUITES if name in values},
        "glue": {name: _glue(name, result) for name, result in _object(values.get("glue", {})).items()},
    }
    return from_json(Results, parts)


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"not an object: {value!r}")
    return value


def _numbers(value: object) -> dict[str, float]:
    values = _object(value)
    numbers = {name: float(number) for name, number in values.items() if isinstance(number, int | float)}
    if len(numbers) < len(values):
        raise TypeError(f"not only numbers: {values}")
    return numbers


def _suite(value: object) -> SuiteResult:
    result = from_json(SuiteResult, value)
    if "correct" not in result.average_by_ties:
        raise KeyError("correct")
    return dataclasses.replace(
        result,
        groups=_numbers(result.groups),
        subtasks=_numbers(result.subtasks),
        average_by_ties=_numbers(result.average_by_ties),
    )


def _glue(name: str, value: object) -> GlueResult:
    if name not in GLUE:
        raise KeyError(name)
    values = _object(value)
    seeds = {
        int(seed): from_json(SeedResult, _renamed(_object(one), "scores", "score"))
        for seed, one in _object(values["seeds"]).items()
    }
    return GlueResult(seeds, from_json(FineTuneSettings, values["settings"]))


def _renamed(values: Mapping[str, object], old: str, new: str) -> dict[str, object]:
    return {new if name == old else name: value for name, value in values.items()}


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
    seeds = {seed: _renamed(asdict(one), "score", "scores") for seed, one in result.seeds.items()}
    return {**numbers, "seeds": seeds, "settings": asdict(result.settings)}
