"""What each concept is used for: statistics of sparse codes over a text, as pure functions of numpy arrays.

A code is a distribution over concepts, so weight is counted: a position that is half concept 3 counts half
for it. Information is in bits. Codes of finitely many positions seem informative even where they are not, the
more so for a rare concept; so everything of that kind is also measured with the labels shuffled.

Legend: N positions, M non-zero weights, K concepts, J concepts of another dictionary, V labels (token types,
or tags), C items listed for a concept, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

DENSE_ACTIVITY = 0.1
"""A concept that more positions use is called dense, as the latents of sparse autoencoders are."""

CANDIDATES_AN_ITEM = 8
"""Strong positions looked at for each one listed; most of them stand in a sequence already listed."""

ROWS_PER_BLOCK = 128
"""Concepts whose labels are weighed at once: bounds the memory of float64 temporaries."""

LEAST = 1e-30
"""In the place of a sum of zero that is divided by; a normal number in float32 too."""


class Codes(NamedTuple):
    """Distributions over concepts, kept by concept: those of concept k are starts[k] to starts[k + 1]."""

    starts: np.ndarray  # (K + 1)
    positions_M: np.ndarray
    weights_M: np.ndarray  # above 0
    num_positions: int

    @property
    def num_concepts(self) -> int:
        return len(self.starts) - 1

    def of(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """The positions that use a concept, and its weights there."""
        here = slice(self.starts[concept], self.starts[concept + 1])
        return self.positions_M[here], self.weights_M[here]


def codes_by_concept(
    positions_M: np.ndarray,
    concepts_M: np.ndarray,
    weights_M: np.ndarray,
    *,
    num_positions: int,
    num_concepts: int,
) -> Codes:
    """From coordinates, which may stand in any order."""
    order = np.argsort(concepts_M, kind="stable")  # a radix sort where the concepts are uint16
    counts_K = np.bincount(concepts_M, minlength=num_concepts)
    starts = np.concatenate([[0], np.cumsum(counts_K)])
    return Codes(starts, positions_M[order], weights_M[order], num_positions)


class Usage(NamedTuple):
    """How much of a text falls to each concept."""

    share_K: np.ndarray  # of all weight
    activity_K: np.ndarray  # share of the positions that use it
    concepts_per_position: float
    effective_concepts: float  # 2 to the entropy of share_K: as many, equally used, would be as diverse


def usage(codes: Codes) -> Usage:
    """Shares and activity; all zero for codes without weight."""
    total_K = np.array([codes.of(k)[1].sum(dtype=np.float64) for k in range(codes.num_concepts)])
    share_K = total_K / max(total_K.sum(), LEAST)
    num_positions = max(1, codes.num_positions)
    return Usage(
        share_K,
        np.diff(codes.starts) / num_positions,
        len(codes.weights_M) / num_positions,
        float(2 ** -_xlog2x(share_K).sum()),
    )


def profile(codes: Codes, labels_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Weight of each label in each concept (K, V), float32 of float64 sums."""
    profile_KV = np.empty((codes.num_concepts, num_labels), np.float32)
    for concept, row_V in enumerate(profile_KV):
        positions, weights = codes.of(concept)
        row_V[:] = np.bincount(labels_N[positions], weights, num_labels)
    return profile_KV


class Information(NamedTuple):
    """What concepts say about labels, where a position's concept is drawn by its code, and is "none" for the
    weight that the code lacks to 1.
    """

    bits: float  # mutual information of concept (or none) and label
    label_bits: float  # entropy of the labels: the most that `bits` can be
    bits_K: np.ndarray  # KL(labels of the concept || all labels); its mean over drawn concepts is `bits`
    entropy_K: np.ndarray  # of the labels of the concept; 0 where one label has all of its weight


def information(profile_KV: np.ndarray, counts_V: np.ndarray) -> Information:
    """Of a profile and the number of positions with each label; a concept without weight has 0 bits."""
    rest_V = np.maximum(counts_V - profile_KV.sum(0, dtype=np.float64), 0)
    share_V = counts_V / counts_V.sum()
    log_share_V = np.log2(np.maximum(share_V, LEAST))
    bits, entropies, weights = [], [], []
    for first in range(0, len(profile_KV) + 1, ROWS_PER_BLOCK):
        rows_V = profile_KV[first : first + ROWS_PER_BLOCK].astype(np.float64)
        if first + ROWS_PER_BLOCK > len(profile_KV):
            rows_V = np.vstack([rows_V, rest_V])
        weights.append(rows_V.sum(1))
        rows_V /= np.maximum(weights[-1], LEAST)[:, None]
        entropies.append(-_xlog2x(rows_V).sum(1))
        bits.append(np.maximum(-(rows_V @ log_share_V) - entropies[-1], 0))
    all_bits, entropy, weight = map(np.concatenate, (bits, entropies, weights))
    return Information(
        float(all_bits @ weight / counts_V.sum()), float(-_xlog2x(share_V).sum()), all_bits[:-1], entropy[:-1]
    )


def shuffled_information(
    codes: Codes,
    labels_N: np.ndarray,
    num_labels: int,
    draw: np.random.Generator,
    *,
    num_shuffles: int,
    advance: Callable[[], object] = lambda: None,
) -> Information:
    """Mean over shuffles of the labels: what codes that know nothing of the labels seem to say about them.
    `advance` is called after each shuffle.
    """
    counts_V = np.bincount(labels_N, minlength=num_labels)
    drawn = []
    for _ in range(num_shuffles):
        drawn.append(information(profile(codes, draw.permutation(labels_N), num_labels), counts_V))
        advance()
    bits, label_bits, bits_K, entropy_K = (np.mean(parts, axis=0) for parts in zip(*drawn, strict=True))
    return Information(float(bits), float(label_bits), bits_K, entropy_K)


def adjusted(found: Information, chance: Information) -> float:
    """Share of the labels' entropy that concepts tell beyond chance: 0 by chance, 1 for all of it (the
    adjustment of Vinh et al. 2010, with the entropy of the labels as the most there is).
    """
    room = found.label_bits - chance.bits
    return (found.bits - chance.bits) / room if room > 0 else 0.0


def in_shares(weights: np.ndarray) -> np.ndarray:
    """Rows divided by their sum; zero rows stay zero."""
    return weights / np.maximum(weights.sum(1, keepdims=True), LEAST)


class Listing(NamedTuple):
    """Items of each row, the largest first."""

    items: np.ndarray  # (rows, C)
    values: np.ndarray  # (rows, C)


def largest(values: np.ndarray, count: int) -> Listing:
    """The `count` largest entries of each row (fewer where the row is shorter); of equal ones the first goes
    first.
    """
    # numpy's own partition takes a hundred times as long on rows that are mostly zero
    chosen = torch.from_numpy(values).topk(min(count, values.shape[1])).indices.numpy()
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, chosen, 1), axis=1, kind="stable")
    items = np.take_along_axis(chosen, order, 1)
    return Listing(items, np.take_along_axis(values, items, 1))


def nearest(vectors_KD: np.ndarray, count: int) -> Listing:
    """The other rows of the largest cosine to each row; a zero row has cosine 0 to all."""
    unit_KD = unit_rows(vectors_KD)
    cosine_KK = unit_KD @ unit_KD.T
    np.fill_diagonal(cosine_KK, -np.inf)
    return largest(cosine_KK, min(count, len(vectors_KD) - 1))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LEAST)


def strongest(codes: Codes, sequences_N: np.ndarray, concept: int, count: int) -> np.ndarray:
    """Places in `codes` of the positions where a concept weighs most, one a sequence, heaviest first."""
    positions, weights = codes.of(concept)
    if not len(positions):
        return np.empty(0, np.int64)
    best = largest(weights[None], count * CANDIDATES_AN_ITEM).items[0]
    _, first_of_sequence = np.unique(sequences_N[positions[best]], return_index=True)
    return best[np.sort(first_of_sequence)[:count]] + codes.starts[concept]


def typical(codes: Codes, concept: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """Places in `codes` of positions of a concept drawn by its weight, each once, heaviest first."""
    weights = codes.of(concept)[1]
    summed = np.cumsum(weights, dtype=np.float64)
    if not len(summed):
        return np.empty(0, np.int64)
    drawn = np.unique(np.searchsorted(summed, draw.random(count) * summed[-1], side="right"))
    return drawn[np.argsort(-weights[drawn], kind="stable")] + codes.starts[concept]


class Matching(NamedTuple):
    """Atoms of one dictionary found again in another, one to one."""

    partner_K: np.ndarray  # -1 where the other dictionary had no atom left
    cosine_K: np.ndarray  # to the partner; 0 where there is none
    mutual_share: float  # of atoms that are each other's nearest


def match(atoms_KD: np.ndarray, others_JD: np.ndarray) -> Matching:
    """Pair mutual nearest neighbours by cosine, then those of the rest, until one side is used up.

    That is the greedy assignment (always the closest pair that is left). It needs no package; on two
    dictionaries of the demo its mean cosine is 0.013 below that of the optimal assignment.
    """
    cosine_KJ = unit_rows(atoms_KD) @ unit_rows(others_JD).T
    partner_K = np.full(len(atoms_KD), -1)
    left_K, left_J = np.arange(len(atoms_KD)), np.arange(len(others_JD))
    mutual_share = None
    while len(left_K) and len(left_J):
        here = cosine_KJ[np.ix_(left_K, left_J)]
        best_K, best_J = here.argmax(1), here.argmax(0)
        is_mutual_K = best_J[best_K] == np.arange(len(left_K))
        if mutual_share is None:
            mutual_share = float(is_mutual_K.mean())
        partner_K[left_K[is_mutual_K]] = left_J[best_K[is_mutual_K]]
        left_J = np.delete(left_J, best_K[is_mutual_K])
        left_K = left_K[~is_mutual_K]
    cosine_K = np.where(partner_K >= 0, cosine_KJ[np.arange(len(atoms_KD)), partner_K], 0)
    return Matching(partner_K, cosine_K, mutual_share or 0.0)


def lookalikes(atoms_KD: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """As many Gaussian vectors of the same mean and covariance: a dictionary without concepts, for
    comparison.
    """
    mean_D = atoms_KD.mean(0)
    mixing_KK = draw.standard_normal((len(atoms_KD), len(atoms_KD)), dtype=np.float32)
    return mean_D + mixing_KK @ (atoms_KD - mean_D) / np.sqrt(len(atoms_KD))


def _xlog2x(shares: np.ndarray) -> np.ndarray:
    """p log p, 0 for p = 0."""
    shares = shares.astype(np.float64)
    return shares * np.log2(np.where(shares > 0, shares, 1))
