"""The definition of fused attention's dropout: its generator, its share, and independent weights."""

import itertools

import torch
from dropout_mask import masks, philox


def test_the_generator_gives_its_published_numbers() -> None:
    """Known answers for 10 rounds, from the authors' Random123 (tests/kat_vectors)."""
    assert philox((0, 0, 0, 0), 0, 10) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = (1 << 32) - 1
    assert philox((ones,) * 4, (1 << 64) - 1, 10) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_it_drops_its_share_everywhere_anew() -> None:
    first, second = masks(3, 2, [48, 48], 0.25)
    (other_seed,) = masks(4, 2, [48], 0.25)
    for mask_HLL in (first, second, other_seed):
        assert abs(float(mask_HLL.mean()) - 0.75) < 0.02  # 4,608 weights: three standard deviations
        for mean_L in (mask_HLL.mean(1), mask_HLL.mean(2)):
            assert abs(float(mean_L.std()) - (0.75 * 0.25 / 48) ** 0.5) < 0.015
    variants = [first, second, other_seed, first.flip(0), first.mT, first.roll(1, 1), first.roll(1, 2)]
    variants += [first.roll(8, 1), first.roll(2, 2)]
    for one, other in itertools.combinations(variants, 2):
        # Two independent masks agree where both keep or both drop: 0.625 of the time.
        assert abs(float((one == other).double().mean()) - 0.625) < 0.04


def test_each_of_the_four_words_of_a_call_is_used() -> None:
    (mask_HLL,) = masks(5, 1, [64], 0.5)
    words = mask_HLL[0].view(4, 2, 8, 32, 2).permute(1, 4, 0, 2, 3).reshape(4, -1)
    assert torch.unique(words, dim=0).shape[0] == 4
    for one, other in itertools.combinations(words, 2):
        assert abs(float((one == other).double().mean()) - 0.5) < 0.07
