"""Choices between texts, as the organisers' pipeline makes them with a masked language model.

The score of a candidate is the pseudo-log-likelihood of its completion: the sum of log p of each token that
ends behind the start of the completion, masked alone. Special tokens have no characters and are not scored.
The candidate with the highest score is chosen, and equal scores are drawn between. Texts are read by the
tokenizer in the form that transformers has, because its offsets say which tokens belong to a completion.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from mlsm.evaluation.babylm.formats import Candidate, Item, Task, TaskFile, average
from mlsm.evaluation.pseudo_likelihood import Query, Score, log_probabilities, masked_each
from mlsm.model.language_model import LanguageModel
from mlsm.settings import check_fields

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

Predictions = dict[str, dict[str, list[dict[str, str]]]]  # by group, in the organisers' form


class Encoded(NamedTuple):
    """A candidate as the model reads it."""

    ids: tuple[int, ...]  # with [CLS] and [SEP] at the ends
    scored: tuple[int, ...]  # positions of the completion's tokens

    def queries(self) -> Iterator[Query]:
        """A query for each token of the completion."""
        return masked_each(self.ids, self.scored)


def encode(tokenizer: FastTokenizer, candidate: Candidate) -> Encoded:
    """A candidate with the positions of its completion's tokens."""
    encoding = tokenizer.encode(candidate.sentence)
    start = len(candidate.sentence) - len(candidate.completion)
    scored = [position for position, (_, end) in enumerate(encoding.offsets) if end > start]
    return Encoded(tuple(encoding.ids), tuple(scored))


def encode_file(tokenizer: FastTokenizer, file: TaskFile, longest: int, source: str) -> list[list[Encoded]]:
    """The candidates of each item of a file. Raises ValueError naming the line of a text that has more than
    `longest` tokens.
    """
    items = []
    for line, item in file.items.items():
        items.append([encode(tokenizer, candidate) for candidate in item.candidates])
        if (num_tokens := max(len(text.ids) for text in items[-1])) > longest:
            raise ValueError(
                f"{source}/{file.name}.jsonl, line {line}: {num_tokens} tokens, "
                f"the model reads {longest} at most"
            )
    return items


def score_items(
    model: LanguageModel, items: Sequence[Sequence[Encoded]], token_budget: int, bar: tqdm | None = None
) -> list[list[Score]]:
    """The scores of the candidates of each item; `bar` counts tokens. Raises ValueError if a score is not
    finite.
    """
    queries = (query for item in items for text in item for query in text.queries())
    scores_N = log_probabilities(model, queries, token_budget, bar)
    if not scores_N.isfinite().all():
        raise ValueError("the model gives scores that are not finite; its training has diverged")
    values = iter(scores_N.tolist())
    return [[_score(text, values) for text in item] for item in items]


def _score(text: Encoded, values: Iterator[float]) -> Score:
    return Score(sum(next(values) for _ in text.scored), len(text.scored))


@dataclass(frozen=True)
class TaskResult:
    """The accuracies of a task."""

    average: float  # as the organisers report it: equal scores are drawn between
    average_without_ties: float  # equal scores count as wrong
    groups: Mapping[str, float]  # equal scores are drawn between
    num_items: int
    num_ties: int  # items of which two or more candidates have the highest score

    def __post_init__(self) -> None:
        check_fields(self)


class Choice(NamedTuple):
    """The candidate that an item's scores choose."""

    chosen: int
    is_tie: bool  # whether it was drawn among several


def choose(scores: Sequence[float], draw: random.Random) -> Choice:
    """The index of the highest score; among equal ones it is drawn."""
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return Choice(best[0] if len(best) == 1 else draw.choice(best), len(best) > 1)


def judge(
    task: Task, files: Sequence[TaskFile], scores: Mapping[str, Sequence[Sequence[Score]]], seed: int
) -> tuple[TaskResult, Predictions]:
    """The accuracies and the predictions of a task from the scores by file. The draw between equal scores
    depends on the seed, the file and the line alone.
    """
    right: dict[str, list[bool]] = {}
    untied: dict[str, list[bool]] = {}
    predictions: Predictions = {}
    num_ties = 0
    for file in files:
        for (line, item), row in zip(file.items.items(), scores[file.name], strict=True):
            draw = random.Random(f"{seed} {task.full} {file.name} {line}")
            choice = choose([score.reduced(task.reduction) for score in row], draw)
            num_ties += choice.is_tie
            is_right = choice.chosen == item.label
            right.setdefault(item.group, []).append(is_right)
            untied.setdefault(item.group, []).append(is_right and not choice.is_tie)
            _add(predictions, item, task.prediction(item.candidates[choice.chosen]))
    groups = _shares(right)
    return TaskResult(
        average(task, groups),
        average(task, _shares(untied)),
        groups,
        sum(map(len, right.values())),
        num_ties,
    ), predictions


def _add(predictions: Predictions, item: Item, text: str) -> None:
    rows = predictions.setdefault(item.group, {"predictions": []})["predictions"]
    rows.append({"id": f"{item.group}_{len(rows)}", "pred": text})


def _shares(outcomes: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {group: statistics.fmean(these) for group, these in outcomes.items()}
