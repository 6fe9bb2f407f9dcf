"""A teacher and its dictionary, found and loaded together; and the text that a run was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import Teacher
from mlsm.config import (
    DataConfig,
    DictionaryConfig,
    TrainConfig,
    from_json,
)
from mlsm.device import choose_precision
from mlsm.log import say
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import load_encoder, model_config


def text_of(saved: dict[str, Any], given: dict[str, Any]) -> DataConfig:
    """The text of a run by its config.json, which may be a stranger's: the cache folder named there is used
    if it is a cache already or lies below the working directory; nothing is written elsewhere.
    """
    data = cli.override(from_json(DataConfig, saved["data"]), given)
    folder = Path(data.cache_dir)
    is_below = (Path.cwd() / folder).resolve().is_relative_to(Path.cwd().resolve())
    if "cache_dir" in given or is_below or any(folder.glob("*/ids-*")):
        return data
    return dataclasses.replace(data, cache_dir=DataConfig().cache_dir)


def default_dictionary(teacher: Path) -> Path:
    """Where the dictionary of a teacher is by default."""
    return teacher / DictionaryConfig().file_name(model_config(teacher).depth)


def find_dictionary(teacher: Path) -> Path | None:
    """The default dictionary of a teacher or the only one it has; None without one. Raises ValueError where
    one would have to be chosen.
    """
    default, found = default_dictionary(teacher), sorted(teacher.glob("dictionary-*.safetensors"))
    if default in found:
        return default
    if len(found) > 1:
        raise ValueError(
            f"several dictionaries, none of them {default.name}: choose with --dictionary {found[0]}"
        )
    if found:
        say(f"dictionary: {found[0]}, the only one this teacher has")
    return found[0] if found else None


def load_teacher(
    directory: Path,
    path: Path,
    config: TrainConfig,
    device: torch.device,
    dictionary_fingerprint: str | None = None,
) -> Teacher:
    """A frozen teacher with the dictionary at `path`. Raises ValueError if they do not belong together, or if
    the dictionary is not the one of the fingerprint.
    """
    encoder, _ = load_encoder(directory, device)
    dictionary = Dictionary.load(path, teacher=fingerprint(directory))
    shape = model_config(directory)
    if len(dictionary.atoms_DK) != shape.width or dictionary.layer > shape.depth:
        raise ValueError(
            f"dictionary {path} is of width {len(dictionary.atoms_DK)} and layer {dictionary.layer}, "
            f"the teacher {directory} has width {shape.width} and {shape.depth} layers"
        )
    if dictionary_fingerprint not in (None, dictionary.fingerprint):
        raise ValueError(f"dictionary {path} has changed since the student was trained on it")
    return Teacher(
        encoder.requires_grad_(False),
        dictionary.to(device),
        choose_precision(config.amp, device),
        config.code_tolerance,
        config.solver,
        config.code_steps,
    )
