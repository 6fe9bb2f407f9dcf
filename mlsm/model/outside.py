"""An encoder that the package transformers computes, for teachers that are no DeBERTa.

It is called as an encoder of this project is: flat sequences of our token ids in, hidden states out. Inside,
the sequences become a padded rectangle of the ids that the encoder was trained with. An attention mask hides
the padding, so no hidden state depends on the other sequences of its batch.

Legend: T tokens of all sequences, N of them selected, D width, B sequences, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlsm.config import ModelConfig
from mlsm.model.deberta import Encoder
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import ABSENT

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TRANSFORMERS = "5.23.0"  # the version of the tests, as in requirements-dev.txt


class OutsideEncoder(nn.Module):
    """A model of transformers, frozen in eval mode, with the id that it has for each of our pieces."""

    def __init__(self, model: PreTrainedModel, their_ids: Iterable[int], shape: ModelConfig) -> None:
        super().__init__()
        self.model, self.depth, self.width = model, shape.depth, shape.width
        self.max_positions = shape.max_positions
        self.their_ids_V: Tensor
        self.register_buffer("their_ids_V", torch.tensor([*their_ids], dtype=torch.long))
        self.pad_id = model.config.pad_token_id or 0

    def forward(
        self, sequences: Sequences, at_N: Tensor | None = None, num_layers: int | None = None
    ) -> Tensor:
        """Hidden states after `num_layers` layers (default: all; 0: the embeddings), of all tokens (T, D) or
        at flat positions (N, D). Tokens that the encoder does not know have zeros.
        """
        [hidden_TD] = self.hidden_states(sequences, [self.depth if num_layers is None else num_layers])
        return hidden_TD if at_N is None else hidden_TD[at_N]

    def hidden_states(self, sequences: Sequences, layers: Iterable[int]) -> list[Tensor]:
        """Hidden states (T, D) after each of some layers, from one pass. Raises ValueError for sequences that
        are longer than the encoder reads.
        """
        if sequences.max_length > self.max_positions:
            raise ValueError(
                f"sequences of {sequences.max_length} tokens, but the teacher reads {self.max_positions}: "
                "lower --max-length"
            )
        ids_T = self.their_ids_V[sequences.ids_T]
        num_tokens, num_sequences, length = len(ids_T), len(sequences.cu_seqlens) - 1, sequences.max_length
        is_shown_T = ids_T != ABSENT
        row_T = torch.repeat_interleave(
            torch.arange(num_sequences, device=ids_T.device),
            sequences.cu_seqlens.diff(),
            output_size=num_tokens,  # so that the host does not wait for the device
        )
        num_before_T = is_shown_T.cumsum(0) - is_shown_T.long()
        column_T = num_before_T - num_before_T[sequences.first_B][row_T]
        column_T = torch.where(is_shown_T, column_T, length)  # a column beside the rectangle
        ids_BL = ids_T.new_full((num_sequences, length + 1), self.pad_id)
        ids_BL[row_T, column_T] = ids_T
        mask_BL = torch.zeros_like(ids_BL)
        mask_BL[row_T, column_T] = 1
        outputs = self.model(
            input_ids=ids_BL[:, :length],
            attention_mask=mask_BL[:, :length],
            output_hidden_states=True,
            return_dict=True,
        )
        at_T = row_T * length + column_T.clamp_max(length - 1)
        states = [outputs.hidden_states[layer].flatten(0, 1)[at_T] for layer in layers]
        return [hidden_TD * is_shown_T[:, None] for hidden_TD in states]

    def pads_sequences(self, dtype: torch.dtype) -> bool:
        """True: every sequence of a call is computed as long as the longest."""
        return True

    def compile_layers_(self) -> None:
        """Nothing is compiled: models of transformers differ in what torch.compile makes of them."""


AnyEncoder = Encoder | OutsideEncoder
"""An encoder that can teach."""


def import_transformers(model_type: str) -> str:
    """The version of the package transformers. Raises ValueError if it is missing."""
    try:
        import transformers
    except ImportError:
        raise ValueError(
            f"a model of type {model_type} needs a package that is missing: "
            f"pip install transformers=={TRANSFORMERS}"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.__version__


def text_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that computes hidden states: without a decoder, and without a pooler."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    return encoder.eval()


def empty_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """The encoder of a configuration, in float32, whose weights are about to be filled in."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return text_encoder(model)
