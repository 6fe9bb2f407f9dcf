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

from mlsm.coding.dictionary import Dictionary
from mlsm.directory import check_writable
from mlsm.files import write_json, write_whole
from mlsm.log import say
from mlsm.runs.checkpoint import MODEL_FILE, Checkpoint, load_newest
from mlsm.runs.hub_import import with_converted_checkpoints
from mlsm.runs.record import ConceptsRecord, CorpusRecord, RunRecord, read_record, record_json
from mlsm.runs.teacher import load_dictionary
from mlsm.settings import Flags
from mlsm.text.batches import Corpus
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import find_objective
from mlsm.training.prerequisites import dictionary_file, find_origin, find_tokenizer
from mlsm.training.request import Origin, Settings, read_request, resolve
from mlsm.version import __version__

# Settings that may change when a run is resumed. Only the device changes what is learnt, by rounding and
# precision. Teacher and dictionary are compared by their fingerprints, and not by their paths.
RESUMABLE_CHANGES = {"device", "log_every", "teacher", "dictionary", "cache_dir"}
RESUMABLE_CHANGES |= {"checkpoint_every", "keep_checkpoints", "checkpoint_words"}


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
    request = read_request(with_converted_checkpoints(given, "teacher", "init"))
    check_writable(request.output)
    before = read_record(request.output) if has_work(request.output) else None
    if before and not request.resume:
        raise ValueError(
            f"{request.output} holds a run: --resume continues it, --output names another directory"
        )
    origin = find_origin(request)
    settings = resolve(request, origin)
    if before:  # compared before the tokenizer is made, which other text would change too
        check_same(request.output, before, {"data": settings.data, "train": settings.train})
    tokenizer = find_tokenizer(settings, origin)
    concepts, dictionary = None, None
    if request.objective.needs_teacher:
        began_with = before.concepts.dictionary if before and before.concepts else None
        path = dictionary_file(settings, began_with)
        dictionary = load_dictionary(path, Path(settings.train.teacher))
        concepts = concepts_record(settings, path, dictionary)
    record = make_record(settings, origin, tokenizer, concepts)
    if before:
        # Before the precision was recorded, runs on a CPU were in float32.
        precision = before.precision or (None if torch.cuda.is_available() else "off")
        record = dataclasses.replace(record, precision=precision, num_threads=before.num_threads)
    return Plan(request.output, record, tokenizer, dictionary, settings.start)


def concepts_record(settings: Settings, path: Path, dictionary: Dictionary) -> ConceptsRecord:
    """The record of the concepts that a student learns."""
    return ConceptsRecord(
        objective=settings.train.objective,
        teacher=settings.train.teacher,
        teacher_fingerprint=dictionary.teacher,
        dictionary=str(path),
        dictionary_fingerprint=dictionary.fingerprint,
        layer=dictionary.layer,
        k=dictionary.atoms_DK.shape[1],
        lam=dictionary.lam,
    )


def make_record(
    settings: Settings, origin: Origin | None, tokenizer: Tokenizer, concepts: ConceptsRecord | None
) -> RunRecord:
    """config.json of the run. A token head has the concepts of the student that it stands on."""
    has_token_head = find_objective(settings.train.objective).trains_only_token_head
    if has_token_head and origin:
        concepts = origin.record.concepts
    num_concepts = settings.model.num_concepts if has_token_head else concepts.k if concepts else 0
    model = dataclasses.replace(
        settings.model,
        vocab_size=tokenizer.vocab_size,
        num_concepts=num_concepts,
        has_token_head=has_token_head,
    )
    return RunRecord(
        preset=settings.preset,
        model=model,
        data=settings.data,
        train=settings.train,
        tokenizer=tokenizer.fingerprint,
        concepts=concepts,
        versions={"mlsm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def open_run(plan: Plan, corpus: Corpus, precision: str) -> Checkpoint | None:
    """Write the record into the run's directory; returns the checkpoint to continue from. Raises ValueError
    if the directory holds another run.
    """
    record = dataclasses.replace(
        plan.record,
        corpus=CorpusRecord(**corpus.sizes()),
        precision=precision,
        num_threads=torch.get_num_threads(),
    )
    if has_work(plan.directory):
        parts = {"model": record.model, "tokenizer": record.tokenizer, "concepts": record.concepts}
        check_same(plan.directory, read_record(plan.directory), parts)
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_json(plan.directory / "config.json", record_json(record))
    write_whole(plan.directory / plan.tokenizer.file_name, lambda p: p.write_bytes(plan.tokenizer.model))
    return load_newest(plan.directory, say)


def check_same(directory: Path, record: RunRecord, parts: Mapping[str, object]) -> None:
    """Raise ValueError for a setting of these parts of a run's record that is not the one that is given."""
    for part, now in parts.items():
        before, after = _settings_of(part, getattr(record, part)), _settings_of(part, now)
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


def has_work(run: Path) -> bool:
    """Whether there is something in a run's directory that took time to make."""
    return (run / MODEL_FILE).exists() or any((run / "checkpoints").glob("step-*"))
