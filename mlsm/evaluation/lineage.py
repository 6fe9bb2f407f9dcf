"""Rows of several runs: their names, and which are averaged: runs made alike, and from runs made alike, with
other seeds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlsm.runs.run import run_config

# In which two runs of a recipe may differ; the runs that they name are compared themselves.
SEED_AND_PLACES = {"seed", "teacher", "dictionary", "init", "device"}
DECIDES_CONCEPTS = ("objective", "layer", "k", "lam")
GENERATIONS = 3  # a token head, its student, the student's teacher


class Lineage(NamedTuple):
    """How a run was made, and by which seeds."""

    recipe: str  # equal for runs that were made alike, and from runs that were made alike
    seeds: tuple[int, ...]  # of the run, and of those it started or learnt from


def lineage(config: Mapping[str, Any], generations: int = GENERATIONS) -> Lineage:
    """Of the run of a config.json. A run that it came from and that is gone counts by its name, a teacher by
    its fingerprint.
    """
    train, concepts = config["train"], config["concepts"] or {}
    init = train.get("init", "random")
    is_run = init not in ("random", "teacher")
    parent = Lineage(init if is_run else concepts.get("teacher_fingerprint", ""), ())
    if generations and (is_run or concepts):
        with contextlib.suppress(ValueError):
            parent = lineage(run_config(Path(init if is_run else concepts["teacher"])), generations - 1)
    settings = {name: value for name, value in train.items() if name not in SEED_AND_PLACES}
    of_concepts = [concepts.get(name) for name in DECIDES_CONCEPTS]
    parts = [settings, is_run or init, of_concepts, config["model"], config["data"], parent.recipe]
    return Lineage(json.dumps(parts, sort_keys=True), (train.get("seed", 0), *parent.seeds))


def row_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    names = [directory.name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory)
        for name, directory in zip(names, directories, strict=True)
    ]
