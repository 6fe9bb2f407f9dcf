"""From the flags of a command line to the settings of a run. Nothing here reads or writes a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from mlsm import cli
from mlsm.config import (
    EMBEDDED_CORPUS,
    PRESETS,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from mlsm.naming import default_output, find_teacher_name
from mlsm.runs.record import RunRecord
from mlsm.runs.teacher import text_of
from mlsm.settings import Flags, override
from mlsm.training.objectives import OBJECTIVES, Objective, find_objective

LENGTHS = ("num_steps", "words", "epochs")  # settings that say how long to train


class Request(NamedTuple):
    """What the command line asks for."""

    objective: Objective
    name: str  # of the objective
    init: str  # random, teacher, or the directory of a run
    teacher: Path
    output: Path
    resume: bool
    flags: Flags  # all that were given


class Origin(NamedTuple):
    """The run that a new run takes its tokenizer, text and shape from: its teacher, or the run of --init."""

    directory: Path
    record: RunRecord


class Settings(NamedTuple):
    """The settings of a run before its tokenizer and dictionary are known."""

    preset: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    start: Path | None  # the run whose weights the run starts from; None: random weights


def read_request(flags: Flags) -> Request:
    """The request that the flags make. Raises ValueError without an objective, or for an unknown one."""
    if "objective" not in flags:
        raise ValueError(f"--objective is required, one of {', '.join(OBJECTIVES)}")
    name = str(flags["objective"])
    objective = find_objective(name)
    init = str(flags.get("init", "teacher" if objective.needs_teacher else "random"))
    teacher = find_teacher_name(flags)
    return Request(
        objective=objective,
        name=name,
        init=init,
        teacher=teacher,
        output=Path(str(flags.get("output", default_output(name, init, teacher, flags)))),
        resume=bool(flags.get("resume")),
        flags=flags,
    )


def resolve(request: Request, origin: Origin | None) -> Settings:
    """Every setting: the flags, else those of the run's origin, else those of the preset. Prints which flags
    have no effect. Raises ValueError for settings that contradict each other.
    """
    objective, flags, saved = request.objective, request.flags, origin and origin.record
    is_embedded = flags.get("corpus", (EMBEDDED_CORPUS,)) == (EMBEDDED_CORPUS,)
    preset_name = str(flags.get("preset", saved.preset if saved else "tiny" if is_embedded else "base"))
    preset = PRESETS[preset_name]()
    train = dataclasses.replace(preset.train_for(objective.phase), objective=request.name, init=request.init)
    # A student with a preset has the shape of the preset; all others have the shape of their origin.
    has_saved_shape = saved and not (objective.needs_teacher and "preset" in flags)
    model = override(saved.model if saved and has_saved_shape else preset.model, flags)
    data = text_of(saved, flags) if saved else override(preset.data, flags)
    if data.max_length > model.max_positions:
        raise ValueError(f"max_length {data.max_length} is more than max_positions {model.max_positions}")
    if objective.trains_only_token_head and not model.num_concepts:
        raise ValueError(
            f"{request.init} predicts no concepts: --init takes a concept student, such as runs/lsm-random"
        )
    unused = objective.unused_settings() | ({"vocab_size"} if origin else set())
    if not objective.needs_teacher and request.init != "teacher":
        unused.add("teacher")
    if objective.needs_teacher and flags.get("coder") == "sae":
        cli.say_unused(flags, "with --coder sae", {"code_tolerance", "solver"})
    cli.say_unused(flags, f"with --objective {request.name} --init {request.init}", unused)
    start = {"random": None, "teacher": request.teacher}.get(request.init, Path(request.init))
    lengths = [f"--{name.replace('_', '-')}" for name in LENGTHS if name in flags]
    if len(lengths) > 1:
        raise ValueError(f"{' and '.join(lengths)} both say how long to train: give one of them")
    train = dataclasses.replace(override(train, flags), teacher=str(request.teacher))
    schedule = train.length_schedule
    if schedule and max(schedule.ends) > data.max_length:
        raise ValueError(
            f"length_schedule {schedule} is more than max_length {data.max_length}: raise --max-length"
        )
    return Settings(preset_name, model, data, train, start)
