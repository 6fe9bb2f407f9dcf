"""The names our weights have in a Hugging Face DeBERTa v1 checkpoint. The values are the same: only names
differ.

Importing this module needs no transformers.
"""

from __future__ import annotations

import re

from torch import Tensor

# Ours -> theirs; N is the number of a layer.
_NAMES = {
    "encoder.words.weight": "deberta.embeddings.word_embeddings.weight",
    "encoder.word_norm": "deberta.embeddings.LayerNorm",
    "encoder.distances.weight": "deberta.encoder.rel_embeddings.weight",
    "encoder.layers.N.attention.in_proj.weight": "deberta.encoder.layer.N.attention.self.in_proj.weight",
    "encoder.layers.N.attention.q_bias": "deberta.encoder.layer.N.attention.self.q_bias",
    "encoder.layers.N.attention.v_bias": "deberta.encoder.layer.N.attention.self.v_bias",
    "encoder.layers.N.attention.pos_k.weight": "deberta.encoder.layer.N.attention.self.pos_proj.weight",
    "encoder.layers.N.attention.pos_q": "deberta.encoder.layer.N.attention.self.pos_q_proj",
    "encoder.layers.N.attention.out": "deberta.encoder.layer.N.attention.output.dense",
    "encoder.layers.N.attention_norm": "deberta.encoder.layer.N.attention.output.LayerNorm",
    "encoder.layers.N.up": "deberta.encoder.layer.N.intermediate.dense",
    "encoder.layers.N.down": "deberta.encoder.layer.N.output.dense",
    "encoder.layers.N.ffn_norm": "deberta.encoder.layer.N.output.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "vocabulary_bias": "cls.predictions.bias",
}


def from_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; names that are not ours (the tied decoder, a pooler) are left out."""
    ours = {}
    for name, tensor in tensors.items():
        number = re.search(r"\.layer\.(\d+)\.", name)
        general = re.sub(r"\.layer\.\d+\.", ".layer.N.", name)
        for own, theirs in _NAMES.items():
            if general == theirs or general.removesuffix(".weight").removesuffix(".bias") == theirs:
                own += general.removeprefix(theirs)
                ours[own.replace(".N.", f".{number[1]}.") if number else own] = tensor
    return ours


def to_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names; the heads that they do not know (concepts, words from concepts) are left
    out.
    """
    theirs = {}
    for name, tensor in tensors.items():
        number = re.search(r"\.layers\.(\d+)\.", name)
        general = re.sub(r"\.layers\.\d+\.", ".layers.N.", name)
        for own, other in _NAMES.items():
            if general == own or general.removesuffix(".weight").removesuffix(".bias") == own:
                other += general.removeprefix(own)
                theirs[other.replace(".N.", f".{number[1]}.") if number else other] = tensor
    return theirs
