"""Rows of several runs: their names, and which are averaged: runs made alike, and from runs made alike, with
other seeds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mlsm.runs.record import RunRecord, read_record

# In which two runs of a recipe may differ; the runs that they name are compared themselves.
SEED_AND_PLACES = {"seed", "teacher", "dictionary", "init", "device"}
DECIDES_CONCEPTS = ("objective", "layer", "k", "lam")
GENERATIONS = 3  # a token head, its student, the student's teacher


class Lineage(NamedTuple):
    """How a run was made, and by which seeds."""

    recipe: str  # equal for runs that were made alike, and from runs that were made alike
    seeds: tuple[int, ...]  # of the run, and of those it started or learnt from


def lineage(record: RunRecord, generations: int = GENERATIONS) -> Lineage:
    """The lineage of a run. A run that it came from and that is gone counts by its name, a teacher by its
    fingerprint.
    """
    train, concepts = record.train, record.concepts
    is_run = train.init not in ("random", "teacher")
    fingerprint = concepts.teacher_fingerprint if concepts else ""
    parent = Lineage(train.init if is_run else fingerprint, ())
    if generations and (is_run or concepts):
        with contextlib.suppress(ValueError):
            directory = Path(train.init if is_run or concepts is None else concepts.teacher)
            parent = lineage(read_record(directory), generations - 1)
    settings = {name: value for name, value in asdict(train).items() if name not in SEED_AND_PLACES}
    of_concepts = [getattr(concepts, name, None) for name in DECIDES_CONCEPTS]
    parts = [
        settings,
        is_run or train.init,
        of_concepts,
        asdict(record.model),
        asdict(record.data),
        parent.recipe,
    ]
    return Lineage(json.dumps(parts, sort_keys=True), (train.seed, *parent.seeds))


def row_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    names = [directory.name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory)
        for name, directory in zip(names, directories, strict=True)
    ]
