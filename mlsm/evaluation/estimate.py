"""How long an evaluation takes, measured on a few examples of each task before the work begins.

It is an upper limit: results that are stored are not computed again, and fine-tuning may stop early.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

from mlsm import distributed
from mlsm.evaluation.babylm import acquisition, reading
from mlsm.evaluation.babylm.choices import encode_file, score_items
from mlsm.evaluation.babylm.entry import Data
from mlsm.evaluation.babylm.formats import TASKS
from mlsm.evaluation.finetune import Diverged, FineTuneSettings, fine_tune, predict
from mlsm.evaluation.glue import TaskData
from mlsm.evaluation.glue_scores import encode_items, new_classifier
from mlsm.evaluation.jsonl import spaced
from mlsm.evaluation.minimal_pairs import TOKEN_BUDGET, Files, Scoring, encode_suite, score_pairs
from mlsm.evaluation.subject import Subject
from mlsm.evaluation.tasks import SUITES
from mlsm.model.language_model import LanguageModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

NUM_EXAMPLES = 64  # of a task that are measured at most
SHARE = 0.05  # of the examples of a task that are measured at most


def suite_seconds(subject: Subject, name: str, files: Files, scoring: Scoring) -> float:
    """The time that scoring a suite takes."""
    num_pairs = sum(map(len, files.values()))
    per_file = max(1, int(min(NUM_EXAMPLES, SHARE * num_pairs)) // len(files))
    some = {path: spaced(lines, per_file) for path, lines in files.items()}
    longest = subject.model.config.max_positions
    subtasks = encode_suite(SUITES[name], some, subject.tokenizer, longest, scoring.has_prefix)
    pairs = [pair for subtask in subtasks for pair in subtask.pairs]
    score_pairs(subject.model, pairs[:1], TOKEN_BUDGET)  # what a first call prepares does not count
    seconds = _seconds(lambda: score_pairs(subject.model, pairs, TOKEN_BUDGET))
    return seconds * num_pairs / len(pairs)


def entry_seconds(model: LanguageModel, tokenizer: FastTokenizer, data: Data) -> dict[str, float]:
    """The time that one model takes for each task of BabyLM 2026, by the title of the task."""
    seconds: dict[str, float] = {}
    longest, budget = model.config.max_positions, TOKEN_BUDGET
    for name, files in data.tasks.items():
        num_items = sum(len(file.items) for file in files)
        per_file = max(1, int(min(NUM_EXAMPLES, SHARE * num_items)) // len(files))
        some = [file._replace(items=dict(spaced([*file.items.items()], per_file))) for file in files]
        items = [item for file in some for item in encode_file(tokenizer, file, longest, name)]
        score_items(model, items[:1], budget)  # what a first call prepares does not count
        taken = _seconds(functools.partial(score_items, model, items, budget))
        seconds[TASKS[name].title] = taken * num_items / len(items)
    if data.words:
        words = spaced(data.words, NUM_EXAMPLES)
        taken = _seconds(lambda: reading.surprisals(model, tokenizer, words, budget))
        seconds["reading"] = taken * len(data.words) / len(words)
    return seconds


def acquisition_seconds(model: LanguageModel, tokenizer: FastTokenizer, data: Data) -> float:
    """The time that one model takes for the words of children, of which there must be some."""
    some = spaced(data.occurrences, NUM_EXAMPLES)
    taken = _seconds(lambda: acquisition.surprisals(model, tokenizer, some, TOKEN_BUDGET))
    return taken * len(data.occurrences) / len(some)


def fine_tuning_seconds(
    subject: Subject, data: TaskData, settings: FineTuneSettings, num_seeds: int
) -> float:
    """The time that fine-tuning on a task takes with all seeds and the largest number of epochs."""
    batch, _ = encode_items(subject, spaced(data.training, settings.batch_size), settings.max_length)
    model = new_classifier(subject, data.trained_on, 0, settings.recipe)
    one_epoch = dataclasses.replace(settings, max_epochs=1)

    def update() -> None:
        with tqdm(disable=True) as bar, contextlib.suppress(Diverged):
            fine_tune(model, batch, [batch[:1]], one_epoch, 0, bar)

    update()
    seconds = settings.num_updates(len(data.training)) * _seconds(update)
    for items in data.validations.values():
        some, _ = encode_items(subject, spaced(items, NUM_EXAMPLES), settings.max_length)
        seconds += _seconds(functools.partial(predict, model, some)) * len(items) / len(some)
    rounds = -(-num_seeds // distributed.world_size())
    return seconds * settings.max_epochs * rounds


def _seconds(work: Callable[[], object]) -> float:
    """The seconds that a call takes, which must not return before its results are computed."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
