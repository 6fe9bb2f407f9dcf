"""Several sequences of token ids as one flat tensor, without padding: what the encoder reads.

Token-wise layers never compute a padded position then; only an attention that needs a rectangle makes one.

Legend: T tokens of all sequences, B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """Sequences one after another."""

    ids_T: Tensor
    cu_seqlens: Tensor  # (B + 1), int32: where each sequence starts, and where the last one ends
    max_length: int  # of the longest; known to the host, so that no device is waited for

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Sequences:
        """Lay rows of ids, each of one token at least, one after another."""
        lengths = [len(row) for row in rows]
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(torch.cat(list(rows)), cu_seqlens, max(lengths))

    @property
    def first_B(self) -> Tensor:
        """The flat position of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    def to(self, device: torch.device) -> Sequences:
        return self._replace(ids_T=moved(self.ids_T, device), cu_seqlens=moved(self.cu_seqlens, device))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU gets it from pinned memory: with any other the host may wait until the
    GPU has done all its work.
    """
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
