"""Recipes identify runs that are averaged: they have the same settings and other seeds, and the runs that
they started or learnt from are equal in the same way. Here are also the names of the rows of several runs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mlsm.runs.record import RunRecord, read_record

# Training settings in which two runs of a recipe may differ: the runs that they name are compared themselves,
# and the last three decide what is watched and when a run ends early, not what an update computes.
SEED_AND_PLACES = {"seed", "teacher", "dictionary", "init", "device", "threads"}
SEED_AND_PLACES |= {"eval_every", "patience", "tracker"}
DECIDES_CONCEPTS = ("objective", "layer", "k", "lam")
GENERATIONS = 3  # a token head, its student, the teacher of the student


class Recipe(NamedTuple):
    """The settings and seeds of a run and of its ancestors."""

    settings: str  # equal for runs that are repetitions of each other
    seeds: tuple[int, ...]  # of the run, and of those that it started or learnt from


def recipe_of(record: RunRecord, generations: int = GENERATIONS) -> Recipe:
    """The recipe of a run. A run that it started from and that is gone is identified by its name, a teacher
    that is gone by its fingerprint.
    """
    train, concepts = record.train, record.concepts
    is_run = train.init not in ("random", "teacher")
    fingerprint = concepts.teacher_fingerprint if concepts else ""
    parent = Recipe(train.init if is_run else fingerprint, ())
    if generations and (is_run or concepts):
        with contextlib.suppress(ValueError):
            directory = Path(train.init if is_run or concepts is None else concepts.teacher)
            parent = recipe_of(read_record(directory), generations - 1)
    parts = [
        {name: value for name, value in asdict(train).items() if name not in SEED_AND_PLACES},
        is_run or train.init,
        [getattr(concepts, name, None) for name in DECIDES_CONCEPTS],
        asdict(record.model),
        {name: value for name, value in asdict(record.data).items() if name != "cache_dir"},
        asdict(record.corpus) if record.corpus else None,  # files of the same names may have changed
        parent.settings,
    ]
    return Recipe(json.dumps(parts, sort_keys=True), (train.seed, *parent.seeds))


def row_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole path where the last part is not unique."""
    names = [directory.name for directory in directories]
    return [
        name if names.count(name) == 1 else str(directory)
        for name, directory in zip(names, directories, strict=True)
    ]
