"""Zero-shot suites of minimal pairs in the organisers' layout: BLiMP, its supplement and EWoK.

A pair is right if the good text scores higher. The scores of each file are stored as a whole, so that an
interrupted evaluation continues with the next file. Averages are computed from the stored scores, so that
another reduction or another treatment of ties needs no model.

The official scorer returns scores out of order (it groups equal continuations) and counts ties as right. Here
each score belongs to its own pair, and ties count as the settings say.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mlsm import distributed
from mlsm.evaluation.jsonl import Example, read_examples, spaced
from mlsm.evaluation.pseudo_likelihood import Score, Text, score_texts
from mlsm.evaluation.subject import Subject
from mlsm.evaluation.tasks import SUITES, TIES, Suite
from mlsm.files import file_digest, folder_within, read_text, write_text
from mlsm.log import progress, say
from mlsm.model.language_model import LanguageModel
from mlsm.settings import check_fields
from mlsm.text.tokenizer import SEP_ID, UNK_ID, Tokenizer

TOKEN_BUDGET = 4096  # tokens of a batch; on a CPU core at width 128, 8192 is 9 % slower

Files = Mapping[Path, Sequence[Example]]  # the lines of the files of a suite


class Scoring(NamedTuple):
    """How pairs are scored and counted."""

    reduction: str = "mean"  # of log p over the tokens of a text
    ties: str = "wrong"  # what equal scores count as, a key of TIES
    has_prefix: bool = False  # as in the official pipeline, see `encode`


@dataclass(frozen=True)
class SuiteResult:
    """The accuracies of a suite. Averages are unweighted means over sub-tasks, as the organisers compute
    them.
    """

    average: float
    groups: Mapping[str, float]  # BLiMP: by linguistic field
    subtasks: Mapping[str, float]
    num_pairs: int
    num_ties: int
    average_by_ties: Mapping[str, float]  # by the keys of TIES
    score: str  # the fields of Scoring
    ties: str
    prefix: bool

    def __post_init__(self) -> None:
        check_fields(self)


class EncodedPair(NamedTuple):
    """A pair as the model reads it."""

    line: int  # of its file
    good: Text
    bad: Text


class SubTask(NamedTuple):
    """One file of a suite."""

    name: str
    digest: str  # of the content of the file
    group: str | None  # BLiMP: the linguistic field
    pairs: list[EncodedPair]


class PairScore(NamedTuple):
    """The scores of both texts of a pair."""

    good: Score
    bad: Score


def read_files(suite: Suite, data: Path, limit: int | None = None) -> Files:
    """The lines of every file of a suite, or `limit` lines of each. Raises ValueError if there are no files,
    and naming the file and the line of what cannot be used.
    """
    files = sorted((data / suite.folder).glob("*.jsonl"))
    if not files:
        raise ValueError(f"no .jsonl files in {data / suite.folder}: --data names the folder of the tasks")
    return {path: spaced(read_examples(path, suite.fields), limit) for path in files}


def encode_suite(
    suite: Suite, files: Files, tokenizer: Tokenizer, longest: int, has_prefix: bool
) -> list[SubTask]:
    """All sub-tasks of a suite. Raises ValueError naming the file and the line of a text of more than
    `longest` positions.
    """
    boundary_id = word_boundary(tokenizer) if has_prefix else None
    subtasks = []
    for path, examples in files.items():
        pairs = []
        for example in examples:
            context, good, bad = suite.pair(example.texts)
            texts = [encode(tokenizer, context, target, boundary_id) for target in (good, bad)]
            num_positions = max(text.num_positions for text in texts)
            if num_positions > longest:
                raise ValueError(
                    f"{path}, line {example.line}: {num_positions} tokens, the model reads {longest} at most"
                )
            pairs.append(EncodedPair(example.line, *texts))
        # The official data has both "syntax/semantics" and "syntax_semantics".
        group = examples[0].texts[suite.group].replace("/", "_") if suite.group else None
        subtasks.append(SubTask(path.stem, file_digest(path)[:16], group, pairs))
    return subtasks


def encode(tokenizer: Tokenizer, context: str, target: str, boundary_id: int | None = None) -> Text:
    """The ids of a target after its context.

    With a `boundary_id` they are those of the official pipeline: [SEP] stands for an empty context, and the
    two blanks before the target leave a lone word boundary, which is scored too.
    """
    visible, scored = tokenizer.encode(context), tokenizer.encode(target)
    if boundary_id is not None:
        visible, scored = visible or [SEP_ID], [boundary_id, *scored]
    return Text(tuple(visible), tuple(scored))


def word_boundary(tokenizer: Tokenizer) -> int:
    """The id of the piece that consists of a word boundary only."""
    return next((i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == "▁"), UNK_ID)


def score_suite(subject: Subject, name: str, files: Files, scoring: Scoring) -> SuiteResult:
    """The accuracies of a suite. Scores that are stored in the subject's folder for the same weights and data
    are not computed again.
    """
    suite, folder = SUITES[name], folder_within(subject.folder, "evaluation", name)
    longest = subject.model.config.max_positions
    subtasks = encode_suite(suite, files, subject.tokenizer, longest, scoring.has_prefix)
    if len(subtasks) != suite.num_files:
        say(f"{suite.title}: {len(subtasks)} files, not {suite.num_files}; the average is over these")
    origin: dict[str, object] = {"weights": subject.weights, "prefix": scoring.has_prefix}
    stored = {s.name: _stored(folder, s, origin) for s in subtasks}
    scores = distributed.broadcast_from_zero({name: these for name, these in stored.items() if these})
    if missing := [s for s in subtasks if s.name not in scores]:
        num_tokens = sum(num_scored_tokens(s.pairs) for s in missing)
        with progress(num_tokens, f"{subject.name}: {suite.title}", unit="token") as bar:
            for subtask in missing:
                scores[subtask.name] = score_pairs(subject.model, subtask.pairs, TOKEN_BUDGET, bar)
                _store(folder, subtask, origin, scores[subtask.name])
    return summarize(subtasks, scores, scoring)


def num_scored_tokens(pairs: Sequence[EncodedPair]) -> int:
    """The number of tokens that `score_pairs` scores; equal texts count once."""
    return sum(len(text.scored) for text in {text for pair in pairs for text in (pair.good, pair.bad)})


def score_pairs(
    model: LanguageModel, pairs: Sequence[EncodedPair], token_budget: int, bar: tqdm | None = None
) -> list[PairScore]:
    """Scores in the order of the pairs; `bar` counts tokens."""
    scores = iter(score_texts(model, [t for p in pairs for t in (p.good, p.bad)], token_budget, bar))
    return [PairScore(good, bad) for good, bad in zip(scores, scores, strict=True)]


def _stored(folder: Path, subtask: SubTask, origin: dict[str, object]) -> list[PairScore] | None:
    """Earlier scores with the same origin; None if there are none or their file is damaged."""
    try:
        first, *lines = read_text(folder / f"{subtask.name}.jsonl").splitlines()
        if json.loads(first) != origin | {"data": subtask.digest} or len(lines) != len(subtask.pairs):
            return None
        rows = [json.loads(line) for line in lines]
        return [PairScore(Score(*row["good"]), Score(*row["bad"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(folder: Path, subtask: SubTask, origin: dict[str, object], scores: Sequence[PairScore]) -> None:
    rows = [{"line": p.line, **score._asdict()} for p, score in zip(subtask.pairs, scores, strict=True)]
    lines = [json.dumps(row) + "\n" for row in (origin | {"data": subtask.digest}, *rows)]
    write_text(folder / f"{subtask.name}.jsonl", "".join(lines))


def pair_accuracy(scores: Sequence[PairScore], reduction: str, ties: str) -> float:
    """The share of pairs whose good text scores higher; an exact tie counts as `ties` says."""
    return statistics.fmean(
        TIES[ties] if good == bad else float(good > bad) for good, bad in _reduced(scores, reduction)
    )


def _reduced(scores: Sequence[PairScore], reduction: str) -> list[tuple[float, float]]:
    return [(score.good.reduced(reduction), score.bad.reduced(reduction)) for score in scores]


def summarize(
    subtasks: Sequence[SubTask], scores: Mapping[str, Sequence[PairScore]], scoring: Scoring
) -> SuiteResult:
    """The accuracies of a suite from the scores of its pairs, by sub-task."""
    by_ties = {
        ties: {s.name: pair_accuracy(scores[s.name], scoring.reduction, ties) for s in subtasks}
        for ties in TIES
    }
    average_by_ties = {ties: statistics.fmean(shares.values()) for ties, shares in by_ties.items()}
    shares = by_ties[scoring.ties]
    groups = {
        group: statistics.fmean(shares[s.name] for s in subtasks if s.group == group)
        for group in sorted({s.group for s in subtasks if s.group})
    }
    pairs = [pair for s in subtasks for pair in _reduced(scores[s.name], scoring.reduction)]
    num_ties = sum(good == bad for good, bad in pairs)
    average = average_by_ties[scoring.ties]
    return SuiteResult(average, groups, shares, len(pairs), num_ties, average_by_ties, *scoring)
