"""A report on the concepts of a random text with hostile tokens, without a model."""

from typing import Any

import numpy as np
import torch

from mlsm.coding.statistics import SplicedLoss, Statistics
from mlsm.log import progress
from mlsm.pages.concept_reading import Agreement, Reading, Sentence
from mlsm.pages.concept_report import About, ConceptReport, SentenceConcepts
from mlsm.pages.concept_statistics import build_report, sentence_concepts
from mlsm.pages.concept_use import Codes
from mlsm.text.tokenizer import CLS_ID, SEP_ID

HOSTILE = [
    "</script><script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "<!--<script>",
    "'\"><svg onload=document.title='ran'>",
    "$\\frac{$",
    "&lt;b&gt;",
    "\x1b[31m",
    "\u202e▁abc",
]
PIECES = ["[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]", "▁king", "▁queen", "s", *HOSTILE]
NUM_CONCEPTS = 260  # more than the page shows at once
STATISTICS = Statistics(
    objective=0.1, mean_nonzeros=3.0, explained_share=0.9, unused_atoms=1, num_signals=100,
    explained_variance=0.8, dense_atoms=2, spliced=SplicedLoss(2.0, 2.5, 7.0, 0.4, 4.0, num_words=50),
)  # fmt: skip


class Pieces:
    def piece(self, number: int) -> str:
        return PIECES[number]


def small_report() -> ConceptReport:
    """A student and its teacher on a random text: concept 7 is "▁king" and nothing else."""
    draw = np.random.default_rng(0)
    words = draw.integers(5, len(PIECES), size=(40, 8))
    stream = np.concatenate([np.full((40, 1), CLS_ID), words, np.full((40, 1), SEP_ID)], 1)
    places_N = np.flatnonzero(stream.ravel() > SEP_ID)
    ids_N = stream.ravel()[places_N]
    drawn_N = draw.integers(8, NUM_CONCEPTS - 1, size=len(ids_N))  # the last one stays dead
    concepts_N = np.where(ids_N == PIECES.index("▁king"), 7, drawn_N)
    entries = torch.from_numpy(np.stack([np.arange(len(ids_N)), concepts_N]))
    codes = Codes.from_sparse(
        torch.sparse_coo_tensor(
            entries, torch.ones(len(ids_N)), (len(ids_N), NUM_CONCEPTS), check_invariants=True
        )
    )
    agreement = Agreement(1.0, 2.0, 0.5, 0.1, 0.6, draw.random(NUM_CONCEPTS))
    starts = np.flatnonzero(stream.ravel() == CLS_ID)
    reading = Reading(stream.ravel(), places_N, starts, {"teacher": codes, "student": codes}, agreement)
    about = About(
        run="runs/<b>bold</b>", corpus=["text.txt"], layer=12, lam=0.05, k=NUM_CONCEPTS, seed=0,
        positions=len(ids_N), types=len(PIECES) - 5,
    )  # fmt: skip
    atoms_KD = draw.standard_normal((NUM_CONCEPTS, 5))
    pieces: Any = Pieces()
    with progress(2, "") as bar:
        return build_report(
            reading, pieces, about, bar, statistics=STATISTICS, atoms_KD=atoms_KD, others_JD=atoms_KD[::-1]
        )


def small_sentence() -> SentenceConcepts:
    """The concepts of three tokens, two of them hostile, the same for both readers."""
    weights_LK = np.random.default_rng(1).dirichlet(np.full(NUM_CONCEPTS, 0.02), 3)
    pieces: Any = Pieces()
    return sentence_concepts(Sentence([5, 8, 9], {"teacher": weights_LK, "student": weights_LK}), pieces)
