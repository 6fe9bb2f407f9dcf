"""Statistics of codes, worked out by hand and on planted concepts."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mlsm.pages import concept_use
from mlsm.pages.concept_use import Codes


def codes_of(dense_NK: np.ndarray) -> Codes:
    """The codes of a matrix, given with their entries in random order."""
    rows, concepts = dense_NK.nonzero()
    order = np.random.default_rng(0).permutation(len(rows))
    places = torch.from_numpy(np.stack([rows, concepts])[:, order])
    weights = torch.from_numpy(dense_NK[rows, concepts][order])
    return Codes.from_sparse(torch.sparse_coo_tensor(places, weights, dense_NK.shape, check_invariants=True))


def test_codes_are_sorted_by_concept() -> None:
    dense_NK = np.random.default_rng(4).random((7, 5), np.float32) * np.eye(7, 5, 1, np.float32)
    codes = codes_of(dense_NK)
    assert (codes.num_positions, codes.num_concepts) == (7, 5)
    for k in range(5):
        positions, weights = codes.of(k)
        assert positions.tolist() == dense_NK[:, k].nonzero()[0].tolist()
        assert weights.tolist() == dense_NK[positions, k].tolist()


TOY_NK = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.25, 0.25, 0.5, 0]], np.float32)
TOY_LABELS = np.array([0, 0, 1, 1])


def planted(num_positions: int, num_labels: int) -> tuple[Codes, np.ndarray]:
    """Concept v is label v and nothing else."""
    labels_N = np.random.default_rng(1).integers(num_labels, size=num_positions)
    return codes_of(np.eye(num_labels, dtype=np.float32)[labels_N]), labels_N


def test_use_by_hand() -> None:
    used = concept_use.usage(codes_of(TOY_NK))
    assert used.share_K == pytest.approx([1.75 / 4, 1.75 / 4, 0.5 / 4, 0])
    assert used.activity_K.tolist() == [0.75, 0.75, 0.25, 0]
    assert used.concepts_per_position == 7 / 4
    entropy = -sum(p * np.log2(p) for p in used.share_K[:3])
    assert used.effective_concepts == pytest.approx(2**entropy)


def test_information_by_hand() -> None:
    profile_KV = concept_use.profile(codes_of(TOY_NK), TOY_LABELS, 2)
    assert profile_KV.tolist() == [[1.5, 0.25], [0.5, 1.25], [0, 0.5], [0, 0]]
    measured = concept_use.information(profile_KV, np.bincount(TOY_LABELS))
    joint = profile_KV[:3] / 4
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    assert measured.bits == pytest.approx(
        sum(p * np.log2(p / q) for p, q in zip(joint.flat, outer.flat, strict=True) if p)
    )
    assert measured.label_bits == 1
    assert measured.bits_K[2:] == pytest.approx([1, 0])
    assert measured.entropy_K[2:] == pytest.approx([0, 0])


def test_weight_that_a_code_lacks_is_a_concept_of_its_own() -> None:
    half = concept_use.profile(codes_of(TOY_NK / 2), TOY_LABELS, 2)
    measured = concept_use.information(half, np.bincount(TOY_LABELS))
    whole = concept_use.information(2 * half, np.bincount(TOY_LABELS))
    assert measured.bits == pytest.approx(whole.bits / 2)  # "none" has half of each label and tells nothing
    assert measured.bits_K == pytest.approx(whole.bits_K)
    only_one = codes_of(np.array([[1.0], [1], [0], [0]], np.float32))  # to have no concept is to be label 1
    measured = concept_use.information(concept_use.profile(only_one, TOY_LABELS, 2), np.bincount(TOY_LABELS))
    assert measured.bits == pytest.approx(1)


def test_a_concept_that_is_one_token_tells_all_of_it() -> None:
    codes, labels_N = planted(6000, 5)
    measured = concept_use.information(concept_use.profile(codes, labels_N, 5), np.bincount(labels_N))
    chance = concept_use.shuffled_information(codes, labels_N, 5, np.random.default_rng(0), num_shuffles=3)
    assert measured.entropy_K == pytest.approx(np.zeros(5), abs=1e-9)
    assert measured.bits == pytest.approx(measured.label_bits)
    assert concept_use.adjusted(measured, chance) == pytest.approx(1)
    assert chance.bits < 0.01


def test_concepts_that_ignore_the_token_tell_nothing_beyond_chance() -> None:
    draw = np.random.default_rng(3)
    codes = codes_of(np.eye(40, dtype=np.float32)[draw.integers(40, size=2000)])
    labels_N = draw.integers(30, size=2000)
    measured = concept_use.information(concept_use.profile(codes, labels_N, 30), np.bincount(labels_N))
    chance = concept_use.shuffled_information(codes, labels_N, 30, draw, num_shuffles=5)
    assert measured.bits > 0.3  # as it seems
    assert abs(concept_use.adjusted(measured, chance)) < 0.02


def test_codes_without_weight_are_nothing_and_no_error() -> None:
    codes = codes_of(np.zeros((4, 3), np.float32))
    used = concept_use.usage(codes)
    assert used.share_K.tolist() == used.activity_K.tolist() == [0, 0, 0]
    measured = concept_use.information(concept_use.profile(codes, TOY_LABELS, 2), np.bincount(TOY_LABELS))
    assert measured.bits == 0
    assert not len(concept_use.strongest(codes, TOY_LABELS, 0, 3))
    assert not len(concept_use.typical(codes, 0, 3, np.random.default_rng(0)))


def test_largest_sorts_and_keeps_the_order_of_equals() -> None:
    listing = concept_use.largest(np.array([[1.0, 3, 2, 3, 0], [0, 1, -2, 5, 4]]), 3)
    assert listing.items.tolist() == [[1, 3, 2], [3, 4, 1]]
    assert listing.values.tolist() == [[3, 3, 2], [5, 4, 1]]
    assert concept_use.largest(np.ones((1, 2)), 5).items.tolist() == [[0, 1]]


def test_nearest_leaves_the_row_itself_out() -> None:
    listing = concept_use.nearest(np.array([[1.0, 0], [10, 1], [0, 1], [0, 0]]), 2)
    assert listing.items[:3, 0].tolist() == [1, 0, 1]
    assert listing.values[0] == pytest.approx([10 / np.hypot(10, 1), 0])
    assert listing.values[3].tolist() == [0, 0]


def test_strongest_contexts_come_from_different_sequences() -> None:
    dense_NK = np.array([[0.9], [0.8], [0.3], [0.7], [0]], np.float32)
    codes = codes_of(dense_NK)
    places = concept_use.strongest(codes, np.array([0, 0, 1, 2, 3]), 0, 2)
    assert codes.positions_M[places].tolist() == [0, 3]
    drawn = concept_use.typical(codes, 0, 500, np.random.default_rng(0))
    assert sorted(codes.positions_M[drawn]) == [0, 1, 2, 3]
    assert (np.diff(codes.weights_M[drawn]) <= 0).all()


def test_a_shuffled_dictionary_is_found_again() -> None:
    draw = np.random.default_rng(0)
    atoms_KD = draw.standard_normal((50, 16))
    order = draw.permutation(50)
    others_JD = np.vstack(
        [2 * (atoms_KD + 0.1 * draw.standard_normal((50, 16)))[order], draw.standard_normal((9, 16))]
    )
    measured = concept_use.match(atoms_KD, others_JD)
    assert measured.partner_K.tolist() == np.argsort(order).tolist()
    assert measured.cosine_K.min() > 0.9
    assert measured.mutual_share == 1


def test_the_greedy_assignment_is_one_to_one_and_near_the_optimum() -> None:
    draw = np.random.default_rng(5)
    atoms_KD, others_JD = draw.standard_normal((60, 8)), draw.standard_normal((40, 8))
    measured = concept_use.match(atoms_KD, others_JD)
    partners = measured.partner_K[measured.partner_K >= 0]
    assert sorted(partners) == list(range(40))
    assert (measured.cosine_K[measured.partner_K < 0] == 0).all()
    cosine_KJ = concept_use.unit_rows(atoms_KD) @ concept_use.unit_rows(others_JD).T
    best = cosine_KJ[linear_sum_assignment(-cosine_KJ)].sum()
    assert 0.9 * best < measured.cosine_K.sum() <= best + 1e-9


def test_random_atoms_have_the_mean_and_covariance_of_the_atoms() -> None:
    draw = np.random.default_rng(2)
    atoms_KD = (draw.standard_normal((3000, 3)) * [1, 2, 0.5] + [5, 0, -1]).astype(np.float32)
    twins_KD = concept_use.random_atoms_like(atoms_KD, draw)
    assert twins_KD.mean(0) == pytest.approx(atoms_KD.mean(0), abs=0.15)
    assert np.cov(twins_KD.T) == pytest.approx(np.cov(atoms_KD.T), abs=0.3)
