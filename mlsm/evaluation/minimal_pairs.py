"""Zero-shot suites of minimal pairs in the organisers' layout: BLiMP, its supplement, EWoK.

A pair is right when the good text scores higher. Each file is scored at once and its scores are written as a
whole, so that an interrupted evaluation continues with the next file; averages are taken from the stored
scores, so that another reduction or treatment of ties costs nothing.

The official scorer returns scores out of order (it groups equal continuations) and counts ties as right;
here scores stand on their own pairs, and ties count as asked.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mlsm import distributed
from mlsm.evaluation.jsonl import Example, read_examples
from mlsm.evaluation.pseudo_likelihood import Score, Text, score_texts
from mlsm.evaluation.subject import Subject
from mlsm.files import file_digest, read_text, write_text
from mlsm.model.language_model import LanguageModel
from mlsm.text.tokenizer import SEP_ID, UNK_ID, Tokenizer

TIES = {"wrong": 0.0, "half": 0.5, "correct": 1.0}


class Sentences(NamedTuple):
    """A pair before the tokenizer: contexts may be empty."""

    context: str
    good: str
    bad: str


class Suite(NamedTuple):
    """One of the organisers' suites."""

    title: str
    folder: str
    num_files: int  # in the official data
    fields: Mapping[str, type]  # that every line must have
    pairs: Callable[[dict], list[Sentences]]
    group: str | None  # field of a line by which sub-tasks are also averaged


def _good_and_bad(values: dict) -> list[Sentences]:
    return [Sentences("", values["sentence_good"], values["sentence_bad"])]


def _both_contexts(values: dict) -> list[Sentences]:
    """Each EWoK item is used twice: with the contexts swapped, the other target is the good one."""
    first, second = values["Target1"], values["Target2"]
    return [Sentences(values["Context1"], first, second), Sentences(values["Context2"], second, first)]


_BLIMP_FIELDS = {"sentence_good": str, "sentence_bad": str}
_EWOK_FIELDS = dict.fromkeys(("Domain", "Context1", "Context2", "Target1", "Target2"), str)
SUITES = {
    "blimp": Suite("BLiMP", "blimp_filtered", 67, _BLIMP_FIELDS | {"field": str}, _good_and_bad, "field"),
    "supplement": Suite("supplement", "supplement_filtered", 5, _BLIMP_FIELDS, _good_and_bad, None),
    "ewok": Suite("EWoK", "ewok_filtered", 11, _EWOK_FIELDS, _both_contexts, None),
}


class Pair(NamedTuple):
    """A pair as the model sees it."""

    line: int  # of its file
    good: Text
    bad: Text


class SubTask(NamedTuple):
    """One file of a suite."""

    name: str
    path: Path
    group: str | None  # BLiMP: the linguistic field
    pairs: list[Pair]


class Scores(NamedTuple):
    """Of a pair."""

    good: Score
    bad: Score


def suite_files(suite: Suite, data: Path) -> list[Path]:
    """The files of a suite. Raises ValueError if there are none."""
    files = sorted((data / suite.folder).glob("*.jsonl"))
    if not files:
        raise ValueError(f"no .jsonl files in {data / suite.folder}: --data names the folder of the tasks")
    return files


def check_suite(suite: Suite, data: Path) -> None:
    """Raises ValueError for files that cannot be used, before anything has been scored."""
    for path in suite_files(suite, data):
        read_examples(path, suite.fields)


def read_suite(
    suite: Suite, data: Path, tokenizer: Tokenizer, longest: int, has_prefix: bool
) -> list[SubTask]:
    """All sub-tasks. Raises ValueError naming file and line of what cannot be used, also of a text of more
    than `longest` positions.
    """
    boundary_id = word_boundary(tokenizer) if has_prefix else None
    subtasks = []
    for path in suite_files(suite, data):
        examples = read_examples(path, suite.fields)
        pairs = [
            pair
            for example in examples
            for pair in _encode(suite, path, example, tokenizer, longest, boundary_id)
        ]
        # "syntax/semantics" and "syntax_semantics" both stand in the data
        group = examples[0].values[suite.group].replace("/", "_") if suite.group else None
        subtasks.append(SubTask(path.stem, path, group, pairs))
    return subtasks


def _encode(
    suite: Suite, path: Path, example: Example, tokenizer: Tokenizer, longest: int, boundary_id: int | None
) -> list[Pair]:
    pairs = []
    for context, good, bad in suite.pairs(example.values):
        texts = [encode(tokenizer, context, target, boundary_id) for target in (good, bad)]
        num_positions = max(text.num_positions for text in texts)
        if num_positions > longest:
            raise ValueError(
                f"{path}, line {example.line}: {num_positions} tokens, the model reads {longest} at most"
            )
        pairs.append(Pair(example.line, *texts))
    return pairs


def encode(tokenizer: Tokenizer, context: str, target: str, boundary_id: int | None) -> Text:
    """Ids of a target after its context.

    With a `boundary_id`, as in the official pipeline: [SEP] stands for an empty context, and the two blanks
    before the target leave a lone word boundary, which is scored too.
    """
    visible, scored = tokenizer.encode(context), tokenizer.encode(target)
    if boundary_id is not None:
        visible, scored = visible or [SEP_ID], [boundary_id, *scored]
    return Text(tuple(visible), tuple(scored))


def word_boundary(tokenizer: Tokenizer) -> int:
    """Id of the piece that is nothing but a word boundary."""
    return next((i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == "▁"), UNK_ID)


def score_suite(
    subject: Subject,
    subtasks: Sequence[SubTask],
    folder: Path,
    *,
    has_prefix: bool,
    token_budget: int,
    progress: Callable[[int], tqdm],
) -> dict[str, list[Scores]]:
    """Scores of every pair by sub-task: from `folder` where they are stored, else computed and stored there.

    `progress` makes a bar from a number of masked copies.
    """
    origins = {s.name: _origin(subject.weights, s, has_prefix) for s in subtasks}
    scores = {s.name: stored for s in subtasks if (stored := _stored(folder, s, origins[s.name]))}
    scores = distributed.broadcast_from_zero(scores)
    missing = [s for s in subtasks if s.name not in scores]
    if missing:
        with progress(_num_copies(missing)) as bar:
            for subtask in missing:
                scores[subtask.name] = score_pairs(subject.model, subtask.pairs, token_budget, bar)
                _store(folder, subtask, origins[subtask.name], scores[subtask.name])
    return scores


def _num_copies(subtasks: Sequence[SubTask]) -> int:
    texts = [{text for pair in s.pairs for text in (pair.good, pair.bad)} for s in subtasks]
    return sum(len(text.scored) for these in texts for text in these)


def score_pairs(
    model: LanguageModel, pairs: Sequence[Pair], token_budget: int, bar: tqdm | None = None
) -> list[Scores]:
    """Scores in the order of the pairs."""
    scores = iter(score_texts(model, [t for p in pairs for t in (p.good, p.bad)], token_budget, bar))
    return [Scores(good, bad) for good, bad in zip(scores, scores, strict=True)]


def _origin(weights: str, subtask: SubTask, has_prefix: bool) -> dict[str, object]:
    """What decides the scores of a file; its first line."""
    return {"weights": weights, "data": file_digest(subtask.path)[:16], "prefix": has_prefix}


def _stored(folder: Path, subtask: SubTask, origin: dict[str, object]) -> list[Scores] | None:
    """Scores written earlier for the same weights and data; None if there are none (or they are damaged)."""
    try:
        first, *lines = read_text(folder / f"{subtask.name}.jsonl").splitlines()
        if json.loads(first) != origin or len(lines) != len(subtask.pairs):
            return None
        rows = [json.loads(line) for line in lines]
        return [Scores(Score(*row["good"]), Score(*row["bad"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(folder: Path, subtask: SubTask, origin: dict[str, object], scores: Sequence[Scores]) -> None:
    lines: list[dict] = [origin]
    lines += [
        {"line": pair.line, "good": score.good, "bad": score.bad}
        for pair, score in zip(subtask.pairs, scores, strict=True)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(folder / f"{subtask.name}.jsonl", text)


def accuracy(scores: Sequence[Scores], reduction: str, ties: str) -> float:
    """Share of pairs whose good text scores higher; an exact tie counts as `ties` says."""
    return statistics.fmean(
        TIES[ties] if good == bad else float(good > bad)
        for good, bad in ((s.good.reduced(reduction), s.bad.reduced(reduction)) for s in scores)
    )


def num_ties(scores: Sequence[Scores], reduction: str) -> int:
    """Pairs with exactly equal scores."""
    return sum(s.good.reduced(reduction) == s.bad.reduced(reduction) for s in scores)


class Summary(NamedTuple):
    """A suite in numbers; averages are unweighted means over sub-tasks, as the organisers take them."""

    average: float
    groups: dict[str, float]  # BLiMP: by linguistic field
    subtasks: dict[str, float]
    num_pairs: int
    num_ties: int


def summarize(
    subtasks: Sequence[SubTask], scores: dict[str, list[Scores]], reduction: str, ties: str
) -> Summary:
    """Averages of a suite."""
    shares = {s.name: accuracy(scores[s.name], reduction, ties) for s in subtasks}
    groups: dict[str, list[float]] = {}
    for subtask in subtasks:
        if subtask.group:
            groups.setdefault(subtask.group, []).append(shares[subtask.name])
    return Summary(
        statistics.fmean(shares.values()),
        {name: statistics.fmean(values) for name, values in sorted(groups.items())},
        shares,
        sum(len(these) for these in scores.values()),
        sum(num_ties(these, reduction) for these in scores.values()),
    )
