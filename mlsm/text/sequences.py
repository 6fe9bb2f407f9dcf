"""Several sequences of token ids as one flat tensor without padding, which is the input of the encoder.

So no layer computes padded positions, except an attention that needs a rectangle and pads by itself.

Legend: T tokens of all sequences, B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sequences(NamedTuple):
    """Token ids of sequences, one sequence after another."""

    ids_T: Tensor
    cu_seqlens: Tensor  # (B + 1), int32: where each sequence starts, and where the last one ends
    max_length: int  # length of the longest; an int, so that the host does not wait for the device

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Sequences:
        """Concatenate rows of ids. Each has at least one token."""
        return cls.split(torch.cat(list(rows)), np.array([len(row) for row in rows]))

    @classmethod
    def split(cls, ids_T: Tensor, lengths_B: np.ndarray) -> Sequences:
        """Sequences of these lengths, none of them 0, whose ids are concatenated already."""
        cu_seqlens = torch.from_numpy(np.append(0, lengths_B.cumsum()).astype(np.int32))
        return cls(ids_T, cu_seqlens, int(lengths_B.max()))

    @property
    def first_B(self) -> Tensor:
        """The flat position of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    @property
    def last_B(self) -> Tensor:
        """The flat position of each sequence's last token."""
        return self.cu_seqlens[1:].long() - 1

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on a device."""
        return self._replace(ids_T=moved(self.ids_T, device), cu_seqlens=moved(self.cu_seqlens, device))


def slice_positions(starts_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """The positions (T) in slices of a flat array, one slice after another, without a loop over them."""
    before_B = lengths_B.cumsum() - lengths_B
    positions_T = np.repeat(starts_B - before_B, lengths_B)
    positions_T += np.arange(len(positions_T))
    return positions_T


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. It goes to a GPU from pinned memory: from other memory the host may wait until
    the GPU has finished all its work.
    """
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
