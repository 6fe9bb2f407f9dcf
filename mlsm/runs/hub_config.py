"""config.json of a Hugging Face DeBERTa as a typed record. It refuses what this project does not compute."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mlsm.config import ModelConfig
from mlsm.model.deberta_v2 import MAX_DISTANCE, Layout
from mlsm.settings import check_fields, check_positive, from_json

MODEL_TYPES = ("deberta", "deberta-v2")  # transformers calls v3 deberta-v2, too


@dataclass(frozen=True)
class HubConfig:
    """The settings that decide what the model computes. The defaults are those of transformers."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    relative_attention: bool = False
    max_relative_positions: int = -1  # -1: max_position_embeddings
    position_buckets: int = -1  # of v2; -1: a row for each distance
    pos_att_type: str | tuple[str, ...] | None = None
    position_biased_input: bool = True
    share_att_key: bool = False  # of v2
    norm_rel_ebd: str = "none"  # of v2
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    talking_head: bool = False
    conv_kernel_size: int = 0
    embedding_size: int | None = None
    attention_head_size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        computed = {
            "hidden_act": "gelu",
            "attention_probs_dropout_prob": self.hidden_dropout_prob,
            "relative_attention": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-7,
            "talking_head": False,
            "conv_kernel_size": 0,
            "embedding_size": self.hidden_size,
            "attention_head_size": self.hidden_size // self.num_attention_heads,
        }
        for name, value in computed.items():
            if getattr(self, name) not in (value, None):
                raise ValueError(f"{name} is {getattr(self, name)}, only {value} is computed here")
        terms = self.pos_att_type or ()
        terms = tuple(terms.split("|")) if isinstance(terms, str) else terms
        if {term.strip().lower() for term in terms} != {"c2p", "p2c"}:
            raise ValueError(f"pos_att_type is {'|'.join(terms) or 'empty'}, only c2p|p2c is computed here")
        if max(self.max_relative_positions, self.position_buckets) > MAX_DISTANCE:
            raise ValueError(f"max_relative_positions and position_buckets must be at most {MAX_DISTANCE}")

    @property
    def max_distance(self) -> int:
        """The longest distance that has an embedding of its own, in tokens."""
        return (
            self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings
        )

    def shape(self, vocab_size: int) -> ModelConfig:
        """The size of the model; sequences of v1 may be as long as its distances reach. Raises ValueError for
        a size that cannot be.
        """
        return ModelConfig(
            vocab_size=vocab_size,
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            ffn_width=self.intermediate_size,
            max_positions=self.max_distance if self.layout is None else self.max_position_embeddings,
            dropout=float(self.hidden_dropout_prob),
        )

    @property
    def layout(self) -> Layout | None:
        """How a v2 or v3 encoder embeds distances; None for v1."""
        if self.model_type == "deberta":
            return None
        is_table_normed = "layer_norm" in self.norm_rel_ebd.lower()
        return Layout(max(0, self.position_buckets), self.max_distance, is_table_normed)


def hub_config(values: dict[str, object]) -> HubConfig:
    """The record of a config.json. Raises ValueError, naming the field, for settings that are not computed
    here, are missing or have another type.
    """
    if values.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"model_type is {values.get('model_type')}, not one of {', '.join(MODEL_TYPES)}")
    names = {field.name for field in dataclasses.fields(HubConfig)}
    return from_json(HubConfig, {name: value for name, value in values.items() if name in names})
