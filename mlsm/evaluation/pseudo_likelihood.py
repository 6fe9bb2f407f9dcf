"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al. 2020).

Each token is masked once while all others stay visible; a sentence's score is the mean (or sum) of log
p(token) over its tokens. The masked copies of all sentences are batched together by length under a token
budget, so memory is bounded whatever the sentences, and logits are computed at the masked position only.
Float32 throughout.

Legend: N masked copies in a batch, L positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mlsm.heads import LanguageModel, Run
from mlsm.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID

REDUCTIONS = ("mean", "sum")


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
    """One sentence with one token to mask."""

    sentence: int
    position: int  # in [CLS] ids [SEP]
    length: int


@torch.no_grad()
def token_log_probabilities(
    model: LanguageModel,
    sentences: Sequence[Sequence[int]],
    token_budget: int,
    bar: tqdm | None = None,
    num_visible: Sequence[int] | None = None,
) -> list[Tensor]:
    """log p of every token of every sentence (ids without special ones), each given all the others; the first
    `num_visible` tokens of a sentence are only seen, not scored.

    Raises ValueError for a sentence longer than the model's positions.
    """
    device = next(model.parameters()).device
    longest = model.config.max_positions
    rows = [[CLS_ID, *ids, SEP_ID] for ids in sentences]
    for number, row in enumerate(rows):
        if len(row) > longest:
            raise ValueError(f"sentence {number} has {len(row)} tokens, the model reads {longest} at most")
    starts = [0] * len(rows) if num_visible is None else num_visible
    copies = [_Copy(s, p, len(row)) for s, row in enumerate(rows) for p in range(1 + starts[s], len(row) - 1)]
    copies.sort(key=lambda c: -c.length)
    scores = [torch.zeros(len(row) - 2 - start) for row, start in zip(rows, starts, strict=True)]
    first = 0
    while first < len(copies):
        batch = copies[first : first + max(1, token_budget // copies[first].length)]
        first += len(batch)
        ids_NL = torch.full((len(batch), batch[0].length), PAD_ID)
        for n, copy in enumerate(batch):
            ids_NL[n, : copy.length] = torch.tensor(rows[copy.sentence])
        position_N = torch.tensor([copy.position for copy in batch])
        row_N = torch.arange(len(batch))
        target_N = ids_NL[row_N, position_N]
        ids_NL[row_N, position_N] = MASK_ID
        lengths_N = torch.tensor([copy.length for copy in batch])
        selected_N = row_N * ids_NL.shape[1] + position_N
        hidden_ND = model.hidden_at(ids_NL.to(device), lengths_N.to(device), selected_N.to(device))
        log_probability_NV = model.token_logits(hidden_ND).float().log_softmax(-1)
        score_N = log_probability_NV.gather(1, target_N.to(device)[:, None]).squeeze(1).cpu()
        for copy, score in zip(batch, score_N, strict=True):
            scores[copy.sentence][copy.position - 1 - starts[copy.sentence]] = score
        if bar is not None:
            bar.update(len(batch))
    return scores


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
