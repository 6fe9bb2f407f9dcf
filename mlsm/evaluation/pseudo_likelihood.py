"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al. 2020).

Each token is masked once while all others stay visible. The score of a sentence is the mean or the sum of
log p(token) over its tokens. The masked copies of thousands of sentences are sorted by length and cut into
batches by a token budget, which bounds the memory. Equal copies are computed once, and the last layer and the
logits only at the masked position. Everything is float32.

Legend: N queries or masked copies, A scores that a batch gives, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mlsm import distributed
from mlsm.evaluation.tasks import REDUCTIONS
from mlsm.model.language_model import LanguageModel
from mlsm.runs.run import Run
from mlsm.text.batches import cut_by_token_budget
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID

QUERIES_PER_BLOCK = 1 << 16  # whose sequences are in memory at the same time


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


class Query(NamedTuple):
    """A word asked for at one position of a sequence."""

    ids: tuple[int, ...]  # with [CLS] and [SEP] at the ends and [MASK] at the position
    position: int
    token: int  # whose log p is wanted


@torch.no_grad()
def log_probabilities(
    model: LanguageModel, queries: Iterable[Query], token_budget: int, bar: tqdm | None = None
) -> Tensor:
    """log p, in nats, of the token of each query (N,). Ranks share the work, and each gets all results; `bar`
    counts queries.

    Queries of the same sequence and position, as minimal pairs often have them, are computed once.
    """
    waiting, numbers = iter(queries), itertools.count()
    blocks = [torch.zeros(0)]
    while block := list(itertools.islice(waiting, QUERIES_PER_BLOCK)):
        asked: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for place, query in enumerate(block):
            asked.setdefault((query.ids, query.position), []).append(place)
        sequences = list(asked)
        scores_N = torch.zeros(len(block))
        for batch in cut_by_token_budget([len(ids) for ids, _ in sequences], token_budget):
            places = [asked[sequences[i]] for i in batch]
            if distributed.is_mine(next(numbers)):
                log_probability_NV = _at_masks(model, [sequences[i] for i in batch])
                rows = [(n, block[place].token, place) for n, these in enumerate(places) for place in these]
                n_A, token_A, place_A = torch.tensor(rows).unbind(1)
                scores_N[place_A] = log_probability_NV[n_A, token_A].cpu()
            if bar is not None:
                bar.update(sum(map(len, places)))
        blocks.append(scores_N)
    result_N = torch.cat(blocks)
    distributed.all_reduce_sum_(result_N)
    return result_N


def _at_masks(model: LanguageModel, batch: Sequence[tuple[tuple[int, ...], int]]) -> Tensor:
    """log p of each word at the position of each sequence (N, V), on the model's device."""
    sequences = Sequences.of([torch.tensor(ids) for ids, _ in batch])
    selected_N = sequences.first_B + torch.tensor([position for _, position in batch])
    hidden_ND = model.hidden_at(sequences.to(model.device), selected_N.to(model.device))
    return model.token_logits(hidden_ND).float().log_softmax(-1)


def masked_each(ids: Sequence[int], positions: Iterable[int]) -> Iterator[Query]:
    """A query for the token at each of these positions of a sequence, which is masked there."""
    for position in positions:
        yield Query((*ids[:position], MASK_ID, *ids[position + 1 :]), position, ids[position])


def token_log_probabilities(
    model: LanguageModel, texts: Sequence[Text], token_budget: int, bar: tqdm | None = None
) -> list[Tensor]:
    """log p, in nats, of each scored token of each text, given all its other tokens; `bar` counts tokens.

    Raises ValueError for a text longer than the model's positions.
    """
    longest = model.config.max_positions
    for number, text in enumerate(texts):
        if text.num_positions > longest:
            raise ValueError(
                f"sentence {number} has {text.num_positions} tokens, the model reads {longest} at most"
            )
    queries = (
        query
        for text in texts
        for query in masked_each(
            (CLS_ID, *text.visible, *text.scored, SEP_ID),
            range(1 + len(text.visible), text.num_positions - 1),
        )
    )
    scores_N = log_probabilities(model, queries, token_budget, bar)
    return list(scores_N.split([len(text.scored) for text in texts]))


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
