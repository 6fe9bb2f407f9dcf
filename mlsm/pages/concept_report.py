"""The report on concepts: what the page shows, the figures draw and concepts.json holds.

Lists have an entry for each concept unless they say otherwise. Texts are printable, because they come from
the corpus. Shares, cosines and bits are rounded to three digits, which keeps the page small.

Legend: N positions, K concepts, J concepts of another dictionary, V token types, D width of the teacher's
states, L tokens of a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mlsm.evaluation.tables import Cell, Rows, printable
from mlsm.pages import concept_use as use
from mlsm.pages.concept_reading import Reading, Sentence
from mlsm.seeds import seed_for
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

NUM_TOKENS, NUM_NEIGHBOURS = 12, 5  # listed for each concept
NUM_STRONGEST, NUM_TYPICAL = 5, 3  # contexts listed for each concept
NUM_TOKEN_CONCEPTS = 6  # listed for each token type
CONTEXT_TOKENS = 10  # on each side
NUM_SHUFFLES = 3
LEAST_SHARE = 0.005  # of an item that is listed
SENTENCE_CONCEPTS, FEWEST_CONCEPTS = 40, 3  # columns of the heat map of a sentence: at most, at least
LEAST_PEAK = 0.03  # largest weight in the sentence of a concept with a column
SENTENCE_STRONGEST = 4  # concepts listed for each token of a sentence
SAME_ATOM = 0.9  # cosine of two atoms that count as the same
TOKENS_PER_BLOCK = 4096

MEANINGS = {
    "concepts used": "concepts with weight anywhere in the text",
    "dead concepts": "concepts without weight in the text",
    "dense concepts": f"concepts used at more than {use.DENSE_ACTIVITY:.0%} of the positions",
    "concepts per token": "mean number of concepts at a position; of a student, those with 1 % or more",
    "effective concepts": "2 to the entropy of the shares: so many concepts of equal use have that entropy",
    "weight counted": "mean weight of a position in the concepts counted; a student's predictions below 1 % "
    "are not counted",
    "bits about the token": "mutual information of concept and token, minus that with shuffled tokens",
    "bits by chance": "mutual information of concept and shuffled tokens",
    "share of the token's bits": "bits about the token as a share of the largest possible value; 1: the "
    "concept determines the token, 0: it says nothing about the token",
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
    """A position that uses a concept, and the text around it."""

    before: str
    token: str
    after: str
    weight: float
    is_drawn: bool  # at random by weight; otherwise it is one of the strongest


@dataclass(frozen=True)
class ConceptUse:
    """What one reader, the teacher or the student, uses each concept for."""

    share: list[float]  # of all weight
    active: list[float]  # share of the positions
    entropy: list[float]  # over token types, bits
    bits: list[float]  # information about the token, beyond chance
    tokens: list[Listed]  # token types by their share of the concept
    near: list[Listed]  # concepts by the cosine of their tokens
    contexts: list[list[Context]]
    token_concepts: list[Listed]  # for each token type, concepts by their share of its weight


@dataclass(frozen=True)
class SentenceConcepts:
    """The concepts of a text that the user gave."""

    tokens: list[str]
    concepts: list[int]  # columns of the heat map
    weights: dict[str, list[list[float]]]  # for each reader the heat map, a row for each token
    strongest: dict[str, list[Listed]]  # for each reader and token


@dataclass(frozen=True)
class ConceptReport:
    """Everything about the concepts of a run in a text."""

    about: About
    tables: dict[str, Table]  # by title
    pieces: list[str]  # token types
    counts: list[int]  # of the token types in the text
    sources: dict[str, ConceptUse]  # of "teacher", "student" or both
    near_atoms: list[Listed] | None  # concepts by the cosine of their atoms; None without a dictionary
    shared: list[float] | None  # share of the teacher's weight that the student gives it too
    again: Listed | None  # partner in another dictionary (-1: none) and its cosine
    sentence: SentenceConcepts | None

    def to_json(self) -> str:
        """Compact JSON without "<", so that it can be embedded in a page."""
        content = vars(self) | {"meanings": MEANINGS}
        text = json.dumps(content, default=vars, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")

    def by_share(self, reader: str) -> list[int]:
        """The concepts in decreasing order of their share of the reader's weight."""
        share = self.sources[reader].share
        return sorted(range(len(share)), key=lambda k: -share[k])


def build_report(
    reading: Reading,
    tokenizer: Tokenizer,
    about: About,
    bar: tqdm,
    *,
    atoms_KD: np.ndarray | None = None,
    others_JD: np.ndarray | None = None,
    sentence: Sentence | None = None,
) -> ConceptReport:
    """The report of a reading; with `others_JD` also a comparison of two dictionaries. The bar is updated
    once for each reader.
    """
    types_V, labels_N, counts_V = np.unique(reading.ids_N, return_inverse=True, return_counts=True)
    sources, measures = {}, {}
    for reader, codes in reading.codes.items():
        generator = np.random.default_rng(seed_for("concept statistics", about.seed))
        sources[reader], measures[reader] = _use(reading, codes, labels_N, counts_V, tokenizer, generator)
        bar.update()
    tables = {"Use": _table(measures)}
    if agreement := reading.agreement:
        tables["Agreement with the teacher"] = _table(
            {
                "student": {
                    "KL": agreement.kl,
                    "overlap": agreement.overlap,
                    "weight shared": agreement.shared,
                },
                "mean code": {"KL": agreement.constant_kl, "overlap": agreement.constant_overlap},
            }
        )
    again = None
    if atoms_KD is not None and others_JD is not None:
        generator = np.random.default_rng(seed_for("lookalikes", about.seed))
        matching = use.match(atoms_KD, others_JD)
        chance = use.match(atoms_KD, use.random_atoms_like(others_JD, generator))
        columns = {"other dictionary": _match_measures(matching), "chance": _match_measures(chance)}
        tables["Stability"] = _table(columns)
        again = [*zip(matching.partner_K.tolist(), _rounded(matching.cosine_K), strict=True)]
    return ConceptReport(
        about,
        tables,
        [printable(tokenizer.piece(int(i))) for i in types_V],
        counts_V.tolist(),
        sources,
        None if atoms_KD is None else _listed(use.nearest(atoms_KD, NUM_NEIGHBOURS), 0.0),
        _rounded(agreement.shared_K) if agreement else None,
        again,
        _sentence_concepts(sentence, tokenizer) if sentence else None,
    )


def _use(
    reading: Reading,
    codes: use.Codes,
    labels_N: np.ndarray,
    counts_V: np.ndarray,
    tokenizer: Tokenizer,
    generator: np.random.Generator,
) -> tuple[ConceptUse, dict[str, float]]:
    """What a reader uses concepts for, and the measures of it."""
    usage, profile_KV = use.usage(codes), use.profile(codes, labels_N, len(counts_V))
    measured = use.information(profile_KV, counts_V)
    chance = use.shuffled_information(codes, labels_N, len(counts_V), generator, num_shuffles=NUM_SHUFFLES)
    token_concepts: list[Listed] = []
    for first in range(0, len(counts_V), TOKENS_PER_BLOCK):
        block_VK = np.ascontiguousarray(profile_KV[:, first : first + TOKENS_PER_BLOCK].T)
        token_concepts += _listed(use.largest(use.in_shares(block_VK), NUM_TOKEN_CONCEPTS))
    concept_use = ConceptUse(
        share=_rounded(usage.share_K, 6),
        active=_rounded(usage.activity_K, 6),
        entropy=_rounded(measured.entropy_K),
        bits=_rounded(measured.bits_K - chance.bits_K),
        tokens=_listed(use.largest(use.in_shares(profile_KV), NUM_TOKENS)),
        near=_listed(use.nearest(profile_KV, NUM_NEIGHBOURS)),
        contexts=_contexts(reading, codes, tokenizer, generator),
        token_concepts=token_concepts,
    )
    num_used = int((usage.activity_K > 0).sum())
    return concept_use, {
        "concepts used": num_used,
        "dead concepts": codes.num_concepts - num_used,
        "dense concepts": int((usage.activity_K > use.DENSE_ACTIVITY).sum()),
        "concepts per token": usage.concepts_per_position,
        "effective concepts": usage.effective_concepts,
        "bits about the token": measured.bits - chance.bits,
        "bits by chance": chance.bits,
        "share of the token's bits": use.adjusted(measured, chance),
        "weight counted": usage.weight_per_position,
    }


def _match_measures(matching: use.Matching) -> dict[str, float]:
    return {
        "mean cosine": float(matching.cosine_K.mean()),
        "found again": float((matching.cosine_K >= SAME_ATOM).mean()),
        "mutually nearest": matching.mutual_share,
    }


def _table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Values by measure and column, from values by column and measure."""
    measures = dict.fromkeys(measure for column in columns.values() for measure in column)
    return {
        measure: {name: column[measure] for name, column in columns.items() if measure in column}
        for measure in measures
    }


def _sentence_concepts(sentence: Sentence, tokenizer: Tokenizer) -> SentenceConcepts:
    """The concepts of the largest weight in the sentence, ordered by the token where they are strongest."""
    strength_LK = np.max(list(sentence.weights.values()), axis=0)
    peak_K = strength_LK.max(0)
    order = np.argsort(-peak_K, kind="stable")[:SENTENCE_CONCEPTS].tolist()
    chosen = [k for rank, k in enumerate(order) if rank < FEWEST_CONCEPTS or peak_K[k] >= LEAST_PEAK]
    chosen.sort(key=lambda k: (int(strength_LK[:, k].argmax()), -peak_K[k]))
    weights = sentence.weights.items()
    return SentenceConcepts(
        [printable(tokenizer.piece(i)) for i in sentence.ids],
        chosen,
        {reader: _rounded(weights_LK[:, chosen]) for reader, weights_LK in weights},
        {reader: _listed(use.largest(weights_LK, SENTENCE_STRONGEST)) for reader, weights_LK in weights},
    )


def _contexts(
    reading: Reading, codes: use.Codes, tokenizer: Tokenizer, generator: np.random.Generator
) -> list[list[Context]]:
    """For each concept the strongest positions, and then some drawn by weight."""
    sequences_N = reading.sequences_N
    bounds = np.append(reading.sequence_starts, len(reading.ids_T))
    pieces = {int(i): printable(tokenizer.piece(int(i))).replace("▁", " ") for i in np.unique(reading.ids_T)}
    pieces |= {CLS_ID: "", SEP_ID: " ¶"}

    def text(start: int, stop: int) -> str:
        return "".join(pieces[i] for i in reading.ids_T[start:stop].tolist())

    def context(entry: int, is_drawn: bool) -> Context:
        position = codes.positions_M[entry]
        place, sequence = int(reading.places_N[position]), int(sequences_N[position])
        before = text(max(place - CONTEXT_TOKENS, int(bounds[sequence - 1])), place)
        token = text(place, place + 1)
        after = text(place + 1, min(place + 1 + CONTEXT_TOKENS, int(bounds[sequence])))
        space = " " if token.startswith(" ") else ""
        weight = round(float(codes.weights_M[entry]), 3)
        return Context(
            before.lstrip(" ¶") + space, token.lstrip(), after.removesuffix(" ¶"), weight, is_drawn
        )

    contexts = []
    for concept in range(codes.num_concepts):
        strongest = use.strongest(codes, sequences_N, concept, NUM_STRONGEST)
        typical = [i for i in use.typical(codes, concept, NUM_TYPICAL, generator) if i not in strongest]
        contexts.append([*(context(i, False) for i in strongest), *(context(i, True) for i in typical)])
    return contexts


def concept_rows(report: ConceptReport, reader: str, count: int) -> Rows:
    """The concepts of the largest share, as rows of a table."""
    columns = report.sources[reader]
    rows: dict[str, dict[str, Cell | str]] = {}
    for k in report.by_share(reader)[:count]:
        row = rows[f"#{k}"] = {
            "share %": 100 * columns.share[k],
            "active %": 100 * columns.active[k],
            "entropy": columns.entropy[k],
            "bits": columns.bits[k],
        }
        if report.shared:
            row["shared"] = report.shared[k]
        if report.again:
            row["again"] = report.again[k][1]
        row["tokens"] = " ".join(f"{report.pieces[i]} {share:.0%}" for i, share in columns.tokens[k][:6])
    return rows


def sentence_rows(sentence: SentenceConcepts) -> Rows:
    """The strongest concepts of each token of the sentence, as rows of a table."""
    return {
        f"{place + 1} {token}": {
            reader: "  ".join(f"#{k} {share:.0%}" for k, share in listed[place])
            for reader, listed in sentence.strongest.items()
        }
        for place, token in enumerate(sentence.tokens)
    }


def _listed(listing: use.Listing, least: float = LEAST_SHARE) -> list[Listed]:
    """For each row the items with values above 0 and not below `least`."""
    return [
        [(item, value) for item, value in zip(items, values, strict=True) if value > 0 and value >= least]
        for items, values in zip(listing.items.tolist(), _rounded(listing.values), strict=True)
    ]


def _rounded(values: np.ndarray, digits: int = 3) -> list:
    """Nested lists of Python numbers."""
    return np.round(values.astype(np.float64), digits).tolist()
