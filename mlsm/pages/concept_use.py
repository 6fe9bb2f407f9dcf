"""Statistics of sparse codes over a text: how much each concept is used, and what for.

A code is a distribution over concepts, and statistics count weight: a position whose code gives half of its
weight to concept 3 counts half for it. Information is in bits. Estimated from finitely many positions it is
too large, the more so for rare concepts, so it is also estimated with shuffled labels, for comparison.

Legend: N positions, M non-zero weights, K concepts, J concepts of another dictionary, V labels (such as token
types), C items listed for a concept, D width of a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CANDIDATES_PER_CONTEXT = 8  # strong positions considered: most are in a sequence that is already listed
LEAST = 1e-30  # replaces a sum of zero before a division; a normal number in float32


class Codes(NamedTuple):
    """Distributions over concepts, sorted by concept: those of concept k are starts[k] to starts[k + 1]."""

    starts: np.ndarray  # (K + 1)
    positions_M: np.ndarray
    weights_M: np.ndarray  # above 0
    num_positions: int

    @classmethod
    def from_sparse(cls, codes_NK: Tensor) -> Codes:
        """The codes of a sparse COO tensor, in any order, on the CPU."""
        codes_KN = codes_NK.t().coalesce()
        concepts_M, positions_M = codes_KN.indices().numpy()
        starts = np.searchsorted(concepts_M, np.arange(len(codes_KN) + 1))
        return cls(starts, positions_M, codes_KN.values().numpy(), len(codes_NK))

    @property
    def num_concepts(self) -> int:
        return len(self.starts) - 1

    def of(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """The positions that use a concept, and its weights there."""
        entries = slice(self.starts[concept], self.starts[concept + 1])
        return self.positions_M[entries], self.weights_M[entries]


class Usage(NamedTuple):
    """How much a text uses each concept."""

    share_K: np.ndarray  # of all weight
    activity_K: np.ndarray  # share of the positions that use it
    concepts_per_position: float
    weight_per_position: float
    effective_concepts: float  # 2 to the entropy of share_K: so many concepts of equal use have that entropy


def usage(codes: Codes) -> Usage:
    """Shares and activity; all are zero for codes without weight."""
    total_K = np.array([codes.of(k)[1].sum(dtype=np.float64) for k in range(codes.num_concepts)])
    share_K = total_K / max(total_K.sum(), LEAST)
    return Usage(
        share_K,
        np.diff(codes.starts) / codes.num_positions,
        len(codes.weights_M) / codes.num_positions,
        total_K.sum() / codes.num_positions,
        2 ** _entropy(share_K),
    )


def profile(codes: Codes, labels_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Weight of each label in each concept (K, V), float32 of float64 sums."""
    profile_KV = np.empty((codes.num_concepts, num_labels), np.float32)
    for concept, row_V in enumerate(profile_KV):
        positions, weights = codes.of(concept)
        row_V[:] = np.bincount(labels_N[positions], weights, num_labels)
    return profile_KV


class Information(NamedTuple):
    """What concepts say about labels. The concept of a position is drawn by the weights of its code; the
    weight that the code lacks to 1 belongs to one more concept, called "none".
    """

    bits: float  # mutual information of concept and label
    label_bits: float  # entropy of the labels: the upper bound of `bits`
    bits_K: np.ndarray  # KL(labels of the concept || all labels); its mean over drawn concepts is `bits`
    entropy_K: np.ndarray  # entropy of the labels of the concept; 0 where one label has all of its weight


def information(profile_KV: np.ndarray, counts_V: np.ndarray) -> Information:
    """The information in a profile, given the number of positions of each label. A concept without weight
    has 0 bits.
    """
    none_V = np.maximum(counts_V - profile_KV.sum(0, dtype=np.float64), 0)
    share_V = counts_V / counts_V.sum()
    log_share_V = np.log2(np.maximum(share_V, LEAST))
    weights, bits, entropies = np.zeros((3, len(profile_KV) + 1))
    for concept, row_V in enumerate([*profile_KV, none_V]):
        weights[concept] = row_V.sum(dtype=np.float64)
        labels_V = row_V / max(weights[concept], LEAST)
        entropies[concept] = _entropy(labels_V)
        bits[concept] = max(-(labels_V @ log_share_V) - entropies[concept], 0)
    mean_bits = float(bits @ weights / counts_V.sum())
    return Information(mean_bits, _entropy(share_V), bits[:-1], entropies[:-1])


def shuffled_information(
    codes: Codes, labels_N: np.ndarray, num_labels: int, generator: np.random.Generator, *, num_shuffles: int
) -> Information:
    """The mean information about shuffled labels, of which the codes know nothing."""
    counts_V = np.bincount(labels_N, minlength=num_labels)
    shuffles = [
        information(profile(codes, generator.permutation(labels_N), num_labels), counts_V)
        for _ in range(num_shuffles)
    ]
    return Information(*(np.mean(values, axis=0) for values in zip(*shuffles, strict=True)))


def adjusted(measured: Information, chance: Information) -> float:
    """Share of the entropy of the labels that concepts explain beyond chance: 0 by chance, 1 for all of it.
    The adjustment is that of Vinh et al. 2010, with the entropy of the labels as the upper bound.
    """
    most_bits = measured.label_bits - chance.bits
    return (measured.bits - chance.bits) / most_bits if most_bits > 0 else 0.0


def in_shares(weights: np.ndarray) -> np.ndarray:
    """Rows divided by their sum; zero rows stay zero."""
    return weights / np.maximum(weights.sum(1, keepdims=True), LEAST)


def largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values (rows, C) of the `count` largest entries of each row, or of all in a shorter row, in
    decreasing order. Equal entries keep their order.
    """
    # On rows that are mostly zero, numpy's own partition takes a hundred times as long as torch's topk.
    chosen = torch.from_numpy(values).topk(min(count, values.shape[1])).indices.numpy()
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, chosen, 1), axis=1, kind="stable")
    columns = np.take_along_axis(chosen, order, 1)
    return columns, np.take_along_axis(values, columns, 1)


def nearest(vectors_KD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The other rows with the largest cosine to each row, and the cosine; a zero row has cosine 0 to all."""
    unit_KD = unit_rows(vectors_KD)
    cosine_KK = unit_KD @ unit_KD.T
    np.fill_diagonal(cosine_KK, -np.inf)
    return largest(cosine_KK, min(count, len(vectors_KD) - 1))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LEAST)


def strongest(codes: Codes, sequences_N: np.ndarray, concept: int, count: int) -> np.ndarray:
    """Indices into `codes` of the positions with the largest weight of a concept, at most one of each
    sequence, in decreasing order.
    """
    positions, weights = codes.of(concept)
    best = largest(weights[None], count * CANDIDATES_PER_CONTEXT)[0][0]
    _, first_of_sequence = np.unique(sequences_N[positions[best]], return_index=True)
    return best[np.sort(first_of_sequence)[:count]] + codes.starts[concept]


def typical(codes: Codes, concept: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices into `codes` of at most `count` different positions of a concept, drawn by its weight there, in
    decreasing order of the weight.
    """
    weights = codes.of(concept)[1]
    summed = np.cumsum(weights, dtype=np.float64)
    shares = generator.random(count if len(weights) else 0)
    drawn = np.unique(np.searchsorted(summed, shares * summed[-1:], side="right"))
    return drawn[np.argsort(-weights[drawn], kind="stable")] + codes.starts[concept]


class Matching(NamedTuple):
    """One-to-one pairs of the atoms of one dictionary and those of another."""

    partner_K: np.ndarray  # -1 where the other dictionary had no atom left
    cosine_K: np.ndarray  # to the partner; 0 where there is none
    mutual_share: float  # share of the atoms that are the nearest atom of their nearest atom


def match(atoms_KD: np.ndarray, others_JD: np.ndarray) -> Matching:
    """Pair mutual nearest neighbours by cosine, then those among the remaining atoms, until one side is used
    up. This is the greedy assignment, which always takes the closest pair that is left.
    """
    cosine_KJ = unit_rows(atoms_KD) @ unit_rows(others_JD).T
    partner_K = np.full(len(atoms_KD), -1)
    free_K, free_J = np.arange(len(atoms_KD)), np.arange(len(others_JD))
    mutual_shares = []
    while len(free_K) and len(free_J):
        free_KJ = cosine_KJ[np.ix_(free_K, free_J)]
        best_K, best_J = free_KJ.argmax(1), free_KJ.argmax(0)
        is_mutual_K = best_J[best_K] == np.arange(len(free_K))
        mutual_shares.append(float(is_mutual_K.mean()))
        partner_K[free_K[is_mutual_K]] = free_J[best_K[is_mutual_K]]
        free_J = np.delete(free_J, best_K[is_mutual_K])
        free_K = free_K[~is_mutual_K]
    cosine_K = np.where(partner_K >= 0, cosine_KJ[np.arange(len(atoms_KD)), partner_K], 0)
    return Matching(partner_K, cosine_K, mutual_shares[0])


def random_atoms_like(atoms_KD: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many Gaussian vectors of the same mean and covariance: a dictionary without concepts, for
    comparison.
    """
    mean_D = atoms_KD.mean(0)
    mixing_KK = generator.standard_normal((len(atoms_KD), len(atoms_KD)), dtype=np.float32)
    return mean_D + mixing_KK @ (atoms_KD - mean_D) / np.sqrt(len(atoms_KD))


def _entropy(shares: np.ndarray) -> float:
    """Entropy in bits of shares, with 0 log 0 = 0."""
    shares = shares[shares > 0].astype(np.float64)
    return float(-(shares @ np.log2(shares)))
