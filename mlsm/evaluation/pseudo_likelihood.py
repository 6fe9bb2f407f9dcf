"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al. 2020).

Each token is masked once while all others stay visible. The score of a sentence is the mean or the sum of
log p(token) over its tokens. The masked copies of thousands of sentences are sorted by length and cut into
batches by a token budget, which bounds the memory. Equal copies are computed once, and the last layer and the
logits only at the masked position. Everything is float32.

Legend: N masked copies in a batch, A scores that they give, D width, V vocabulary, T scores of all texts.
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
from mlsm.text.batches import cut_by_token_budget
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID

REDUCTIONS = ("mean", "sum")
TEXTS_PER_BLOCK = 4096  # whose masked copies are in memory at the same time


class Text(NamedTuple):
    """The ids of a text without [CLS] and [SEP] at its ends: a context, and what is scored after it."""

    visible: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def num_positions(self) -> int:
        """The positions that a model needs for the text."""
        return len(self.visible) + len(self.scored) + 2


class Score(NamedTuple):
    """The sum of log p over the scored tokens, in nats, and their number."""

    total: float
    num_tokens: int

    def reduced(self, reduction: str) -> float:
        """The mean over the tokens or their sum; 0 without tokens."""
        return self.total / max(1, self.num_tokens) if reduction == "mean" else self.total


class _Copy(NamedTuple):
    """A text with one token masked. Texts that differ only in that token share the copy, as those of minimal
    pairs often do.
    """

    ids: tuple[int, ...]  # with [CLS], [MASK] and [SEP]
    position: int  # of the mask
    asked: list[tuple[int, int]]  # for each text: the id of the masked token, and the place of its score


@torch.no_grad()
def token_log_probabilities(
    model: LanguageModel, texts: Sequence[Text], token_budget: int, bar: tqdm | None = None
) -> list[Tensor]:
    """log p, in nats, of each scored token of each text, given all its other tokens. Ranks share the work,
    and each gets all results; `bar` counts tokens.

    Raises ValueError for a text longer than the model's positions.
    """
    longest = model.config.max_positions
    for number, text in enumerate(texts):
        if text.num_positions > longest:
            raise ValueError(
                f"sentence {number} has {text.num_positions} tokens, the model reads {longest} at most"
            )
    num_scored = [len(text.scored) for text in texts]
    scores_T = torch.zeros(sum(num_scored))
    for number, batch in enumerate(_batches(texts, token_budget)):
        if distributed.is_mine(number):
            log_probability_NV = _at_masks(model, batch)
            asked = [(n, token, place) for n, copy in enumerate(batch) for token, place in copy.asked]
            n_A, token_A, place_A = torch.tensor(asked).unbind(1)
            scores_T[place_A] = log_probability_NV[n_A, token_A].cpu()
        if bar is not None:
            bar.update(sum(len(copy.asked) for copy in batch))
    distributed.all_reduce_sum_(scores_T)
    return list(scores_T.split(num_scored))


def _batches(texts: Sequence[Text], token_budget: int) -> Iterator[list[_Copy]]:
    """All masked copies in batches, the longest of each block of texts first."""
    places = itertools.count()
    for first in range(0, len(texts), TEXTS_PER_BLOCK):
        copies: dict[tuple[tuple[int, ...], int], _Copy] = {}
        for text in texts[first : first + TEXTS_PER_BLOCK]:
            row = (CLS_ID, *text.visible, *text.scored, SEP_ID)
            for position in range(1 + len(text.visible), len(row) - 1):
                ids = (*row[:position], MASK_ID, *row[position + 1 :])
                copy = copies.setdefault((ids, position), _Copy(ids, position, []))
                copy.asked.append((row[position], next(places)))
        block = list(copies.values())
        for numbers in cut_by_token_budget([len(copy.ids) for copy in block], token_budget):
            yield [block[i] for i in numbers]


def _at_masks(model: LanguageModel, batch: Sequence[_Copy]) -> Tensor:
    """log p of each word at the mask of each copy (N, V), on the model's device."""
    sequences = Sequences.of([torch.tensor(copy.ids) for copy in batch])
    selected_N = sequences.first_B + torch.tensor([copy.position for copy in batch])
    hidden_ND = model.hidden_at(sequences.to(model.device), selected_N.to(model.device))
    return model.token_logits(hidden_ND).float().log_softmax(-1)


def score_texts(
    model: LanguageModel, texts: Sequence[Text], token_budget: int, bar: tqdm | None = None
) -> list[Score]:
    """Scores in the order of the texts. Equal texts are computed once, and their scores are exactly equal.

    Raises ValueError as `token_log_probabilities`, and if a score is not finite: pairs of such scores would
    all be counted as wrong.
    """
    unique = list(dict.fromkeys(texts))
    by_token = token_log_probabilities(model, unique, token_budget, bar)
    scores = {t: Score(float(x.double().sum()), len(x)) for t, x in zip(unique, by_token, strict=True)}
    if not all(math.isfinite(score.total) for score in scores.values()):
        raise ValueError("the model gives scores that are not finite; its training has diverged")
    return [scores[t] for t in texts]


def score_sentences(
    run: Run, sentences: Sequence[str], *, reduction: str = "mean", token_budget: int = 8192
) -> list[float]:
    """Scores in nats, in the order of the sentences; an empty sentence scores 0.

    Raises ValueError as `score_texts`, and for an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    texts = [Text((), tuple(run.tokenizer.encode(sentence))) for sentence in sentences]
    return [score.reduced(reduction) for score in score_texts(run.model, texts, token_budget)]
