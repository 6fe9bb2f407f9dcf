"""A trained model from Python: its concepts, its words, its scores of sentences.

    import mlsm

    model = mlsm.load("runs/token-head-lsm-random")
    model.concepts("The cat sat.")                  # [(piece, [(concept, weight), ...]), ...]
    model.predict("The [MASK] sat.", top=3)         # [[(piece, probability), ...]]
    model.score(["The cat sat.", "The cat sit."])   # [nats per token, ...]

[MASK] in a text is the mask: it replaces one piece, with the space before it, as
`Tokenizer.encode_with_masks` defines. Every other text that spells a special token is ordinary text.
All is computed in float32 and without dropout, so that the same question gets the same answer.

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
from mlsm.runs.record import read_record
from mlsm.runs.run import EncoderRun, Run, check_has_heads, load_encoder, load_run
from mlsm.runs.teacher import find_dictionary
from mlsm.text.batches import MicroBatch
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


class Model:
    """A run, or an exported one, to query. `run` holds its record, model and tokenizer."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        device: str = "auto",
        dictionary: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a run directory, one of its checkpoints, or an exported directory, onto cpu, cuda, cuda:N or a
        GPU if there is one ("auto"). `dictionary` chooses among several dictionaries of a teacher.

        A converted DeBERTa v2 or v3 is an encoder alone: it has concepts, and no words.
        Raises ValueError, with what is wrong, for a directory or a device that cannot be used.
        """
        path, self._device = Path(directory), choose_device(device)
        is_encoder = read_record(path).layout is not None
        self.run: Run | EncoderRun = (
            load_encoder(path, self._device) if is_encoder else load_run(path, self._device)
        )
        self._dictionary = None if dictionary is None else Path(dictionary)
        if self._dictionary and self._has_concept_head:
            raise ValueError(f"{directory} predicts concepts itself; dictionary is for teachers")

    def __repr__(self) -> str:
        return f"mlsm.load({str(self.run.directory)!r})"

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

        The words of a model that was trained on concepts alone mean nothing before it has a token head.
        Raises ValueError for a text without [MASK], for one that is too long, and for an encoder alone.
        """
        run, ids = self._language_model(), self._encode(text)
        masked = [position for position, i in enumerate(ids) if i == MASK_ID]
        if not masked:
            raise ValueError(f"no [MASK] in {text!r}: nothing to predict")
        micro = self._positions(ids, masked)
        with torch.no_grad():
            hidden_ND = run.model.hidden_at(micro.inputs, micro.selected_N)
            probability_NV = run.model.token_logits(hidden_ND).softmax(-1)
        rows = self._largest(probability_NV, top)
        return [[(run.tokenizer.piece(i), probability) for i, probability in row] for row in rows]

    def score(self, sentences: Sequence[str], reduction: str = "mean") -> list[float]:
        """Pseudo-log-likelihood of each sentence in nats: the mean or the sum ("sum") over its tokens of
        log p(token), each masked once. A sentence without tokens scores 0.

        Raises ValueError for an unknown reduction, for a sentence that is too long, and for an encoder alone.
        """
        if not isinstance(sentences, Sequence) or isinstance(sentences, str | bytes):
            raise TypeError(f"score takes a list of sentences, got {sentences!r}")
        for sentence in sentences:
            _check_text(sentence)
        return score_sentences(self._language_model(), sentences, reduction=reduction)

    def _language_model(self) -> Run:
        check_has_heads(self.run.directory, self.run.record)
        assert isinstance(self.run, Run)
        return self.run

    @property
    def _has_concept_head(self) -> bool:
        return isinstance(self.run, Run) and self.run.model.concepts is not None

    def _encode(self, text: str) -> list[int]:
        """Ids with [CLS] and [SEP]; [MASK] in the text is the mask."""
        _check_text(text)
        return [CLS_ID, *self.run.tokenizer.encode_with_masks(text), SEP_ID]

    def _positions(self, ids: list[int], positions: list[int]) -> MicroBatch:
        sequences = Sequences.of([torch.tensor(ids)])
        return MicroBatch(sequences, sequences, torch.tensor(positions, dtype=torch.long)).to(self._device)

    @torch.no_grad()
    def _concept_weights(self, ids: list[int], positions: list[int]) -> Tensor:
        """Weights (N, K) at these positions."""
        micro = self._positions(ids, positions)
        if not self._has_concept_head:
            return self._teacher.targets(micro).distribution_NK
        model = self._language_model().model
        return model.concept_logits(model.hidden_at(micro.inputs, micro.selected_N)).softmax(-1)

    def _largest(self, weights: Tensor, top: int) -> list[list[tuple[int, float]]]:
        """The `top` largest values of each row as (column, value)."""
        if not isinstance(top, int):
            raise TypeError(f"top must be an int, got {top!r}")
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        largest = weights.topk(min(top, weights.shape[1]))
        rows = zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        return [list(zip(columns, values, strict=True)) for columns, values in rows]

    @cached_property
    def _teacher(self) -> Teacher:
        """The encoder with its dictionary, loaded when concepts are first asked for."""
        directory = self.run.directory
        path = self._dictionary or find_dictionary(directory)
        if path is None:
            raise ValueError(
                f"{directory} has no concepts: learn them with python fit_dictionary.py --teacher {directory}"
            )
        encoder = self.run.model.encoder if isinstance(self.run, Run) else self.run.encoder
        dictionary = Dictionary.load(path, teacher=fingerprint(directory)).to(self._device)
        return Teacher(
            encoder, dictionary, choose_precision("off", self._device, self.run.record.model.width)
        )


def _check_text(text: object) -> None:
    """Raise TypeError for what is not one text."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, got {text!r}")
