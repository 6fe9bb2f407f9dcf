"""A run's directory before training: whether it holds work, whether the settings are still those of the run,
and the checkpoint to continue from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from mlsm.config import RESUMABLE_CHANGES, DataConfig
from mlsm.files import write_json, write_whole
from mlsm.log import say
from mlsm.runs.checkpoint import MODEL_FILE, Checkpoint, load_newest
from mlsm.runs.record import CorpusRecord, RunRecord, read_record, record_json
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_digest
from mlsm.text.tokenizer import Tokenizer


def record_of_work(run: Path) -> RunRecord | None:
    """The record of a run's directory that holds something that took time to make; None for another."""
    has_work = (run / MODEL_FILE).exists() or any((run / "checkpoints").glob("step-*"))
    return read_record(run) if has_work else None


def check_same_text(directory: Path, record: RunRecord, data: DataConfig) -> None:
    """Raise ValueError if the text of a run is no longer the one that the run began with."""
    if record.corpus and record.corpus.digest not in ("", corpus_digest(data)):
        raise ValueError(
            f"cannot resume {directory}: the text in {', '.join(data.corpus)} has changed since; restore it, "
            "or start another run with --output"
        )


def open_run(
    directory: Path, record: RunRecord, tokenizer: Tokenizer, corpus: Corpus, precision: str
) -> Checkpoint | None:
    """Write the record into the run's directory; returns the checkpoint to continue from. Raises ValueError
    if the directory holds another run.
    """
    record = dataclasses.replace(
        record,
        corpus=CorpusRecord(corpus.digest, **corpus.sizes()),
        precision=precision,
        num_threads=torch.get_num_threads(),
    )
    if before := record_of_work(directory):
        parts = {"model": record.model, "tokenizer": record.tokenizer, "concepts": record.concepts}
        check_same(directory, before, parts)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", record_json(record))
    write_whole(directory / tokenizer.file_name, lambda path: path.write_bytes(tokenizer.model))
    return load_newest(directory, say)


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
