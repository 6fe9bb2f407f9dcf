"""A trained model from Python: its tensors, its concepts, its words, its scores of sentences.

    import mlsm

    model = mlsm.load("runs/token-head-lsm-random")
    model.concepts("The cat sat.")                  # [(piece, [(concept, weight), ...]), ...]
    model.predict("The [MASK] sat.", top=3)         # [[(piece, probability), ...]]
    model.score(["The cat sat.", "The cat sit."])   # [nats per token, ...]
    model.encode(["The cat sat."]).concepts_TK      # tensors; also hidden states, codes and places of tokens
    model.dictionary.concept(17).tokens             # what a concept stands for
    model.intervene("The [MASK] sat.", {17: 0.0})   # which words change without a concept

[MASK] in a text is the mask: it replaces one piece, with the space before it, as
`Tokenizer.encode_with_masks` defines. Every other text that spells a special token is ordinary text.
All is computed in float32 and without dropout, so that the same question gets the same answer.

Legend: N positions, K concepts, V vocabulary.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import Teacher
from mlsm.device import choose_device, choose_precision
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.inspection.concept_dictionary import ConceptDictionary, check_concept
from mlsm.inspection.encoding import Encoding, encode_texts
from mlsm.inspection.intervention import Intervention, intervene_in_student, intervene_in_teacher
from mlsm.model.outside import AnyEncoder, OutsideEncoder
from mlsm.pages.concept_source import open_source
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
        teacher: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a run directory, one of its checkpoints, or an exported directory, onto cpu, cuda, cuda:N or a
        GPU if there is one ("auto"). `dictionary` chooses among several dictionaries of a teacher.
        `teacher` is where a student's teacher is now, if it was moved since the student was trained.

        A converted checkpoint other than DeBERTa v1 is an encoder alone: it has concepts, and no words.
        Raises ValueError, with what is wrong, for a directory or a device that cannot be used.
        """
        for name, value in (("directory", directory), ("dictionary", dictionary), ("teacher", teacher)):
            if not isinstance(value, str | os.PathLike) and (name == "directory" or value is not None):
                raise TypeError(f"{name} must be a path, got {value!r}")
        if not isinstance(device, str):
            raise TypeError(f"device must be a str such as 'cuda:0', got {device!r}")
        path, self._device = Path(directory), choose_device(device)
        is_encoder = read_record(path).is_encoder_alone
        self.run: Run | EncoderRun = (
            load_encoder(path, self._device) if is_encoder else load_run(path, self._device)
        )
        self._dictionary = None if dictionary is None else Path(dictionary)
        if self._dictionary and self._has_concept_head:
            raise ValueError(f"{directory} predicts concepts itself; dictionary is for teachers")
        self._moved_teacher = None if teacher is None else Path(teacher)
        if self._moved_teacher and not self._has_concept_head:
            raise ValueError(f"{directory} is a teacher itself; teacher is for students")

    def __repr__(self) -> str:
        model = self.run.record.model
        kind = "teacher" if not self._has_concept_head else "student"
        if model.has_token_head:
            kind = "student with a token head"
        size = f"{model.depth} layers of width {model.width}, {self.run.tokenizer.vocab_size} pieces"
        return f"mlsm.load({str(self.run.directory)!r}): {kind}, {size}, on {self._device}"

    def encode(
        self, texts: Sequence[str], layers: int | Sequence[int] | None = None, *, token_budget: int = 8192
    ) -> Encoding:
        """Tensors at every token of some texts: hidden states of `layers`, codes and concepts.

        Layer 0 is the output of the embeddings, -1 the last layer. The default is the layer of the dictionary
        for a teacher that has one, else the last layer. Texts are read together, `token_budget` tokens at
        once. A teacher without a dictionary has no codes and no concepts; a student has no codes.

        Raises TypeError for what is no list of texts, and ValueError for a text that is too long, and for a
        layer that the model does not have.
        """
        _check_texts("encode", texts)
        depth = self._encoder.depth
        teacher = self._teacher_if_any
        if layers is None:
            layers = teacher.dictionary.layer if teacher else depth
        chosen = [
            _check_int("a layer", i) for i in (layers if isinstance(layers, list | tuple) else [layers])
        ]
        for layer in chosen:
            if not -depth - 1 <= layer <= depth:
                raise ValueError(f"there is no layer {layer}: they are 0 (the embeddings) to {depth}")
        if _check_int("token_budget", token_budget) < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}")
        chosen = [layer % (depth + 1) for layer in chosen]
        return encode_texts(self.run, teacher, texts, chosen, token_budget=token_budget, device=self._device)

    @cached_property
    def dictionary(self) -> ConceptDictionary:
        """What the concepts stand for: `model.dictionary.concept(17).tokens`, `.contexts`, `.nearest`. A
        student's concepts are shown as it predicts them. Raises ValueError for a teacher without a
        dictionary.
        """
        source = open_source(
            self.run.directory,
            teacher=self._moved_teacher,
            dictionary=self._dictionary,
            device=str(self._device),
        )
        return ConceptDictionary(source)

    def intervene(
        self, text: str, concepts: Mapping[int, float], *, at: Sequence[int] | None = None
    ) -> Intervention:
        """What changes if concepts have other weights, at the tokens `at` (indices without [CLS]; default:
        all). Weight 0 removes a concept.

        In a teacher, a weight is that of a code, as `encode(...).codes_TK` has it: the hidden state of the
        dictionary's layer is changed, and the layers above compute the rest. In a student, a weight is a
        probability as in `encode(...).concepts_TK`, and the token head computes the words.

        Raises TypeError and ValueError for other arguments, IndexError for a concept or a token that is not
        there, and ValueError for a text that is too long.
        """
        ids = self._encode(text)
        if not isinstance(concepts, Mapping) or not concepts:
            raise TypeError(f"concepts must map concepts to weights, as {{17: 0.0}}; got {concepts!r}")
        teacher = None if self._has_concept_head else self._teacher
        num_concepts = teacher.dictionary.atoms_DK.shape[1] if teacher else self.run.record.model.num_concepts
        weights = {check_concept(k, num_concepts): _check_weight(w) for k, w in concepts.items()}
        if at is None:
            at = range(len(ids) - 2)
        elif not isinstance(at, list | tuple):
            raise TypeError(f"at must be a list of tokens, got {at!r}")
        for place in at:
            if not 0 <= _check_int("a token", place) < len(ids) - 2:
                raise IndexError(f"there is no token {place}: the text has {len(ids) - 2}")
        row = torch.tensor(ids)
        if teacher is None:
            if max(weights.values()) > 1 or sum(weights.values()) > 1 or len(weights) == num_concepts:
                raise ValueError("a student's concepts are probabilities: leave some to the others")
            model = self._language_model().model
            return intervene_in_student(model, self.run.tokenizer, row, weights, at)
        if isinstance(self._encoder, OutsideEncoder):
            raise ValueError(
                f"{self.run.directory} is computed by transformers, and its layers cannot be run one by one: "
                "intervene in a student of it"
            )
        words = self.run.model if isinstance(self.run, Run) else None
        return intervene_in_teacher(self._encoder, words, teacher, self.run.tokenizer, row, weights, at)

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
        _check_texts("score", sentences)
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
        if _check_int("top", top) < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        largest = weights.topk(min(top, weights.shape[1]))
        rows = zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        return [list(zip(columns, values, strict=True)) for columns, values in rows]

    @property
    def _encoder(self) -> AnyEncoder:
        return self.run.model.encoder if isinstance(self.run, Run) else self.run.encoder

    @property
    def _teacher_if_any(self) -> Teacher | None:
        """None for a student, and for a teacher without a dictionary."""
        if self._has_concept_head or not (self._dictionary or find_dictionary(self.run.directory)):
            return None
        return self._teacher

    @cached_property
    def _teacher(self) -> Teacher:
        """The encoder with its dictionary, loaded when concepts are first asked for."""
        directory = self.run.directory
        path = self._dictionary or find_dictionary(directory)
        if path is None:
            raise ValueError(
                f"{directory} has no concepts: learn them with python fit_dictionary.py --teacher {directory}"
            )
        dictionary = Dictionary.load(path, teacher=fingerprint(directory)).to(self._device)
        return Teacher(
            self._encoder, dictionary, choose_precision("off", self._device, self.run.record.model.width)
        )


def _check_int(name: str, value: object) -> int:
    """The value. Raises TypeError for what is no int."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return operator.index(value)


def _check_weight(weight: object) -> float:
    """The weight. Raises TypeError for what is no number, and ValueError if it is negative or not finite."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"the weight of a concept must be a number, got {weight!r}")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the weight of a concept must be finite and at least 0, got {weight}")
    return float(weight)


def _check_texts(method: str, texts: object) -> None:
    """Raise TypeError for what is not a list of texts."""
    if not isinstance(texts, Sequence) or isinstance(texts, str | bytes):
        raise TypeError(f"{method} takes a list of sentences, got {texts!r}")
    for text in texts:
        _check_text(text)


def _check_text(text: object) -> None:
    """Raise TypeError for what is not one text."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, got {text!r}")
