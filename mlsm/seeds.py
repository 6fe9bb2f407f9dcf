"""Seeds: every random draw of a run is seeded by its purpose and the numbers that identify it.

So an update is a pure function of (seed, step), whatever was drawn before and however many processes run.
"""

import hashlib

import torch


def seed_for(purpose: str, *numbers: int) -> int:
    """A 63-bit seed that depends on every argument, the same on every machine and version."""
    digest = hashlib.blake2b(repr((purpose, *numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded with `seed_for`."""
    return torch.Generator().manual_seed(seed_for(purpose, *numbers))
