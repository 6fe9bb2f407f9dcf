"""Sequences, and the micro-batches of an update: a pure function of (seed, step).

A training sequence is [CLS] and a slice of the encoded text, so an index of (start, stop) offsets is all that
the modes `pairs` and `packed` differ in. A pair may span two files, at most once per boundary.

Legend: T tokens of a micro-batch, N selected positions, S sequences of a corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsm import distributed
from mlsm.config import DataConfig
from mlsm.seeds import generator_for, seed_for
from mlsm.text.corpus import EncodedText, encode_corpus
from mlsm.text.masking import mask, select
from mlsm.text.sequences import Sequences, moved
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

MOST_HELDOUT = 2_000  # sequences; enough for a loss good to one per cent
MIN_SECOND_CHARACTERS, MIN_PAIR_WORDS = 5, 5  # shorter pairs are dropped, as in the paper's code


class SequenceIndex(NamedTuple):
    """Slices of the stream that are training sequences."""

    starts_S: np.ndarray
    stops_S: np.ndarray
    words_S: np.ndarray  # of a sequence that was cut: as large a share of its words as of its tokens


def _cut_index(starts_S: np.ndarray, stops_S: np.ndarray, words_S: np.ndarray, room: int) -> SequenceIndex:
    """The slices cut to `room` tokens."""
    cut_S = np.minimum(stops_S, starts_S + room)
    kept_S = (cut_S - starts_S) / (stops_S - starts_S)
    return SequenceIndex(starts_S, cut_S, np.rint(words_S * kept_S).astype(np.int64))


def index_pairs(text: EncodedText, max_length: int) -> SequenceIndex:
    """Lines 0 and 1, 2 and 3, ...; a pair is cut at `max_length` tokens, or dropped if it says too little."""
    last = len(text.line_stops) // 2 * 2
    starts = np.concatenate([[0], text.line_stops[:-1]])[0:last:2]
    words = text.line_words[0:last:2] + text.line_words[1:last:2]
    keep = (text.line_characters[1:last:2] >= MIN_SECOND_CHARACTERS) & (words >= MIN_PAIR_WORDS)
    return _cut_index(starts[keep], text.line_stops[1:last:2][keep], words[keep], max_length - 1)


def index_packed(text: EncodedText, max_length: int) -> SequenceIndex:
    """As many consecutive lines as fit; a line longer than a sequence is cut."""
    room = max_length - 1
    words_before = np.concatenate([[0], np.cumsum(text.line_words, dtype=np.int64)])
    starts, stops, words = [], [], []
    line = start = 0
    while line < len(text.line_stops):
        after = max(line + 1, int(np.searchsorted(text.line_stops, start + room, "right")))
        starts.append(start)
        words.append(words_before[after] - words_before[line])
        line, start = after, int(text.line_stops[after - 1])
        stops.append(start)
    return _cut_index(np.array(starts), np.array(stops), np.array(words), room)


class MicroBatch(NamedTuple):
    """Sequences of similar length."""

    text: Sequences  # as it is
    inputs: Sequences  # as the model sees it: with [MASK], where the objective masks tokens
    selected_N: Tensor  # flat positions to learn from

    @classmethod
    def of(cls, rows: list[Tensor], selected: list[Tensor], selection: Selection) -> MicroBatch:
        """Rows of ids, with True at the positions to learn from."""
        text, is_selected_T = Sequences.of(rows), torch.cat(selected)
        inputs_T = mask(text.ids_T, is_selected_T) if selection.is_masked else text.ids_T
        return cls(text, text._replace(ids_T=inputs_T), is_selected_T.nonzero().squeeze(1))

    def labels_N(self) -> Tensor:
        """The ids of the text at the selected positions."""
        return self.text.ids_T[self.selected_N]

    def to(self, device: torch.device) -> MicroBatch:
        text, inputs_T = self.text.to(device), self.inputs.ids_T
        inputs = text if inputs_T is self.text.ids_T else text._replace(ids_T=moved(inputs_T, device))
        return MicroBatch(text, inputs, moved(self.selected_N, device))


class Update(NamedTuple):
    """The sequences of one optimiser step, cut into micro-batches."""

    micro_batches: list[MicroBatch]
    num_selected: int
    num_tokens: int  # without padding
    num_words: int


class Selection(NamedTuple):
    """Which tokens an objective learns from, and whether the model sees [MASK] there."""

    share: float
    is_masked: bool


def cut_by_token_budget(
    lengths: Sequence[int], token_budget: int, *, is_sorted: bool = True, shortest_share: float = 0.0
) -> list[list[int]]:
    """The numbers of sequences, by micro-batch. A micro-batch, padded to its longest sequence, has at most
    `token_budget` tokens; a sequence beyond the budget is a micro-batch of its own. The longest sequences
    come first, or all stay in the given order. A sequence shorter than `shortest_share` of the longest one
    before it in its micro-batch starts the next micro-batch.
    """
    numbers = range(len(lengths))
    order = sorted(numbers, key=lambda number: -lengths[number]) if is_sorted else numbers
    cut: list[list[int]] = []
    longest = 0
    for number in order:
        length = lengths[number]
        longest = max(longest, length)
        if cut and (len(cut[-1]) + 1) * longest <= token_budget and length >= shortest_share * longest:
            cut[-1].append(number)
        else:
            cut.append([number])
            longest = length
    return cut


class Corpus:
    """A corpus cut into training and held-out sequences, from which any update can be asked for by its
    number.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, say: Callable[[str], None] = print) -> None:
        """Raises ValueError for files that are missing, empty or not UTF-8, or without one whole sequence."""
        with distributed.rank_zero_first():
            self.text = encode_corpus(config, tokenizer, say)
        index = {"pairs": index_pairs, "packed": index_packed}[config.sequence_mode]
        self.max_length = config.max_length
        self.index = index(self.text, config.max_length)
        num_sequences = len(self.index.starts_S)
        num_heldout = min(int(num_sequences * config.heldout_share), MOST_HELDOUT)
        is_heldout = np.zeros(num_sequences, bool)
        if num_heldout:
            is_heldout[np.linspace(0, num_sequences - 1, num_heldout).astype(np.int64)] = True
        self.heldout = np.flatnonzero(is_heldout)
        self.training = np.flatnonzero(~is_heldout)
        if not len(self.training):
            raise ValueError(
                f"{', '.join(config.corpus)}: no pair of lines with {MIN_PAIR_WORDS} words or more; "
                "give one sentence per line, or --sequence-mode packed"
            )

    def sizes(self) -> dict[str, int]:
        """The size of the corpus in lines, words, tokens and sequences."""
        return {
            "lines": len(self.text.line_stops),
            "words": int(self.text.line_words.sum()),
            "tokens": len(self.text.ids),
            "training_sequences": len(self.training),
            "heldout_sequences": len(self.heldout),
        }

    @functools.lru_cache(maxsize=2)  # noqa: B019 -- a corpus lives as long as its process
    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng(seed_for("order", seed, epoch)).permutation(self.training)

    def update(
        self, step: int, batch_size: int, token_budget: int, selection: Selection, seed: int
    ) -> Update:
        """Update number `step` of a run. Raises ValueError if the corpus is smaller than an update."""
        sequences = self.sequences(step, batch_size, seed)
        return self.cut(sequences, token_budget, selection, generator_for("mask", seed, step))

    def sequences(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """The numbers of the sequences of an update. Raises ValueError as `update` does."""
        size = len(self.training)
        if batch_size > size:
            raise ValueError(
                f"an update needs {batch_size} sequences, the corpus has {size}: lower --batch-size"
            )
        epoch, first = divmod(step * batch_size, size)
        sequences = self._epoch(seed, epoch)[first : first + batch_size]
        if len(sequences) < batch_size:
            rest = self._epoch(seed, epoch + 1)[: batch_size - len(sequences)]
            sequences = np.concatenate([sequences, rest])
        return sequences

    def heldout_update(self, token_budget: int, selection: Selection, seed: int) -> Update:
        """All held-out sequences with one fixed choice of positions. Raises ValueError if there are none."""
        if not len(self.heldout):
            raise ValueError("no text was held out: the corpus is too small for --heldout-share, or it is 0")
        return self.cut(self.heldout, token_budget, selection, generator_for("heldout mask", seed))

    def cut(
        self, sequences: np.ndarray, token_budget: int, selection: Selection, generator: torch.Generator
    ) -> Update:
        """Sort the sequences by length and cut them where a micro-batch, padded, would pass the budget.

        Positions are drawn before sorting, so they do not depend on the budget.
        """
        rows, selected = self._rows(sequences, selection.share, generator)
        lengths = [len(row) for row in rows]
        micro_batches = [
            MicroBatch.of([rows[i] for i in numbers], [selected[i] for i in numbers], selection)
            for numbers in cut_by_token_budget(lengths, token_budget)
        ]
        return Update(
            micro_batches,
            num_selected=sum(len(m.selected_N) for m in micro_batches),
            num_tokens=sum(lengths),
            num_words=int(self.index.words_S[sequences].sum()),
        )

    def sample(
        self,
        parts: Iterable[np.ndarray],
        selection: Selection,
        *,
        num_selected: int,
        token_budget: int,
        generator: torch.Generator,
    ) -> Iterator[MicroBatch]:
        """Micro-batches with `num_selected` selected positions (fewer if there are not as many): the
        sequences of the first part in random order, then those of the next. They are not sorted by length,
        so that any stretch of the positions is a fair sample, too.
        """
        at_once = max(1, token_budget // self.max_length)
        for part in parts:
            order = part[torch.randperm(len(part), generator=generator).numpy()]
            for first in range(0, len(order), at_once):
                rows, selected = self._rows(order[first : first + at_once], selection.share, generator)
                micro = MicroBatch.of(rows, selected, selection)
                yield micro._replace(selected_N=micro.selected_N[:num_selected])
                num_selected -= len(micro.selected_N)
                if num_selected <= 0:
                    return

    def _rows(
        self, sequences: np.ndarray, share: float, generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The ids of each sequence, and True at its positions to learn from."""
        starts, stops = self.index.starts_S[sequences], self.index.stops_S[sequences]
        ids = np.asarray(self.text.ids)  # the same memory; a slice of a memmap takes 30 microseconds
        rows = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            row = np.empty(stop - start + 1, np.int64)
            row[0], row[1:], row[-1] = CLS_ID, ids[start:stop], SEP_ID
            rows.append(torch.from_numpy(row))
        lengths = [len(row) for row in rows]
        return rows, list(select(torch.cat(rows), share, generator).split(lengths))
