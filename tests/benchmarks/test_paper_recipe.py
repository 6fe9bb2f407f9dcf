"""What the peers of benchmarks/bench_training.py are given."""

from unittest import mock

import paper_recipe
import pytest
import torch

from mlsm.text.batches import MicroBatch, Selection
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import MASK_ID, PAD_ID


def test_a_peer_gets_the_same_sequences_padded_and_all_on_its_device() -> None:
    rows, selected = (
        [torch.tensor([7, 8, 9]), torch.tensor([6])],
        [torch.tensor([0, 1, 0]), torch.tensor([1])],
    )
    micro = MicroBatch.of(Sequences.of(rows), torch.cat(selected).bool(), Selection(0.5, is_masked=True))
    batch = paper_recipe.padded(micro)
    assert batch.ids_BL.tolist() == [[7, 8, 9], [6, PAD_ID, PAD_ID]]
    assert batch.inputs_BL.tolist() == [[7, MASK_ID, 9], [MASK_ID, PAD_ID, PAD_ID]]
    assert batch.mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.selected_BL.tolist() == [[False, True, False], [True, False, False]]
    peer = mock.Mock(device=torch.device("meta"), side_effect=RuntimeError("called"))
    with pytest.raises(RuntimeError, match="called"):
        paper_recipe.masked_lm_loss(peer, micro)
    assert {x.device.type for x in peer.call_args.kwargs.values()} == {"meta"}
