"""The concepts of a model one by one: their words, their contexts in the text, and the concepts near them.

They come from the report that `python -m mlsm.concepts` writes. The first question for one of them reads the
text of the run, which takes a minute or more, and keeps the report in the run's directory.
"""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from mlsm.pages.concept_report import ConceptReport, Context
from mlsm.pages.concept_source import ConceptSource


class ConceptContext(NamedTuple):
    """A place in the text that uses a concept."""

    text: str  # whole words around the token
    start: int  # of the token in the text, in characters
    stop: int
    weight: float  # of the concept at the token
    is_drawn: bool  # at random by weight; otherwise it is one of the strongest


@dataclass(frozen=True)
class Concept:
    """A concept, what its model uses it for, and its neighbours."""

    number: int
    label: str  # the words that tell most about it; "" if nothing in the text uses it
    interest: float  # bits, see mlsm/pages/concept_order.py
    share: float  # of the weight of all concepts
    tokens: list[tuple[str, float]] = field(repr=False)  # pieces and their shares of the concept
    contexts: list[ConceptContext] = field(repr=False)
    nearest: list[tuple[int, float]] = field(repr=False)  # concepts by cosine: of atoms, or else of tokens
    alike: list[int] = field(repr=False)  # its near-duplicates


class ConceptDictionary:
    """All concepts of a model, as its teacher's codes or the student's own predictions use them."""

    def __init__(self, source: ConceptSource) -> None:
        """The concepts of the run of a source."""
        self._source = source

    def __repr__(self) -> str:
        origin = self._source.dictionary or self._source.record.concepts
        assert origin is not None
        return f"{len(self)} concepts of layer {origin.layer}, lambda {origin.lam:g}, of {self._source.run}"

    def __len__(self) -> int:
        """The number of concepts."""
        return self._source.num_concepts

    @property
    def atoms_DK(self) -> Tensor:
        """The atoms, one in each column, of norm 1 at most. Raises ValueError for a student whose teacher's
        dictionary is gone.
        """
        if self._source.dictionary is None:
            raise ValueError(f"the dictionary that {self._source.run} learnt from is gone")
        return self._source.dictionary.atoms_DK

    @cached_property
    def report(self) -> ConceptReport:
        """All statistics, as concepts.json has them. Raises ValueError for a text that cannot be read."""
        folder = self._source.run
        return self._source.report(folder if os.access(folder, os.W_OK) else None)

    def by_interest(self) -> list[int]:
        """The most interesting concept of each group of near-duplicates, in decreasing order."""
        return self.report.by_interest(self._reader)

    def concept(self, number: int) -> Concept:
        """A concept by its number. Raises TypeError for what is no int, IndexError if there is none."""
        number = check_concept(number, len(self))
        report, use = self.report, self.report.sources[self._reader]
        near = use.near if report.near_atoms is None else report.near_atoms
        leader = use.leader[number]
        return Concept(
            number,
            report.label(self._reader, number),
            use.interest[number],
            use.share[number],
            [(report.pieces[i], share) for i, share in use.tokens[number]],
            [self._context(context) for context in use.contexts[number]],
            list(near[number]),
            [k for k, other in enumerate(use.leader) if other == leader and k != number],
        )

    @property
    def _reader(self) -> str:
        return list(self.report.sources)[-1]

    def _context(self, context: Context) -> ConceptContext:
        texts = self.report.context_texts(context)
        texts[0] = texts[0].lstrip()
        place = context.place - context.start
        stop = len("".join(texts[: place + 1]))
        start = stop - len(texts[place].lstrip())
        weight = dict(context.weights)[context.place]
        return ConceptContext("".join(texts), start, stop, weight, context.is_drawn)


def check_concept(number: object, num_concepts: int) -> int:
    """The number of a concept. Raises TypeError for what is no int, and IndexError if there is none."""
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"a concept is an int, got {number!r}")
    index = operator.index(number)
    if not 0 <= index < num_concepts:
        raise IndexError(f"there is no concept {index}: they are 0 to {num_concepts - 1}")
    return index
