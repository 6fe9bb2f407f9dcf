"""The heads: which weights they read, and at which positions."""

import dataclasses

import pytest
import torch

from mlsm.config import ModelConfig
from mlsm.model.deberta_v2 import Encoder, Layout
from mlsm.model.language_model import LanguageModel
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import PAD_ID

SHAPE = ModelConfig(
    vocab_size=61, width=32, depth=2, num_heads=4, ffn_width=48, max_positions=40, dropout=0.0
)
WITH_HEADS = dataclasses.replace(SHAPE, num_concepts=24, has_token_head=True)
SEQUENCES = Sequences.of([torch.full((9,), 7), torch.arange(20, 29)])
SELECTED_N = torch.tensor([3, 12, 13])


def test_logits_are_computed_for_selected_positions_only() -> None:
    model = LanguageModel(WITH_HEADS)
    hidden_ND = model.hidden_at(SEQUENCES, SELECTED_N)
    assert model.decoder_logits(hidden_ND).shape == model.token_logits(hidden_ND).shape == (3, 61)
    assert model.concept_logits(hidden_ND).shape == (3, 24)
    everywhere_TD = model.hidden_at(SEQUENCES, torch.arange(18))
    torch.testing.assert_close(hidden_ND, everywhere_TD[SELECTED_N])


def test_the_decoder_is_tied_to_the_word_embeddings() -> None:
    model = LanguageModel(SHAPE)
    hidden_ND = model.hidden_at(SEQUENCES, SELECTED_N)
    expected_NV = hidden_ND @ model.encoder.token_embedding.weight.mT + model.decoder_bias
    torch.testing.assert_close(model.token_logits(hidden_ND), expected_NV)


def test_the_token_head_reads_concept_logits() -> None:
    model = LanguageModel(WITH_HEADS)
    assert model.token_head is not None
    hidden_ND = model.hidden_at(SEQUENCES, SELECTED_N)
    assert not model.token_logits(hidden_ND).any()
    torch.nn.init.normal_(model.token_head.weight, generator=torch.Generator().manual_seed(1))
    expected_NV = model.concept_logits(hidden_ND) @ model.token_head.weight.mT
    torch.testing.assert_close(model.token_logits(hidden_ND), expected_NV)
    model.freeze_all_but_token_head_()
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {"token_head.weight", "token_head.bias"}


def test_weights_on_the_meta_device_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw there makes PyTorch import its compiler, which takes a second."""
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    with torch.device("meta"):
        LanguageModel(WITH_HEADS)
        Encoder(SHAPE, Layout(num_buckets=4, max_distance=16, is_table_normed=True))
    with pytest.raises(TypeError):
        LanguageModel(SHAPE)


def test_initial_weights_depend_on_the_seed_only() -> None:
    weights = [LanguageModel(SHAPE, seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert not torch.equal(weights[0]["transform.weight"], weights[2]["transform.weight"])
    assert not weights[0]["encoder.token_embedding.weight"][PAD_ID].any()


def test_a_model_without_concepts_says_so() -> None:
    model = LanguageModel(SHAPE)
    with pytest.raises(ValueError, match="has no concept head; train one with --objective lsm"):
        model.concept_logits(model.hidden_at(SEQUENCES, SELECTED_N))
