"""A trained model from Python: its concepts, its words, its scores of sentences.

    import mlsm

    model = mlsm.load("runs/token-head-lsm-random")
    model.concepts("The cat sat.")            # [("▁The", [(17, 0.31), (904, 0.22), ...]), ...]
    model.predict("The [MASK] sat.", top=3)   # [[("▁man", 0.08), ("▁king", 0.05), ("▁child", 0.03)]]
    model.score(["The cat sat.", "The cat sit."])

Where a text may hold [MASK], it is the mask; every other text that spells a special token is ordinary text.
All in float32, without dropout: asking twice gives the same.

Legend: N positions, K concepts, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import Teacher
from mlsm.device import choose_device, choose_precision
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import Run, load_run
from mlsm.runs.teacher import find_dictionary
from mlsm.text.batches import MicroBatch
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID, SPECIAL_PIECES


class Model:
    """A run, or an exported one, to ask. What it is made of is in `run`: model, tokenizer, config."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        device: str = "auto",
        dictionary: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a run directory, one of its checkpoints, or an exported directory, onto cpu, cuda, cuda:N or a
        GPU if there is one ("auto"). `dictionary` is for teachers: whose concepts to read, if its directory
        holds several.

        Raises ValueError, with what is wrong, for a directory or a device that cannot be used.
        """
        self.run: Run = load_run(Path(directory), choose_device(device))
        self._dictionary = None if dictionary is None else Path(dictionary)
        if self._dictionary and self.run.model.concepts is not None:
            raise ValueError(f"{directory} predicts concepts itself; dictionary is for teachers")

    def concepts(self, text: str, top: int = 10) -> list[tuple[str, list[tuple[int, float]]]]:
        """The concepts of every token, as (piece, [(concept, weight), ...]), the largest weight first and
        `top` of them at most. '▁' in a piece stands for the space before a word.

        A student's weights are the probabilities that it predicts. A teacher's are its sparse code divided by
        its L1 norm, without zeros. Both sum to 1 over all concepts (to 0 for a code of zeros), and have the
        same numbers if the student was trained on that dictionary.

        Raises ValueError for a teacher without a dictionary, and for a text that is too long.
        """
        ids = self._encode(text)
        largest = self._largest(self._concept_weights(ids, list(range(1, len(ids) - 1))), top)
        pieces = [self.run.tokenizer.piece(i) for i in ids[1:-1]]
        return [(p, [(k, w) for k, w in row if w > 0]) for p, row in zip(pieces, largest, strict=True)]

    def predict(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """For every [MASK] of the text, the `top` likeliest pieces as (piece, probability).

        A model trained on concepts alone has no sensible answer: its words come with the token head.
        Raises ValueError for a text without [MASK], and for one that is too long.
        """
        ids = self._encode(text)
        masked = [position for position, i in enumerate(ids) if i == MASK_ID]
        if not masked:
            raise ValueError(f"no [MASK] in {text!r}: nothing to predict")
        model, micro = self.run.model, self._positions(ids, masked)
        with torch.no_grad():
            probability_NV = model.token_logits(model.hidden_at(micro.inputs, micro.selected_N)).softmax(-1)
        return [
            [(self.run.tokenizer.piece(i), p) for i, p in row] for row in self._largest(probability_NV, top)
        ]

    def score(self, sentences: Sequence[str], reduction: str = "mean") -> list[float]:
        """Pseudo-log-likelihood of each sentence in nats: the mean or the sum ("sum") over its tokens of
        log p(token), each masked once. A sentence without tokens scores 0.

        Raises ValueError for an unknown reduction, and for a sentence that is too long.
        """
        if isinstance(sentences, str):
            raise ValueError("score takes a list of sentences, not one string")
        return score_sentences(self.run, sentences, reduction=reduction)

    def _encode(self, text: str) -> list[int]:
        """Ids with [CLS] and [SEP]; [MASK] in the text is the mask."""
        first, *rest = (self.run.tokenizer.encode(part) for part in text.split(SPECIAL_PIECES[MASK_ID]))
        return [CLS_ID, *first, *(i for part in rest for i in (MASK_ID, *part)), SEP_ID]

    def _positions(self, ids: list[int], positions: list[int]) -> MicroBatch:
        sequences = Sequences.of([torch.tensor(ids)])
        return MicroBatch(sequences, sequences, torch.tensor(positions, dtype=torch.long)).to(self._device)

    @torch.no_grad()
    def _concept_weights(self, ids: list[int], positions: list[int]) -> Tensor:
        """Weights (N, K) at these positions."""
        model, micro = self.run.model, self._positions(ids, positions)
        if model.concepts is None:
            return self._teacher.targets(micro).distribution_NK
        return model.concept_logits(model.hidden_at(micro.inputs, micro.selected_N)).softmax(-1)

    def _largest(self, weights: Tensor, top: int) -> list[list[tuple[int, float]]]:
        """Of each row, the `top` largest as (column, weight)."""
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        found = weights.topk(min(top, weights.shape[1]))
        rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [list(zip(columns, values, strict=True)) for columns, values in rows]

    @property
    def _device(self) -> torch.device:
        return next(self.run.model.parameters()).device

    @cached_property
    def _teacher(self) -> Teacher:
        """The encoder with its dictionary, found when it is first asked for concepts."""
        directory = self.run.directory
        path = self._dictionary or find_dictionary(directory)
        if path is None:
            raise ValueError(
                f"{directory} has no concepts: learn them with python fit_dictionary.py --teacher {directory}"
            )
        dictionary = Dictionary.load(path, teacher=fingerprint(directory)).to(self._device)
        return Teacher(
            self.run.model.encoder,
            dictionary,
            choose_precision("off", self._device, self.run.record.model.width),
        )
