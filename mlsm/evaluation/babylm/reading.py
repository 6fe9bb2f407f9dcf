"""Reading times of BabyLM 2026: how much the surprisal of a word adds to a prediction of its reading time.

The surprisal of a word after its context is -log p, in nats, where three masks follow the context and the
first one stands for the word (Samuel 2024). The probability of a word of several tokens is the product of
theirs. The organisers' pipeline goes from each token to its text and back: it appends the text of a token to
the context before it asks for the next one, and asks for the first token of the next one's text. Our
tokenizers decode a token without the blank before it, and encode a text with one. So the text of such a word
stands without a blank behind its context, and its inner pieces are asked for as if they began a word. The
same is done here, so that the numbers are those of the organisers.

The score is the share of the variance left by a baseline that the surprisal explains, in a linear regression
with interactions (de Varda et al. 2023): for four times of eye tracking, and for self-paced reading with the
word before.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mlsm.evaluation.pseudo_likelihood import Query, log_probabilities
from mlsm.files import read_text
from mlsm.model.language_model import LanguageModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

NUM_MASKS = 3
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
BASELINE = ("Subtlex_log10", "length", "context_length")
NUMBERS = (*EYE_TRACKING, SELF_PACED, *BASELINE, "prev_length")
# What pandas reads as a missing value, which the organisers' programs use.
MISSING = frozenset(
    ["#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"]
) | {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}


class Word(NamedTuple):
    """A word that was read, after its context."""

    line: int  # of its file
    context: str
    word: str
    before: tuple[str, str] | None  # the word before it after its own context; None: there is none
    numbers: Mapping[str, float]  # by the names in NUMBERS; nan where nothing was measured


class Surprisal(NamedTuple):
    """The surprisal of a word and of the one before it, in nats; nan where there is none."""

    word: float
    before: float


def read_words(path: Path) -> list[Word]:
    """The rows of reading_data.csv. Raises ValueError naming the file and the line of what cannot be used."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValueError(f"no file {path} ({error.strerror}): --data names the folder of the tasks") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    needed = ("item", "word", "prev_item", "prev_word", *NUMBERS)
    if absent := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path}, line 1: no column {', '.join(absent)}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return [_word(path, line, row) for line, row in rows]


def _word(path: Path, line: int, row: Mapping[str, str | None]) -> Word:
    texts = {name: "" if value in MISSING else value or "" for name, value in row.items()}
    if not texts["word"].strip():
        raise ValueError(f"{path}, line {line}: word is empty")
    try:
        numbers = {name: float(texts[name] or "nan") for name in NUMBERS}
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
    before = (texts["prev_item"], texts["prev_word"]) if texts["prev_item"] else None
    return Word(line, texts["item"] or "None", texts["word"], before, numbers)


def next_word_queries(tokenizer: FastTokenizer, context: str, word: str) -> Iterator[Query]:
    """A query for each token of a word that follows a context; from the second token on, by its text."""
    tokens = tokenizer.encode(word, add_special_tokens=False).ids
    for number, token in enumerate(tokens):
        text = tokenizer.decode([token], skip_special_tokens=False)
        wanted = tokenizer.encode(text, add_special_tokens=False).ids[0] if number else token
        ids = tokenizer.encode(context + "[MASK]" * NUM_MASKS).ids
        yield Query(tuple(ids), len(ids) - 1 - NUM_MASKS, wanted)
        context += text


def surprisals(
    model: LanguageModel,
    tokenizer: FastTokenizer,
    words: Sequence[Word],
    token_budget: int,
    bar: tqdm | None = None,
) -> list[Surprisal]:
    """The surprisal of each word; `bar` counts their tokens.

    Raises ValueError naming the line of a word without tokens or of a text that is too long.
    """
    longest = model.config.max_positions
    queries: list[list[Query]] = []
    for word in words:
        for context, text in ((word.context, word.word), word.before or ("", "")):
            these = list(next_word_queries(tokenizer, context, text))
            if text and not these:
                raise ValueError(f"reading data, line {word.line}: {text!r} has no tokens")
            if any(len(query.ids) > longest for query in these):
                raise ValueError(f"reading data, line {word.line}: more than {longest} tokens")
            queries.append(these)
    sizes = [len(these) for these in queries]
    if bar is not None:
        bar.reset(sum(sizes))
    values_N = log_probabilities(model, itertools.chain.from_iterable(queries), token_budget, bar).double()
    sums = [-float(part.sum()) if len(part) else math.nan for part in values_N.split(sizes)]
    return [Surprisal(word, before) for word, before in zip(sums[::2], sums[1::2], strict=True)]


class ReadingResult(NamedTuple):
    """The shares of the variance left by the baseline that surprisal explains."""

    eye_tracking: float  # mean over four times
    self_paced: float  # with the word before as part of the baseline


def explained(words: Sequence[Word], found: Sequence[Surprisal]) -> ReadingResult:
    """The scores of the surprisal of each word."""
    columns = {name: np.array([word.numbers[name] for word in words]) for name in NUMBERS}
    columns["pred"] = np.array([one.word for one in found])
    columns["prev_pred"] = np.array([one.before for one in found])
    return ReadingResult(
        statistics.fmean(_gain(columns, time, BASELINE) for time in EYE_TRACKING),
        _gain(columns, SELF_PACED, (*BASELINE, "prev_length", "prev_pred")),
    )


def _gain(columns: Mapping[str, NDArray[np.float64]], time: str, baseline: Sequence[str]) -> float:
    """(R2 with surprisal - R2 of the baseline) / (1 - R2 of the baseline), each on the rows that have all its
    columns.
    """
    products = [(name,) for name in baseline] + list(itertools.combinations(baseline, 2))
    without = _r_squared(columns, time, products)
    return (_r_squared(columns, time, [*products, ("pred",)]) - without) / (1 - without)


def _r_squared(
    columns: Mapping[str, NDArray[np.float64]], time: str, products: Sequence[tuple[str, ...]]
) -> float:
    """The share of the variance of `time` that a linear regression on products of columns explains."""
    names = [time, *dict.fromkeys(itertools.chain.from_iterable(products))]
    is_whole = ~np.isnan([columns[name] for name in names]).any(0)
    observed = columns[time][is_whole]
    features = [np.prod([columns[name][is_whole] for name in product], axis=0) for product in products]
    if len(observed) <= len(features) + 1:
        raise ValueError(
            f"reading data: {len(observed)} rows have {time}, too few for {len(features)} columns"
        )
    scaled = [(f - f.mean()) / (f.std() or 1.0) for f in features]
    design = np.column_stack([np.ones(len(observed)), *scaled])
    weights, *_ = np.linalg.lstsq(design, observed, rcond=None)
    residual, centred = observed - design @ weights, observed - observed.mean()
    return 1 - float(residual @ residual) / float(centred @ centred)
