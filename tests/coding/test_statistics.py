"""The measures of a dictionary: the scores of SAELens, and the sentence about them."""

import dataclasses
import math

import pytest

from mlsm.coding.statistics import SplicedLoss, Statistics

LOSS = SplicedLoss(
    cross_entropy=4.0,
    spliced_cross_entropy=4.5,
    zero_cross_entropy=9.0,
    spliced_kl=0.6,
    zero_kl=3.0,
    num_words=10,
)
EARLY = Statistics(
    objective=0.1, mean_nonzeros=20.71, explained_share=0.969, unused_atoms=4, num_signals=3000
)


def test_scores_are_1_for_states_as_they_are_and_0_for_zeros() -> None:
    as_it_is = dataclasses.replace(LOSS, spliced_cross_entropy=4.0, spliced_kl=0.0)
    as_zeros = dataclasses.replace(LOSS, spliced_cross_entropy=9.0, spliced_kl=3.0)
    for loss, recovered, kl in ((as_it_is, 1, 1), (LOSS, 0.9, 0.8), (as_zeros, 0, 0)):
        assert loss.loss_recovered == pytest.approx(recovered)
        assert loss.kl_recovered == pytest.approx(kl)


def test_a_teacher_that_zeros_do_not_change_has_no_scores() -> None:
    same = SplicedLoss(4.0, 4.0, 4.0, 0.0, 0.0, num_words=1)
    assert math.isnan(same.loss_recovered)
    assert math.isnan(same.kl_recovered)


def test_the_sentence_says_what_was_measured() -> None:
    assert str(EARLY) == (
        "20.7 non-zeros per code, 96.9% of the energy explained, 4 dead concepts in 3,000 held-out states"
    )
    assert str(dataclasses.replace(EARLY, explained_variance=0.94, dense_atoms=2, spliced=LOSS)) == (
        "20.7 non-zeros per code, 96.9% of the energy and 94.0% of the variance explained, "
        "90.0% of the loss and 80.0% of the KL recovered, "
        "4 dead and 2 dense concepts in 3,000 held-out states"
    )
