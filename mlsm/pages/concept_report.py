"""The report on concepts: what the page shows, the figures draw and concepts.json holds.

Lists have an entry for each concept unless they say otherwise. Texts are printable, because they come from
the corpus. Shares, cosines and bits are rounded to three digits, which keeps the page small.

Legend: N positions of the text, T tokens of a sequence, K concepts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from mlsm.coding.statistics import DENSE_ACTIVITY
from mlsm.evaluation.tables import Rows
from mlsm.pages.concept_order import DUPLICATE_COSINE

ROW_CONCEPTS = 4  # listed for each token of a sentence
SAME_ATOM = 0.9  # cosine of two atoms that count as the same

MEANINGS = {
    "concepts used": "concepts with weight anywhere in the text",
    "dead concepts": "concepts without weight in the text",
    "dense concepts": f"concepts used at more than {DENSE_ACTIVITY:.0%} of the positions",
    "groups": f"used concepts, counting near-duplicates once: atoms or weights of cosine {DUPLICATE_COSINE}",
    "concepts per token": "mean number of concepts at a position; of a student, those with 1 % or more",
    "effective concepts": "2 to the entropy of the shares: so many concepts of equal use have that entropy",
    "weight counted": "mean weight of a position in its concepts; a student's below 1 % do not count",
    "bits about the token": "mutual information of concept and token, minus that with shuffled tokens",
    "bits by chance": "mutual information of concept and shuffled tokens",
    "share of the token's bits": "of the bits that determine the token; 1: all, 0: none beyond chance",
    "variance explained": "1 - |X - DA|^2 / |X - mean|^2 of hidden states X of norm 1 and their codes A",
    "energy explained": "1 - |X - DA|^2 / |X|^2",
    "loss recovered": "of masked words with D A instead of X in the teacher; 1: as good as X, 0: as zeros",
    "KL recovered": "the same for KL(prediction with X || prediction with replaced states)",
    "cross-entropy": "of the masked words of held-out text, predicted by the teacher; nats",
    "KL": "KL(teacher || student), nats per position; 0 is perfect",
    "overlap": "share of the teacher's five strongest concepts that are among the student's five strongest",
    "weight shared": "weight that both give to the same concepts; 1 is perfect",
    "mean cosine": "of each atom and its partner in the other dictionary, paired one to one, closest first",
    "found again": f"share of the atoms whose partner has a cosine of {SAME_ATOM} or more",
    "mutually nearest": "share of the atoms that are the nearest atom of their nearest atom",
}

Listed = list[tuple[int, float]]  # items and their values, in decreasing order
Table = dict[str, dict[str, float]]  # values by measure and column


@dataclass(frozen=True)
class About:
    """What was read."""

    run: str
    corpus: list[str]
    layer: int
    lam: float
    k: int  # number of concepts
    seed: int
    positions: int
    types: int  # different tokens at these positions


class Context(NamedTuple):
    """A position that uses a concept, and the words around it."""

    sequence: int  # in `ConceptReport.sequences`
    start: int  # of the words that are shown, in the sequence
    stop: int
    place: int  # of the position, in the sequence
    weights: Listed  # of the concept at the places that are shown, without zeros, in their order
    is_drawn: bool  # at random by weight; otherwise it is one of the strongest


@dataclass(frozen=True)
class ConceptUse:
    """What one reader, the teacher or the student, uses each concept for."""

    share: list[float]  # of all weight
    active: list[float]  # share of the positions
    entropy: list[float]  # over token types, bits
    bits: list[float]  # information about the token, beyond chance
    interest: list[float]  # see `mlsm.pages.concept_order`
    leader: list[int]  # the most interesting of a group of near-duplicates
    labels: list[list[int]]  # the token types that tell most about a concept
    tokens: list[Listed]  # token types by their share of the concept
    near: list[Listed]  # concepts by the cosine of their tokens
    contexts: list[list[Context]]
    token_concepts: list[Listed]  # for each token type, concepts by their share of its weight


@dataclass(frozen=True)
class SentenceConcepts:
    """The concepts of each token of a text that the user gave."""

    tokens: list[str]
    weights: dict[str, list[Listed]]  # for each reader and token the strongest concepts

    def to_json(self) -> str:
        """Compact JSON without "<"."""
        return _compact(vars(self))


@dataclass(frozen=True)
class ConceptReport:
    """Everything about the concepts of a run in a text."""

    about: About
    tables: dict[str, Table]  # by title
    pieces: list[str]  # token types
    counts: list[int]  # of the token types, at the positions that were read
    sequences: list[list[int]]  # token types of the sequences that contexts are from
    sources: dict[str, ConceptUse]  # of "teacher", "student" or both
    places: list[tuple[float, float]]  # of the concepts on a map
    near_atoms: list[Listed] | None  # concepts by the cosine of their atoms; None without a dictionary
    shared: list[float] | None  # share of the teacher's weight that the student gives it too
    again: Listed | None  # partner in another dictionary (-1: none) and its cosine

    def to_json(self, sentence: SentenceConcepts | None = None, *, is_served: bool = False) -> str:
        """Compact JSON without "<", so that it can be embedded in a page."""
        return _compact(vars(self) | {"meanings": MEANINGS, "sentence": sentence, "served": is_served})

    def by_interest(self, reader: str) -> list[int]:
        """The most interesting concept of each group of near-duplicates, in decreasing order."""
        source = self.sources[reader]
        return sorted(set(source.leader), key=lambda k: (-source.interest[k], -source.share[k], k))

    def label(self, reader: str, concept: int, num_words: int | None = None) -> str:
        """The words that tell most about a concept, or the first of them; "" for a concept without use."""
        types = self.sources[reader].labels[concept][:num_words]
        return " ".join(self.pieces[i].replace("▁", " ").strip() or "▁" for i in types)

    def context_texts(self, context: Context) -> list[str]:
        """The text of each token that a context shows, with the space before a word."""
        return [
            self.pieces[i].replace("▁", " ")
            for i in self.sequences[context.sequence][context.start : context.stop]
        ]


def _compact(content: dict[str, object]) -> str:
    text = json.dumps(content, default=vars, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def concept_rows(report: ConceptReport, reader: str, count: int) -> Rows:
    """The most interesting concepts, one of each group, as rows of a table."""
    columns, shared, again = report.sources[reader], report.shared, report.again
    return {
        f"#{k}": {
            "interest": columns.interest[k],
            "alike": columns.leader.count(k),
            "share %": 100 * columns.share[k],
            "entropy": columns.entropy[k],
            "bits": columns.bits[k],
            **({"shared": shared[k]} if shared else {}),
            **({"again": again[k][1]} if again else {}),
            "tokens": " ".join(f"{report.pieces[i]} {share:.0%}" for i, share in columns.tokens[k][:6]),
        }
        for k in report.by_interest(reader)[:count]
    }


def sentence_rows(report: ConceptReport, sentence: SentenceConcepts) -> Rows:
    """The strongest concepts of each token of the sentence, each with the first word of its label."""
    return {
        f"{place + 1} {token}": {
            reader: "  ".join(
                f"#{k} {report.label(reader, k, 1)} {share:.0%}" for k, share in listed[place][:ROW_CONCEPTS]
            )
            for reader, listed in sentence.weights.items()
        }
        for place, token in enumerate(sentence.tokens)
    }
