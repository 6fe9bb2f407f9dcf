"""Text to ids and back; whatever the bytes, no crash."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from small_text import sentences
from tokenizers import models, pre_tokenizers

from mlsm.text.tokenizer import MASK_ID, SPECIAL_PIECES, UNK_ID, Tokenizer, renumbered_json, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    lines = [*sentences(300), "``It rains,'' he said.", "Numbers 1 2 3 4 5 6 7 8 9 0!"]
    return train_tokenizer(lines, 80)


def test_special_pieces_have_fixed_ids(tokenizer: Tokenizer) -> None:
    assert tuple(tokenizer.piece(i) for i in range(5)) == SPECIAL_PIECES
    assert tokenizer.vocab_size == 80


def test_text_comes_back_cased(tokenizer: Tokenizer) -> None:
    text = "The cat sees the river again."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_pieces_cannot_be_written_in_text(tokenizer: Tokenizer) -> None:
    assert MASK_ID not in tokenizer.encode("the [MASK] sees [SEP] <pad>")


def test_quotes_of_tokenised_corpora_become_plain(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("``It rains,'' he") == tokenizer.encode('"It rains," he')


def test_blanks_of_all_kinds_are_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" the\tcat \u00a0 sees\r\n") == tokenizer.encode("the cat sees")


def test_scores_add_up_to_the_same_in_every_order(tokenizer: Tokenizer) -> None:
    """In float32 too: a tie is a tie, in whatever precision and order a text is encoded."""
    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model).pieces  # type: ignore[attr-defined]
    scores = np.array([piece.score for piece in pieces] * 20, np.float32)
    draw = np.random.default_rng(0)
    sums = {float(np.cumsum(draw.permutation(scores), dtype=np.float32)[-1]) for _ in range(20)}
    assert sums == {float(scores.sum(dtype=np.float64))}


def test_unknown_characters_become_unk(tokenizer: Tokenizer) -> None:
    assert UNK_ID in tokenizer.encode("the 猫 sees")


@hypothesis.settings(derandomize=True, max_examples=200, deadline=None, database=None)
@hypothesis.given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=60))
def test_no_text_crashes_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)


def test_lines_at_once_equal_lines_one_by_one(tokenizer: Tokenizer) -> None:
    lines = [*sentences(20, seed=3), "", "\ud800 surrogate"]
    assert tokenizer.encode_lines(lines) == [tokenizer.encode(line) for line in lines]


def test_the_same_text_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(sentences(200), 120).model == train_tokenizer(sentences(200), 120).model


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    assert 10 < train_tokenizer(["ab abc abcd"] * 20, 5000).vocab_size < 60


def test_what_is_not_a_tokenizer_is_refused(tmp_path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match="no tokenizer at"):
        Tokenizer.load(path)
    for content in (b"", b"junk", tokenizer.model[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.model"):
            Tokenizer.load(path)


def test_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="too small for a tokenizer"):
        train_tokenizer([], 100)


def test_places_of_pieces_are_without_the_spaces_before_their_words(tokenizer: Tokenizer) -> None:
    text = "The dog  sees a [MASK] again."
    for span in tokenizer.spans_with_masks(text):
        word, piece = text[span.start : span.stop], tokenizer.piece(span.piece_id)
        assert word == piece.removeprefix("▁") or (piece == "▁" and not word.strip())


def word_pieces(*pieces: str) -> bytes:
    """A tokenizer.json with these words, of which the first five are special."""
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[2])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*pieces[:5]])
    return tokenizer.to_str().encode()


def test_special_tokens_of_any_name_become_our_special_pieces() -> None:
    names = {
        "bos_token": "<b>",
        "sep_token": "<e>",
        "unk_token": "<u>",
        "pad_token": "<p>",
        "mask_token": "<m>",
    }
    renumbered, former_ids = renumbered_json(word_pieces(*names.values(), "cat"), names)
    assert [renumbered.piece(i) for i in range(5)] == [*SPECIAL_PIECES]
    assert former_ids == [0, 1, 2, 3, 4, 5]
    assert renumbered.encode("cat dog <m>")[:2] == [5, UNK_ID]
    with pytest.raises(ValueError, match=r"it has a piece \[CLS\] beside <b>"):
        renumbered_json(word_pieces(*names.values(), "[CLS]"), names)
