"""From the concepts at the positions of a text to the report on them.

Legend: N positions, K concepts, J concepts of another dictionary, V token types, D width of the teacher's
states, L tokens of a sentence, T tokens of the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from mlsm.coding.statistics import DENSE_ACTIVITY, Statistics
from mlsm.log import printable
from mlsm.pages import concept_order
from mlsm.pages import concept_use as use
from mlsm.pages.concept_reading import Reading, Sentence
from mlsm.pages.concept_report import (
    SAME_ATOM,
    About,
    ConceptReport,
    ConceptUse,
    Context,
    Listed,
    SentenceConcepts,
    Table,
)
from mlsm.seeds import seed_for
from mlsm.text.tokenizer import SEP_ID, Tokenizer

NUM_TOKENS, NUM_NEIGHBOURS = 12, 5  # listed for each concept
NUM_STRONGEST, NUM_TYPICAL = 5, 3  # contexts listed for each concept
NUM_TOKEN_CONCEPTS = 6  # listed for each token type
NUM_LABELS = 3  # words of a label: those that add most to the concept's bits ...
LEAST_LABEL = 0.2  # ... at least this share of what the first word adds
CONTEXT_TOKENS = 12  # on each side, ...
LONGEST_WORD = 8  # ... and at most so many more, up to the border of a word
NUM_SHUFFLES = 3
LEAST_SHARE = 0.005  # of an item that is listed
SENTENCE_CONCEPTS = 12  # listed for each token of a sentence
TOKENS_PER_BLOCK = 4096


def build_report(
    reading: Reading,
    tokenizer: Tokenizer,
    about: About,
    bar: tqdm,
    *,
    statistics: Statistics | None = None,
    atoms_KD: np.ndarray | None = None,
    others_JD: np.ndarray | None = None,
) -> ConceptReport:
    """The report of a reading; with `statistics` also of the dictionary, and with `others_JD` also a
    comparison of two dictionaries. The bar is updated once for each reader.
    """
    types_V, types_T = np.unique(reading.ids_T, return_inverse=True)
    pieces = [printable(tokenizer.piece(int(i))) for i in types_V]
    pieces = ["▁¶" if i == SEP_ID else piece for i, piece in zip(types_V, pieces, strict=True)]
    labels_N = types_T[reading.places_N]
    counts_V = np.bincount(labels_N, minlength=len(types_V))
    pieces_T = [pieces[i] for i in types_T]
    sources, measures = {}, {}
    for reader, codes in reading.codes.items():
        generator = np.random.default_rng(seed_for("concept statistics", about.seed))
        profile_KV = use.profile(codes, labels_N, len(counts_V))
        contexts = _contexts(reading, codes, pieces_T, generator)
        similarity_KK = concept_order.co_use(codes)
        if atoms_KD is not None:
            unit_KD = use.unit_rows(atoms_KD)
            similarity_KK = np.maximum(similarity_KK, unit_KD @ unit_KD.T)
        chance = use.shuffled_information(
            codes, labels_N, len(counts_V), generator, num_shuffles=NUM_SHUFFLES
        )
        sources[reader], measures[reader] = _use(codes, profile_KV, counts_V, chance, similarity_KK, contexts)
        bar.update()
    tables = {"Use": _table(measures)}
    if statistics:
        tables["Dictionary"] = _table(_dictionary_measures(statistics))
    if agreement := reading.agreement:
        student = {"KL": agreement.kl, "overlap": agreement.overlap, "weight shared": agreement.shared}
        mean_code = {"KL": agreement.constant_kl, "overlap": agreement.constant_overlap}
        tables["Agreement with the teacher"] = _table({"student": student, "mean code": mean_code})
    again = None
    if atoms_KD is not None and others_JD is not None:
        matching = use.match(atoms_KD, others_JD)
        generator = np.random.default_rng(seed_for("lookalikes", about.seed))
        lookalikes = use.match(atoms_KD, use.random_atoms_like(others_JD, generator))
        matchings = {"other dictionary": matching, "chance": lookalikes}
        tables["Stability"] = _table({name: _match_measures(m) for name, m in matchings.items()})
        again = [*zip(matching.partner_K.tolist(), _rounded(matching.cosine_K), strict=True)]
    place_K2 = concept_order.principal_map(np.sqrt(profile_KV) if atoms_KD is None else atoms_KD)
    return ConceptReport(
        about,
        tables,
        pieces,
        counts_V.tolist(),
        [sequence_T.tolist() for sequence_T in np.split(types_T, reading.sequence_starts[1:])],
        sources,
        [*map(tuple, _rounded(place_K2))],
        None if atoms_KD is None else _listed(*use.nearest(atoms_KD, NUM_NEIGHBOURS), 0.0),
        _rounded(agreement.shared_K) if agreement else None,
        again,
    )


def _use(
    codes: use.Codes,
    profile_KV: np.ndarray,
    counts_V: np.ndarray,
    chance: use.Information,
    similarity_KK: np.ndarray,
    contexts: list[list[Context]],
) -> tuple[ConceptUse, dict[str, float]]:
    """What a reader uses concepts for, and the measures of it."""
    usage, measured = use.usage(codes), use.information(profile_KV, counts_V)
    bits_K = measured.bits_K - chance.bits_K
    interest_K = concept_order.interest(usage.share_K, bits_K, measured.entropy_K)
    order = np.lexsort([-usage.share_K, -interest_K])
    leader_K = concept_order.leaders(order, similarity_KK)
    token_concepts: list[Listed] = []
    for first in range(0, len(counts_V), TOKENS_PER_BLOCK):
        block_VK = np.ascontiguousarray(profile_KV[:, first : first + TOKENS_PER_BLOCK].T)
        token_concepts += _listed(*use.largest(use.in_shares(block_VK), NUM_TOKEN_CONCEPTS))
    concept_use = ConceptUse(
        share=_rounded(usage.share_K, 6),
        active=_rounded(usage.activity_K, 6),
        entropy=_rounded(measured.entropy_K),
        bits=_rounded(bits_K),
        interest=_rounded(interest_K),
        leader=leader_K.tolist(),
        labels=_labels(profile_KV, counts_V),
        tokens=_listed(*use.largest(use.in_shares(profile_KV), NUM_TOKENS)),
        near=_listed(*use.nearest(profile_KV, NUM_NEIGHBOURS)),
        contexts=contexts,
        token_concepts=token_concepts,
    )
    num_used = int((usage.activity_K > 0).sum())
    return concept_use, {
        "concepts used": num_used,
        "dead concepts": codes.num_concepts - num_used,
        "dense concepts": int((usage.activity_K > DENSE_ACTIVITY).sum()),
        "groups": len(np.unique(leader_K[usage.activity_K > 0])),
        "concepts per token": usage.concepts_per_position,
        "effective concepts": usage.effective_concepts,
        "bits about the token": measured.bits - chance.bits,
        "bits by chance": chance.bits,
        "share of the token's bits": use.adjusted(measured, chance),
        "weight counted": usage.weight_per_position,
    }


def _labels(profile_KV: np.ndarray, counts_V: np.ndarray) -> list[list[int]]:
    """For each concept the token types that add most to its bits: p log2(p / q) for a type of share p of the
    concept and q of the text.
    """
    log_q_V = np.log2(np.maximum(counts_V / counts_V.sum(), use.LEAST))
    labels = []
    for row_V in use.in_shares(profile_KV):
        bits_V = row_V * (np.log2(np.maximum(row_V, use.LEAST)) - log_q_V)
        [types], [bits] = use.largest(bits_V[None], NUM_LABELS)
        labels.append([int(i) for i, b in zip(types, bits, strict=True) if b > LEAST_LABEL * bits[0]])
    return labels


def _contexts(
    reading: Reading, codes: use.Codes, pieces_T: list[str], generator: np.random.Generator
) -> list[list[Context]]:
    """For each concept the strongest positions, and then some drawn by weight."""
    sequences_N, bounds = reading.sequences_N, np.append(reading.sequence_starts, len(reading.ids_T))
    begins_word_T = np.array([piece.startswith("▁") for piece in pieces_T])
    weight_T = np.zeros(len(pieces_T))  # of one concept

    def context(entry: int, is_drawn: bool) -> Context:
        place, sequence = (int(x[codes.positions_M[entry]]) for x in (reading.places_N, sequences_N))
        first, last = int(bounds[sequence - 1]), int(bounds[sequence]) - 1
        start, stop = _whole_words(begins_word_T, place, first + 1, last)
        places = [i for i in range(start, stop) if i == place or weight_T[i] >= LEAST_SHARE]
        weights = [(i - first, round(max(float(weight_T[i]), 0.001), 3)) for i in places]
        return Context(sequence - 1, start - first, stop - first, place - first, weights, is_drawn)

    contexts = []
    for concept in range(codes.num_concepts):
        positions, weights = codes.of(concept)
        weight_T[reading.places_N[positions]] = weights
        strongest = use.strongest(codes, sequences_N, concept, NUM_STRONGEST)
        typical = [i for i in use.typical(codes, concept, NUM_TYPICAL, generator) if i not in strongest]
        contexts.append([*(context(i, False) for i in strongest), *(context(i, True) for i in typical)])
        weight_T[reading.places_N[positions]] = 0
    return contexts


def _whole_words(begins_word_T: np.ndarray, place: int, first: int, last: int) -> tuple[int, int]:
    """The start and stop of the whole words around a place, between `first` and `last`."""
    start, stop = max(first, place - CONTEXT_TOKENS), min(last, place + CONTEXT_TOKENS + 1)
    while start > max(first, place - CONTEXT_TOKENS - LONGEST_WORD) and not begins_word_T[start]:
        start -= 1
    while stop < min(last, place + CONTEXT_TOKENS + LONGEST_WORD) and not begins_word_T[stop]:
        stop += 1
    return start, stop


def sentence_concepts(sentence: Sentence, tokenizer: Tokenizer) -> SentenceConcepts:
    """The strongest concepts of each token of a sentence."""
    return SentenceConcepts(
        [printable(tokenizer.piece(i)) for i in sentence.ids],
        {
            reader: _listed(*use.largest(weights_LK, SENTENCE_CONCEPTS))
            for reader, weights_LK in sentence.weights.items()
        },
    )


def _dictionary_measures(statistics: Statistics) -> dict[str, dict[str, float]]:
    """What codes keep of the hidden states, and of the words that the teacher predicts from them."""
    assert statistics.explained_variance is not None
    codes = {
        "variance explained": statistics.explained_variance,
        "energy explained": statistics.explained_share,
    }
    if (spliced := statistics.spliced) is None:
        return {"codes": codes}
    columns = {
        "codes": codes
        | {
            "loss recovered": spliced.loss_recovered,
            "KL recovered": spliced.kl_recovered,
            "cross-entropy": spliced.spliced_cross_entropy,
        },
        "states themselves": {
            "loss recovered": 1.0,
            "KL recovered": 1.0,
            "cross-entropy": spliced.cross_entropy,
        },
        "zeros": {"loss recovered": 0.0, "KL recovered": 0.0, "cross-entropy": spliced.zero_cross_entropy},
    }
    return {
        name: {measure: value for measure, value in column.items() if math.isfinite(value)}
        for name, column in columns.items()
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


def _listed(columns: np.ndarray, values: np.ndarray, least: float = LEAST_SHARE) -> list[Listed]:
    """For each row the columns with values above 0 and not below `least`."""
    rows = zip(columns.tolist(), _rounded(values), strict=True)
    return [[item for item in zip(*row, strict=True) if 0 < item[1] >= least] for row in rows]


def _rounded(values: np.ndarray, digits: int = 3) -> list:
    """Nested lists of Python numbers."""
    return np.round(values.astype(np.float64), digits).tolist()
