"""DeBERTa v2 and v3 (He et al. 2021 and 2023), the encoder alone: a teacher that others have trained.

It differs from v1 in two places. Distances share rows of the table by their logarithm, and the table may be
normalised; so the table is spread over all distances first, and the rest is v1's. Keys have biases, of tokens
as of distances; v2's way to share the projections of both is a copy of the weights here.

Legend: T tokens, D width, H heads, E = D / H, R relative distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlsm.config import ModelConfig, check_fields
from mlsm.model import deberta


@dataclass(frozen=True)
class Layout:
    """What tells a v2 or v3 encoder from others of its size."""

    num_buckets: int  # rows of the table for distances of one sign; 0: one row a distance
    max_distance: int  # whose bucket is the last one
    is_table_normed: bool

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_buckets < 0 or self.max_distance < 1:
            raise ValueError(f"no layout of positions: {self}")

    @property
    def span(self) -> int:
        """Half the rows of the table."""
        return self.num_buckets or self.max_distance

    def rows_R(self, longest: int) -> Tensor:
        """The row of each distance from -longest to longest - 1.

        Small distances have a row of their own, larger ones share theirs on a logarithmic scale. float32 as
        in the published code: rounding decides at the edges.
        """
        distance_R = torch.arange(-longest, longest)
        middle = self.num_buckets // 2
        if middle:
            size_R = distance_R.abs().clamp_min(middle).float()
            scale = torch.log(torch.tensor((self.max_distance - 1) / middle))
            bucket_R = torch.ceil(torch.log(size_R / middle) / scale * (middle - 1)) + middle
            is_near_R = distance_R.abs() <= middle
            distance_R = torch.where(is_near_R, distance_R, (bucket_R * distance_R.sign()).long())
        return (distance_R + self.span).clamp(0, 2 * self.span - 1)


class Attention(deberta.Attention):
    """v1's, with biases of the keys, too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.q_bias, self.v_bias
        self.in_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.pos_k = nn.Linear(config.width, config.width)

    def _in_bias(self) -> Tensor:
        return self.in_bias


class Layer(deberta.Layer):
    """v1's, with the attention above."""

    attention_type = Attention


class Encoder(deberta.Encoder):
    """v1's, with the layers above and a table that is spread over the distances."""

    layer_type = Layer

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__(config)
        self.layout = layout
        self.relative_embedding = nn.Embedding(2 * layout.span, config.width)
        self.table_norm = deberta.LayerNorm(config.width) if layout.is_table_normed else nn.Identity()

    def _table(self, longest: int) -> Tensor:
        table_SD = self.table_norm(self.relative_embedding.weight)
        return table_SD[self.layout.rows_R(longest).to(table_SD.device)]
