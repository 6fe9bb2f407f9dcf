"""Seeds depend on purpose and numbers, and on nothing else."""

import itertools
import subprocess
import sys
from pathlib import Path

import torch

from mlsm.seeds import generator_for, seed_for


def test_seeds_differ_in_purpose_numbers_and_their_order() -> None:
    arguments = [
        ("mask",),
        ("order",),
        *(("mask", *ns) for n in (1, 2) for ns in itertools.product(range(20), repeat=n)),
    ]
    seeds = [seed_for(*these) for these in arguments]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from mlsm.seeds import seed_for; print(seed_for('mask', 12, 7))"
    other = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parent.parent)
    assert int(other) == seed_for("mask", 12, 7)


def test_a_generator_is_of_its_seed_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    draws = [torch.rand(5, generator=generator_for("mask", 12, n)) for n in (7, 7, 8)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
