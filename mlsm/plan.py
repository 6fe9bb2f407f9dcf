"""From flags to a plan: settings settled, prerequisites built, and the directory of the run opened.

Everything that can be refused is refused here, before the first update.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlsm import __version__, cli
from mlsm.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    fingerprint,
    load_newest,
    read_json,
    write_json,
    write_whole,
)
from mlsm.config import (
    DEFAULT_TEACHER,
    PRESETS,
    DataConfig,
    DictionaryConfig,
    ModelConfig,
    TrainConfig,
    from_json,
)
from mlsm.data import Corpus, corpus_tokenizer
from mlsm.dictionary import Dictionary
from mlsm.heads import as_json, load_run
from mlsm.log import say
from mlsm.objectives import OBJECTIVES
from mlsm.optim import choose_precision
from mlsm.targets import Teacher
from mlsm.tokenizer import Tokenizer

SHARED_FLAGS = ("preset", "corpus", "sequence_mode", "max_length", "heldout_share", "cache_dir", "device")
# What may change when a run is resumed: none of it changes what is learnt.
RESUMABLE_CHANGES = {"device", "log_every", "checkpoint_every", "keep_checkpoints"}


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
    name = given.get("objective", "mlm")
    if name == "token-head":
        if given.get("init", "random") in ("random", "teacher"):
            raise ValueError("token-head needs a concept student to start from: --init runs/lsm-random, say")
        origin: Path | None = Path(given["init"])
    elif OBJECTIVES[name].needs_teacher:
        origin = _teacher_directory(given)
    else:
        origin = None
    saved = read_json(origin / "config.json") if origin else None
    preset_name = (
        given.get("preset") or (saved and saved["preset"]) or ("base" if "corpus" in given else "tiny")
    )
    preset = PRESETS[preset_name]()
    defaults = preset.train_for(name)
    if OBJECTIVES[name].needs_teacher:
        defaults = dataclasses.replace(defaults, init="teacher")
    config = cli.override(defaults, given)
    data = cli.override(from_json(DataConfig, saved["data"]) if saved else DataConfig(), given)
    shape_flags = {"preset", *(f.name for f in dataclasses.fields(ModelConfig))} & given.keys()
    is_own_shape = not saved or (shape_flags and name != "token-head")
    model = cli.override(preset.model if is_own_shape else from_json(ModelConfig, saved["model"]), given)
    directory = Path(given.get("output", _default_output(config)))
    if saved:
        assert origin is not None
        tokenizer = Tokenizer.load(origin / "tokenizer.model")
    else:
        tokenizer = corpus_tokenizer(data, model.vocab_size, say)
    model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    dictionary = None
    if OBJECTIVES[name].needs_teacher:
        dictionary = _dictionary_path(given, config)
        model = dataclasses.replace(model, num_concepts=Dictionary.load(dictionary).atoms_DK.shape[1])
    if name == "token-head":
        if not model.num_concepts:
            raise ValueError(f"{origin} has no concepts: train it with --objective lsm first")
        model = dataclasses.replace(model, has_token_head=True)
    return Plan(directory, model, data, config, preset_name, tokenizer, dictionary)


def _default_output(config: TrainConfig) -> str:
    if config.objective == "mlm" and config.init == "random":
        return DEFAULT_TEACHER
    return f"runs/{config.objective}-{Path(config.init).name}"


def _teacher_directory(given: dict[str, Any]) -> Path:
    path = Path(given.get("teacher", DEFAULT_TEACHER))
    if not (path / MODEL_FILE).exists():
        if "teacher" in given:
            raise ValueError(f"no teacher at {path}: train one with --objective mlm --output {path}")
        flags = ["--objective", "mlm", "--resume", *cli.pass_along(given, *SHARED_FLAGS)]
        cli.build_first("train.py", flags, f"the teacher {path}")
    return path


def _dictionary_path(given: dict[str, Any], config: TrainConfig) -> Path:
    """The dictionary named, or the default one, or the only one the teacher has; built if there is none."""
    teacher = Path(config.teacher)
    if "dictionary" in given:
        return Path(given["dictionary"])
    depth = from_json(ModelConfig, read_json(teacher / "config.json")["model"]).depth
    default = teacher / DictionaryConfig().file_name(depth)
    found = sorted(teacher.glob("dictionary-*.safetensors"))
    if default in found:
        return default
    if len(found) == 1:
        say(f"dictionary: {found[0]}, the only one this teacher has")
        return found[0]
    if found:
        raise ValueError(
            f"several dictionaries, none of them {default.name}: choose with --dictionary {found[0]}"
        )
    flags = ["--teacher", str(teacher), *cli.pass_along(given, "preset", "device")]
    cli.build_first("fit_dictionary.py", flags, f"the dictionary {default}")
    return default


def init_directory(config: TrainConfig) -> Path:
    return Path(config.teacher if config.init == "teacher" else config.init)


def load_teacher(plan: Plan, device: torch.device) -> Teacher:
    assert plan.dictionary is not None
    directory = Path(plan.train.teacher)
    run = load_run(directory, device)
    if run.tokenizer.fingerprint != plan.tokenizer.fingerprint:
        raise ValueError(f"the teacher {directory} has another tokenizer than this run")
    dictionary = Dictionary.load(plan.dictionary, teacher=fingerprint(directory)).to(device)
    run.model.requires_grad_(False)
    precision = choose_precision(plan.train.amp, device)
    return Teacher(run.model.encoder, dictionary, precision, plan.train.code_tolerance, plan.train.solver)


def _describe(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """config.json: everything that made the run."""
    record: dict[str, Any] = {
        "preset": plan.preset,
        "model": as_json(plan.model),
        "data": as_json(plan.data),
        "train": as_json(plan.train),
        "tokenizer": plan.tokenizer.fingerprint,
        "corpus": corpus.describe(),
        "teacher": None,
        "dictionary": None,
        "versions": {"mlsm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if plan.dictionary is not None:
        record["teacher"] = {"path": plan.train.teacher, "fingerprint": fingerprint(Path(plan.train.teacher))}
        dictionary = Dictionary.load(plan.dictionary)
        record["dictionary"] = {
            "path": str(plan.dictionary),
            "fingerprint": dictionary.fingerprint,
            "layer": dictionary.layer,
            "k": dictionary.atoms_DK.shape[1],
            "lam": dictionary.lam,
        }
    return record


def open_run(plan: Plan, corpus: Corpus, should_resume: bool) -> Checkpoint | None:
    """Prepare the directory; returns the checkpoint to continue from. Raises ValueError if it holds another
    run.
    """
    path, record = plan.directory / "config.json", _describe(plan, corpus)
    if path.exists() and not should_resume:
        raise ValueError(
            f"{plan.directory} holds a run: --resume continues it, --output names another directory"
        )
    if path.exists():
        before = read_json(path)
        for part in ("model", "data", "train", "tokenizer", "teacher", "dictionary"):
            _check_same(plan.directory, part, before.get(part), record[part])
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    write_whole(plan.directory / "tokenizer.model", lambda p: p.write_bytes(plan.tokenizer.model) and None)
    return load_newest(plan.directory, say) if should_resume else None


def _check_same(directory: Path, part: str, before: Any, now: Any) -> None:
    if not isinstance(before, dict) or not isinstance(now, dict):
        before, now = {part: before}, {part: now}
    before, now = ({k: list(v) if isinstance(v, tuple) else v for k, v in d.items()} for d in (before, now))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name not in RESUMABLE_CHANGES:
            raise ValueError(
                f"cannot resume {directory}: {name} was {before.get(name)} and is now {now.get(name)}; "
                "resume with the same settings, or start another run with --output"
            )
