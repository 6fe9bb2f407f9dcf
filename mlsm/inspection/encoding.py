"""Tensors of texts: hidden states, sparse codes and distributions over concepts, with the places of tokens.

Legend: T tokens of all texts without [CLS] and [SEP], D width, K concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.coding.targets import Teacher
from mlsm.model.language_model import LanguageModel
from mlsm.model.outside import AnyEncoder
from mlsm.runs.run import EncoderRun, Run
from mlsm.text.batches import cut_by_token_budget
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Span


@dataclass(frozen=True, eq=False, repr=False)
class Encoding:
    """The tokens of texts, one text after another, and what a model computes at each of them. All tensors are
    on the device of the model; memory for codes and concepts is 4 K bytes a token.
    """

    texts: tuple[str, ...]
    pieces: list[str]  # (T), with '▁' for the space before a word
    text_T: Tensor  # int64: the number of the text
    offsets_T2: Tensor  # int64: where the token starts and stops in its text, in characters
    hidden: dict[int, Tensor]  # by layer, 0 for the embeddings: hidden states (T, D), float32
    codes_TK: Tensor | None  # a teacher's sparse codes of states of norm 1; None without a dictionary
    concepts_TK: Tensor | None  # codes divided by their sum, or a student's probabilities; None without both

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.pieces)

    def __getitem__(self, number: int) -> Encoding:
        """The part of one text, by its number. Raises IndexError if there is no such text."""
        text = self.texts[number]
        chosen_T = self.text_T == number % len(self.texts)
        places = chosen_T.nonzero().flatten().tolist()
        return Encoding(
            (text,),
            [self.pieces[place] for place in places],
            torch.zeros_like(self.text_T[chosen_T]),
            self.offsets_T2[chosen_T],
            {layer: hidden_TD[chosen_T] for layer, hidden_TD in self.hidden.items()},
            None if self.codes_TK is None else self.codes_TK[chosen_T],
            None if self.concepts_TK is None else self.concepts_TK[chosen_T],
        )

    def __repr__(self) -> str:
        shapes = [f"hidden[{layer}]: {tuple(states.shape)}" for layer, states in self.hidden.items()]
        for name in ("codes_TK", "concepts_TK"):
            tensor = getattr(self, name)
            shapes.append(f"{name}: {None if tensor is None else tuple(tensor.shape)}")
        return f"Encoding({len(self)} tokens of {len(self.texts)} texts, {', '.join(shapes)})"

    @property
    def sparse_codes_TK(self) -> Tensor:
        """The codes as a sparse COO tensor. Raises ValueError for a model without codes."""
        if self.codes_TK is None:
            raise ValueError("no sparse codes: they belong to a teacher with a dictionary")
        return self.codes_TK.to_sparse()


def encode_texts(
    run: Run | EncoderRun,
    teacher: Teacher | None,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    token_budget: int,
    device: torch.device,
) -> Encoding:
    """The encoding of texts, of which [MASK] is the mask. `teacher` is None for a student, and for a teacher
    without a dictionary. Micro-batches, padded, have `token_budget` tokens at most, or one text. Raises
    ValueError for a text that is too long.
    """
    spans = [run.tokenizer.spans_with_masks(text) for text in texts] or [[]]
    encoder = run.model.encoder if isinstance(run, Run) else run.encoder
    student = run.model if isinstance(run, Run) and run.model.concepts is not None else None
    blocks: dict[int, dict[str, Tensor]] = {}  # by number of the text
    for numbers in cut_by_token_budget([len(row) + 2 for row in spans], token_budget):
        rows = [torch.tensor([CLS_ID, *(span.piece_id for span in spans[i]), SEP_ID]) for i in numbers]
        batch = Sequences.of(rows).to(device)
        is_token = torch.cat([torch.arange(len(row)) % (len(row) - 1) > 0 for row in rows])
        outputs = _outputs(encoder, student, teacher, batch, is_token.nonzero().flatten().to(device), layers)
        lengths = [len(spans[i]) for i in numbers]
        for name, tensor in outputs.items():
            for i, part in zip(numbers, tensor.split(lengths), strict=True):
                blocks.setdefault(i, {})[name] = part
    whole = {name: torch.cat([blocks[i][name] for i in range(len(spans))]) for name in blocks[0]}
    flat = [(i, span) for i, row in enumerate(spans) for span in row]
    return Encoding(
        tuple(texts),
        [run.tokenizer.piece(span.piece_id) for _, span in flat],
        torch.tensor([i for i, _ in flat], dtype=torch.long, device=device),
        _offsets([span for _, span in flat], device),
        {layer: whole[str(layer)] for layer in layers},
        whole.get("codes"),
        whole.get("concepts"),
    )


def _offsets(spans: Sequence[Span], device: torch.device) -> Tensor:
    offsets = [(span.start, span.stop) for span in spans]
    return torch.tensor(offsets, dtype=torch.long, device=device).reshape(-1, 2)


@torch.no_grad()
def _outputs(
    encoder: AnyEncoder,
    student: LanguageModel | None,
    teacher: Teacher | None,
    batch: Sequences,
    at_N: Tensor,
    layers: Sequence[int],
) -> dict[str, Tensor]:
    """Everything at some flat positions of a micro-batch: each layer by its number, codes, and concepts."""
    outputs: dict[str, Tensor] = {}
    depth = encoder.depth
    needed = sorted(
        {*layers, *([teacher.dictionary.layer] if teacher else []), *([depth] if student else [])}
    )
    for layer, hidden_TD in zip(needed, encoder.hidden_states(batch, needed), strict=True):
        hidden_ND = hidden_TD[at_N]
        outputs[str(layer)] = hidden_ND
        if teacher and layer == teacher.dictionary.layer:
            outputs["codes"] = teacher.codes(hidden_ND)
            outputs["concepts"] = F.normalize(outputs["codes"], p=1, dim=1)
        if student and layer == depth:
            outputs["concepts"] = student.concept_logits(student.transformed(hidden_ND)).softmax(-1)
    return outputs
