"""What the concepts of a run are read with, and the report on them, which is computed once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.statistics import Statistics
from mlsm.coding.targets import EVERY_TOKEN, sample_states
from mlsm.config import CONCEPT_TOKENS, DataConfig, TrainConfig
from mlsm.device import choose_device
from mlsm.directory import check_writable
from mlsm.evaluation.splicing import recovered_loss
from mlsm.log import printable, progress, say
from mlsm.pages.concept_file import REPORT_FILE, read_report, write_report
from mlsm.pages.concept_reading import Readers, read_concepts, read_sentence
from mlsm.pages.concept_report import About, ConceptReport, SentenceConcepts
from mlsm.pages.concept_shards import shard_folder, write_shards
from mlsm.pages.concept_statistics import build_report, sentence_concepts
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.record import RunRecord, read_record
from mlsm.runs.run import load_run
from mlsm.runs.teacher import find_dictionary, load_dictionary, load_teacher, target_settings
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.corpus import corpus_digest
from mlsm.text.tokenizer import Tokenizer, run_tokenizer
from mlsm.training.objectives import find_objective

FORMAT = 3  # of the report: a change of what is computed from the same inputs makes it another number
TOKEN_BUDGET = 8192  # tokens in one forward pass
NUM_MEASURED = 10_000  # hidden states that the dictionary is measured on
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

    @property
    def coder(self) -> str:
        """What codes the teacher's states: that of the student, if the run is one."""
        return self.record.concepts.coder if self.record.concepts else "lasso"

    @cached_property
    def readers(self) -> Readers:
        """The models, loaded when they are first used. Raises ValueError if one of them cannot be used."""
        teacher = None
        if self.teacher and self.dictionary:
            teacher = load_teacher(self.teacher, self.dictionary, self.record.train, self.device, self.coder)
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
        if kept := read_report(path, key):
            return dataclasses.replace(kept, about=self._about(kept.about.positions, kept.about.types))
        report = self._computed(other)
        write_report(path, key, report)
        return report

    def write_codes(self, folder: Path) -> Path:
        """Write the teacher's codes of the text to a new folder in `folder`, in the format of delphi; returns
        it. Raises ValueError for a student without its teacher, for codes that are there already, and without
        the package tokenizers.
        """
        if self.dictionary is None:
            raise ValueError(
                "--cache writes codes of a teacher, and it is gone, or its dictionary (see --teacher)"
            )
        path = shard_folder(folder, self.dictionary.layer)
        check_writable(path)
        huggingface_tokenizer(self.tokenizer)  # raises ValueError without its package
        teacher = self.readers.teacher
        assert teacher is not None
        about: dict[str, object] = {
            "dataset_repo": ", ".join(map(printable, self.data.corpus)),
            "n_tokens": self.num_tokens,
            "teacher": self.dictionary.teacher,
            "dictionary": self.dictionary.fingerprint,
            "layer": self.dictionary.layer,
            "lam": self.dictionary.lam,
            "seed": self.seed,
        }
        with progress(self.num_tokens, "codes", unit="token") as bar:
            micro_batches = self._sample(Corpus(self.data, self.tokenizer), EVERY_TOKEN)
            write_shards(path, teacher, self.tokenizer, micro_batches, about, bar)
        return path

    def _computed(self, other: Dictionary | None) -> ConceptReport:
        corpus = Corpus(self.data, self.tokenizer)
        with progress(self.num_tokens, "concepts", unit="token") as bar:
            reading = read_concepts(self.readers, self._sample(corpus, self.selection), bar)
        statistics = self._statistics(corpus)
        with progress(len(reading.codes), "statistics", unit="reader") as bar:
            return build_report(
                reading,
                self.tokenizer,
                self._about(len(reading.ids_N), len({*reading.ids_N.tolist()})),
                bar,
                statistics=statistics,
                atoms_KD=None if self.dictionary is None else self.dictionary.atoms_DK.mT.cpu().numpy(),
                others_JD=None if other is None else other.atoms_DK.mT.numpy(),
            )

    def _sample(self, corpus: Corpus, selection: Selection) -> Iterator[MicroBatch]:
        """The text that is read: held-out sequences first."""
        return corpus.sample(
            [corpus.heldout, corpus.training],
            selection,
            num_selected=self.num_tokens,
            token_budget=TOKEN_BUDGET,
            generator=generator_for("concept sample", self.seed),
        )

    def _statistics(self, corpus: Corpus) -> Statistics | None:
        """The measures of the dictionary on the text, held-out text first; None without a dictionary, and for
        the atoms of an SAE, which are not for states of norm 1.
        """
        teacher = self.readers.teacher
        if self.teacher is None or teacher is None or teacher.dictionary.sae:
            return None
        states_ND, _ = sample_states(
            teacher.encoder,
            teacher.dictionary.layer,
            corpus,
            num_tokens=min(NUM_MEASURED, self.num_tokens),
            token_budget=TOKEN_BUDGET,
            seed=self.seed,
            precision=teacher.precision,
            device=self.device,
            parts=[corpus.heldout, corpus.training],
        )
        statistics = measure(
            teacher.dictionary,
            states_ND,
            tol=teacher.tolerance,
            solver=teacher.solver,
            max_steps=teacher.max_steps,
        )
        return dataclasses.replace(statistics, spliced=recovered_loss(self.teacher, teacher, corpus))

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
            "coding": [train.code_tolerance, train.solver, train.code_steps, *target_settings(train)]
            + ([] if self.coder == "lasso" else [self.coder]),
            "precision": [train.amp, self.device.type],
        }
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def open_source(
    run: Path,
    *,
    corpus: tuple[str, ...] | None = None,
    teacher: Path | None = None,
    dictionary: Path | None = None,
    num_tokens: int = CONCEPT_TOKENS,
    seed: int = TrainConfig.seed,
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
