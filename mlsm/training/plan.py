"""From flags to a plan: settings settled, prerequisites built, and the directory of the run opened.

What settings and files can be refused for is refused here, before the first update.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.config import (
    DEFAULT_TEACHER,
    EMBEDDED_CORPUS,
    PRESETS,
    DataConfig,
    ModelConfig,
    TrainConfig,
    from_json,
)
from mlsm.directory import check_writable
from mlsm.files import write_json, write_whole
from mlsm.log import say
from mlsm.runs import hub_import as outside
from mlsm.runs.checkpoint import MODEL_FILE, Checkpoint, fingerprint, load_newest
from mlsm.runs.run import check_has_heads, checked_tokenizer, run_config
from mlsm.runs.teacher import default_dictionary, find_dictionary, text_of
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_tokenizer
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import OBJECTIVES
from mlsm.version import __version__

SHARED_FLAGS = ("preset", "corpus", "sequence_mode", "max_length", "heldout_share", "cache_dir", "device")
CODING = ("code_tolerance", "code_steps", "solver")
# What may change when a run is resumed. Only the device touches what is learnt: by rounding and precision.
# Of teacher and dictionary the fingerprints are compared, and not how their paths are written.
RESUMABLE_CHANGES = {"device", "log_every", "teacher", "dictionary", "cache_dir"}
RESUMABLE_CHANGES |= {"checkpoint_every", "keep_checkpoints", "checkpoint_words"}


class Plan(NamedTuple):
    """A run before it starts: settings, and the files it starts from."""

    directory: Path
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    preset: str
    tokenizer: Tokenizer
    dictionary: Path | None


def make_plan(given: dict[str, Any]) -> Plan:
    """Settle every setting and build what is missing. Raises ValueError for settings that contradict each
    other.
    """
    given = outside.brought_in(given, "teacher", "init")
    objective = given["objective"]
    needs_teacher = OBJECTIVES[objective].needs_teacher
    init = given.get("init", "teacher" if needs_teacher else "random")
    directory = Path(given.get("output", _default_output(objective, init)))
    check_writable(directory)
    has_work = _has_work(directory)
    if has_work and not given["resume"]:
        raise ValueError(f"{directory} holds a run: --resume continues it, --output names another directory")
    origin = _origin(given)
    saved: Any = run_config(origin) if origin else None
    preset_name = given.get("preset") or _preset_of(saved, given)
    preset = PRESETS[preset_name]()
    train = cli.override(dataclasses.replace(preset.train_for(objective), init=init), given)
    data = text_of(saved, given) if saved else cli.override(preset.data, given)
    has_saved_shape = saved and not (needs_teacher and "preset" in given)
    model = cli.override(from_json(ModelConfig, saved["model"]) if has_saved_shape else preset.model, given)
    if data.max_length > model.max_positions:
        raise ValueError(f"max_length {data.max_length} is more than max_positions {model.max_positions}")
    if has_work:  # what a tokenizer of other text would hide is told first
        _check_same(directory, {"data": dataclasses.asdict(data), "train": dataclasses.asdict(train)})
    tokenizer = checked_tokenizer(origin) if origin else corpus_tokenizer(data, model.vocab_size, say)
    _say_idle(given, train, origin)
    if train.init not in ("random", "teacher"):
        _check_tokenizer(Path(train.init), tokenizer)
    if train.init != "random":
        check_has_heads(init_directory(train))
    dictionary = _dictionary_path(given, train, directory) if needs_teacher else None
    num_concepts = 0
    if dictionary is not None:
        num_concepts = Dictionary.load(dictionary).atoms_DK.shape[1]
    elif objective == "token-head":
        num_concepts = model.num_concepts
        if not num_concepts:
            raise ValueError(
                f"{origin} predicts no concepts: --init takes a concept student, such as runs/lsm-random"
            )
    model = dataclasses.replace(
        model,
        vocab_size=tokenizer.vocab_size,
        num_concepts=num_concepts,
        has_token_head=objective == "token-head",
    )
    return Plan(directory, model, data, train, preset_name, tokenizer, dictionary)


def _say_idle(given: dict[str, Any], config: TrainConfig, origin: Path | None) -> None:
    """Name the flags that were given and change nothing in this run."""
    name, objective = config.objective, OBJECTIVES[config.objective]
    if origin:
        cli.say_idle(given, f"the tokenizer is that of {origin}", "vocab_size")
    if not objective.needs_teacher:
        cli.say_idle(given, f"{name} learns no concepts", "dictionary", *CODING)
        if config.init != "teacher":
            cli.say_idle(given, f"{name} has no teacher", "teacher")
    if objective.learns_from_all:
        cli.say_idle(given, f"{name} learns from every token", "mask_share")
    if name != "mlm+mlsm":
        cli.say_idle(given, "it weighs a loss of mlm+mlsm", "mlm_weight")
    if name == "token-head":
        cli.say_idle(given, "the student is frozen, the head starts at zero", "dropout", "init_std")


def _origin(given: dict[str, Any]) -> Path | None:
    """The run that lends its tokenizer, text and shape: the teacher, or the run to start from."""
    objective, init = given["objective"], given.get("init", "random")
    if init not in ("random", "teacher") and not (Path(init) / MODEL_FILE).exists():
        raise ValueError(f"no finished run at {init}; train it first, or name another with --init")
    if OBJECTIVES[objective].needs_teacher:
        return teacher_directory(given)
    if objective == "token-head" and init in ("random", "teacher"):
        raise ValueError("token-head needs a concept student to start from: --init runs/lsm-random, say")
    if init == "teacher":
        return teacher_directory(given)
    return None if init == "random" else Path(init)


def _check_tokenizer(run: Path, tokenizer: Tokenizer) -> None:
    if checked_tokenizer(run).fingerprint != tokenizer.fingerprint:
        raise ValueError(f"cannot start from {run}: it has another tokenizer, its word ids mean other words")


def _preset_of(saved: dict[str, Any] | None, given: dict[str, Any]) -> str:
    if saved:
        return saved["preset"]
    return "base" if given.get("corpus", [EMBEDDED_CORPUS]) != [EMBEDDED_CORPUS] else "tiny"


def _default_output(objective: str, init: str) -> str:
    if objective == "mlm" and init == "random":
        return DEFAULT_TEACHER
    return f"runs/{objective}-{Path(init).name}"


def teacher_directory(given: dict[str, Any]) -> Path:
    """The teacher named, or the default one, trained first if it is missing."""
    path = Path(given.get("teacher", DEFAULT_TEACHER))
    if not (path / MODEL_FILE).exists():
        if "teacher" in given:
            raise ValueError(
                f"no teacher at {path}: --teacher takes the directory of a finished run, or of a downloaded "
                "DeBERTa"
            )
        flags = ["--objective", "mlm", "--resume", *cli.pass_along(given, *SHARED_FLAGS)]
        cli.build_first("train.py", flags, f"the teacher {path}")
    return path


def _dictionary_path(given: dict[str, Any], config: TrainConfig, run: Path) -> Path:
    """The dictionary named, or the one this run began with, or the default one, or the only one the teacher
    has; built if there is none.
    """
    teacher = Path(config.teacher)
    if "dictionary" in given:
        return Path(given["dictionary"])
    if _has_work(run) and (began_with := run_config(run)["concepts"]):
        return Path(began_with["dictionary"])
    if found := find_dictionary(teacher):
        return found
    flags = ["--teacher", str(teacher), *cli.pass_along(given, "preset", "device")]
    cli.build_first("fit_dictionary.py", flags, f"the dictionary {default_dictionary(teacher)}")
    return default_dictionary(teacher)


def init_directory(config: TrainConfig) -> Path:
    return Path(config.teacher if config.init == "teacher" else config.init)


def _concepts(plan: Plan) -> dict[str, Any] | None:
    """Where the concepts of a run come from; a token head has those of the student it stands on."""
    if plan.train.objective == "token-head":
        return run_config(Path(plan.train.init))["concepts"]
    if plan.dictionary is None:
        return None
    dictionary = Dictionary.load(plan.dictionary)
    return {
        "objective": plan.train.objective,
        "teacher": plan.train.teacher,
        "teacher_fingerprint": fingerprint(Path(plan.train.teacher)),
        "dictionary": str(plan.dictionary),
        "dictionary_fingerprint": dictionary.fingerprint,
        "layer": dictionary.layer,
        "k": dictionary.atoms_DK.shape[1],
        "lam": dictionary.lam,
    }


def _describe(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """config.json: everything that made the run."""
    return {
        "preset": plan.preset,
        "model": dataclasses.asdict(plan.model),
        "data": dataclasses.asdict(plan.data),
        "train": dataclasses.asdict(plan.train),
        "tokenizer": plan.tokenizer.fingerprint,
        "corpus": corpus.describe(),
        "concepts": _concepts(plan),
        "versions": {"mlsm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def open_run(plan: Plan, corpus: Corpus) -> Checkpoint | None:
    """Prepare the directory; returns the checkpoint to continue from. Raises ValueError if it holds another
    run.
    """
    record = _describe(plan, corpus)
    if _has_work(plan.directory):
        _check_same(plan.directory, {part: record[part] for part in ("model", "tokenizer", "concepts")})
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_json(plan.directory / "config.json", record)
    write_whole(plan.directory / plan.tokenizer.file_name, lambda p: p.write_bytes(plan.tokenizer.model))
    return load_newest(plan.directory, say)


def _has_work(run: Path) -> bool:
    """Whether there is something in a run's directory that took time to make."""
    return (run / MODEL_FILE).exists() or any((run / "checkpoints").glob("step-*"))


def _check_same(directory: Path, parts: dict[str, Any]) -> None:
    """Raise ValueError for a setting of these parts of a config.json that is not the one the run has."""
    for part, now in parts.items():
        before = run_config(directory).get(part)
        if not isinstance(before, dict) or not isinstance(now, dict):
            before, now = {part: before}, {part: now}
        for name in sorted(before):  # what only `now` has is a field younger than the run
            is_now = list(value) if isinstance(value := now.get(name), tuple) else value
            if before[name] != is_now and name not in RESUMABLE_CHANGES:
                raise ValueError(
                    f"cannot resume {directory}: {name} was {before[name]} and is now {is_now}; "
                    "resume with the same settings, or start another run with --output"
                )
