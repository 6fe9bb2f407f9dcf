"""The demo: measures that need no data beside the corpus of a run. They are the prediction of held-out words
and concepts, and the minimal pairs of a small grammar.
"""

from __future__ import annotations

import statistics

import torch

from mlsm.evaluation.grammar import demo_pairs
from mlsm.evaluation.heldout import MASKED, score_concepts, score_unigram, score_words
from mlsm.evaluation.minimal_pairs import (
    EncodedPair,
    encode,
    num_scored_tokens,
    pair_accuracy,
    score_pairs,
)
from mlsm.evaluation.results import Results
from mlsm.log import progress
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import Run
from mlsm.runs.teacher import teacher_of, text_of
from mlsm.text.batches import Corpus
from mlsm.training.objectives import find_objective

TOKEN_BUDGET = 8192  # tokens of a batch


def score_demo(run: Run, device: torch.device) -> Results:
    """The results of the demo, and a baseline that needs no model. Words and minimal pairs are scored only
    for a run whose objective trains the prediction of words.

    Raises ValueError if the text of the run is missing, if none of it was held out, and if the teacher of a
    student is missing or has changed.
    """
    record = run.record
    try:
        corpus = Corpus(text_of(record, {}), run.tokenizer)
    except ValueError as error:
        raise ValueError(f"the demo reads the text that {run.directory} was trained on: {error}") from None
    if not len(corpus.heldout):
        raise ValueError(f"no text was held out when {run.directory} was trained: choose other --tasks")
    row: dict[str, float] = {}
    baseline: dict[str, float] = {}
    if predicts_words := find_objective(record.train.objective).predicts_words:
        words, unigram = score_words(run.model, corpus, TOKEN_BUDGET), score_unigram(corpus, TOKEN_BUDGET)
        row = {"word accuracy": words.accuracy, "word perplexity": words.perplexity}
        baseline = {"word accuracy": unigram.accuracy, "word perplexity": unigram.perplexity}
    if record.concepts:
        teacher = teacher_of(record.concepts, record.train, device)
        selection = find_objective(record.concepts.objective).selection(MASKED.share)
        concepts = score_concepts(run.model, teacher, corpus, selection, TOKEN_BUDGET)
        row["concept KL"], baseline["concept KL"] = concepts.kl, concepts.constant_kl
    if predicts_words:
        shares = score_grammar(run)
        row["minimal pairs"], baseline["minimal pairs"] = statistics.fmean(shares.values()), 0.5
        row |= {f"pairs: {name}": share for name, share in shares.items()}
    return Results(fingerprint(run.directory), demo=row, demo_baseline=baseline)


def score_grammar(run: Run) -> dict[str, float]:
    """The share of minimal pairs that are right, by phenomenon; ties count half. A score is the sum of log p,
    which makes a model that knows nothing but the frequency of words right in exactly half of the pairs.
    """
    pairs = {
        name: [EncodedPair(0, *(encode(run.tokenizer, "", sentence) for sentence in pair)) for pair in these]
        for name, these in demo_pairs(run.tokenizer).items()
    }
    everything = [pair for these in pairs.values() for pair in these]
    with progress(num_scored_tokens(everything), f"{run.directory.name}: minimal pairs", unit="token") as bar:
        scores = iter(score_pairs(run.model, everything, TOKEN_BUDGET, bar))
    return {
        name: pair_accuracy([next(scores) for _ in these], "sum", "half") for name, these in pairs.items()
    }
