"""Selection takes ordinary tokens only, with the probability that was asked for; masking changes no other."""

import pytest
import torch

from mlsm.text.masking import is_ordinary, mask, select
from mlsm.text.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, UNK_ID

IDS = torch.tensor([CLS_ID, UNK_ID, 7, MASK_ID, 5, SEP_ID, PAD_ID])
ORDINARY = torch.tensor([False, True, True, False, True, False, False])


def test_unknown_pieces_are_ordinary_and_special_ones_are_not() -> None:
    assert torch.equal(is_ordinary(IDS), ORDINARY)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 1.0])
def test_ordinary_tokens_are_selected_with_the_probability_asked_for(share: float) -> None:
    selected = select(IDS.repeat(10_000), share, torch.Generator().manual_seed(0)).view(-1, len(IDS))
    assert not selected[:, ~ORDINARY].any()
    rates = selected[:, ORDINARY].double().mean(0)
    assert rates.tolist() == pytest.approx([share] * 3, abs=0.02 if 0 < share < 1 else 0)


def test_masking_replaces_selected_ids_in_a_copy() -> None:
    before = IDS.clone()
    masked = mask(IDS, ORDINARY)
    assert (masked[ORDINARY] == MASK_ID).all()
    assert torch.equal(masked[~ORDINARY], IDS[~ORDINARY])
    assert torch.equal(IDS, before)
