"""How well a model predicts masked words and the concepts of its teacher on text that it was not trained on.
The end of training, the demo and the reports all show these numbers.

Legend: N selected positions, V vocabulary, K concepts.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm import distributed
from mlsm.coding.targets import Teacher
from mlsm.evaluation.tables import Row, as_markdown
from mlsm.model.language_model import LanguageModel
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, Selection
from mlsm.text.corpus import unigram_log_probabilities
from mlsm.text.tokenizer import Tokenizer
from mlsm.training.objectives import Objective

MASKED = Selection(share=0.15, is_masked=True)
MOST_NATS = 700.0  # the exponential of more is not finite in float64
SEED = 2024  # of the selected positions: the same for every run
NUM_SHOWN, PIECES_AROUND = 8, 12  # rows of the table of predictions, and pieces shown on either side


class WordScores(NamedTuple):
    """Prediction of masked tokens."""

    accuracy: float
    cross_entropy: float  # nats per token

    @property
    def perplexity(self) -> float:
        return math.exp(self.cross_entropy) if self.cross_entropy < MOST_NATS else math.inf


class ConceptScores(NamedTuple):
    """Prediction of the teacher's distribution over concepts, as means over the positions."""

    kl: float  # KL(teacher || student), nats
    constant_kl: float  # KL of the best prediction that does not depend on the text, the mean target
    top_accuracy: float  # share of the positions where the student's largest concept is the teacher's
    target_entropy: float  # of the teacher's distribution, nats


class KLSums:
    """KL(target || prediction), added up over positions in float64 on the CPU, beside the KL of the best
    prediction that does not depend on the text: the mean of the targets.
    """

    def __init__(self, num_concepts: int) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # of the KL, and of the targets' negative entropy
        self.target_K = torch.zeros(num_concepts, dtype=torch.float64)

    def add(self, target_NK: Tensor, log_prediction_NK: Tensor) -> None:
        """Add N positions: rows of `target_NK` sum to 1, or are zero and add nothing."""
        kl = F.kl_div(log_prediction_NK, target_NK, reduction="sum")
        self.sums += torch.stack([kl, torch.xlogy(target_NK, target_NK).sum()]).cpu()
        self.target_K += target_NK.sum(0, dtype=torch.float64).cpu()

    def means(self, num_positions: int) -> tuple[float, float]:
        """The KL of the predictions and that of the mean target, in nats per position."""
        kl, negative_entropy = self.sums.tolist()
        cross_entropy = -float(torch.xlogy(self.target_K, self.target_K / self.target_K.sum()).sum())
        return kl / num_positions, (negative_entropy + cross_entropy) / num_positions

    def target_entropy(self, num_positions: int) -> float:
        """The entropy of a target, in nats per position."""
        return -float(self.sums[1]) / num_positions


@torch.no_grad()
def score_words(model: LanguageModel, corpus: Corpus, token_budget: int) -> WordScores:
    """Mask 15 % of the held-out tokens and predict them by the token head, or by the tied decoder if the
    model has no token head. Raises ValueError if too little text was held out.
    """
    update = corpus.heldout_update(token_budget, MASKED, SEED)
    if not update.num_selected:
        raise ValueError("too little text was held out to mask a word in")
    sums = torch.zeros(2, dtype=torch.float64)
    for micro in distributed.shard(update.micro_batches):
        micro = micro.to(model.device)
        logits_NV = model.token_logits(model.hidden_at(micro.inputs, micro.selected_N)).float()
        loss = F.cross_entropy(logits_NV, micro.labels_N(), reduction="sum")
        num_correct = (logits_NV.argmax(-1) == micro.labels_N()).sum()
        sums += torch.stack([num_correct, loss]).cpu()
    distributed.all_reduce_sum_(sums)
    return WordScores(*(sums / update.num_selected).tolist())


def score_unigram(corpus: Corpus, token_budget: int) -> WordScores:
    """Predict the tokens of `score_words` by their frequency in the corpus."""
    log_probability_V = unigram_log_probabilities(corpus.text)
    update = corpus.heldout_update(token_budget, MASKED, SEED)
    labels_N = torch.cat([micro.labels_N() for micro in update.micro_batches])
    accuracy = (labels_N == log_probability_V.argmax()).float().mean()
    return WordScores(float(accuracy), -float(log_probability_V[labels_N].mean()))


@torch.no_grad()
def score_concepts(
    model: LanguageModel, teacher: Teacher, corpus: Corpus, selection: Selection, token_budget: int
) -> ConceptScores:
    """Compare the concepts that a student predicts with its teacher's, at the selected held-out positions. An
    all-zero target has no largest concept and agrees with no prediction.
    """
    update = corpus.heldout_update(token_budget, selection, SEED)
    sums, num_agreeing = KLSums(model.config.num_concepts), torch.zeros((), dtype=torch.float64)
    for micro in distributed.shard(update.micro_batches):
        micro = micro.to(model.device)
        target_NK = teacher.targets(micro).distribution_NK
        hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
        log_student_NK = model.concept_logits(hidden_ND).float().log_softmax(-1)
        sums.add(target_NK, log_student_NK)
        is_agreeing_N = log_student_NK.argmax(-1) == target_NK.argmax(-1)
        num_agreeing += (is_agreeing_N & (target_NK > 0).any(-1)).sum().cpu()
    distributed.all_reduce_sum_(sums.sums, sums.target_K, num_agreeing)
    top_accuracy = float(num_agreeing) / update.num_selected
    return ConceptScores(
        *sums.means(update.num_selected), top_accuracy, sums.target_entropy(update.num_selected)
    )


def heldout_metrics(
    model: LanguageModel, teacher: Teacher | None, corpus: Corpus, objective: Objective, token_budget: int
) -> dict[str, float]:
    """The metrics of training, measured on the held-out text: of words if the objective trains them, and of
    concepts if there is a teacher.
    """
    metrics = {}
    if objective.predicts_words:
        words = score_words(model, corpus, token_budget)
        metrics = {"cross_entropy": words.cross_entropy, "token_accuracy": words.accuracy}
    if teacher:
        selection = objective.selection(MASKED.share)
        concepts = score_concepts(model, teacher, corpus, selection, token_budget)
        metrics |= {"concept_kl": concepts.kl, "top_concept_accuracy": concepts.top_accuracy}
        metrics["target_entropy"] = concepts.target_entropy
    return metrics


@torch.no_grad()
def predictions(model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, share: float) -> str:
    """A Markdown table with a masked token of each of a few held-out sequences and the three most probable
    predictions of the model.
    """
    sequences = corpus.heldout[:: max(1, len(corpus.heldout) // NUM_SHOWN)][:NUM_SHOWN]
    [micro] = corpus.cut(
        sequences, sys.maxsize, Selection(share, is_masked=True), generator_for("shown", SEED)
    ).micro_batches
    micro = micro.to(model.device)
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    likeliest = model.token_logits(hidden_ND).float().softmax(-1).topk(3)
    pieces_T = [tokenizer.piece(i) for i in micro.inputs.ids_T.tolist()]
    shown_N = [
        ", ".join(f"{tokenizer.piece(i)} {p:.2f}" for p, i in zip(probabilities, ids, strict=True))
        for probabilities, ids in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]
    places_N = micro.selected_N.tolist()
    rows: list[Row] = []
    for first, stop in pairwise(micro.inputs.cu_seqlens.tolist()):
        n = next((n for n, place in enumerate(places_N) if first <= place < stop), None)
        if n is None:
            continue
        place = places_N[n]
        before = pieces_T[max(first, place - PIECES_AROUND) : place]
        after = pieces_T[place + 1 : min(stop, place + 1 + PIECES_AROUND)]
        text = "".join([*before, " **[?]**", *after]).replace("[MASK]", " [ ]").replace("▁", " ")
        masked = tokenizer.piece(int(micro.text.ids_T[place]))
        rows.append({"text": text, "masked": masked, "predicted": shown_N[n]})
    return as_markdown(rows)
