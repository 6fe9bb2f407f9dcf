"""Which concepts to look at first: their order by interest, groups of near-duplicates, and places on a map.

**Interest** of concept k, in bits:

    interest_k = sqrt(K share_k) * bits_k H_k / (bits_k + H_k)

H_k is the entropy of the tokens that use the concept, and bits_k its information about the token, beyond
chance. Their sum is how surprising these tokens are by their frequency alone. So the second factor is the
entropy of the tokens times the share of their surprise that the concept explains. It is 0 for a concept that
is one token, which says no more than that token, and for a concept whose tokens are drawn by frequency. The
first factor counts a concept of average use once. A square root lies between ignoring use, which lists rare
and noisy concepts first, and counting it fully, which lists the most frequent ones.

**Near-duplicates** have nearly parallel atoms, or nearly the same weights at the same positions.

Legend: N positions, K concepts, D width of a vector, M non-zero weights.
"""

from __future__ import annotations

import numpy as np
import torch

from mlsm.pages.concept_use import LEAST, Codes, unit_rows

DUPLICATE_COSINE = 0.8  # of atoms or of weights, from which two concepts are near-duplicates


def interest(share_K: np.ndarray, bits_K: np.ndarray, entropy_K: np.ndarray) -> np.ndarray:
    """The interest of each concept by the formula above. Bits below 0, which are noise, count as 0."""
    bits_K = np.maximum(bits_K, 0)
    explained_K = bits_K * entropy_K / np.maximum(bits_K + entropy_K, LEAST)
    return np.sqrt(len(share_K) * share_K) * explained_K


def co_use(codes: Codes) -> np.ndarray:
    """Cosine (K, K) of the weights of every two concepts over all positions; 0 for a concept without use."""
    num_concepts = codes.num_concepts
    by_position_M = np.argsort(codes.positions_M, kind="stable")
    concepts_M = np.repeat(np.arange(num_concepts), np.diff(codes.starts))[by_position_M]
    weights_M = codes.weights_M[by_position_M].astype(np.float64)
    num_uses_N = np.bincount(codes.positions_M, minlength=codes.num_positions)
    first_N = np.cumsum(num_uses_N) - num_uses_N  # of the entries of a position, in the new order
    products_KK = np.empty((num_concepts, num_concepts))
    for concept, row_K in enumerate(products_KK):
        positions, weights = codes.of(concept)
        num_uses = num_uses_N[positions]
        entries = np.repeat(first_N[positions] - np.cumsum(num_uses) + num_uses, num_uses)
        entries += np.arange(len(entries))  # of all concepts at these positions
        products = np.repeat(weights, num_uses) * weights_M[entries]
        row_K[:] = np.bincount(concepts_M[entries], products, num_concepts)
    norm_K = np.maximum(np.sqrt(products_KK.diagonal()), LEAST)
    return products_KK / norm_K / norm_K[:, None]


def leaders(order: np.ndarray, similarity_KK: np.ndarray, least: float = DUPLICATE_COSINE) -> np.ndarray:
    """For each concept, the concept that stands for its group (K); it stands for itself if nothing before it
    in `order` is similar.

    Each concept, in this order, joins the most similar leader if their similarity is at least `least`, and
    else becomes a leader. So two leaders are never near-duplicates, and every member is one of its leader.
    """
    leader_K = np.empty(len(order), np.int64)
    chosen: list[int] = []  # the leaders so far
    for concept in order.tolist():
        similarities = similarity_KK[concept, chosen]
        best = int(similarities.argmax()) if chosen else -1
        if chosen and similarities[best] >= least:
            leader_K[concept] = chosen[best]
        else:
            leader_K[concept] = concept
            chosen.append(concept)
    return leader_K


def principal_map(vectors_KD: np.ndarray) -> np.ndarray:
    """Places (K, 2) in the plane of the two largest principal components of the vectors divided by their
    norm. The largest coordinate is 1 or -1; in each component the entry of largest size is positive.
    """
    unit_KD = torch.from_numpy(unit_rows(vectors_KD.astype(np.float64)))
    centred_KD = unit_KD - unit_KD.mean(0)
    values, vectors_KK = torch.linalg.eigh(centred_KD @ centred_KD.mT)  # in increasing order
    largest = (vectors_KK[:, -2:] * values[-2:].clamp_min(0).sqrt()).flip(1).numpy()
    place_K2 = np.zeros((len(vectors_KD), 2))
    place_K2[:, : largest.shape[1]] = largest
    place_K2 *= np.sign(place_K2[np.abs(place_K2).argmax(0), [0, 1]])
    return place_K2 / max(np.abs(place_K2).max(), LEAST)
