"""Tagged text, read as micro-batches with the tag of every selected token.

Two forms: a word, a tab and its tag a line, with an empty line after each sentence; or a sentence per line of
word/tag. Pieces of a word have its tag. A word is segmented by itself: no piece reaches over a space, so that
is how it is segmented in its sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlsm.seeds import generator_for
from mlsm.text.batches import MicroBatch, Selection, cut_by_token_budget
from mlsm.text.masking import select
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

SHOWN_CHARACTERS = 40  # of a line that is wrong


class Tagged(NamedTuple):
    """Micro-batches, and what their selected tokens are tagged with."""

    micro_batches: list[MicroBatch]
    labels_N: np.ndarray  # indices into names
    names: list[str]


def read_tagged(
    path: Path, tokenizer: Tokenizer, selection: Selection, *, longest: int, token_budget: int, seed: int
) -> Tagged:
    """Sentences of a file in its order, cut at `longest` tokens. Raises ValueError naming what is wrong."""
    numbers: dict[str, int] = {}
    rows, labels = [], []
    for sentence in _sentences(path):
        ids, tags = [CLS_ID], [0]  # the two ends are never selected
        for word, tag in sentence:
            pieces = tokenizer.encode(word)
            ids += pieces
            tags += [numbers.setdefault(tag, len(numbers))] * len(pieces)
        rows.append(torch.tensor([*ids[: longest - 1], SEP_ID]))
        labels.append(torch.tensor([*tags[: longest - 1], 0]))
    if not rows:
        raise ValueError(f"{path} has no tagged word")
    generator = generator_for("tagged positions", seed)
    selected = [select(row, selection.share, generator) for row in rows]
    micro_batches, chosen = [], []
    for these in cut_by_token_budget([len(row) for row in rows], token_budget, is_sorted=False):
        micro_batches.append(MicroBatch.of([rows[i] for i in these], [selected[i] for i in these], selection))
        chosen += [labels[i][selected[i]] for i in these]
    return Tagged(micro_batches, torch.cat(chosen).numpy(), list(numbers))


def _sentences(path: Path) -> Iterator[list[tuple[str, str]]]:
    """(word, tag) pairs, a sentence at a time."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert the file") from None
    except OSError as error:
        raise ValueError(f"no tagged file at {path} ({error.strerror})") from None
    is_vertical = "\t" in text
    sentence: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        for item in [line] if is_vertical and line.strip() else line.split():
            word, mark, tag = item.partition("\t") if is_vertical else item.rpartition("/")
            word, tag = word.strip(), tag.strip()
            if not (mark and word and tag) or "\t" in tag:
                raise ValueError(
                    f"{path}, line {number}: {item[:SHOWN_CHARACTERS]!r} is neither a word, a tab and its "
                    "tag nor word/tag"
                )
            sentence.append((word, tag))
        if sentence and not (is_vertical and line.strip()):
            yield sentence
            sentence = []
    if sentence:
        yield sentence
