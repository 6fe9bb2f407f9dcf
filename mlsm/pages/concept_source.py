"""What the concepts of a run are read with, and the report on them, which is computed once and kept.

The report is kept as concepts.json. Its first entry is a digest of the rest, its second the key: a digest of
everything that the report was computed from, such as weights, atoms, text and settings. A file with another
key, a damaged one, and one that does not have the form of a report is computed anew and replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.config import DataConfig
from mlsm.device import choose_device
from mlsm.files import LARGEST_JSON, parse_json, read_bytes, write_text
from mlsm.log import printable, progress, say
from mlsm.pages.concept_reading import Readers, read_concepts, read_sentence
from mlsm.pages.concept_report import About, ConceptReport, SentenceConcepts
from mlsm.pages.concept_statistics import build_report, sentence_concepts
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.record import RunRecord, read_record
from mlsm.runs.run import load_run
from mlsm.runs.teacher import find_dictionary, load_dictionary, load_teacher, target_settings
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, Selection
from mlsm.text.corpus import corpus_digest
from mlsm.text.tokenizer import Tokenizer, run_tokenizer
from mlsm.training.objectives import find_objective

REPORT_FILE = "concepts.json"
FORMAT = 2  # of the report: a change of what is computed from the same inputs makes it another number
NUM_TOKENS, SEED = 100_000, 12  # read by default
TOKEN_BUDGET = 8192  # tokens in one forward pass
MASK_SHARE = 0.15  # of the positions, for students that learn from masked tokens


@dataclass(frozen=True, eq=False)
class ConceptSource:
    """A run with the teacher and the dictionary that its concepts come from, and the text to read."""

    run: Path
    record: RunRecord
    tokenizer: Tokenizer
    teacher: Path | None  # None: the student is read alone
    dictionary: Dictionary | None  # None: the student is read alone
    data: DataConfig
    num_tokens: int
    seed: int
    device: torch.device

    @property
    def selection(self) -> Selection:
        """The positions that the run learns concepts from, and whether it sees them."""
        origin = self.record.concepts
        is_masked = origin is not None and find_objective(origin.objective).is_masked
        return Selection(MASK_SHARE, is_masked=True) if is_masked else EVERY_TOKEN

    @property
    def num_concepts(self) -> int:
        """The number of concepts."""
        return self.dictionary.atoms_DK.shape[1] if self.dictionary else self.record.model.num_concepts

    @cached_property
    def readers(self) -> Readers:
        """The models, loaded when they are first used. Raises ValueError if one of them cannot be used."""
        teacher = None
        if self.teacher and self.dictionary:
            teacher = load_teacher(self.teacher, self.dictionary, self.record.train, self.device)
        student = load_run(self.run, self.device).model if self.record.concepts else None
        return Readers(teacher, student, self.selection)

    def sentence(self, text: str) -> SentenceConcepts:
        """The concepts of each token of a text. Raises ValueError for a text that has none or too many."""
        ids, longest = self.tokenizer.encode(text), self.record.model.max_positions
        sentence = read_sentence(self.readers, ids, longest=longest, token_budget=TOKEN_BUDGET)
        return sentence_concepts(sentence, self.tokenizer)

    def report(self, folder: Path | None, other: Dictionary | None = None) -> ConceptReport:
        """The report in a folder if it was made from the same inputs; else it is computed and written there,
        or not written without a folder. `other` is a dictionary to compare with. Raises ValueError for a text
        that cannot be read.
        """
        if folder is None:
            return self._computed(other)
        key, path = self._key(other), folder / REPORT_FILE
        if (kept := _kept_report(path, key)) is not None:
            return dataclasses.replace(kept, about=self._about(kept.about.positions, kept.about.types))
        report = self._computed(other)
        body = f'"key":"{key}",{report.to_json()[1:]}'
        write_text(path, f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}",{body}\n')
        return report

    def _computed(self, other: Dictionary | None) -> ConceptReport:
        corpus = Corpus(self.data, self.tokenizer)
        micro_batches = corpus.sample(
            [corpus.heldout, corpus.training],
            self.selection,
            num_selected=self.num_tokens,
            token_budget=TOKEN_BUDGET,
            generator=generator_for("concept sample", self.seed),
        )
        with progress(self.num_tokens, "concepts", unit="token") as bar:
            reading = read_concepts(self.readers, micro_batches, bar)
        with progress(len(reading.codes), "statistics", unit="reader") as bar:
            return build_report(
                reading,
                self.tokenizer,
                self._about(len(reading.ids_N), len({*reading.ids_N.tolist()})),
                bar,
                atoms_KD=None if self.dictionary is None else self.dictionary.atoms_DK.mT.cpu().numpy(),
                others_JD=None if other is None else other.atoms_DK.mT.numpy(),
            )

    def _about(self, num_positions: int, num_types: int) -> About:
        origin = self.dictionary or self.record.concepts
        assert origin is not None
        return About(
            run=printable(str(self.run)),
            corpus=[*map(printable, self.data.corpus)],
            layer=origin.layer,
            lam=origin.lam,
            k=self.num_concepts,
            seed=self.seed,
            positions=num_positions,
            types=num_types,
        )

    def _key(self, other: Dictionary | None) -> str:
        """A digest of everything that the report is computed from. Raises ValueError for a missing text."""
        data, train = self.data, self.record.train
        inputs = {
            "format": FORMAT,
            "run": fingerprint(self.run),
            "teacher": self.teacher and fingerprint(self.teacher),
            "atoms": [d and (d.fingerprint, d.layer, d.lam) for d in (self.dictionary, other)],
            "tokenizer": self.tokenizer.fingerprint,
            "text": [corpus_digest(data), data.sequence_mode, data.max_length, data.heldout_share],
            "sample": [self.num_tokens, self.seed, self.selection],
            "coding": [train.code_tolerance, train.solver, train.code_steps, *target_settings(train)],
            "precision": [train.amp, self.device.type],
        }
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def open_source(
    run: Path,
    *,
    corpus: tuple[str, ...] | None = None,
    teacher: Path | None = None,
    dictionary: Path | None = None,
    num_tokens: int = NUM_TOKENS,
    seed: int = SEED,
    device: str = "auto",
) -> ConceptSource:
    """A run with its teacher and dictionary: those named here, else those it was trained with. A student
    whose teacher was removed is read alone. Raises ValueError for what is missing or does not fit.
    """
    record = read_record(run)
    directory, path = _teacher_and_dictionary(run, record, teacher, dictionary)
    learnt = None if directory is None else load_dictionary(path, directory, record.concepts)
    return ConceptSource(
        run,
        record,
        run_tokenizer(run),
        directory,
        learnt,
        dataclasses.replace(record.data, corpus=corpus or record.data.corpus),
        num_tokens,
        seed,
        choose_device(device),
    )


def _teacher_and_dictionary(
    run: Path, record: RunRecord, teacher: Path | None, dictionary: Path | None
) -> tuple[Path | None, Path]:
    """The teacher's directory, None if it is gone, and the file of its dictionary."""
    origin = record.concepts
    if origin is None:
        if teacher:
            raise ValueError(f"{run} is a teacher itself; --teacher is for students")
        path = dictionary or find_dictionary(run)
        if path is None:
            raise ValueError(f"{run} has no dictionary: python fit_dictionary.py --teacher {run}")
        return run, path
    directory, path = teacher or Path(origin.teacher), dictionary or Path(origin.dictionary)
    if teacher and not dictionary:
        path = directory / path.name
    if not (teacher or dictionary or ((directory / MODEL_FILE).exists() and path.exists())):
        say(f"the student alone: no teacher at {directory} with the dictionary {path} (see --teacher)")
        return None, path
    if not (dictionary or path.exists()):
        raise ValueError(
            f"no dictionary {path.name} in {directory}; is it the teacher of {run}? "
            "(--dictionary names another)"
        )
    return directory, path


def _kept_report(path: Path, key: str) -> ConceptReport | None:
    """The report in a file with this key; None without one, and for a file that is damaged or no report."""
    head = '{"sha256":"'
    try:
        content = read_bytes(path, LARGEST_JSON)
        body = content[len(head) + 64 + 2 :].removesuffix(b"\n")
        digest = hashlib.sha256(body).hexdigest()
        if not content.startswith(f'{head}{digest}","key":"{key}",'.encode()):
            return None
        values = parse_json(content, str(path))
        report = _decoded(ConceptReport, {name: values.get(name) for name in _hints(ConceptReport)})
        _check_report(report)
    except (OSError, ValueError):
        return None
    return report


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass or a NamedTuple."""
    return typing.get_type_hints(kind)


def _decoded(kind: Any, value: Any) -> Any:
    """A value of JSON as the type that was written. Raises ValueError for anything else."""
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and type(value) is list and len(value) == len(parts):
        return tuple(map(_decoded, parts, value))
    if origin is list and type(value) is list:
        return [_decoded(parts[0], item) for item in value]
    if origin is dict and type(value) is dict:
        return {name: _decoded(parts[1], item) for name, item in value.items()}
    if origin is types.UnionType:  # with None
        return None if value is None else _decoded(parts[0], value)
    if hasattr(kind, "_fields") and type(value) is list and len(value) == len(kind._fields):
        return kind(*map(_decoded, _hints(kind).values(), value))
    if hasattr(kind, "__dataclass_fields__") and type(value) is dict and value.keys() == _hints(kind).keys():
        return kind(**{name: _decoded(part, value[name]) for name, part in _hints(kind).items()})
    raise ValueError(f"not {kind}: {value!r:.100}")


def _check_report(report: ConceptReport) -> None:
    """Raise ValueError if lists differ in length, or name a concept, a token or a place that is not there."""
    num_concepts, num_types = report.about.k, len(report.pieces)
    optional = [report.near_atoms, report.shared, report.again]
    lists: list[tuple[Sized, int]] = [(values, num_concepts) for values in optional if values is not None]
    lists += [(report.places, num_concepts), (report.counts, num_types)]
    concepts: list[int] = [k for row in report.near_atoms or [] for k, _ in row]
    tokens: list[int] = [i for sequence in report.sequences for i in sequence]
    for use in report.sources.values():
        by_type = [(use.token_concepts, num_types)]
        lists += [(v, num_concepts) for v in vars(use).values() if v is not use.token_concepts] + by_type
        concepts += [*use.leader, *(k for row in (*use.near, *use.token_concepts) for k, _ in row)]
        tokens += [*(i for row in use.labels for i in row), *(i for row in use.tokens for i, _ in row)]
        for context in (context for row in use.contexts for context in row):
            if not 0 <= context.sequence < len(report.sequences):
                raise ValueError("a context of no sequence")
            length = len(report.sequences[context.sequence])
            places = [place for place, _ in context.weights]
            if context.place not in places:
                raise ValueError("a context without the weight of its position")
            if not 0 <= context.start <= min(places) <= max(places) < context.stop <= length:
                raise ValueError("a context beyond its sequence")
    if any(len(values) != length for values, length in lists):
        raise ValueError("lists of different lengths")
    for items, count in ((concepts, num_concepts), (tokens, num_types)):
        if items and not 0 <= min(items) <= max(items) < count:
            raise ValueError("a number without a concept or a token")
    if not report.sources:
        raise ValueError("no reader")
