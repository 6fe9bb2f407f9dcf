"""The paper's recipe: Hugging Face's eager DeBERTa, logits at every position, sequences in random order, and
a dense FISTA of 100 steps.

This is what a user without this project would train with. BERT with PyTorch's fused attention is added as the
model of the same size that is best supported.

Legend: B sequences, L positions (padded), N selected positions, D width, V vocabulary, K concepts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaModel,
    PreTrainedModel,
)

from mlsm.config import ModelConfig
from mlsm.export import huggingface_config
from mlsm.text.batches import MicroBatch
from mlsm.text.sequences import moved
from mlsm.text.tokenizer import PAD_ID

FISTA_STEPS = 100


def original_fista(signals_ND: Tensor, dictionary_DK: Tensor, lam: float) -> Tensor:
    """Codes (N, K) by 100 FISTA steps, with L computed at each call."""
    step = 1 / float(torch.linalg.eigvalsh(dictionary_DK @ dictionary_DK.mT)[-1])
    return dense_fista(signals_ND, dictionary_DK, lam, step, FISTA_STEPS)


def dense_fista(signals_ND: Tensor, dictionary_DK: Tensor, lam: float, step: float, num_steps: int) -> Tensor:
    """Codes (N, K) by FISTA steps from zero (Beck and Teboulle 2009), without restart or stopping rule."""
    codes_NK = ahead_NK = signals_ND.new_zeros(len(signals_ND), dictionary_DK.shape[1])
    t = 1.0
    for _ in range(num_steps):
        gradient_NK = (ahead_NK @ dictionary_DK.mT - signals_ND) @ dictionary_DK
        previous_NK, codes_NK = codes_NK, (ahead_NK - step * (gradient_NK + lam)).clamp_min(0)
        t_previous, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead_NK = codes_NK + (t_previous - 1) / t * (codes_NK - previous_NK)
    return codes_NK


class Padded(NamedTuple):
    """A micro-batch as transformers reads it."""

    ids_BL: Tensor
    inputs_BL: Tensor
    mask_BL: Tensor
    selected_BL: Tensor

    def to(self, device: torch.device) -> Padded:
        return Padded(*(moved(tensor, device) for tensor in self))


def padded(micro: MicroBatch) -> Padded:
    """The same sequences as padded tensors on the CPU, as a data loader makes them."""
    lengths = micro.text.cu_seqlens.diff().tolist()
    selected_T = torch.zeros_like(micro.text.ids_T, dtype=torch.bool)
    selected_T[micro.selected_N] = True
    ids_BL, inputs_BL = (
        pad_sequence(ids_T.split(lengths), batch_first=True, padding_value=PAD_ID)
        for ids_T in (micro.text.ids_T, micro.inputs.ids_T)
    )
    mask_BL = pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
    return Padded(ids_BL, inputs_BL, mask_BL, pad_sequence(selected_T.split(lengths), batch_first=True))


def deberta_config(config: ModelConfig) -> DebertaConfig:
    """The configuration of transformers for the same model."""
    return DebertaConfig.from_dict(huggingface_config(config))


def bert(config: ModelConfig) -> BertForMaskedLM:
    """A BERT of the same size with fused attention."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_width,
            max_position_embeddings=config.max_positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            attn_implementation="sdpa",
        )
    )


def masked_lm_loss(model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """Cross-entropy summed over the masked tokens; logits are computed everywhere."""
    batch = padded(micro).to(model.device)
    logits_BLV = model(input_ids=batch.inputs_BL, attention_mask=batch.mask_BL).logits
    return F.cross_entropy(logits_BLV[batch.selected_BL], batch.ids_BL[batch.selected_BL], reduction="sum")


def concept_loss(
    student: DebertaForMaskedLM,
    teacher: DebertaModel,
    micro: MicroBatch,
    dictionary_DK: Tensor,
    lam: float,
    signals_ND: Tensor,
) -> Tensor:
    """KL to the L1-normalised codes, summed over the selected tokens. The concepts are K columns more of the
    student's vocabulary, whose logits are computed everywhere.

    The dense solver takes the same time for any signal. It codes the real signals that ours codes too.
    """
    batch = padded(micro).to(student.device)
    with torch.no_grad():
        states_BLD = teacher(input_ids=batch.ids_BL, attention_mask=batch.mask_BL).last_hidden_state
        states_ND = F.normalize(states_BLD[batch.selected_BL], dim=1)
        with torch.autocast(signals_ND.device.type, enabled=False):
            codes_NK = original_fista(signals_ND[: len(states_ND)], dictionary_DK, lam)
        targets_NK = F.normalize(codes_NK, p=1, dim=1)
    logits_BLV = student(input_ids=batch.inputs_BL, attention_mask=batch.mask_BL).logits
    concepts_NK = logits_BLV[batch.selected_BL][:, -dictionary_DK.shape[1] :]
    return F.kl_div(concepts_NK.log_softmax(-1), targets_NK, reduction="sum")
