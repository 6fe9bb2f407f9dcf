"""The small grammar: pairs differ in one word, and the frequency of words does not decide them."""

import pytest
import torch
from small_runs import small_tokenizer
from small_text import sentences

from mlsm.evaluation.grammar import INTRANSITIVE, NOUNS, PHENOMENA, TRANSITIVE, demo_pairs
from mlsm.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module", params=["pieces of words", "whole words"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One without most words of the grammar, and one that has its nouns and verbs as pieces."""
    if request.param == "pieces of words":
        return small_tokenizer()
    words = [*TRANSITIVE, *INTRANSITIVE, *(word for noun in NOUNS for word in noun)]
    return train_tokenizer(
        [*sentences(300), *(f"The {word} there." for word in words for _ in range(9))], 190
    )


def test_pairs_are_many_distinct_and_the_same_every_time(tokenizer: Tokenizer) -> None:
    pairs = demo_pairs(tokenizer)
    assert pairs == demo_pairs(tokenizer)
    assert len(pairs) == len(PHENOMENA)
    for name, these in pairs.items():
        assert len(these) >= 100, name
        assert len(set(these)) == len(these)
        for good, bad in these:
            changed = [a != b for a, b in zip(good.split(), bad.split(), strict=True)]
            assert sum(changed) == 1, (good, bad)


def test_the_frequency_of_words_is_right_in_half_of_the_pairs(tokenizer: Tokenizer) -> None:
    """Random unigram models: a score is a sum over pieces."""
    draw = torch.Generator().manual_seed(0)
    log_probability_MV = torch.randn(200, tokenizer.vocab_size, generator=draw, dtype=torch.float64)
    for name, these in demo_pairs(tokenizer).items():
        good_M, bad_M = (
            torch.stack([log_probability_MV[:, tokenizer.encode(text)].sum(1) for text in texts])
            for texts in zip(*these, strict=True)
        )
        share_M = (good_M > bad_M).double().mean(0)
        assert float((share_M - 0.5).abs().max()) <= 0.02, name
