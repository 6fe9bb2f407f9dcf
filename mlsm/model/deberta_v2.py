"""The encoder of DeBERTa v2 and v3 (He et al. 2021 and 2023), for published checkpoints that become teachers.

It differs from v1 in two places. Large distances share rows of the table on a logarithmic scale, and the
table may be normalised; here it is expanded to one row per distance first, and then used as in v1. Keys have
biases, those of tokens and those of distances. Where v2 shares projections, the weights are copied.

Legend: D width, R relative distances, S rows of the stored table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlsm.config import ModelConfig
from mlsm.model import deberta
from mlsm.settings import check_fields

MAX_DISTANCE = 1 << 20  # tokens between two positions; a file may be damaged or hostile


@dataclass(frozen=True)
class Layout:
    """The settings of a v2 or v3 encoder that v1 does not have."""

    num_buckets: int  # rows of the table for distances of one sign; 0: one row per distance
    max_distance: int  # larger distances share its row
    is_table_normed: bool

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_buckets < 0 or self.max_distance < 1:
            raise ValueError(f"not a layout of positions: {self}")
        if max(self.num_buckets, self.max_distance) > MAX_DISTANCE:
            raise ValueError(f"num_buckets and max_distance must be at most {MAX_DISTANCE}: {self}")

    @property
    def span(self) -> int:
        """Half the number of rows of the table."""
        return self.num_buckets or self.max_distance

    def rows_R(self, length: int) -> Tensor:
        """The row of each distance from -length to length - 1.

        Small distances have a row of their own, larger ones share rows on a logarithmic scale. It is computed
        in float32 as in the published code, since rounding decides at the borders between rows.
        """
        distance_R = torch.arange(-length, length)
        middle = self.num_buckets // 2
        if middle:
            size_R = distance_R.abs().clamp_min(middle).float()
            scale = torch.log(torch.tensor((self.max_distance - 1) / middle))
            bucket_R = torch.ceil(torch.log(size_R / middle) / scale * (middle - 1)) + middle
            is_near_R = distance_R.abs() <= middle
            distance_R = torch.where(is_near_R, distance_R, (bucket_R * distance_R.sign()).long())
        return (distance_R + self.span).clamp(0, 2 * self.span - 1)


class Attention(deberta.Attention):
    """The attention of v1 with biases of the keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.q_bias, self.v_bias
        self.in_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.pos_k = nn.Linear(config.width, config.width)

    def _in_bias(self) -> Tensor:
        return self.in_bias


class Layer(deberta.Layer):
    """The layer of v1 with the attention above."""

    attention_type = Attention


class Encoder(deberta.Encoder):
    """The encoder of v1 with the layers above and a table that is expanded to one row per distance."""

    layer_type = Layer

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__(config)
        self.layout = layout
        self.relative_embedding = deberta.Embedding(2 * layout.span, config.width)
        self.table_norm = deberta.LayerNorm(config.width) if layout.is_table_normed else nn.Identity()

    def _table(self, length: int) -> Tensor:
        table_SD = self.table_norm(self.relative_embedding.weight)
        return table_SD[self.layout.rows_R(length).to(table_SD.device)]
