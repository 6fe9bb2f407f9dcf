"""What is learnt, one function an objective; the loop in train.py is the same for all of them.

Each takes the model and a micro-batch and returns sums over the selected positions; the loop divides by the
number selected in the whole update. Losses are computed in float32.

Legend: N selected positions, D width, V vocabulary, K concepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.config import TrainConfig
from mlsm.data import MicroBatch, Selection
from mlsm.heads import LanguageModel
from mlsm.targets import Teacher


class Outcome(NamedTuple):
    """Sums over the selected positions of a micro-batch."""

    loss: Tensor
    parts: dict[str, Tensor]  # for the log, detached, as `mlsm.log.Meter` reads them


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    num_correct = (logits_NV.detach().argmax(-1) == labels_N).sum()
    return loss, {"cross_entropy": loss.detach(), "token_accuracy": num_correct}


def _concept_divergence(
    model: LanguageModel, hidden_ND: Tensor, micro: MicroBatch, teacher: Teacher
) -> tuple[Tensor, dict[str, Tensor]]:
    """KL(target || student), summed over concepts and positions; an all-zero target adds nothing."""
    targets = teacher.targets(micro)
    log_student_NK = model.concept_logits(hidden_ND).float().log_softmax(-1)
    loss = F.kl_div(log_student_NK, targets.distribution_NK, reduction="sum")
    top_N = targets.distribution_NK.argmax(-1)
    num_agreeing = (log_student_NK.detach().argmax(-1) == top_N).sum()
    return loss, {
        "concept_kl": loss.detach(),
        "top_concept_accuracy": num_agreeing,
        "nonzeros_a_code": targets.num_uses_K.sum(),
        "dead_concepts": targets.num_uses_K,
        "gap_max": targets.worst_gap,
    }


def masked_lm(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 1: the hidden tokens, by the vocabulary rows."""
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    return Outcome(*_cross_entropy(model.vocabulary_logits(hidden_ND), micro.labels_N()))


def latent_concepts(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 2, MLSM, LSM and LSM15 alike: they differ in what `selection` picks and hides."""
    assert teacher is not None
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    return Outcome(*_concept_divergence(model, hidden_ND, micro, teacher))


def masked_lm_and_concepts(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """The paper's multi-task remark (section 4.2): MLSM plus `mlm_weight` times masked LM at the same
    positions.
    """
    assert teacher is not None
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    divergence, concept_parts = _concept_divergence(model, hidden_ND, micro, teacher)
    entropy, token_parts = _cross_entropy(model.vocabulary_logits(hidden_ND), micro.labels_N())
    return Outcome(divergence + config.mlm_weight * entropy, concept_parts | token_parts)


def token_head(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 3: the hidden tokens, by one linear layer on the concept logits of a frozen student."""
    with torch.no_grad():
        concepts_NK = model.concept_logits(model.hidden_at(micro.inputs, micro.selected_N))
    assert model.token_head is not None
    return Outcome(*_cross_entropy(model.token_head(concepts_NK), micro.labels_N()))


class Objective(NamedTuple):
    """A loss and the positions it is taken at."""

    loss: Callable[[LanguageModel, MicroBatch, Teacher | None, TrainConfig], Outcome]
    is_masked: bool  # selected tokens are hidden
    learns_from_all: bool  # every ordinary token, instead of `mask_share` of them
    needs_teacher: bool

    def selection(self, mask_share: float) -> Selection:
        """How positions are picked for this objective."""
        return Selection(1.0 if self.learns_from_all else mask_share, self.is_masked)


OBJECTIVES = {
    "mlm": Objective(masked_lm, is_masked=True, learns_from_all=False, needs_teacher=False),
    "mlsm": Objective(latent_concepts, is_masked=True, learns_from_all=False, needs_teacher=True),
    "lsm": Objective(latent_concepts, is_masked=False, learns_from_all=True, needs_teacher=True),
    "lsm15": Objective(latent_concepts, is_masked=False, learns_from_all=False, needs_teacher=True),
    "mlm+mlsm": Objective(masked_lm_and_concepts, is_masked=True, learns_from_all=False, needs_teacher=True),
    "token-head": Objective(token_head, is_masked=True, learns_from_all=False, needs_teacher=False),
}
