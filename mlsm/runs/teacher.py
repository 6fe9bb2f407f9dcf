"""A teacher and its dictionary, found and loaded together; and the text that a run was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import TargetRule, Teacher
from mlsm.config import DataConfig, DictionaryConfig, TrainConfig
from mlsm.device import choose_precision
from mlsm.log import say
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.record import ConceptsRecord, RunRecord, read_record
from mlsm.runs.run import load_encoder
from mlsm.settings import Flags, override

LEAST_TOLERANCE = 1e-9  # of codes that are stopped by the number of steps alone


def default_dictionary(teacher: Path) -> Path:
    """The file of a teacher's dictionary with the default settings."""
    return teacher / DictionaryConfig().file_name(read_record(teacher).model.depth)


def find_dictionary(teacher: Path) -> Path | None:
    """The default dictionary of a teacher, or the only one it has; None without one. Raises ValueError if
    there are several to choose from.
    """
    default, files = default_dictionary(teacher), sorted(teacher.glob("dictionary-*.safetensors"))
    if default in files:
        return default
    if len(files) > 1:
        raise ValueError(
            f"several dictionaries, none of them {default.name}: choose with --dictionary {files[0]}"
        )
    if files:
        say(f"dictionary: {files[0]}, the only one this teacher has")
    return files[0] if files else None


def load_dictionary(path: Path, teacher: Path, expected: ConceptsRecord | None = None) -> Dictionary:
    """The dictionary of a teacher. Raises ValueError if it was learnt from another teacher, or if it is not
    the one that a student's record expects.
    """
    dictionary = Dictionary.load(path, teacher=fingerprint(teacher))
    check_shape(dictionary, path, teacher)
    if expected is not None and dictionary.fingerprint != expected.dictionary_fingerprint:
        raise ValueError(f"dictionary {path} has changed since the student was trained on it")
    return dictionary


def check_shape(dictionary: Dictionary, path: Path, teacher: Path) -> None:
    """Raise ValueError for a dictionary of another width than the teacher's states, or of a layer that the
    teacher does not have.
    """
    shape = read_record(teacher).model
    if len(dictionary.atoms_DK) != shape.width or dictionary.layer > shape.depth:
        raise ValueError(
            f"dictionary {path} is of width {len(dictionary.atoms_DK)} and layer {dictionary.layer}, "
            f"the teacher {teacher} has width {shape.width} and {shape.depth} layers"
        )


def load_teacher(
    directory: Path,
    dictionary: Dictionary,
    config: TrainConfig,
    device: torch.device,
    coder: str = "lasso",
) -> Teacher:
    """A frozen teacher with a dictionary of `load_dictionary`. Raises ValueError as `load_encoder`, and for a
    coder that the dictionary does not have.
    """
    _, record, encoder, _ = load_encoder(directory, device)
    precision = choose_precision(config.amp, device, record.model.width)
    if config.target_lam is not None:
        dictionary = dataclasses.replace(dictionary, lam=config.target_lam)
    is_stopped_early = config.targets == "soft-code" and config.code_steps is not None
    return Teacher(
        encoder.requires_grad_(False),
        dictionary.to(device),
        precision,
        LEAST_TOLERANCE if is_stopped_early else config.code_tolerance,
        "fista" if is_stopped_early else config.solver,
        config.code_steps,
        TargetRule(config.targets, config.target_temperature, config.top_k),
        coder,
    )


def target_settings(config: TrainConfig) -> list[str | float | int | None]:
    """The settings that decide what a student learns of a code; none for the code itself."""
    if config.targets == "code":
        return []
    return [config.targets, config.target_temperature, config.target_lam, config.top_k]


def teacher_of(concepts: ConceptsRecord, config: TrainConfig, device: torch.device) -> Teacher:
    """The teacher and the dictionary of a student, as its record names them. Raises ValueError if one of
    them is missing or has changed.
    """
    teacher = Path(concepts.teacher)
    dictionary = load_dictionary(Path(concepts.dictionary), teacher, concepts)
    return load_teacher(teacher, dictionary, config, device, concepts.coder)


def text_of(record: RunRecord, given: Flags) -> DataConfig:
    """The text of a run with the flags that were given.

    The record may be a stranger's: the cache folder that it names is used if it lies below the working
    directory or is a cache already. Nothing is written elsewhere.
    """
    data = override(record.data, given)
    folder = Path(data.cache_dir)
    is_below = Path.cwd().resolve() in folder.resolve().parents
    if "cache_dir" in given or is_below or any(folder.glob("*/ids-*")):
        return data
    return dataclasses.replace(data, cache_dir=DataConfig().cache_dir)
