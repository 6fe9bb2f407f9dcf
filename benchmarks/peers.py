"""The DeBERTas that others have made fast, with the weights of a DeBERTa v1.

They are for v2 and v3. A v2 without buckets, without shared projections and without a LayerNorm on its table
computes what v1 computes, so that all sides of a benchmark have the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedModel,
)

PEERS = ("FlashDeBERTa", "DisentangledFlash")


def v2_config(config: DebertaConfig) -> DebertaV2Config:
    """The configuration of a v2 that computes what this v1 computes."""
    return DebertaV2Config(
        **config.to_dict() | {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none"}
    )


def v2_weights(v1: DebertaForMaskedLM) -> dict[str, Tensor]:
    """The weights of a v1 by the names of v2, where the keys have biases, which are zero here."""
    width, num_heads = v1.config.hidden_size, v1.config.num_attention_heads
    weights = {}
    for name, tensor in v1.state_dict().items():
        if name.endswith("in_proj.weight"):
            stem = name.removesuffix("in_proj.weight")
            by_head = tensor.view(num_heads, 3, -1, width)
            for number, part in enumerate(("query", "key", "value")):
                weights[f"{stem}{part}_proj.weight"] = by_head[:, number].reshape(width, width)
            weights[f"{stem}key_proj.bias"] = torch.zeros_like(tensor[0])
            weights[f"{stem}pos_key_proj.bias"] = torch.zeros_like(tensor[0])
            continue
        for before, after in (
            ("self.q_bias", "self.query_proj.bias"),
            ("self.v_bias", "self.value_proj.bias"),
            (".pos_q_proj", ".pos_query_proj"),
            (".pos_proj", ".pos_key_proj"),
        ):
            name = name.replace(before, after)
        weights[name] = tensor
    return weights


def fast_masked_lm(peer: str, v1: DebertaForMaskedLM) -> PreTrainedModel:
    """The peer's model with the weights of v1. Raises ImportError if it is not installed."""
    if peer == "FlashDeBERTa":
        from flashdeberta import FlashDebertaV2ForMaskedLM as Model
    else:
        from disentangled_flash import optimize_deberta_training

        Model = DebertaV2ForMaskedLM
    model = Model(v2_config(v1.config))
    model.load_state_dict(v2_weights(v1))
    if peer == "DisentangledFlash":
        optimize_deberta_training(model.deberta, backend="triton")
    return model
