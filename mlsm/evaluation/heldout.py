"""What a run predicts on text it was not trained on: masked words, and the concepts of its teacher.

Legend: N selected positions, V vocabulary, K concepts.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn import functional as F

from mlsm import distributed
from mlsm.coding.targets import Teacher
from mlsm.model.language_model import LanguageModel
from mlsm.runs.run import Run
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, Selection
from mlsm.text.corpus import unigram_log_probabilities
from mlsm.text.tokenizer import Tokenizer

MASKED = Selection(share=0.15, is_masked=True)
MOST_NATS = 700.0  # of a float64 exponential
SEED = 2024  # of the masked positions: the same for every run
NUM_SHOWN, PIECES_AROUND = 8, 12  # of the predictions that people read


class WordScores(NamedTuple):
    """Prediction of masked tokens."""

    accuracy: float
    perplexity: float


class ConceptScores(NamedTuple):
    """KL(teacher's distribution || prediction), mean over positions, in nats."""

    student: float
    constant: float  # of the best prediction that does not look at the text: the mean of the targets


@torch.no_grad()
def score_words(run: Run, corpus: Corpus, token_budget: int) -> WordScores:
    """15 % of the held-out tokens masked and predicted: by the token head, or the vocabulary rows without
    one.
    """
    device = next(run.model.parameters()).device
    update = corpus.heldout_update(token_budget, MASKED, SEED)
    if not update.num_selected:
        raise ValueError("too little text was held out to mask a word in")
    loss, num_correct = 0.0, 0
    for micro in distributed.shard(update.micro_batches):
        micro = micro.to(device)
        hidden_ND = run.model.hidden_at(micro.inputs, micro.selected_N)
        logits_NV = run.model.token_logits(hidden_ND).float()
        loss += float(F.cross_entropy(logits_NV, micro.labels_N(), reduction="sum"))
        num_correct += int((logits_NV.argmax(-1) == micro.labels_N()).sum())
    sums = torch.tensor([loss, num_correct], dtype=torch.float64)
    distributed.all_reduce_sum_(sums)
    mean, accuracy = (sums / update.num_selected).tolist()
    return WordScores(accuracy, math.exp(mean) if mean < MOST_NATS else math.inf)


@torch.no_grad()
def predictions(model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, share: float) -> str:
    """A Markdown table for people: a masked token in each of some held-out sequences, and what the model
    takes it for.
    """
    sequences = corpus.heldout[:: max(1, len(corpus.heldout) // NUM_SHOWN)][:NUM_SHOWN]
    [micro] = corpus.cut(
        sequences, sys.maxsize, Selection(share, is_masked=True), generator_for("shown", SEED)
    ).micro_batches
    micro = micro.to(next(model.parameters()).device)
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    likeliest = model.token_logits(hidden_ND).float().softmax(-1).topk(3)
    pieces_T = [tokenizer.piece(i) for i in micro.inputs.ids_T.tolist()]
    told_N = [
        ", ".join(f"{tokenizer.piece(i)} {p:.2f}" for p, i in zip(probabilities, ids, strict=True))
        for probabilities, ids in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]
    places_N = micro.selected_N.tolist()
    lines = ["| text | masked | predicted |", "| --- | --- | --- |"]
    for first, stop in pairwise(micro.inputs.cu_seqlens.tolist()):
        n = next((n for n, place in enumerate(places_N) if first <= place < stop), None)
        if n is None:
            continue
        place = places_N[n]
        before = pieces_T[max(first, place - PIECES_AROUND) : place]
        after = pieces_T[place + 1 : min(stop, place + 1 + PIECES_AROUND)]
        text = "".join([*before, " **[?]**", *after]).replace("[MASK]", " [ ]").replace("▁", " ")
        cells = (text, tokenizer.piece(int(micro.text.ids_T[place])), told_N[n])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def score_unigram(corpus: Corpus, token_budget: int) -> WordScores:
    """The same tokens predicted by their frequency alone."""
    log_probability_V = unigram_log_probabilities(corpus.text)
    update = corpus.heldout_update(token_budget, MASKED, SEED)
    labels_N = torch.cat([micro.labels_N() for micro in update.micro_batches])
    accuracy = float((labels_N == log_probability_V.argmax()).float().mean())
    return WordScores(accuracy, math.exp(-float(log_probability_V[labels_N].mean())))


@torch.no_grad()
def score_concepts(
    run: Run, teacher: Teacher, corpus: Corpus, selection: Selection, token_budget: int
) -> ConceptScores:
    """How far the student's concepts are from its teacher's, at the positions its objective learns from."""
    device = next(run.model.parameters()).device
    update = corpus.heldout_update(token_budget, selection, SEED)
    student = negative_entropy = 0.0
    total_K = torch.zeros(run.model.config.num_concepts, dtype=torch.float64)
    for micro in distributed.shard(update.micro_batches):
        micro = micro.to(device)
        target_NK = teacher.targets(micro).distribution_NK
        hidden_ND = run.model.hidden_at(micro.inputs, micro.selected_N)
        log_student_NK = run.model.concept_logits(hidden_ND).float().log_softmax(-1)
        student += float(F.kl_div(log_student_NK, target_NK, reduction="sum"))
        negative_entropy += float(torch.xlogy(target_NK, target_NK).sum())
        total_K += target_NK.sum(0, dtype=torch.float64).cpu()
    sums = torch.tensor([student, negative_entropy], dtype=torch.float64)
    distributed.all_reduce_sum_(sums, total_K)
    student, negative_entropy = sums.tolist()
    cross_entropy = -float(torch.xlogy(total_K, total_K / total_K.sum()).sum())
    return ConceptScores(
        student / update.num_selected, (negative_entropy + cross_entropy) / update.num_selected
    )
