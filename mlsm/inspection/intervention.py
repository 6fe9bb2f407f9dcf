"""What changes in a model when the weight of a concept is set to another value.

In a teacher, the hidden state x of a token becomes x + |x| (new - old) d_k, where d_k is the atom of the
concept and old its weight in the code of x / |x|; with the atoms of an SAE, |x| is the scale of
`Dictionary.signals`. The layers after that of the dictionary compute the rest.
In a student, the logit of the concept becomes the one that gives it the new probability, while the other
probabilities keep their proportions. The token head reads the logits.

Legend: T tokens of the text with [CLS] and [SEP], N tokens without them, P of them whose words are predicted,
D width, K concepts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlsm.coding.targets import Teacher
from mlsm.model.deberta import Encoder
from mlsm.model.language_model import LanguageModel
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import MASK_ID, Tokenizer

LEAST_PROBABILITY = 1e-6  # of a student's concept that is set to 0: the logit of 0 would not be finite


class WordChange(NamedTuple):
    """The probability of a piece before and after an intervention."""

    piece: str
    before: float
    after: float


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """The outputs of a model with and without a change of its concepts, on the device of the model."""

    pieces: list[str]  # (N)
    places: list[int]  # (P) indices in `pieces`: the masks, or every token of a text without one
    before_PV: Tensor | None  # probabilities of words; None if none depend on the concepts
    after_PV: Tensor | None
    hidden_before_ND: Tensor  # of the last layer
    hidden_after_ND: Tensor
    concepts_before_NK: Tensor  # a teacher's codes, or a student's probabilities
    concepts_after_NK: Tensor  # a teacher's codes with the new weights, or a student's probabilities
    tokenizer: Tokenizer

    def changes(self, top: int = 5) -> list[list[WordChange]]:
        """For each of the places, the `top` words whose probability changes most, the largest change first.
        Raises ValueError for a model without words that depend on its concepts.
        """
        if self.before_PV is None or self.after_PV is None:
            raise ValueError("no words of this model depend on its concepts: compare its other tensors")
        changed = []
        for before_V, after_V in zip(self.before_PV, self.after_PV, strict=True):
            order = (after_V - before_V).abs().topk(min(top, len(before_V))).indices.tolist()
            rows = zip(order, before_V[order].tolist(), after_V[order].tolist(), strict=True)
            changed.append([WordChange(self.tokenizer.piece(i), before, after) for i, before, after in rows])
        return changed

    def __repr__(self) -> str:
        if self.before_PV is None:
            is_student = self.hidden_before_ND is self.hidden_after_ND
            what = "distribution over concepts" if is_student else "last hidden state"
            change_N = (self.hidden_after_ND - self.hidden_before_ND).norm(dim=1)
            if is_student:
                change_N = (self.concepts_after_NK - self.concepts_before_NK).abs().sum(1) / 2
            moved = " ".join(f"{p} {d:.3f}" for p, d in zip(self.pieces, change_N.tolist(), strict=True))
            return f"Intervention, by the change of the {what}: {moved}"
        lines = []
        for place, changes in zip(self.places, self.changes(3), strict=True):
            changed = [c for c in changes if c.before != c.after]
            shown = ", ".join(f"{c.piece} {c.before:.3f} -> {c.after:.3f}" for c in changed)
            lines.append(f"{place} {self.pieces[place]}: {shown or 'no change'}")
        return "\n".join(["Intervention, by the change of words:", *lines])


@torch.no_grad()
def intervene_in_teacher(
    encoder: Encoder,
    model: LanguageModel | None,
    teacher: Teacher,
    tokenizer: Tokenizer,
    ids_T: Tensor,
    weights: Mapping[int, float],
    at: Sequence[int],
) -> Intervention:
    """Set the weights of concepts in the hidden states of the tokens `at` (indices without [CLS]). `model` is
    None for an encoder alone, which predicts no words.
    """
    batch, dictionary = Sequences.of([ids_T]).to(encoder.token_embedding.weight.device), teacher.dictionary
    state_TD = encoder(batch, num_layers=dictionary.layer)
    before_NK = teacher.codes(state_TD[1:-1])
    concepts = list(weights)
    after_NK = before_NK.clone()
    rows = torch.tensor(list(at), dtype=torch.long, device=batch.ids_T.device)
    after_NK[rows[:, None], concepts] = after_NK.new_tensor(list(weights.values()))
    change_NK = (after_NK - before_NK)[:, concepts]
    changed_TD = state_TD.clone()
    scale_N1 = dictionary.signals(state_TD[1:-1]).scale_N1
    changed_TD[1:-1] += scale_N1 * (change_NK @ dictionary.atoms_DK[:, concepts].mT)
    hidden_ND, moved_ND = (
        encoder.run_layers(x_TD, batch, start=dictionary.layer)[1:-1] for x_TD in (state_TD, changed_TD)
    )
    pieces, places = _pieces_and_places(tokenizer, ids_T)
    before_PV = after_PV = None
    if model is not None:
        before_PV, after_PV = (
            model.token_logits(model.transformed(x_ND[places])).softmax(-1) for x_ND in (hidden_ND, moved_ND)
        )
    return Intervention(
        pieces, places, before_PV, after_PV, hidden_ND, moved_ND, before_NK, after_NK, tokenizer
    )


@torch.no_grad()
def intervene_in_student(
    model: LanguageModel,
    tokenizer: Tokenizer,
    ids_T: Tensor,
    probabilities: Mapping[int, float],
    at: Sequence[int],
) -> Intervention:
    """Set the probabilities of concepts at the tokens `at` (indices without [CLS]). They stay between 1e-6
    and 1 - 1e-6. Words change if the model has a token head.
    """
    batch = Sequences.of([ids_T]).to(model.device)
    hidden_ND = model.encoder(batch)[1:-1]
    before_NK = model.concept_logits(model.transformed(hidden_ND))
    after_NK = before_NK.clone()
    concepts = list(probabilities)
    wanted = before_NK.new_tensor(list(probabilities.values())).clamp(LEAST_PROBABILITY, 1.0)
    wanted = wanted * min(1.0, (1 - LEAST_PROBABILITY) / float(wanted.sum()))
    rest_NK = before_NK.clone()
    rest_NK[:, concepts] = -torch.inf
    rows = torch.tensor(list(at), dtype=torch.long, device=batch.ids_T.device)
    logit_N1 = rest_NK[rows].logsumexp(1, keepdim=True) - (1 - wanted.sum()).log()
    after_NK[rows[:, None], concepts] = logit_N1 + wanted.log()
    pieces, places = _pieces_and_places(tokenizer, ids_T)
    before_PV = after_PV = None
    if model.token_head is not None:
        before_PV, after_PV = (model.token_head(x_NK[places]).softmax(-1) for x_NK in (before_NK, after_NK))
    return Intervention(
        pieces, places, before_PV, after_PV, hidden_ND, hidden_ND,
        before_NK.softmax(-1), after_NK.softmax(-1), tokenizer,
    )  # fmt: skip


def _pieces_and_places(tokenizer: Tokenizer, ids_T: Tensor) -> tuple[list[str], list[int]]:
    """The pieces of a text without [CLS] and [SEP], and the places of its masks, or all if it has none."""
    ids = ids_T[1:-1].tolist()
    masks = [place for place, i in enumerate(ids) if i == MASK_ID]
    return [tokenizer.piece(i) for i in ids], masks or list(range(len(ids)))
