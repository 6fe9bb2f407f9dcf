"""From flags to a run that can start: resolve the settings, check a resume, build what is missing. Then the
text is read, and what follows from it is added. A run that has to be refused is refused here, before its
first update.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import NamedTuple

import torch

from mlsm.coding.dictionary import Dictionary
from mlsm.directory import check_writable
from mlsm.log import say
from mlsm.runs.hub_import import with_converted_checkpoints
from mlsm.runs.record import ConceptsRecord, RunRecord
from mlsm.settings import Flags
from mlsm.text.batches import Corpus
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import find_objective
from mlsm.training.prerequisites import find_concepts, find_origin, find_tokenizer
from mlsm.training.request import Origin, Settings, read_request, resolve
from mlsm.training.resume import check_same, check_same_text, record_of_work
from mlsm.training.word_budget import check_word_budget, count_words, with_num_steps
from mlsm.version import __version__


class Plan(NamedTuple):
    """A run before it starts: its record, and the parts that are loaded already."""

    directory: Path
    record: RunRecord
    tokenizer: Tokenizer
    dictionary: Dictionary | None  # None: the objective has no teacher
    start: Path | None  # the run whose weights this run starts from
    origin: Origin | None  # the run that tokenizer, text and shape come from
    is_confirmed: bool = False  # whether it may train for more than a day on a CPU


def make_plan(given: Flags) -> Plan:
    """The plan of the run that the flags describe; what is missing at its default place is built. Raises
    ValueError for flags that contradict each other, or a directory or a file.
    """
    request = read_request(with_converted_checkpoints(given, "teacher", "init"))
    check_writable(request.output)
    before = record_of_work(request.output)
    if before and not request.resume:
        raise ValueError(
            f"{request.output} holds a run: --resume continues it, --output names another directory"
        )
    origin = find_origin(request)
    settings = resolve(request, origin)
    if before:  # compared before the tokenizer is made, which other text would change too
        train = settings.train
        if train.words is not None or train.epochs is not None:  # the text decides how many updates that is
            train = dataclasses.replace(train, num_steps=before.train.num_steps)
        check_same(request.output, before, {"data": settings.data, "train": train})
        check_same_text(request.output, before, settings.data)
    tokenizer = find_tokenizer(settings, origin)
    concepts, dictionary = find_concepts(settings, origin, before)
    record = make_record(settings, tokenizer, concepts, before)
    is_confirmed = bool(given.get("yes"))
    return Plan(request.output, record, tokenizer, dictionary, settings.start, origin, is_confirmed)


def with_text(plan: Plan, corpus: Corpus) -> Plan:
    """The plan with what follows from its text: the number of updates, the words, and the difference to the
    text of its origin, which is printed. Raises ValueError if the run would exceed its word budget.
    """
    train = with_num_steps(plan.record.train, corpus)
    runs = [plan.start] if plan.start else []
    runs += [plan.origin.directory] if plan.dictionary and plan.origin else []
    words = count_words(train, corpus, runs, plan.dictionary)
    check_word_budget(words, train)
    leak = find_leak(plan.origin, corpus) if plan.origin else ""
    return plan._replace(record=dataclasses.replace(plan.record, train=train, words=words, leak=leak))


def find_leak(origin: Origin, corpus: Corpus) -> str:
    """How the held-out lines of a corpus, or its text, differ from those of a run's origin; the sentence is
    printed. It is empty if they are the same.
    """
    before, name = origin.record, str(origin.directory)
    if before.source:
        return ""
    leak = before.heldout_note() and f"{name}: {before.heldout_note()}"
    if before.corpus and before.corpus.digest:
        leak = corpus.leak(name, before.corpus.digest, before.data.heldout_share) or leak
    if leak:
        say(leak)
    return leak


def make_record(
    settings: Settings, tokenizer: Tokenizer, concepts: ConceptsRecord | None, before: RunRecord | None
) -> RunRecord:
    """config.json of the run. A resumed run keeps its precision and number of threads."""
    has_token_head = find_objective(settings.train.objective).trains_only_token_head
    num_concepts = settings.model.num_concepts if has_token_head else concepts.k if concepts else 0
    model = dataclasses.replace(
        settings.model,
        vocab_size=tokenizer.vocab_size,
        num_concepts=num_concepts,
        has_token_head=has_token_head,
    )
    # Before the precision was recorded, runs on a CPU were in float32.
    unrecorded = "off" if before and not torch.cuda.is_available() else None
    return RunRecord(
        preset=settings.preset,
        model=model,
        data=settings.data,
        train=settings.train,
        tokenizer=tokenizer.fingerprint,
        concepts=concepts,
        versions={"mlsm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        precision=(before.precision if before else None) or unrecorded,
        num_threads=before.num_threads if before else None,
    )
