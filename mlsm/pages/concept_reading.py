"""A text as a teacher and its student read it: the concepts at each position, and how far the two agree.

The teacher's codes are kept whole. A student's prediction is dense; kept is what it gives a hundredth or more
(so at most 100 concepts a position), while agreement is measured on all of it. Memory: 10 bytes a kept
weight.

Legend: N selected positions, M weights kept, K concepts, C strongest concepts of a position.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mlsm.coding.targets import Teacher
from mlsm.model.language_model import LanguageModel
from mlsm.pages.concept_use import Codes, codes_by_concept
from mlsm.text.batches import MicroBatch, Selection
from mlsm.text.tokenizer import CLS_ID, SEP_ID

LEAST_PROBABILITY = 0.01  # of a concept that counts as predicted
NUM_COMPARED = 5  # strongest concepts of a position that teacher and student are compared by


class Readers(NamedTuple):
    """Who reads: at least one of the two; of the same tokenizer and, if both, of the same concepts."""

    teacher: Teacher | None
    student: LanguageModel | None
    selection: Selection  # positions the student's objective learns from, and whether it sees them

    @property
    def device(self) -> torch.device:
        model = self.teacher.encoder if self.teacher else self.student
        assert model is not None
        return next(model.parameters()).device

    def distributions(self, micro: MicroBatch) -> dict[str, Tensor]:
        """Over concepts (N, K), float32: codes of L1 norm 1 (or zero), and predicted probabilities."""
        found = {}
        if self.teacher:
            found["teacher"] = self.teacher.targets(micro).distribution_NK
        if self.student:
            hidden_ND = self.student.hidden_at(micro.inputs, micro.selected_N)
            found["student"] = self.student.concept_logits(hidden_ND).float().softmax(-1)
        return found


class Agreement(NamedTuple):
    """How a student's predictions meet its teacher's codes, as means over the positions."""

    kl: float  # KL(teacher || student), nats
    constant_kl: float  # of the best prediction that does not look at the text: the mean code
    overlap: float  # share of the teacher's five strongest concepts among as many of the student's
    constant_overlap: float  # the same of the mean code
    shared: float  # weight that both give to the same concepts: 1 - total variation distance
    shared_K: np.ndarray  # for each concept, the share of its teacher's weight that the student gives it too


class Reading(NamedTuple):
    """What was read, and the concepts at each position."""

    stream: np.ndarray  # ids of all sequences, one after the other
    places_N: np.ndarray  # of the selected positions in the stream
    sequence_starts: np.ndarray  # in the stream
    codes: dict[str, Codes]  # of "teacher", "student" or both
    kept: dict[str, float]  # mean weight of a position that is in the codes
    agreement: Agreement | None

    @property
    def ids_N(self) -> np.ndarray:
        return self.stream[self.places_N]

    @property
    def sequences_N(self) -> np.ndarray:
        return np.searchsorted(self.sequence_starts, self.places_N, side="right")


class _Sums:
    """Agreement, added up over micro-batches in float64."""

    def __init__(self) -> None:
        self.kl = self.negative_entropy = self.overlap = 0.0
        self.target_K = self.shared_K = torch.zeros((), dtype=torch.float64)
        self.strongest: list[Tensor] = []  # of the teacher, -1 where it has fewer

    def add(self, teacher_NK: Tensor, student_NK: Tensor) -> None:
        negative_entropy = torch.xlogy(teacher_NK, teacher_NK).sum(dtype=torch.float64)
        self.negative_entropy += float(negative_entropy)
        log_student_NK = student_NK.clamp_min(torch.finfo(student_NK.dtype).tiny).log()
        self.kl += float(negative_entropy - (teacher_NK * log_student_NK).sum(dtype=torch.float64))
        self.target_K = self.target_K + teacher_NK.sum(0, dtype=torch.float64).cpu()
        self.shared_K = (
            self.shared_K + torch.minimum(teacher_NK, student_NK).sum(0, dtype=torch.float64).cpu()
        )
        count = min(NUM_COMPARED, teacher_NK.shape[1])
        weights_NC, strongest_NC = teacher_NK.topk(count)
        predicted_NC = student_NK.topk(count).indices
        strongest_NC = strongest_NC.masked_fill(weights_NC == 0, -1)
        self.overlap += float(_overlap_N(strongest_NC, predicted_NC).sum())
        self.strongest.append(strongest_NC.to("cpu", torch.int32))

    def means(self) -> Agreement:
        """Raises ValueError if every code of the teacher is zero."""
        if not self.target_K.sum() > 0:
            raise ValueError(
                "all codes of the teacher are zero: its dictionary explains nothing in this text"
            )
        strongest_NC = torch.cat(self.strongest)
        num_positions, count = strongest_NC.shape
        share_K = self.target_K / self.target_K.sum()
        constant_kl = self.negative_entropy - float(torch.xlogy(self.target_K, share_K).sum())
        constant_C = share_K.topk(count).indices.to(torch.int32)
        constant_overlap = float(_overlap_N(strongest_NC, constant_C.expand_as(strongest_NC)).sum())
        return Agreement(
            self.kl / num_positions,
            constant_kl / num_positions,
            self.overlap / num_positions,
            constant_overlap / num_positions,
            float(self.shared_K.sum()) / num_positions,
            (self.shared_K / self.target_K.clamp_min(1e-300)).numpy(),
        )


def _overlap_N(strongest_NC: Tensor, predicted_NC: Tensor) -> Tensor:
    """Share of a position's strongest concepts among as many predicted ones; 0 where there are none."""
    num_N = (strongest_NC >= 0).sum(1)
    is_counted_NC = torch.arange(predicted_NC.shape[1], device=num_N.device) < num_N[:, None]
    is_same_NCC = (strongest_NC[:, :, None] == predicted_NC[:, None, :]) & is_counted_NC[:, None, :]
    return is_same_NCC.sum((1, 2)) / num_N.clamp_min(1)


@torch.no_grad()
def read(readers: Readers, micro_batches: Iterable[MicroBatch], bar: tqdm) -> Reading:
    """The concepts at every selected position. Raises ValueError if there is none."""
    streams: list[np.ndarray] = []
    places: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    kept: dict[str, float] = {}
    sums = _Sums() if readers.teacher and readers.student else None
    num_concepts = num_positions = num_streamed = 0
    for micro in micro_batches:
        streams.append(micro.text.ids_T.numpy().astype(np.int32))
        places.append(micro.selected_N.numpy() + num_streamed)
        starts.append(micro.text.first_B.numpy() + num_streamed)
        num_streamed += len(streams[-1])
        if not len(micro.selected_N):
            continue
        found = readers.distributions(micro.to(readers.device))
        for name, weights_NK in found.items():
            num_concepts = weights_NK.shape[1]
            least = LEAST_PROBABILITY if name == "student" else torch.finfo(torch.float32).tiny
            rows_M, concepts_M = (weights_NK >= least).nonzero(as_tuple=True)
            weights_M = weights_NK[rows_M, concepts_M].cpu().numpy()
            concept_type = np.uint16 if num_concepts < 1 << 16 else np.int32
            positions_M = (rows_M.cpu() + num_positions).numpy().astype(np.int32)
            concepts = concepts_M.cpu().numpy().astype(concept_type)
            parts.setdefault(name, []).append((positions_M, concepts, weights_M))
            kept[name] = kept.get(name, 0.0) + float(weights_M.sum(dtype=np.float64))
        if sums:
            sums.add(found["teacher"], found["student"])
        num_positions += len(micro.selected_N)
        bar.update(len(micro.selected_N))
    if not num_positions:
        raise ValueError("the text has no token to read concepts at; give more of it")
    codes = {}
    for name in list(parts):
        columns = zip(*parts.pop(name), strict=True)
        codes[name] = codes_by_concept(
            *(np.concatenate(column) for column in columns),
            num_positions=num_positions,
            num_concepts=num_concepts,
        )
    return Reading(
        np.concatenate(streams),
        np.concatenate(places),
        np.concatenate(starts),
        codes,
        {name: weight / num_positions for name, weight in kept.items()},
        sums.means() if sums else None,
    )


class Sentence(NamedTuple):
    """One text and the concepts of each of its tokens."""

    ids: list[int]
    weights: dict[str, np.ndarray]  # of "teacher", "student" or both: (tokens, K)


@torch.no_grad()
def read_sentence(readers: Readers, ids: list[int], longest: int, token_budget: int) -> Sentence:
    """Concepts of every token; a student that learnt from masked tokens has each of them masked once.

    Raises ValueError for a text without tokens, or of more than `longest` with the two at its ends.
    """
    if not ids:
        raise ValueError("--text has no tokens")
    if len(ids) + 2 > longest:
        raise ValueError(f"--text has {len(ids)} tokens, the model reads {longest - 2} at most")
    row = torch.tensor([CLS_ID, *ids, SEP_ID])
    places = list(range(1, len(ids) + 1))
    # a position at a time where tokens are masked, so that every other one is seen
    at_once = max(1, token_budget // len(row)) if readers.selection.is_masked else 1
    groups = [[p] for p in places] if readers.selection.is_masked else [places]
    parts: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(groups), at_once):
        chosen = groups[first : first + at_once]
        selected = [
            torch.zeros(len(row), dtype=torch.bool).index_fill(0, torch.tensor(g), True) for g in chosen
        ]
        micro = MicroBatch.of([row] * len(chosen), selected, readers.selection)
        for name, weights_NK in readers.distributions(micro.to(readers.device)).items():
            parts.setdefault(name, []).append(weights_NK.cpu().numpy())
    return Sentence(ids, {name: np.concatenate(blocks) for name, blocks in parts.items()})
