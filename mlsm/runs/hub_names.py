"""The names of weights in a Hugging Face DeBERTa checkpoint, and the two files that an export adds to it.

The values of v1 are the same under both names. This module needs no transformers.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

RUN_FILE = "mlsm.json"  # the run's config.json; the export's config.json is transformers'
OWN_WEIGHTS_FILE = "concepts.safetensors"  # heads that transformers does not know, under our names

# Ours -> theirs; N is the number of a layer.
_NAMES = {
    "encoder.token_embedding.weight": "deberta.embeddings.word_embeddings.weight",
    "encoder.embedding_norm": "deberta.embeddings.LayerNorm",
    "encoder.relative_embedding.weight": "deberta.encoder.rel_embeddings.weight",
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
    "decoder_bias": "cls.predictions.bias",
}

_V2_NAMES = {"encoder.table_norm": "deberta.encoder.LayerNorm"}


def from_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; those without a name here (a tied decoder, a pooler) are left out."""
    return _renamed(tensors, {theirs: ours for ours, theirs in _NAMES.items()})


def from_huggingface_v2(
    tensors: dict[str, Tensor], num_heads: int, shares_projections: bool
) -> dict[str, Tensor]:
    """The tensors of a v2 or v3 encoder under the names of `mlsm.model.deberta_v2`. Queries, keys and values
    are interleaved per head. Where distances share the projections of tokens, they get a copy. Tensors of
    another shape than their neighbours are left out.
    """
    renamed = _renamed(tensors, {theirs: ours for ours, theirs in (_NAMES | _V2_NAMES).items()})
    for name in tensors:
        match = re.fullmatch(r"(.+\.(\d+)\.attention\.self\.)query_proj\.(weight|bias)", name)
        if match is None:
            continue
        prefix, number, kind = match.groups()
        qkv = [f"{prefix}{part}_proj.{kind}" for part in ("query", "key", "value")]
        positions = qkv if shares_projections else [f"{prefix}pos_{p}_proj.{kind}" for p in ("query", "key")]
        if not {*qkv, *positions} <= tensors.keys() or len({tensors[part].shape for part in qkv}) > 1:
            continue
        if not tensors[name].dim() or len(tensors[name]) % num_heads:
            continue
        ours = f"encoder.layers.{number}.attention"
        per_head = torch.stack([tensors[part].unflatten(0, (num_heads, -1)) for part in qkv], 1)
        renamed[f"{ours}.in_{'proj.weight' if kind == 'weight' else 'bias'}"] = per_head.flatten(0, 2)
        renamed[f"{ours}.pos_q.{kind}"], renamed[f"{ours}.pos_k.{kind}"] = (tensors[p] for p in positions[:2])
    return {name: tensor for name, tensor in renamed.items() if name.startswith("encoder.")}


def to_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names; heads that they do not know (concept head, token head) are left out."""
    return _renamed(tensors, _NAMES)


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors whose name, or name without .weight or .bias, is in `names`, under the name found there."""
    renamed = {}
    for name, tensor in tensors.items():
        number = re.search(r"\.layers?\.(\d+)\.", name)
        general = name.replace(f".{number[1]}.", ".N.", 1) if number else name
        known = next((n for n in (general, general.rpartition(".")[0]) if n in names), None)
        if known is not None:
            other = names[known] + general.removeprefix(known)
            renamed[other.replace(".N.", f".{number[1]}.") if number else other] = tensor
    return renamed
