"""Several sequences of token ids as one flat tensor without padding, which is the input of the encoder.

So no layer computes padded positions, except an attention that needs a rectangle and pads by itself.

Legend: T tokens of all sequences, B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

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
        lengths = [len(row) for row in rows]
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(torch.cat(list(rows)), cu_seqlens, max(lengths))

    @property
    def first_B(self) -> Tensor:
        """The flat position of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on a device."""
        return self._replace(ids_T=moved(self.ids_T, device), cu_seqlens=moved(self.cu_seqlens, device))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. It goes to a GPU from pinned memory: from other memory the host may wait until
    the GPU has finished all its work.
    """
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
