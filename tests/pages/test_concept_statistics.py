"""Statistics of a text whose concepts are planted: labels, whole words, groups, weights of contexts."""

import numpy as np
import pytest
from small_reports import small_report

from mlsm.pages import concept_statistics


def test_a_context_has_whole_words() -> None:
    begins_word_T = np.array([True, True, False, False, *[True] * 30, False, False, True])
    start, stop = concept_statistics._whole_words(begins_word_T, 15, 1, 36)
    assert (start, stop) == (1, 28)  # the word of tokens 1 to 3 is not cut
    assert concept_statistics._whole_words(begins_word_T, 22, 1, 36) == (
        10,
        36,
    )  # nor that of tokens 33 to 35
    no_words_T = np.zeros(100, bool)  # a script without spaces
    start, stop = concept_statistics._whole_words(no_words_T, 50, 1, 99)
    longest = concept_statistics.CONTEXT_TOKENS + concept_statistics.LONGEST_WORD
    assert (start, stop) == (50 - longest, 50 + longest)


def test_a_label_has_the_types_that_add_most_to_the_bits() -> None:
    counts_V = np.array([1000, 10, 10, 500, 0])
    profile_KV = np.array([[30, 4, 4, 0, 0], [0, 0, 5, 0.1, 0], [0, 0, 0, 0, 0]], np.float32)
    labels = concept_statistics._labels(profile_KV, counts_V)
    # The frequent type has most of concept 0, but says least about it.
    assert sorted(labels[0][:2]) == [1, 2]
    assert labels[0][2:] == [0]
    assert labels[1:] == [[2], []]


def test_contexts_hold_the_weights_of_all_their_tokens() -> None:
    """The codes of small_report are 0 or 1, and concept 7 is '▁king'."""
    report = small_report()
    king = report.pieces.index("▁king")
    contexts = report.sources["teacher"].contexts[7]
    assert len(contexts) > 3
    for context in contexts:
        shown = range(context.start, context.stop)
        kings = [i for i in shown if report.sequences[context.sequence][i] == king]
        assert context.weights == [(i, 1.0) for i in kings]
    assert any(len(context.weights) > 1 for context in contexts)
    concept_at: dict[tuple[int, int], int] = {}  # each position has one concept
    for concept, listed in enumerate(report.sources["teacher"].contexts):
        for context in listed:
            for place, _ in context.weights:
                assert concept_at.setdefault((context.sequence, place), concept) == concept


@pytest.mark.parametrize("reader", ["teacher", "student"])
def test_groups_are_made_in_the_order_of_interest(reader: str) -> None:
    use = small_report().sources[reader]
    for concept, leader in enumerate(use.leader):
        assert use.leader[leader] == leader
        assert use.interest[leader] >= use.interest[concept]
