"""The objectives: a loss function each, and a table that declares them. The loop in train.py is one for all.

A loss function takes the model and a micro-batch and returns sums over the selected positions; the loop
divides by the number selected in the whole update. Losses are computed in float32.

Legend: N selected positions, D width, V vocabulary, K concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlsm.coding.targets import Teacher
from mlsm.command_line import did_you_mean
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
    }
    if targets.worst_gap is not None:
        parts["gap_max"] = targets.worst_gap
    return Outcome(loss.total, parts)


def masked_lm(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 1: cross-entropy of the masked tokens, by the tied decoder."""
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    return _word_loss(hidden_ND, *model.tied_decoder(), micro)


def latent_concepts(
    model: LanguageModel, micro: MicroBatch, teacher: Teacher | None, config: TrainConfig
) -> Outcome:
    """Phase 2: KL to the teacher's concepts. MLSM, LSM and LSM15 differ in their selection only."""
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
    """Phase 3: cross-entropy of the masked tokens, by a linear layer on a frozen student's concept logits."""
    with torch.no_grad():
        concepts_NK = model.concept_logits(model.hidden_at(micro.inputs, micro.selected_N))
    assert model.token_head is not None
    return _word_loss(concepts_NK, model.token_head.weight, model.token_head.bias, micro)


@dataclass(frozen=True)
class Objective:
    """A loss, the positions it is taken at, and everything else that the project knows about it. An entry of
    OBJECTIVES is all that a new objective needs.
    """

    loss: Callable[[LanguageModel, MicroBatch, Teacher | None, TrainConfig], Outcome]
    learns: str  # ends the sentence "it was trained ..." of the model card
    phase: int  # 1 teacher, 2 student, 3 token head: whose settings of a preset it takes
    is_masked: bool  # the model sees [MASK] at the selected positions
    learns_from_all: bool  # every ordinary token is selected, and not only `mask_share` of them
    predicts_words: bool  # whether the words that the model predicts are trained
    needs_teacher: bool = False  # targets are the concepts of a teacher
    trains_only_token_head: bool = False  # on a frozen student
    reads: tuple[str, ...] = ()  # settings of TrainConfig that only this loss reads

    def selection(self, mask_share: float) -> Selection:
        """How positions are picked for this objective."""
        return Selection(1.0 if self.learns_from_all else mask_share, self.is_masked)

    def unused_settings(self) -> set[str]:
        """The names of the settings that change nothing with this objective."""
        unused = {name for other in OBJECTIVES.values() for name in other.reads} - {*self.reads}
        if not self.needs_teacher:
            unused |= {"dictionary", "coder", "code_tolerance", "code_steps", "solver"}
            unused |= {"targets", "target_temperature", "target_lam", "top_k"}
        if self.learns_from_all:
            unused.add("mask_share")
        if self.trains_only_token_head:
            unused |= {"dropout", "init_std"}  # the student is frozen, the head starts at zero
        return unused

    def prepare_(self, model: LanguageModel) -> None:
        """Set the model to training mode, or freeze all but its token head."""
        model.train(not self.trains_only_token_head)
        if self.trains_only_token_head:
            model.freeze_all_but_token_head_()


def find_objective(name: str) -> Objective:
    """The objective of a name. Raises ValueError for an unknown one."""
    if name not in OBJECTIVES:
        like = did_you_mean(name, OBJECTIVES)
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}{like}")
    return OBJECTIVES[name]


def heldout_loss(values: Mapping[str, float], config: TrainConfig) -> float:
    """The loss of an objective from its measures on held-out text: the KL divergence of the concepts, the
    cross-entropy of the words, or both as `masked_lm_and_concepts` adds them.
    """
    if "concept_kl" not in values:
        return values["cross_entropy"]
    return values["concept_kl"] + config.mlm_weight * values.get("cross_entropy", 0.0)


OBJECTIVES = {
    "mlm": Objective(
        masked_lm,
        learns="to fill in masked words",
        phase=1,
        is_masked=True,
        learns_from_all=False,
        predicts_words=True,
    ),
    "mlsm": Objective(
        latent_concepts,
        learns="to predict the latent concepts of masked tokens",
        phase=2,
        is_masked=True,
        learns_from_all=False,
        predicts_words=False,
        needs_teacher=True,
    ),
    "lsm": Objective(
        latent_concepts,
        learns="to predict the latent concepts of every token, with nothing masked",
        phase=2,
        is_masked=False,
        learns_from_all=True,
        predicts_words=False,
        needs_teacher=True,
    ),
    "lsm15": Objective(
        latent_concepts,
        learns="to predict the latent concepts of 15 % of the tokens, with nothing masked",
        phase=2,
        is_masked=False,
        learns_from_all=False,
        predicts_words=False,
        needs_teacher=True,
    ),
    "mlm+mlsm": Objective(
        masked_lm_and_concepts,
        learns="to predict both the words and the latent concepts of masked tokens",
        phase=2,
        is_masked=True,
        learns_from_all=False,
        predicts_words=True,
        needs_teacher=True,
        reads=("mlm_weight",),
    ),
    "token-head": Objective(
        token_head,
        learns="to read masked words off the concepts that a frozen student predicts, by one linear layer",
        phase=3,
        is_masked=True,
        learns_from_all=False,
        predicts_words=True,
        trains_only_token_head=True,
    ),
}
