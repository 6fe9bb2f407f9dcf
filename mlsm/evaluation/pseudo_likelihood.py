"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al. 2020).

Each token is masked once while all others stay visible; a sentence's score is the mean (or sum) of log
p(token) over its tokens. The masked copies of thousands of sentences are batched together by length under a
token budget, so memory is bounded whatever the sentences; equal copies are computed once, and the last layer
and the logits at the masked position only. Float32 throughout.

Legend: N masked copies in a batch, A scores asked for of them, D width, V vocabulary, T scores of all
sentences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mlsm import distributed
from mlsm.model.language_model import LanguageModel
from mlsm.runs.run import Run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID

REDUCTIONS = ("mean", "sum")
SENTENCES_PER_BLOCK = 4096  # whose masked copies are made and sorted at once: bounds memory


class Text(NamedTuple):
    """Ids of a text without special ones at its ends: what is only seen, then what is scored."""

    visible: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def num_positions(self) -> int:
        """Positions that a model needs for it."""
        return len(self.visible) + len(self.scored) + 2


class Score(NamedTuple):
    """Sum of log p over the scored tokens, in nats, and how many there are."""

    total: float
    num_tokens: int

    def reduced(self, reduction: str) -> float:
        """The mean over the tokens, or their sum; 0 without tokens."""
        return self.total / max(1, self.num_tokens) if reduction == "mean" else self.total


class _Copy(NamedTuple):
    """A sentence with one token masked, and who asks for it: sentences that differ in that token only, as
    those of minimal pairs often do, share it.
    """

    ids: tuple[int, ...]  # with [CLS], [MASK] and [SEP]
    position: int  # of the mask
    asked_by: list[tuple[int, int]]  # the token that is masked, and the place of its score among all scores


@torch.no_grad()
def token_log_probabilities(
    model: LanguageModel,
    sentences: Sequence[Sequence[int]],
    token_budget: int,
    bar: tqdm | None = None,
    num_visible: Sequence[int] | None = None,
) -> list[Tensor]:
    """log p of every token of every sentence (ids without special ones), each given all the others; the first
    `num_visible` tokens of a sentence are only seen, not scored. Ranks share the work, and each gets all.

    Raises ValueError for a sentence longer than the model's positions.
    """
    longest = model.config.max_positions
    rows = [(CLS_ID, *ids, SEP_ID) for ids in sentences]
    for number, row in enumerate(rows):
        if len(row) > longest:
            raise ValueError(f"sentence {number} has {len(row)} tokens, the model reads {longest} at most")
    starts = [0] * len(rows) if num_visible is None else num_visible
    num_scored = [len(row) - 2 - start for row, start in zip(rows, starts, strict=True)]
    scores_T = torch.zeros(sum(num_scored))
    places = [*itertools.accumulate(num_scored, initial=0)]  # of each sentence's first score
    everyone = range(len(rows))
    batches = (
        batch
        for first in everyone[::SENTENCES_PER_BLOCK]
        for batch in _batches(
            _masked_copies(rows, starts, places, everyone[first : first + SENTENCES_PER_BLOCK]), token_budget
        )
    )
    for number, batch in enumerate(batches):
        if distributed.is_mine(number):
            log_probability_NV = _at_masks(model, batch)
            asked = [(n, *who) for n, copy in enumerate(batch) for who in copy.asked_by]
            n_A, token_A, place_A = torch.tensor(asked).unbind(1)
            scores_T[place_A] = log_probability_NV[n_A, token_A].cpu()
        if bar is not None:
            bar.update(sum(len(copy.asked_by) for copy in batch))
    distributed.all_reduce_sum_(scores_T)
    return list(scores_T.split(num_scored))


def _masked_copies(
    rows: Sequence[tuple[int, ...]], starts: Sequence[int], places: Sequence[int], block: Sequence[int]
) -> list[_Copy]:
    """Of the sentences of a block, longest first."""
    copies: dict[tuple[tuple[int, ...], int], _Copy] = {}
    for sentence in block:
        row = rows[sentence]
        for place, position in enumerate(range(1 + starts[sentence], len(row) - 1), places[sentence]):
            ids = (*row[:position], MASK_ID, *row[position + 1 :])
            copy = copies.setdefault((ids, position), _Copy(ids, position, []))
            copy.asked_by.append((row[position], place))
    return sorted(copies.values(), key=lambda copy: -len(copy.ids))


def _batches(copies: Sequence[_Copy], token_budget: int) -> Iterator[Sequence[_Copy]]:
    first = 0
    while first < len(copies):
        batch = copies[first : first + max(1, token_budget // len(copies[first].ids))]
        first += len(batch)
        yield batch


def _at_masks(model: LanguageModel, batch: Sequence[_Copy]) -> Tensor:
    """log p of each word at the mask of each copy (N, V), on the model's device."""
    device = next(model.parameters()).device
    sequences = Sequences.of([torch.tensor(copy.ids) for copy in batch])
    selected_N = sequences.first_B + torch.tensor([copy.position for copy in batch])
    hidden_ND = model.hidden_at(sequences.to(device), selected_N.to(device))
    return model.token_logits(hidden_ND).float().log_softmax(-1)


def score_texts(
    model: LanguageModel, texts: Sequence[Text], token_budget: int, bar: tqdm | None = None
) -> list[Score]:
    """Scores in the order of the texts; equal texts are computed once, so that they tie exactly.

    Raises ValueError if a score is not finite: such a model would be called wrong everywhere.
    """
    unique = list(dict.fromkeys(texts))
    by_token = token_log_probabilities(
        model,
        [t.visible + t.scored for t in unique],
        token_budget,
        bar,
        [len(t.visible) for t in unique],
    )
    scores = {t: Score(float(x.double().sum()), len(x)) for t, x in zip(unique, by_token, strict=True)}
    if not all(math.isfinite(score.total) for score in scores.values()):
        raise ValueError("the model gives scores that are not finite; its training has diverged")
    return [scores[t] for t in texts]


def score_sentences(
    run: Run,
    sentences: Sequence[str],
    *,
    reduction: str = "mean",
    token_budget: int = 8192,
    bar: tqdm | None = None,
) -> list[float]:
    """Scores in the order of the sentences; equal sentences are computed once. An empty sentence scores 0."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    texts = [Text((), tuple(run.tokenizer.encode(sentence))) for sentence in sentences]
    return [score.reduced(reduction) for score in score_texts(run.model, texts, token_budget, bar)]
