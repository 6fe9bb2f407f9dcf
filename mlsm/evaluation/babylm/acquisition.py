"""Age of acquisition of BabyLM 2026: the surprisal of children's words in contexts, at every checkpoint.

The surprisal of a word is the negative sum of log p, in nats, over its tokens, each masked alone. The context
stands before the word and nothing after it. The organisers' pipeline fits a curve to the surprisals of a word
over the checkpoints, and compares the words seen when it is half learnt with the age at which half of the
children say it (Chang and Bergen 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from mlsm.evaluation.babylm.choices import encode, score_items
from mlsm.evaluation.babylm.formats import Candidate
from mlsm.files import read_json
from mlsm.model.language_model import LanguageModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


class Occurrence(NamedTuple):
    """A word in one of its contexts."""

    word: str
    number: int  # of the context among those of the word, from 0
    context: str

    @property
    def candidate(self) -> Candidate:
        """The text, of which the word is scored."""
        word = self.word.strip()
        return Candidate(f"{self.context.strip()} {word}", word)


def read_occurrences(path: Path) -> list[Occurrence]:
    """The words of cdi_childes.json with their contexts; words of one letter are left out. Raises ValueError
    naming the file and the word of what cannot be used.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path} must be an object with lists of contexts by word")
    found = []
    for word, contexts in values.items():
        if not isinstance(contexts, list) or not all(
            isinstance(row, dict) and isinstance(row.get("context"), str) for row in contexts
        ):
            raise ValueError(f'{path}, word {word!r}: it must have a list such as [{{"context": "I see a"}}]')
        if len(word) > 1:
            found += [Occurrence(word, number, row["context"]) for number, row in enumerate(contexts)]
    return found


def surprisals(
    model: LanguageModel,
    tokenizer: FastTokenizer,
    occurrences: Sequence[Occurrence],
    token_budget: int,
    bar: tqdm | None = None,
) -> list[float]:
    """The surprisal of each word in its context, in nats; `bar` counts their tokens.

    Raises ValueError naming the word of a context that is too long.
    """
    texts = [encode(tokenizer, occurrence.candidate) for occurrence in occurrences]
    for occurrence, text in zip(occurrences, texts, strict=True):
        if len(text.ids) > model.config.max_positions:
            raise ValueError(
                f"word {occurrence.word!r}, context {occurrence.number}: {len(text.ids)} tokens, the model "
                f"reads {model.config.max_positions} at most"
            )
    if bar is not None:
        bar.reset(sum(len(text.scored) for text in texts))
    return [-score.total for [score] in score_items(model, [[text] for text in texts], token_budget, bar)]
