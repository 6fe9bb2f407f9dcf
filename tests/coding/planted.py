"""Signals with a known dictionary for the tests of sparse coding.

Shape suffixes as in mlsm/coding/dictionary.py.
"""

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.dictionary_learning import learn_dictionary

WIDTH, NUM_ATOMS, LAM = 24, 40, 0.05
Planted = tuple[Tensor, Tensor, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_atoms(generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(WIDTH, NUM_ATOMS, generator=generator), dim=0)


def planted_signals(atoms_DK: Tensor, num: int, generator: torch.Generator, num_active: int = 3) -> Tensor:
    """Unit-norm sums of a few atoms with weights between 0.5 and 1.5 and a little noise."""
    codes_NK = torch.zeros(num, atoms_DK.shape[1])
    active = torch.rand(codes_NK.shape, generator=generator).topk(num_active).indices
    codes_NK.scatter_(1, active, torch.rand(num, num_active, generator=generator) + 0.5)
    noise_ND = 0.01 * torch.randn(num, len(atoms_DK), generator=generator)
    return normalize(codes_NK @ atoms_DK.mT + noise_ND)


@functools.cache
def planted_problem() -> Planted:
    """(true atoms, sample, held-out signals)"""
    generator = seeded()
    atoms_DK = planted_atoms(generator)
    signals_ND = planted_signals(atoms_DK, 5000, generator)
    return atoms_DK, signals_ND[:4500], signals_ND[4500:]


def learn(sample_ND: Tensor, num_atoms: int = NUM_ATOMS, **changes: object) -> Tensor:
    settings = {"num_updates": 20, "batch_size": 200, "generator": seeded(1)} | changes
    return learn_dictionary(sample_ND, num_atoms, LAM, **settings)


@functools.cache
def learnt_dictionary() -> Dictionary:
    """Learnt from the sample, and measured on the held-out signals."""
    _, sample_ND, heldout_ND = planted_problem()
    dictionary = Dictionary(learn(sample_ND, num_updates=150), LAM, layer=6, teacher="cafe")
    return dataclasses.replace(dictionary, statistics=measure(dictionary, heldout_ND))
