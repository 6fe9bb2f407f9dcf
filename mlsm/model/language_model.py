"""The language model of all three phases: the encoder and the heads on it.

Words and concepts share one transform (dense, GELU, LayerNorm). On it are the decoder of words, tied to the
word embeddings, and the concept head. The token head of the third phase maps concept logits to words. All
heads read the hidden states of selected positions only.

Legend: N selected positions, D width, V vocabulary, K concepts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlsm.config import ModelConfig
from mlsm.model.deberta import Encoder, LayerNorm, init_weights_
from mlsm.seeds import generator_for
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import PAD_ID


class LanguageModel(nn.Module):
    """A DeBERTa encoder with a tied decoder; in later phases also a concept head and a token head."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.transform = nn.Linear(config.width, config.width)
        self.transform_norm = LayerNorm(config.width)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.concepts = nn.Linear(config.width, config.num_concepts) if config.num_concepts else None
        self.token_head = nn.Linear(config.num_concepts, config.vocab_size) if config.has_token_head else None
        init_weights_(self, config.init_std, generator_for("weights", seed))
        with torch.no_grad():
            self.encoder.token_embedding.weight[PAD_ID] = 0.0
            if self.token_head is not None:
                # Training it alone is a convex problem, which needs no random start.
                self.token_head.weight.zero_()

    @property
    def device(self) -> torch.device:
        """The device of all weights."""
        return self.decoder_bias.device

    def hidden_at(self, sequences: Sequences, selected_N: Tensor) -> Tensor:
        """The hidden states of the last layer at flat positions, transformed for the heads (N, D)."""
        return self.transformed(self.encoder(sequences, selected_N))

    def transformed(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states of the last layer (N, D), transformed for the heads."""
        return self.transform_norm(F.gelu(self.transform(hidden_ND)))

    def tied_decoder(self) -> tuple[Tensor, Tensor]:
        """The weight (V, D) of the decoder, which is that of the word embeddings, and its bias (V)."""
        return self.encoder.token_embedding.weight, self.decoder_bias

    def decoder_logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) of words by the tied decoder."""
        return F.linear(hidden_ND, *self.tied_decoder())

    def concept_logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, K) of the latent concepts. Raises ValueError on a model without them."""
        if self.concepts is None:
            raise ValueError("this model has no concept head; train one with --objective lsm")
        return self.concepts(hidden_ND)

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) of words by the token head if there is one, else by the tied decoder."""
        if self.token_head is None:
            return self.decoder_logits(hidden_ND)
        return self.token_head(self.concept_logits(hidden_ND))

    def freeze_all_but_token_head_(self) -> None:
        """Freeze everything but the linear layer from concepts to words, for the third phase."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.startswith("token_head."))
