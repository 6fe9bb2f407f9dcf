"""Selecting the positions that an objective learns from, and masking them in the input of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from mlsm.text.tokenizer import MASK_ID, NUM_SPECIALS, UNK_ID


def is_ordinary(ids: Tensor) -> Tensor:
    """True where a token is a piece of text: not [CLS], [SEP], <pad> or [MASK]."""
    return (ids >= NUM_SPECIALS) | (ids == UNK_ID)


def select(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """True at the positions to learn from: each ordinary token independently with probability `share`."""
    return is_ordinary(ids) & (torch.rand(ids.shape, generator=generator) < share)


def mask(ids: Tensor, selected: Tensor) -> Tensor:
    """The ids with [MASK] at every selected position. Unlike in BERT none becomes a random token or stays."""
    return ids.masked_fill(selected, MASK_ID)
