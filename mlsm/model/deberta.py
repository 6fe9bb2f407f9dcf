"""DeBERTa v1 (He et al. 2021), the encoder alone: token ids in, hidden states out.

The weights have the layout of the published checkpoints (queries, keys and values interleaved per head), so
that renaming is enough to exchange them. Sequences are flat, one after another, without padding. The heads on
the hidden states are in `mlsm.model.language_model`.

Legend: T tokens of all sequences, N of them selected, D width, H heads, E = D / H, R relative distances.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernels.attention import allow_compiling, disentangled_attention, pads_sequences
from kernels.dropout import dropout
from mlsm.config import ModelConfig
from mlsm.text.sequences import Sequences

LAYER_NORM_EPS = 1e-7  # as in the published configuration
# torch.compile makes a graph of its own for the last layer, for a frozen encoder, without autocast, for
# attention that pads, and for 0 or 1 selected positions. All combinations are about 20 graphs.
MOST_GRAPHS = 64


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 at least, and returned in the dtype of the input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return super().forward(wide).to(x.dtype)


class Embedding(nn.Embedding):
    """An embedding that draws no weights on the device "meta", where they have no values. PyTorch would
    import its compiler for that, and every command that reads a model would start a second later.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Dropout(nn.Dropout):
    """Dropout in training mode, with a cheaper mask than PyTorch's on CPUs."""

    def probability(self) -> float:
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability())


class Attention(nn.Module):
    """Disentangled self-attention; `out` is its output projection, which the layer applies."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.dropout = Dropout(config.dropout)
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.pos_k = nn.Linear(width, width, bias=False)
        self.pos_q = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def _in_bias(self) -> Tensor:
        """The bias of `in_proj` in its order (q, k, v for each head), with zeros for the keys."""
        q_HE = self.q_bias.view(self.num_heads, 1, -1)
        v_HE = self.v_bias.view(self.num_heads, 1, -1)
        return torch.cat([q_HE, torch.zeros_like(q_HE), v_HE], dim=1).flatten()

    def _heads(self, table_RD: Tensor) -> Tensor:
        """The table split by heads (R, H, E)."""
        return table_RD.view(table_RD.shape[0], self.num_heads, -1)

    def forward(self, x_TD: Tensor, table_RD: Tensor, sequences: Sequences) -> Tensor:
        """The attention output of each token (T, D), before the output projection."""
        num_tokens, width = x_TD.shape
        qkv_TX = F.linear(x_TD, self.in_proj.weight, self._in_bias())
        table_RD = self.dropout(table_RD)
        mixed_THE = disentangled_attention(
            qkv_TX.view(num_tokens, self.num_heads, 3, -1),
            self._heads(self.pos_k(table_RD)),
            self._heads(self.pos_q(table_RD)),
            sequences.cu_seqlens,
            sequences.max_length,
            dropout_p=self.dropout.probability(),
        )
        return mixed_THE.reshape(num_tokens, width)


class Layer(nn.Module):
    """Attention and feed-forward block, each followed by dropout, residual and LayerNorm (post-LN)."""

    attention_type: type[Attention] = Attention

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = self.attention_type(config)
        self.attention_norm = LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, config.width)
        self.ffn_norm = LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x_TD: Tensor, table_RD: Tensor, sequences: Sequences, at_N: Tensor | None = None
    ) -> Tensor:
        """Hidden states of all tokens (T, D), or (N, D) of those at the flat positions `at_N`. After the
        attention nothing is computed for other tokens.
        """
        mixed_TD = self.attention(x_TD, table_RD, sequences)
        if at_N is not None:
            x_TD, mixed_TD = x_TD[at_N], mixed_TD[at_N]
        x_TD = self.attention_norm(x_TD + self.dropout(self.attention.out(mixed_TD)))
        return self.ffn_norm(x_TD + self.dropout(self.down(F.gelu(self.up(x_TD)))))


class Encoder(nn.Module):
    """Word embeddings and `depth` layers that share one table of relative positions. There are no absolute
    positions.
    """

    layer_type: type[Layer] = Layer

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_positions, self.num_heads = config.max_positions, config.num_heads
        self.width, self.depth = config.width, config.depth
        self.recomputes_layers = False  # whether the backward pass recomputes them, to save memory
        self.token_embedding = Embedding(config.vocab_size, config.width)
        self.embedding_norm = LayerNorm(config.width)
        self.relative_embedding = Embedding(2 * config.max_positions, config.width)
        self.layers = nn.ModuleList(self.layer_type(config) for _ in range(config.depth))
        self.dropout = Dropout(config.dropout)

    def forward(
        self, sequences: Sequences, at_N: Tensor | None = None, num_layers: int | None = None
    ) -> Tensor:
        """Hidden states after `num_layers` layers (default: all; 0: the embeddings), of all tokens (T, D) or
        at flat positions (N, D). Raises ValueError for sequences longer than the table of relative positions.
        """
        if sequences.max_length > self.max_positions:
            raise ValueError(
                f"sequences of {sequences.max_length} tokens, "
                f"but the model was built for {self.max_positions}"
            )
        x_TD = self.dropout(self.embedding_norm(self.token_embedding(sequences.ids_T)))
        return self.run_layers(x_TD, sequences, at_N, stop=num_layers)

    def hidden_states(self, sequences: Sequences, layers: Iterable[int]) -> list[Tensor]:
        """Hidden states (T, D) after each of some layers, in ascending order, from one pass."""
        states, x_TD, done = [], self(sequences, num_layers=0), 0
        for layer in layers:
            x_TD, done = self.run_layers(x_TD, sequences, start=done, stop=layer), layer
            states.append(x_TD)
        return states

    def run_layers(
        self,
        x_TD: Tensor,
        sequences: Sequences,
        at_N: Tensor | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Hidden states after layer `stop` (default: the last), of all tokens (T, D) or at flat positions (N,
        D), from those of all tokens after layer `start`.
        """
        table_RD = self._table(sequences.max_length)
        layers = self.layers[start:stop]
        for layer in layers[:-1]:
            x_TD = self._run(layer, x_TD, table_RD, sequences)
        if layers:
            return self._run(layers[-1], x_TD, table_RD, sequences, at_N)
        return x_TD if at_N is None else x_TD[at_N]

    def _run(self, layer: nn.Module, *inputs: Tensor | Sequences | None) -> Tensor:
        """The output of a layer, whose inner states are kept for the backward pass or recomputed in it."""
        if self.recomputes_layers and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def pads_sequences(self, dtype: torch.dtype) -> bool:
        """Whether the attention, with matrix products of a dtype, computes every sequence of a call as long
        as the longest.
        """
        weight = self.token_embedding.weight
        head_width = weight.shape[1] // self.num_heads
        return pads_sequences(weight.device, dtype, head_width)

    def compile_layers_(self, backend: str = "inductor") -> None:
        """Compile the layers for sequences of any length; all layers of all models share a few graphs."""
        allow_compiling()
        for layer in self.layers:
            layer.compile(dynamic=True, fullgraph=True, backend=backend, recompile_limit=MOST_GRAPHS)

    def _table(self, length: int) -> Tensor:
        """The rows (R, D) of the distances from -length to length - 1."""
        middle = self.max_positions
        return self.relative_embedding.weight[middle - length : middle + length]


def init_weights_(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """Draw the weights of Linear and Embedding from Normal(0, std), and zero the biases of Linear. On the
    device "meta" no weights are drawn.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding) and not part.weight.is_meta:
            nn.init.normal_(part.weight, std=std, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
