"""From an encoded text to the micro-batches of an update, which are a pure function of (seed, step).

A training sequence is [CLS] and a slice of the encoded text, so an index of (start, stop) offsets is all that
the modes `pairs` and `packed` differ in. A pair may span two files, at most once per boundary.

Legend: T tokens of a micro-batch, N selected positions, S sequences of a corpus, L lines of its text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsm import distributed
from mlsm.config import DataConfig
from mlsm.seeds import generator_for, seed_for
from mlsm.text.corpus import EncodedText, encode_corpus
from mlsm.text.masking import mask, select
from mlsm.text.sequences import Sequences, moved, slice_positions
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

MOST_HELDOUT_LINES = 4_000  # enough for a loss good to one per cent
MIN_SECOND_CHARACTERS, MIN_PAIR_WORDS = 5, 5  # shorter pairs are dropped, as in the paper's code


def heldout_lines(num_lines: int, share: float) -> np.ndarray:
    """True for the lines (L) of a text that are kept out of training, `MOST_HELDOUT_LINES` at most.

    They are the first blocks of lines in a fixed order, which spreads any number of first blocks evenly over
    the text. So the lines of a small share are among those of a larger one, whatever the sequence mode. A
    block has 16 lines, enough for a packed sequence; in small texts it has fewer, down to one pair.
    """
    block_size = 2 * min(8, max(1, num_lines // 2000))
    num_blocks = -(-num_lines // block_size)
    # Multiples of the golden ratio, modulo 1, in 32 bits (Knuth, The Art of Computer Programming, 6.4).
    order = np.argsort(np.arange(num_blocks, dtype=np.uint32) * np.uint32(2_654_435_769))
    is_heldout = np.zeros(num_blocks, bool)
    is_heldout[order[: int(min(num_blocks * share, MOST_HELDOUT_LINES / block_size))]] = True
    return is_heldout.repeat(block_size)[:num_lines]


def num_leaking_lines(num_lines: int, heldout_share: float, other_share: float) -> int:
    """Held-out lines of a run with one share that a run of the other share, on the same text, trains on."""
    return int(np.sum(heldout_lines(num_lines, heldout_share) & ~heldout_lines(num_lines, other_share)))


class SequenceIndex(NamedTuple):
    """Slices of the encoded text that are training sequences."""

    starts_S: np.ndarray
    stops_S: np.ndarray
    words_S: np.ndarray  # a sequence that was cut counts the same share of its words as of its tokens
    lines_S: np.ndarray  # number of the first line


def _cut_index(index: SequenceIndex, most_tokens: int) -> SequenceIndex:
    """The slices, each cut to `most_tokens`."""
    stops_S = np.minimum(index.stops_S, index.starts_S + most_tokens)
    kept_S = (stops_S - index.starts_S) / (index.stops_S - index.starts_S)
    return index._replace(stops_S=stops_S, words_S=np.rint(index.words_S * kept_S).astype(np.int64))


def index_pairs(text: EncodedText, is_heldout_L: np.ndarray, max_length: int) -> SequenceIndex:
    """Lines 0 and 1, 2 and 3, ...; a pair is cut at `max_length` tokens, or dropped if it is too short."""
    last = len(text.line_stops) // 2 * 2
    starts = np.concatenate([[0], text.line_stops[:-1]])[0:last:2]
    words = text.line_words[0:last:2] + text.line_words[1:last:2]
    keep = (text.line_characters[1:last:2] >= MIN_SECOND_CHARACTERS) & (words >= MIN_PAIR_WORDS)
    index = SequenceIndex(starts, text.line_stops[1:last:2], words, np.arange(0, last, 2))
    return _cut_index(SequenceIndex(*(column[keep] for column in index)), max_length - 1)


def index_packed(text: EncodedText, is_heldout_L: np.ndarray, max_length: int) -> SequenceIndex:
    """As many lines as fit, all of them held out or none. A line longer than a sequence is cut."""
    most_tokens = max_length - 1
    num_lines = len(text.line_stops)
    words_before = np.concatenate([[0], np.cumsum(text.line_words, dtype=np.int64)])
    borders = np.append(np.flatnonzero(np.diff(is_heldout_L)) + 1, num_lines)
    rows = []
    line = start = 0
    while line < num_lines:
        border = int(borders[np.searchsorted(borders, line, "right")])
        after = int(np.searchsorted(text.line_stops, start + most_tokens, "right"))
        after = min(max(line + 1, after), border)
        stop = int(text.line_stops[after - 1])
        rows.append((start, stop, words_before[after] - words_before[line], line))
        line, start = after, stop
    return _cut_index(SequenceIndex(*np.array(rows).T), most_tokens)


def split_slices(
    starts_B: np.ndarray, stops_B: np.ndarray, most_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the slices after each was split into as few parts as have `most_tokens` at most.
    The parts of a slice are equally long, up to one token.
    """
    num_parts_B = -(-(stops_B - starts_B) // most_tokens)
    part = slice_positions(np.zeros_like(num_parts_B), num_parts_B)  # its number within its slice
    start, stop, num_parts = (column.repeat(num_parts_B) for column in (starts_B, stops_B, num_parts_B))
    first, after = (start + (stop - start) * number // num_parts for number in (part, part + 1))
    return first, after


class MicroBatch(NamedTuple):
    """Some sequences of an update, as they are and as the model sees them."""

    text: Sequences  # as it is
    inputs: Sequences  # with [MASK] at the selected positions, if the objective masks tokens
    selected_N: Tensor  # flat positions to learn from
    num_words: int = 0  # of a sample; an update counts its own

    @classmethod
    def of(cls, text: Sequences, is_selected_T: Tensor, selection: Selection) -> MicroBatch:
        """From sequences, and a mask that is True at the positions to learn from."""
        inputs_T = mask(text.ids_T, is_selected_T) if selection.is_masked else text.ids_T
        return cls(text, text._replace(ids_T=inputs_T), is_selected_T.nonzero().squeeze(1))

    def labels_N(self) -> Tensor:
        """The ids of the text at the selected positions."""
        return self.text.ids_T[self.selected_N]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
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
    lengths: Sequence[int],
    token_budget: int,
    *,
    is_sorted: bool = True,
    shortest_share: float = 0.0,
    counts_padding: bool = True,
) -> list[list[int]]:
    """The numbers of sequences, by micro-batch. A micro-batch has at most `token_budget` tokens; with
    `counts_padding` that counts every sequence as long as the longest. A sequence beyond the budget is a
    micro-batch of its own. The longest sequences come first, or all stay in the given order. A sequence
    shorter than `shortest_share` of the longest one before it in its micro-batch starts the next micro-batch.
    """
    numbers = range(len(lengths))
    order = sorted(numbers, key=lambda number: -lengths[number]) if is_sorted else numbers
    cut: list[list[int]] = []
    longest = num_tokens = 0
    for number in order:
        length = lengths[number]
        longest, num_tokens = max(longest, length), num_tokens + length
        size = (len(cut[-1]) + 1) * longest if cut and counts_padding else num_tokens
        if cut and size <= token_budget and length >= shortest_share * longest:
            cut[-1].append(number)
        else:
            cut.append([number])
            longest = num_tokens = length
    return cut


class _Drawn(NamedTuple):
    """Sequences, one after another, before they are sorted and cut into micro-batches."""

    ids_T: Tensor
    is_selected_T: Tensor  # True at the positions to learn from
    lengths_B: np.ndarray


class Corpus:
    """A text cut into training and held-out sequences, and the updates that are made of them."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        """Raises ValueError for files that are missing, empty or not UTF-8, or without one whole sequence."""
        with distributed.rank_zero_first():
            self.text = encode_corpus(config, tokenizer)
        self.digest = self.text.digest  # of the content of the files
        self.max_length = config.max_length
        self.heldout_share = config.heldout_share
        is_heldout_L = heldout_lines(len(self.text.line_stops), config.heldout_share)
        make_index = {"pairs": index_pairs, "packed": index_packed}[config.sequence_mode]
        self.index = make_index(self.text, is_heldout_L, config.max_length)
        is_heldout = is_heldout_L[self.index.lines_S]
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

    def leak(self, other: str, digest: str, heldout_share: float) -> str:
        """How the held-out lines of another run (`other` is its name) differ from those of this corpus: one
        sentence, or "" if both are the same. `digest` is that of the other run's text; "" is not compared.
        """
        if digest not in ("", self.digest):
            return f"{other} read another text, which may contain lines that are held out here"
        num_lines = len(self.text.line_stops)
        if number := num_leaking_lines(num_lines, self.heldout_share, heldout_share):
            return f"{other} was trained on {number} lines that are held out here (--heldout-share)"
        if number := num_leaking_lines(num_lines, heldout_share, self.heldout_share):
            return f"{other} holds out {number} lines that are trained on here (--heldout-share)"
        return ""

    def num_words(self, num_sequences: int, seed: int) -> int:
        """The words of the first `num_sequences` sequences that a run reads, repeats counted."""
        num_epochs, rest = divmod(num_sequences, len(self.training))
        last = self._epoch(seed, num_epochs)[:rest]
        return num_epochs * self._words_of(self.training) + self._words_of(last)

    def num_sequences_within(self, words: int, seed: int) -> int:
        """How many sequences a run can read from its first one on without exceeding so many words."""
        num_epochs, rest = divmod(words, self._words_of(self.training))
        words_read = self.index.words_S[self._epoch(seed, num_epochs)].cumsum()
        return num_epochs * len(self.training) + int(np.searchsorted(words_read, rest, "right"))

    def _words_of(self, sequences: np.ndarray) -> int:
        return int(self.index.words_S[sequences].sum())

    @functools.lru_cache(maxsize=2)  # noqa: B019 -- a corpus lives as long as its process
    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The training sequences in the order of an epoch."""
        return np.random.default_rng(seed_for("order", seed, epoch)).permutation(self.training)

    def update(
        self,
        step: int,
        batch_size: int,
        token_budget: int,
        selection: Selection,
        seed: int,
        *,
        counts_padding: bool = True,
        longest: int | None = None,
    ) -> Update:
        """Update number `step` of a run. Sequences of more than `longest` tokens are split. Raises ValueError
        if the corpus is smaller than an update.
        """
        size = len(self.training)
        if batch_size > size:
            raise ValueError(
                f"an update needs {batch_size} sequences, the corpus has {size}: lower --batch-size"
            )
        epoch, first = divmod(step * batch_size, size)
        rest = max(0, first + batch_size - size)  # from the next epoch
        parts = self._epoch(seed, epoch)[first : first + batch_size], self._epoch(seed, epoch + 1)[:rest]
        generator = generator_for("mask", seed, step)
        sequences = np.concatenate(parts)
        return self.cut(
            sequences, token_budget, selection, generator, counts_padding=counts_padding, longest=longest
        )

    def heldout_update(self, token_budget: int, selection: Selection, seed: int) -> Update:
        """All held-out sequences with one fixed choice of positions. Raises ValueError if there are none."""
        if not len(self.heldout):
            raise ValueError("no text was held out: the corpus is too small for --heldout-share, or it is 0")
        return self.cut(self.heldout, token_budget, selection, generator_for("heldout mask", seed))

    def cut(
        self,
        sequences: np.ndarray,
        token_budget: int,
        selection: Selection,
        generator: torch.Generator,
        *,
        counts_padding: bool = True,
        longest: int | None = None,
    ) -> Update:
        """Split the sequences of more than `longest` tokens, sort them by length, and cut them by
        `cut_by_token_budget`.

        Positions are drawn before sorting, so they do not depend on the budget.
        """
        ids_T, is_selected_T, lengths_B = self._read(sequences, selection.share, generator, longest)
        first_B = lengths_B.cumsum() - lengths_B
        micro_batches = []
        for numbers in cut_by_token_budget(lengths_B.tolist(), token_budget, counts_padding=counts_padding):
            at_T = torch.from_numpy(slice_positions(first_B[numbers], lengths_B[numbers]))
            text = Sequences.split(ids_T.index_select(0, at_T), lengths_B[numbers])
            micro_batches.append(MicroBatch.of(text, is_selected_T.index_select(0, at_T), selection))
        return Update(
            micro_batches,
            num_selected=sum(len(m.selected_N) for m in micro_batches),
            num_tokens=len(ids_T),
            num_words=self._words_of(sequences),
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
        so consecutive positions are always a fair sample.
        """
        num_sequences = max(1, token_budget // self.max_length)
        for part in parts:
            order = part[torch.randperm(len(part), generator=generator).numpy()]
            for first in range(0, len(order), num_sequences):
                drawn = self._read(order[first : first + num_sequences], selection.share, generator)
                text = Sequences.split(drawn.ids_T, drawn.lengths_B)
                micro = MicroBatch.of(text, drawn.is_selected_T, selection)
                num_words = self._words_of(order[first : first + num_sequences])
                yield micro._replace(selected_N=micro.selected_N[:num_selected], num_words=num_words)
                num_selected -= len(micro.selected_N)
                if num_selected <= 0:
                    return

    def _read(
        self, sequences: np.ndarray, share: float, generator: torch.Generator, longest: int | None = None
    ) -> _Drawn:
        """The sequences in the given order, or their parts, with positions to learn from."""
        starts_B, stops_B = self.index.starts_S[sequences], self.index.stops_S[sequences]
        if longest is not None:
            starts_B, stops_B = split_slices(starts_B, stops_B, longest - 1)
        lengths_B = stops_B - starts_B + 1  # with [CLS]
        # The token before a slice is read, too, to be replaced by [CLS].
        at_T = slice_positions(starts_B - 1, lengths_B)
        ids_T = np.asarray(self.text.ids)[at_T].astype(np.int64)
        last_B = lengths_B.cumsum() - 1
        ids_T[last_B - lengths_B + 1], ids_T[last_B] = CLS_ID, SEP_ID
        ids = torch.from_numpy(ids_T)
        return _Drawn(ids, select(ids, share, generator), lengths_B)
