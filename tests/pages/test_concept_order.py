"""Order, groups and map of concepts, by their definitions and on planted concepts."""

import numpy as np
import pytest
import torch

from mlsm.pages import concept_order
from mlsm.pages.concept_use import Codes, information, profile


def codes_of(dense_NK: np.ndarray) -> Codes:
    return Codes.from_sparse(torch.from_numpy(dense_NK).to_sparse())


def test_a_group_of_words_is_more_interesting_than_one_word_or_all_words() -> None:
    draw = np.random.default_rng(0)
    labels_N = draw.integers(16, size=4000)
    dense_NK = np.zeros((4000, 4), np.float32)
    dense_NK[:, 0] = labels_N == 3  # one word
    dense_NK[:, 1] = (labels_N >= 4) & (labels_N < 8)  # four words
    dense_NK[:, 2] = draw.random(4000) < 0.3  # any word
    counts_V = np.bincount(labels_N)
    measured = information(profile(codes_of(dense_NK), labels_N, 16), counts_V)
    share_K = dense_NK.sum(0) / dense_NK.sum()
    found_K = concept_order.interest(share_K, measured.bits_K, measured.entropy_K)
    assert found_K.argmax() == 1
    assert found_K[0] == pytest.approx(0, abs=1e-6)
    assert found_K[2] < 0.1 * found_K[1]
    assert found_K[3] == 0
    # Four of sixteen words of about equal use: 2 bits of information, and 2 bits of entropy.
    assert found_K[1] == pytest.approx(np.sqrt(4 * share_K[1]) * 1, rel=0.02)


def test_interest_ignores_information_below_chance() -> None:
    assert concept_order.interest(np.array([1.0]), np.array([-0.5]), np.array([3.0])).tolist() == [0]


def test_the_cosine_of_weights_is_that_of_the_dense_matrix() -> None:
    draw = np.random.default_rng(1)
    dense_NK = draw.random((50, 7)).astype(np.float32) * (draw.random((50, 7)) < 0.4)
    dense_NK[:, 6] = 0
    wide_NK = dense_NK.astype(np.float64)
    norm_K = np.maximum(np.linalg.norm(wide_NK, axis=0), 1e-30)
    expected_KK = (wide_NK / norm_K).T @ (wide_NK / norm_K)
    assert concept_order.co_use(codes_of(dense_NK)) == pytest.approx(expected_KK)


def test_no_two_leaders_are_similar_and_every_member_is_like_its_leader() -> None:
    draw = np.random.default_rng(2)
    vectors_KD = draw.standard_normal((40, 3))
    vectors_KD /= np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    similarity_KK, order = vectors_KD @ vectors_KD.T, draw.permutation(40)
    leader_K = concept_order.leaders(order, similarity_KK)
    found = np.unique(leader_K)
    assert 1 < len(found) < 40
    assert (leader_K[found] == found).all()
    between = similarity_KK[np.ix_(found, found)] - 2 * np.eye(len(found))
    assert between.max() < concept_order.DUPLICATE_COSINE
    members = np.flatnonzero(leader_K != np.arange(40))
    assert (similarity_KK[members, leader_K[members]] >= concept_order.DUPLICATE_COSINE).all()
    place = np.argsort(order)
    assert (place[leader_K[members]] < place[members]).all()  # a leader comes before its members


def test_the_map_keeps_the_distances_of_a_plane() -> None:
    """Unit vectors on a cone vary in two directions only, so no distance is lost."""
    angle_K = np.random.default_rng(3).uniform(0, 2 * np.pi, 30)
    vectors_KD = np.stack([np.cos(angle_K), np.sin(angle_K), np.full(30, 0.5)], 1)
    place_K2 = concept_order.principal_map(7 * vectors_KD)
    distances = np.linalg.norm(place_K2[:, None] - place_K2, axis=-1)
    expected = np.linalg.norm(vectors_KD[:, None] - vectors_KD, axis=-1)
    assert distances / distances.max() == pytest.approx(expected / expected.max(), abs=1e-6)
    assert np.abs(place_K2).max() == pytest.approx(1)
    assert concept_order.principal_map(np.ones((4, 3))) == pytest.approx(np.zeros((4, 2)))


def test_two_concepts_have_a_map() -> None:
    assert concept_order.principal_map(np.eye(2)).shape == (2, 2)
    assert concept_order.principal_map(np.ones((1, 3))).shape == (1, 2)
