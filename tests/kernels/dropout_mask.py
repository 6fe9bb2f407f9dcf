"""The dropout of fused attention, defined weight by weight in integers without bounds.

Philox 4x32 (Salmon et al. 2011, section 3.2) of the numbers of key and query, the head, the sequence and the
seed gives four words. They are those of two queries, 8 apart, and two neighbouring keys.
"""

import torch
from torch import Tensor

NUM_ROUNDS = 7
WORD = 1 << 32


def philox(counter: tuple[int, int, int, int], seed: int, num_rounds: int) -> tuple[int, int, int, int]:
    """Four words from four words and a seed of 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed % WORD, seed // WORD
    for _ in range(num_rounds):
        high0, low0 = divmod(0xD2511F53 * c0, WORD)
        high2, low2 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def kept_weights(seed: int, sequence: int, num_heads: int, length: int, dropout_p: float) -> Tensor:
    """1 for each weight (H, L, L) of a sequence that is kept, 0 for one that is dropped."""
    threshold = int(torch.tensor(dropout_p, dtype=torch.float32) * WORD)
    kept_HLL = torch.zeros(num_heads, length, length, dtype=torch.float64)
    for head in range(num_heads):
        for i in range(length):
            for j in range(0, length, 2):
                words = philox((j // 2, i & ~8, head, sequence), seed, NUM_ROUNDS)
                for k in range(j, min(j + 2, length)):
                    kept_HLL[head, i, k] = words[(i & 8) // 4 + k % 2] >= threshold
    return kept_HLL


def masks(seed: int, num_heads: int, lengths: list[int], dropout_p: float) -> list[Tensor]:
    """The kept weights of each sequence of a batch."""
    return [kept_weights(seed, number, num_heads, length, dropout_p) for number, length in enumerate(lengths)]
