"""The concepts at each position of a text, as teacher and student read it, and how far the two agree.

All weights of the teacher's codes are stored. A student's prediction is dense: of it, probabilities of at
least 0.01 are stored, at most 100 for each position, while the agreement is measured on the whole prediction.
Memory: 20 bytes for each stored weight.

Legend: N selected positions, K concepts, C strongest concepts of a position, L tokens of a sentence, T tokens
of a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mlsm.coding.targets import Teacher
from mlsm.evaluation.heldout import KLSums
from mlsm.model.language_model import LanguageModel
from mlsm.pages.concept_use import Codes
from mlsm.text.batches import MicroBatch, Selection
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID

LEAST_PROBABILITY = 0.01  # of a student's concept that is stored
NUM_COMPARED = 5  # strongest concepts of a position by which teacher and student are compared


class Readers(NamedTuple):
    """A teacher, a student, or both, with the same tokenizer and the same concepts."""

    teacher: Teacher | None
    student: LanguageModel | None
    selection: Selection  # positions the student's objective learns from, and whether it sees them

    @property
    def device(self) -> torch.device:
        model = self.teacher.encoder if self.teacher else self.student
        assert model is not None
        return next(model.parameters()).device

    def distributions(self, micro: MicroBatch) -> dict[str, Tensor]:
        """Distributions over concepts (N, K), float32, of "teacher", "student" or both: codes of L1 norm 1
        (or zero), and predicted probabilities.
        """
        micro = micro.to(self.device)
        distributions = {}
        if self.teacher:
            distributions["teacher"] = self.teacher.targets(micro).distribution_NK
        if self.student:
            hidden_ND = self.student.hidden_at(micro.inputs, micro.selected_N)
            distributions["student"] = self.student.concept_logits(hidden_ND).float().softmax(-1)
        return distributions


class Agreement(NamedTuple):
    """How well a student's predictions fit its teacher's codes, as means over the positions."""

    kl: float  # KL(teacher || student), nats
    constant_kl: float  # KL of the best prediction that does not depend on the text: the mean code
    overlap: float  # share of the teacher's five strongest concepts among as many of the student's
    constant_overlap: float  # the overlap of the mean code
    shared: float  # weight that both give to the same concepts: 1 - total variation distance
    shared_K: np.ndarray  # for each concept, the share of its teacher's weight that the student gives it too


class Reading(NamedTuple):
    """A text and the concepts at its selected positions."""

    ids_T: np.ndarray  # all sequences, one after the other
    places_N: np.ndarray  # indices of the selected positions in ids_T
    sequence_starts: np.ndarray  # indices in ids_T
    codes: dict[str, Codes]  # of "teacher", "student" or both
    agreement: Agreement | None  # with both only

    @property
    def ids_N(self) -> np.ndarray:
        """The tokens at the selected positions."""
        return self.ids_T[self.places_N]

    @property
    def sequences_N(self) -> np.ndarray:
        """The number of the sequence of each position, from 1."""
        return np.searchsorted(self.sequence_starts, self.places_N, side="right")


class _AgreementSums:
    """Sums over micro-batches from which the agreement is computed."""

    def __init__(self, num_concepts: int) -> None:
        self.kl = KLSums(num_concepts)
        self.shared_K = torch.zeros(num_concepts, dtype=torch.float64)
        self.strongest: list[Tensor] = []  # (N, C) of the teacher, -1 where it has fewer concepts
        self.predicted: list[Tensor] = []  # (N, C) of the student

    def add(self, teacher_NK: Tensor, student_NK: Tensor) -> None:
        self.kl.add(teacher_NK, student_NK.clamp_min(torch.finfo(torch.float32).tiny).log())
        self.shared_K += torch.minimum(teacher_NK, student_NK).sum(0, dtype=torch.float64).cpu()
        weights_NC, strongest_NC = teacher_NK.topk(min(NUM_COMPARED, teacher_NK.shape[1]))
        self.strongest.append(strongest_NC.masked_fill(weights_NC == 0, -1).cpu())
        self.predicted.append(student_NK.topk(strongest_NC.shape[1]).indices.cpu())

    def means(self) -> Agreement:
        """Raises ValueError if every code of the teacher is zero."""
        target_K, strongest_NC = self.kl.target_K, torch.cat(self.strongest)
        if not target_K.sum() > 0:
            raise ValueError(
                "all codes of the teacher are zero: its dictionary explains nothing in this text"
            )
        num_positions, num_compared = strongest_NC.shape
        constant_NC = target_K.topk(num_compared).indices.expand_as(strongest_NC)
        return Agreement(
            *self.kl.means(num_positions),
            _overlap(strongest_NC, torch.cat(self.predicted)),
            _overlap(strongest_NC, constant_NC),
            float(self.shared_K.sum()) / num_positions,
            (self.shared_K / target_K.clamp_min(1e-300)).numpy(),
        )


def _overlap(strongest_NC: Tensor, predicted_NC: Tensor) -> float:
    """Mean share of a position's strongest concepts that are among as many predicted ones; 0 without any."""
    num_N = (strongest_NC >= 0).sum(1)
    is_counted_NC = torch.arange(predicted_NC.shape[1]) < num_N[:, None]
    is_same_NCC = (strongest_NC[:, :, None] == predicted_NC[:, None, :]) & is_counted_NC[:, None, :]
    return float((is_same_NCC.sum((1, 2)) / num_N.clamp_min(1)).mean(dtype=torch.float64))


@torch.no_grad()
def read_concepts(readers: Readers, micro_batches: Iterable[MicroBatch], bar: tqdm) -> Reading:
    """The concepts at every selected position. Raises ValueError if no position is selected, or all codes of
    the teacher are zero where a student is compared with it.
    """
    ids, places, starts = [], [], []
    blocks: dict[str, list[Tensor]] = {}
    sums: _AgreementSums | None = None
    num_tokens = 0
    for micro in micro_batches:
        ids.append(micro.text.ids_T)
        places.append(micro.selected_N + num_tokens)
        starts.append(micro.text.first_B + num_tokens)
        num_tokens += len(micro.text.ids_T)
        if not len(micro.selected_N):
            continue
        distributions = readers.distributions(micro)
        for name, weights_NK in distributions.items():
            least = LEAST_PROBABILITY if name == "student" else 0
            stored_NK = weights_NK.where(weights_NK >= least, 0).to_sparse().cpu()
            blocks.setdefault(name, []).append(stored_NK)
        if len(distributions) == 2:
            sums = sums or _AgreementSums(weights_NK.shape[1])
            sums.add(distributions["teacher"], distributions["student"])
        bar.update(len(micro.selected_N))
    if not blocks:
        raise ValueError("the text has no token to read concepts at; give more of it")
    ids_T, places_N, sequence_starts = (torch.cat(parts).numpy() for parts in (ids, places, starts))
    return Reading(
        ids_T,
        places_N,
        sequence_starts,
        {name: Codes.from_sparse(torch.cat(parts)) for name, parts in blocks.items()},
        sums.means() if sums else None,
    )


class Sentence(NamedTuple):
    """A text and the concepts of each of its tokens."""

    ids: list[int]
    weights: dict[str, np.ndarray]  # (L, K) of "teacher", "student" or both


@torch.no_grad()
def read_sentence(readers: Readers, ids: list[int], *, longest: int, token_budget: int) -> Sentence:
    """The concepts of every token. For a student that learns from masked tokens, one token at a time is
    masked. Raises ValueError for a text without tokens, or of more than `longest` with [CLS] and [SEP].
    """
    if not ids:
        raise ValueError("the text has no tokens")
    if len(ids) + 2 > longest:
        raise ValueError(f"the text has {len(ids)} tokens, the model reads {longest - 2} at most")
    row = torch.tensor([CLS_ID, *ids, SEP_ID])
    is_selected = torch.eye(len(row), dtype=torch.bool)[1:-1]  # a copy of the text for each token
    if not readers.selection.is_masked:
        is_selected = is_selected.any(0, keepdim=True)  # one copy for all tokens
    blocks: dict[str, list[np.ndarray]] = {}
    for copies in is_selected.split(max(1, token_budget // len(row))):
        micro = MicroBatch.of(Sequences.of([row] * len(copies)), copies.flatten(), readers.selection)
        for name, weights_NK in readers.distributions(micro).items():
            blocks.setdefault(name, []).append(weights_NK.cpu().numpy())
    return Sentence(ids, {name: np.concatenate(parts) for name, parts in blocks.items()})
