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

from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig
from mlsm.model.language_model import LanguageModel
from mlsm.model.linear_loss import linear_cross_entropy
from mlsm.text.batches import MicroBatch, Selection


class Outcome(NamedTuple):
    """Sums over the selected positions of a micro-batch."""

    loss: Tensor
    parts: dict[str, Tensor]  # for the log, detached, as `mlsm.log.Meter` reads them


def _word_loss(inputs: Tensor, weight: Tensor, bias: Tensor, micro: MicroBatch) -> Outcome:
    loss = linear_cross_entropy(inputs, weight, bias, micro.labels_N())
    return Outcome(loss.total, {"cross_entropy": loss.total.detach(), "token_accuracy": loss.num_agreeing})


def _concept_loss(model: LanguageModel, hidden_ND: Tensor, micro: MicroBatch, teacher: Teacher) -> Outcome:
    """KL(target || student), summed over concepts and positions; an all-zero target adds nothing."""
    targets = teacher.targets(micro)
    assert model.concepts is not None
    loss = linear_cross_entropy(
        hidden_ND, model.concepts.weight, model.concepts.bias, targets.distribution_NK
    )
    parts = {
        "concept_kl": loss.total.detach(),
        "top_concept_accuracy": loss.num_agreeing,
        "nonzeros_per_code": targets.num_uses_K.sum(),
        "dead_concepts": targets.num_uses_K,
        "gap_max": targets.worst_gap,
    }
    return Outcome(loss.total, parts)


def masked_lm(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 1: the masked tokens, by the vocabulary rows."""
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    return _word_loss(hidden_ND, *model.tied_decoder(), micro)


def latent_concepts(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 2, MLSM, LSM and LSM15 alike: they differ in what `selection` picks and masks."""
    assert teacher is not None
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    return _concept_loss(model, hidden_ND, micro, teacher)


def masked_lm_and_concepts(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """The paper's multi-task remark (section 4.2): MLSM plus `mlm_weight` times masked LM at the same
    positions.
    """
    assert teacher is not None
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    concepts = _concept_loss(model, hidden_ND, micro, teacher)
    words = _word_loss(hidden_ND, *model.tied_decoder(), micro)
    return Outcome(concepts.loss + config.mlm_weight * words.loss, concepts.parts | words.parts)


def token_head(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 3: the masked tokens, by one linear layer on the concept logits of a frozen student."""
    with torch.no_grad():
        concepts_NK = model.concept_logits(model.hidden_at(micro.inputs, micro.selected_N))
    assert model.token_head is not None
    return _word_loss(concepts_NK, model.token_head.weight, model.token_head.bias, micro)


class Objective(NamedTuple):
    """A loss and the positions it is taken at."""

    loss: Callable[[LanguageModel, MicroBatch, Teacher | None, TrainConfig], Outcome]
    is_masked: bool  # selected tokens are masked
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
