"""From flags to a run that can start, in three steps: resolve the settings, build what is missing, check a
resume. What settings and files can be refused for is refused here, before the first update.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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
)
from mlsm.directory import check_writable
from mlsm.files import write_json, write_whole
from mlsm.log import say
from mlsm.runs import hub_import
from mlsm.runs.checkpoint import MODEL_FILE, Checkpoint, load_newest
from mlsm.runs.record import ConceptsRecord, CorpusRecord, RunRecord, read_record, record_json
from mlsm.runs.run import check_has_heads, load_tokenizer
from mlsm.runs.teacher import default_dictionary, find_dictionary, load_dictionary, text_of
from mlsm.settings import Flags, override
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_tokenizer
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import OBJECTIVES, Objective, find_objective
from mlsm.version import __version__

SHARED_FLAGS = ("preset", "corpus", "sequence_mode", "max_length", "heldout_share", "cache_dir", "device")
# Settings that may change when a run is resumed. Only the device changes what is learnt, by rounding and
# precision. Teacher and dictionary are compared by their fingerprints, and not by their paths.
RESUMABLE_CHANGES = {"device", "log_every", "teacher", "dictionary", "cache_dir"}
RESUMABLE_CHANGES |= {"checkpoint_every", "keep_checkpoints", "checkpoint_words"}


class Request(NamedTuple):
    """What the command line asks for."""

    objective: Objective
    name: str  # of the objective
    init: str  # random, teacher, or the directory of a run
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

    def start(self) -> Path | None:
        """The run whose weights this run starts from; None for random weights."""
        names = {"random": None, "teacher": self.train.teacher}
        name = names.get(self.train.init, self.train.init)
        return None if name is None else Path(name)


class Plan(NamedTuple):
    """A run before it starts: its record, and the parts that are loaded already."""

    directory: Path
    record: RunRecord
    tokenizer: Tokenizer
    dictionary: Dictionary | None  # None: the objective has no teacher
    start: Path | None  # the run whose weights this run starts from


def make_plan(given: Flags) -> Plan:
    """The plan of the run that the flags describe; what is missing at its default place is built. Raises
    ValueError for flags that contradict each other, or a directory or a file.
    """
    request = read_request(given)
    check_writable(request.output)
    has_work = _has_work(request.output)
    if has_work and not request.resume:
        raise ValueError(
            f"{request.output} holds a run: --resume continues it, --output names another directory"
        )
    origin = find_origin(request)
    settings = resolve(request, origin)
    if has_work:  # compared before the tokenizer, which other text would change too
        check_same(request.output, {"data": settings.data, "train": settings.train})
    return build_missing(settings, origin, request.output)


def read_request(given: Flags) -> Request:
    """The request that the flags make. Raises ValueError without an objective, or for an unknown one."""
    if "objective" not in given:
        raise ValueError(f"--objective is required, one of {', '.join(OBJECTIVES)}")
    given = hub_import.with_converted_checkpoints(given, "teacher", "init")
    name = str(given["objective"])
    objective = find_objective(name)
    init = str(given.get("init", "teacher" if objective.needs_teacher else "random"))
    is_default_teacher = name == "mlm" and init == "random"
    default = DEFAULT_TEACHER if is_default_teacher else f"runs/{name}-{Path(init).name}"
    return Request(
        objective, name, init, Path(str(given.get("output", default))), bool(given.get("resume")), given
    )


def resolve(request: Request, origin: Origin | None) -> Settings:
    """Every setting: the flags, else those of the run's origin, else those of the preset. Reads no file.

    Raises ValueError for settings that contradict each other.
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
    cli.say_unused(flags, f"with --objective {request.name} --init {request.init}", unused)
    return Settings(preset_name, model, data, override(train, flags))


def find_origin(request: Request) -> Origin | None:
    """The origin of a run; a teacher that is missing at its default place is trained first. None for a run
    without a teacher that starts from random weights. Raises ValueError for a run that does not exist.
    """
    init, objective = request.init, request.objective
    is_run = init not in ("random", "teacher")
    if is_run and not (Path(init) / MODEL_FILE).exists():
        raise ValueError(f"no finished run at {init}; train it first, or name another with --init")
    if objective.trains_only_token_head and not is_run:
        raise ValueError(f"{request.name} needs a concept student to start from: --init runs/lsm-random, say")
    if init == "random" and not objective.needs_teacher:
        return None
    directory = Path(init) if is_run and not objective.needs_teacher else find_teacher(request.flags)
    return Origin(directory, read_record(directory))


def find_teacher(flags: Flags) -> Path:
    """The directory of the teacher that is named, or of the default one, which is trained if it is missing.
    Raises ValueError for a teacher that was named and does not exist.
    """
    path = Path(str(flags.get("teacher", DEFAULT_TEACHER)))
    if not (path / MODEL_FILE).exists():
        if "teacher" in flags:
            raise ValueError(
                f"no teacher at {path}: --teacher takes the directory of a finished run, or of a downloaded "
                "DeBERTa"
            )
        words = ["--objective", "mlm", "--resume", *cli.pass_along(flags, *SHARED_FLAGS)]
        cli.build_first("train.py", words, f"the teacher {path}")
    return path


def build_missing(settings: Settings, origin: Origin | None, directory: Path) -> Plan:
    """The plan with tokenizer and dictionary, which are made if they do not exist. Raises ValueError for a
    tokenizer, a dictionary or weights that do not fit the settings.
    """
    train, start = settings.train, settings.start()
    objective = find_objective(train.objective)
    if origin:
        tokenizer = load_tokenizer(*origin)
    else:
        tokenizer = corpus_tokenizer(settings.data, settings.model.vocab_size)
    if start:
        start_record = read_record(start)
        check_has_heads(start, start_record)
        if load_tokenizer(start, start_record).fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"cannot start from {start}: it has another tokenizer, its word ids mean other words"
            )
    concepts, dictionary = None, None
    num_concepts = settings.model.num_concepts if objective.trains_only_token_head else 0
    if objective.needs_teacher:
        path = _dictionary_path(settings, directory)
        dictionary = load_dictionary(path, Path(train.teacher))
        num_concepts = dictionary.atoms_DK.shape[1]
        concepts = ConceptsRecord(
            objective=train.objective,
            teacher=train.teacher,
            teacher_fingerprint=dictionary.teacher,
            dictionary=str(path),
            dictionary_fingerprint=dictionary.fingerprint,
            layer=dictionary.layer,
            k=num_concepts,
            lam=dictionary.lam,
        )
    elif objective.trains_only_token_head and origin:
        concepts = origin.record.concepts
    model = dataclasses.replace(
        settings.model,
        vocab_size=tokenizer.vocab_size,
        num_concepts=num_concepts,
        has_token_head=objective.trains_only_token_head,
    )
    record = RunRecord(
        preset=settings.preset,
        model=model,
        data=settings.data,
        train=train,
        tokenizer=tokenizer.fingerprint,
        concepts=concepts,
        versions={"mlsm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
    return Plan(directory, record, tokenizer, dictionary, start)


def _dictionary_path(settings: Settings, directory: Path) -> Path:
    """The dictionary that is named, or the one that the run began with, or the default one, or the only one
    that the teacher has; it is learnt if there is none.
    """
    if settings.train.dictionary:
        return Path(settings.train.dictionary)
    if _has_work(directory) and (began_with := read_record(directory).concepts):
        return Path(began_with.dictionary)
    teacher = Path(settings.train.teacher)
    if path := find_dictionary(teacher):
        return path
    path = default_dictionary(teacher)
    flags = ["--teacher", str(teacher), "--preset", settings.preset, "--device", settings.train.device]
    cli.build_first("fit_dictionary.py", flags, f"the dictionary {path}")
    return path


def open_run(plan: Plan, corpus: Corpus) -> Checkpoint | None:
    """Write the record into the run's directory; returns the checkpoint to continue from. Raises ValueError
    if the directory holds another run.
    """
    record = dataclasses.replace(plan.record, corpus=CorpusRecord(**corpus.sizes()))
    if _has_work(plan.directory):
        check_same(
            plan.directory, {part: getattr(record, part) for part in ("model", "tokenizer", "concepts")}
        )
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_json(plan.directory / "config.json", record_json(record))
    write_whole(plan.directory / plan.tokenizer.file_name, lambda p: p.write_bytes(plan.tokenizer.model))
    return load_newest(plan.directory, say)


def check_same(directory: Path, parts: Mapping[str, object]) -> None:
    """Raise ValueError for a setting of these parts of a record that is not the one that the run has."""
    before_record = read_record(directory)
    for part, now in parts.items():
        before, after = (_settings_of(part, value) for value in (getattr(before_record, part), now))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and name not in RESUMABLE_CHANGES:
                raise ValueError(
                    f"cannot resume {directory}: {name} was {before.get(name)} and is now {after.get(name)}; "
                    "resume with the same settings, or start another run with --output"
                )


def _settings_of(part: str, value: object) -> dict[str, object]:
    """The settings of a part of a record by name; a part that is one value goes by its own name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return {part: value}


def _has_work(run: Path) -> bool:
    """Whether there is something in a run's directory that took time to make."""
    return (run / MODEL_FILE).exists() or any((run / "checkpoints").glob("step-*"))
