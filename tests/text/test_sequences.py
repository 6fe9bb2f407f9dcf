"""Flat sequences can be taken apart again into the rows that they were made of."""

import numpy as np
import torch

from mlsm.text.sequences import Sequences, moved, slice_positions


def test_rows_come_back() -> None:
    rows = [torch.arange(n) for n in (1, 7, 3, 1)]
    sequences = Sequences.of(rows)
    parts = sequences.ids_T.split(sequences.cu_seqlens.diff().tolist())
    assert [part.tolist() for part in parts] == [row.tolist() for row in rows]
    assert sequences.cu_seqlens.dtype == torch.int32
    assert sequences.max_length == 7
    assert sequences.ids_T[sequences.first_B].tolist() == [0, 0, 0, 0]
    assert sequences.first_B.tolist() == [0, 1, 8, 11]


def test_sequences_move_to_a_device_and_keep_their_length() -> None:
    there = Sequences.of([torch.arange(4)]).to(torch.device("meta"))
    assert there.ids_T.device.type == there.cu_seqlens.device.type == "meta"
    assert there.max_length == 4
    row = torch.arange(4)
    assert moved(row, torch.device("cpu")) is row


def test_positions_are_those_of_each_slice() -> None:
    starts_B, lengths_B = np.array([7, 0, 3, -1]), np.array([2, 4, 1, 3])
    expected = [i for start, n in zip(starts_B, lengths_B, strict=True) for i in range(start, start + n)]
    assert slice_positions(starts_B, lengths_B).tolist() == expected
