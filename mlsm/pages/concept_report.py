"""What is told about concepts: from readings and statistics to one JSON object, which the page embeds, the
pictures draw and concepts.json keeps.

Columns instead of objects keep it small: `share[3]` belongs to concept 3, `tokens[3]` alternates piece and
share. All text in it is printable, so that no terminal obeys what a corpus holds.

Legend: N positions, K concepts, V labels, D width of the teacher's states, L tokens of a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlsm.evaluation.tables import Rows
from mlsm.log import printable
from mlsm.pages import concept_use as use
from mlsm.pages.concept_reading import Reading, Sentence
from mlsm.seeds import seed_for
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

NUM_TOKENS, NUM_NEIGHBOURS, NUM_TOKEN_CONCEPTS = 12, 5, 6  # listed of each concept; of each token
NUM_STRONGEST, NUM_TYPICAL = 5, 3  # contexts listed
CONTEXT_TOKENS = 10  # on each side
NUM_SHUFFLES = 3
LEAST_SHARE = 0.005  # of a token that is listed for a concept, or the other way round
SENTENCE_CONCEPTS, FEWEST_CONCEPTS = 40, 3  # columns of a heat map: at most, at least
SENTENCE_STRONGEST = 4  # concepts listed of each token of a sentence
LEAST_PEAK = 0.03  # weight that earns a concept a column
FOUND_AGAIN = 0.9  # cosine of an atom that counts as the same
TOKENS_PER_BLOCK = 4096

MEANINGS = {
    "concepts used": "concepts with weight anywhere in the text",
    "dead concepts": "concepts without",
    "dense concepts": f"used at more than {use.DENSE_ACTIVITY:.0%} of the positions",
    "concepts per token": "concepts a position uses, on average (of a student: those it gives 1 % or more)",
    "effective concepts": "2 to the entropy of the shares: as many, equally used, would be as diverse",
    "weight counted": "mean weight of a position in the concepts it uses; a student's other predictions, "
    "each below 1 %, count as no concept",
    "bits about the token": "mutual information of concept and token, less what shuffled tokens give",
    "bits by chance": "what shuffled tokens give",
    "share of the token's bits": "bits about the token out of all there are; 1: the concept gives the token "
    "away, 0: it says nothing",
    "bits about the tag": "the same for the tags of the tagged file",
    "tag's bits by chance": "what shuffled tags give",
    "share of the tag's bits": "the same for tags",
    "KL": "KL(teacher || student), nats a position; 0 is perfect",
    "overlap": "of the teacher's five strongest concepts, the share among the student's five strongest",
    "weight shared": "weight that both give to the same concepts; 1 is perfect",
    "mean cosine": "of each atom and its partner in the other dictionary, paired one to one, closest first",
    "found again": f"share of the atoms whose partner has a cosine of {FOUND_AGAIN} or more",
    "mutually nearest": "share of the atoms that are the nearest of their nearest",
}


def report(
    reading: Reading,
    tokenizer: Tokenizer,
    atoms_KD: np.ndarray | None,
    *,
    about: dict[str, Any],
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Everything but comparison, tags and a sentence, which `add_...` put in. `advance` is called for each of
    `num_stages` steps.
    """
    types_V, labels_N, counts_V = np.unique(reading.ids_N, return_inverse=True, return_counts=True)
    tables: dict[str, Rows] = {"Use": {}}
    sources = {}
    for name, codes in reading.codes.items():
        draw = np.random.default_rng(seed_for("concept statistics", seed))
        sources[name], measures = _source(reading, codes, labels_N, len(types_V), tokenizer, draw, advance)
        _add_column(tables["Use"], name, measures | {"weight counted": reading.kept[name]})
    if reading.agreement:
        told = reading.agreement
        tables["Agreement with the teacher"] = {
            "KL": {"student": told.kl, "mean code": told.constant_kl},
            "overlap": {"student": told.overlap, "mean code": told.constant_overlap},
            "weight shared": {"student": told.shared},
        }
    near_atoms = None if atoms_KD is None else _pairs(use.nearest(atoms_KD, NUM_NEIGHBOURS), 0.0)
    return {
        "about": about | {"positions": len(labels_N), "types": len(types_V)},
        "tables": tables,
        "meanings": MEANINGS,
        "pieces": [printable(tokenizer.piece(int(i))) for i in types_V],
        "counts": counts_V.tolist(),
        "sources": sources,
        "near_atoms": near_atoms,
        "shared": _rounded(reading.agreement.shared_K) if reading.agreement else None,
        "again": None,
        "sentence": None,
    }


def num_stages(reading: Reading) -> int:
    """How often `report` calls `advance`."""
    return len(reading.codes) * (NUM_SHUFFLES + 3)


def _source(
    reading: Reading,
    codes: use.Codes,
    labels_N: np.ndarray,
    num_labels: int,
    tokenizer: Tokenizer,
    draw: np.random.Generator,
    advance: Callable[[], object],
) -> tuple[dict[str, Any], dict[str, float]]:
    """Columns of one reader's concepts, and its measures."""
    told = use.usage(codes)
    profile_KV = use.profile(codes, labels_N, num_labels)
    found = use.information(profile_KV, np.bincount(labels_N, minlength=num_labels))
    advance()
    chance = use.shuffled_information(
        codes, labels_N, num_labels, draw, num_shuffles=NUM_SHUFFLES, advance=advance
    )
    columns = {
        "share": _rounded(told.share_K, 6),
        "active": _rounded(told.activity_K, 6),
        "entropy": _rounded(found.entropy_K, 3),
        "bits": _rounded(found.bits_K - chance.bits_K, 3),
        "tokens": _pairs(use.largest(use.in_shares(profile_KV), NUM_TOKENS), LEAST_SHARE),
        "near": _pairs(use.nearest(profile_KV, NUM_NEIGHBOURS), LEAST_SHARE),
        "token_concepts": _token_concepts(profile_KV),
    }
    advance()
    columns["contexts"] = _contexts(reading, codes, tokenizer, draw)
    advance()
    num_used = int((told.activity_K > 0).sum())
    measures = {
        "concepts used": num_used,
        "dead concepts": codes.num_concepts - num_used,
        "dense concepts": int((told.activity_K > use.DENSE_ACTIVITY).sum()),
        "concepts per token": told.concepts_per_position,
        "effective concepts": told.effective_concepts,
        "bits about the token": found.bits - chance.bits,
        "bits by chance": chance.bits,
        "share of the token's bits": use.adjusted(found, chance),
    }
    return columns, measures


def add_tags(
    told: dict[str, Any], reading: Reading, labels_N: np.ndarray, names: Sequence[str], seed: int
) -> None:
    """What concepts say about the tags of a tagged text, of which this is the reading."""
    for name, codes in reading.codes.items():
        draw = np.random.default_rng(seed_for("tag statistics", seed))
        profile_KV = use.profile(codes, labels_N, len(names))
        found = use.information(profile_KV, np.bincount(labels_N, minlength=len(names)))
        chance = use.shuffled_information(codes, labels_N, len(names), draw, num_shuffles=NUM_SHUFFLES)
        told["sources"][name]["tags"] = _pairs(use.largest(use.in_shares(profile_KV), 3), LEAST_SHARE)
        measures = {
            "bits about the tag": found.bits - chance.bits,
            "tag's bits by chance": chance.bits,
            "share of the tag's bits": use.adjusted(found, chance),
        }
        _add_column(told["tables"]["Use"], name, measures)
    told["tags"] = [printable(name) for name in names]


def add_comparison(told: dict[str, Any], atoms_KD: np.ndarray, others_JD: np.ndarray, seed: int) -> None:
    """Which atoms another dictionary has too, and which an imitation without concepts has."""
    draw = np.random.default_rng(seed_for("lookalikes", seed))
    found = use.match(atoms_KD, others_JD)
    chance = use.match(atoms_KD, use.lookalikes(others_JD, draw))
    rows: Rows = {
        "mean cosine": {
            "other dictionary": float(found.cosine_K.mean()),
            "chance": float(chance.cosine_K.mean()),
        },
        "found again": {
            "other dictionary": float((found.cosine_K >= FOUND_AGAIN).mean()),
            "chance": float((chance.cosine_K >= FOUND_AGAIN).mean()),
        },
        "mutually nearest": {"other dictionary": found.mutual_share, "chance": chance.mutual_share},
    }
    told["tables"]["Stability"] = rows
    told["again"] = [
        [int(partner), round(float(cosine), 3)]
        for partner, cosine in zip(found.partner_K, found.cosine_K, strict=True)
    ]


def add_sentence(told: dict[str, Any], sentence: Sentence, tokenizer: Tokenizer) -> None:
    """A heat map: the concepts that matter most in the sentence, by the token where they are strongest."""
    strength_LK = np.max(list(sentence.weights.values()), axis=0)
    peak_K = strength_LK.max(0)
    order = np.argsort(-peak_K, kind="stable")[:SENTENCE_CONCEPTS].tolist()
    chosen = [k for rank, k in enumerate(order) if rank < FEWEST_CONCEPTS or peak_K[k] >= LEAST_PEAK]
    chosen.sort(key=lambda k: (int(strength_LK[:, k].argmax()), -peak_K[k]))
    told["sentence"] = {
        "tokens": [printable(tokenizer.piece(i)) for i in sentence.ids],
        "concepts": chosen,
        "weights": {name: _rounded(w_LK[:, chosen], 3) for name, w_LK in sentence.weights.items()},
        "strongest": {
            name: _pairs(use.largest(w_LK, SENTENCE_STRONGEST), LEAST_SHARE)
            for name, w_LK in sentence.weights.items()
        },
    }


def concept_rows(told: dict[str, Any], source: str, count: int) -> Rows:
    """The concepts of the largest share as rows of a table."""
    columns = told["sources"][source]
    order = sorted(range(len(columns["share"])), key=lambda k: -columns["share"][k])
    rows: dict[str, dict[str, Any]] = {}
    for k in order[:count]:
        row = rows[f"#{k}"] = {
            "share %": 100 * columns["share"][k],
            "active %": 100 * columns["active"][k],
            "entropy": columns["entropy"][k],
            "bits": columns["bits"][k],
        }
        if told["shared"]:
            row["shared"] = told["shared"][k]
        if told["again"]:
            row["again"] = told["again"][k][1]
        if "tags" in columns:
            row["tag"] = told["tags"][columns["tags"][k][0]] if columns["tags"][k] else ""
        row["tokens"] = " ".join(named_shares(columns["tokens"][k], told["pieces"])[:6])
    return rows


def sentence_rows(told: dict[str, Any]) -> Rows:
    """The strongest concepts of each token of the sentence as rows of a table."""
    sentence, numbers = told["sentence"], [f"#{k}" for k in range(told["about"]["k"])]
    return {
        f"{place + 1} {token}": {
            name: "  ".join(named_shares(pairs[place], numbers))
            for name, pairs in sentence["strongest"].items()
        }
        for place, token in enumerate(sentence["tokens"])
    }


def named_shares(pairs: Sequence[float], names: Sequence[str]) -> list[str]:
    """Of a list that alternates index and share: the name of each, and its percentage."""
    return [f"{names[int(i)]} {share:.0%}" for i, share in zip(pairs[::2], pairs[1::2], strict=True)]


def _contexts(
    reading: Reading, codes: use.Codes, tokenizer: Tokenizer, draw: np.random.Generator
) -> list[list[list[Any]]]:
    """For each concept its strongest places and then some drawn by weight: text before, token, text after,
    weight, and whether it was drawn.
    """
    sequences_N = reading.sequences_N
    stops = np.append(reading.sequence_starts, len(reading.stream))
    pieces: dict[int, str] = {CLS_ID: "", SEP_ID: " ¶"}

    def text(ids: np.ndarray) -> str:
        for i in ids.tolist():
            if i not in pieces:
                pieces[i] = printable(tokenizer.piece(i)).replace("▁", " ")
        return "".join(pieces[i] for i in ids.tolist())

    def context(entry: int, is_drawn: bool) -> list[Any]:
        position = codes.positions_M[entry]
        place, sequence = int(reading.places_N[position]), int(sequences_N[position])
        first = max(place - CONTEXT_TOKENS, int(stops[sequence - 1]))
        last = min(place + 1 + CONTEXT_TOKENS, int(stops[sequence]))
        window = reading.stream[first:last]
        here = place - first
        before, token, after = text(window[:here]), text(window[here : here + 1]), text(window[here + 1 :])
        space = " " if token.startswith(" ") else ""
        weight = round(float(codes.weights_M[entry]), 3)
        return [before.lstrip(" ¶") + space, token.lstrip(), after.removesuffix(" ¶"), weight, int(is_drawn)]

    told = []
    for concept in range(codes.num_concepts):
        strongest = use.strongest(codes, sequences_N, concept, NUM_STRONGEST)
        typical = [i for i in use.typical(codes, concept, NUM_TYPICAL, draw) if i not in strongest]
        told.append([*(context(i, False) for i in strongest), *(context(i, True) for i in typical)])
    return told


def _token_concepts(profile_KV: np.ndarray) -> list[list[float]]:
    """For each token the concepts that have most of its weight, alternating with their share of it."""
    told: list[list[float]] = []
    for first in range(0, profile_KV.shape[1], TOKENS_PER_BLOCK):
        block_VK = np.ascontiguousarray(profile_KV[:, first : first + TOKENS_PER_BLOCK].T)
        told += _pairs(use.largest(use.in_shares(block_VK), NUM_TOKEN_CONCEPTS), LEAST_SHARE)
    return told


def _pairs(listing: use.Listing, least: float) -> list[list[float]]:
    """Rows that alternate item and value, without values below `least`."""
    values = listing.values.astype(np.float64).round(3).tolist()
    return [
        [x for pair in zip(items, row, strict=True) if pair[1] > 0 and pair[1] >= least for x in pair]
        for items, row in zip(listing.items.tolist(), values, strict=True)
    ]


def _rounded(values: np.ndarray, digits: int = 3) -> list[Any]:
    return np.round(values.astype(np.float64), digits).tolist()


def _add_column(rows: Any, column: str, values: dict[str, float]) -> None:
    for name, value in values.items():
        rows.setdefault(name, {})[column] = value
