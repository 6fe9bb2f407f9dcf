"""The backward pass of fused attention by bands and by tiles: instructions executed and bytes moved, counted.

    PYTHONPATH=. python benchmarks/count_attention.py

It prints a table of results/attention-designs.md. The instructions of a tile come from results/gpu-counts.md
(sm90, bfloat16, heads of 64), times the tiles and warps of the launches. What a program executes outside its
inner loop is left out where it has a loop. The bytes are those of the bands, each element read or written
once a pass, and of the partial sums of the tables' gradients. Both designs also read q, k, v and the gradient
of the output, and write the gradient of q, k, v. Products of the BLAS are not counted as instructions.

The milliseconds are a model of an H100 and not timed: the bytes at BANDWIDTH, after the instructions at
ISSUE_SHARE of its issue rate.
"""

from pathlib import Path

import torch

NUM_HEADS = 12
TILE, TOKEN_BUDGET = 32, 16_384
BAND_ROUNDS = {16: 1, 32: 1, 64: 4, 128: 8}
"""The most rounds of the kernel of bands, by the number of keys in its tile."""
BANDWIDTH, ISSUE_RATE, ISSUE_SHARE = 2.7e12, 132 * 4 * 1.7e9, 0.5
"""Bytes and instructions of a warp in a second, and the share of the latter that kernels reach (assumed)."""
TABLE = Path(__file__).parents[1] / "results" / "gpu-counts.md"


def counts() -> dict[str, int]:
    """Instructions of one round, for all warps of a program."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines()]
    return {row[0]: int(row[6]) * int(row[7]) for row in rows if len(row) == 11 and row[1] == "sm90"}


def of_tiles(lengths: list[int], per_round: dict[str, int]) -> tuple[float, float]:
    """Instructions and bytes of the three kernels for long sequences."""
    squares = sum((-(-length // TILE)) ** 2 for length in lengths)
    num_blocks = -(-max(lengths) // TILE)
    windows = sum(
        max(0, -(-(min(length, length + r0 + TILE - 1) - max(r0, 0)) // TILE))
        for length in lengths
        for r0 in range(-num_blocks * TILE, num_blocks * TILE, TILE)
    )
    names = {"queries": squares, "keys": squares, "distances": windows}
    instructions = sum(tiles * per_round[f"{name}_kernel bfloat16 E 64"] for name, tiles in names.items())
    return NUM_HEADS * instructions, 2 * 2 * 1024 * TILE * 64 * 4


def of_bands(lengths: list[int], per_round: dict[str, int]) -> tuple[float, float]:
    """Instructions and bytes of the kernel of bands and its products."""
    longest = max(lengths)
    keys = next(size for size in BAND_ROUNDS if longest <= size)
    rounds = sum(-(-length * BAND_ROUNDS[keys] // keys) for length in lengths)
    instructions = rounds * per_round[f"band_kernel bfloat16 E 64 L {keys}"]
    # Both products write, the kernel reads half of that and writes both gradients, which are read twice.
    return NUM_HEADS * instructions, NUM_HEADS * sum(lengths) * 2 * longest * (2 + 1 + 2 + 4) * 2


def modelled_seconds(instructions: float, num_bytes: float) -> float:
    return instructions / (ISSUE_SHARE * ISSUE_RATE) + num_bytes / BANDWIDTH


def update_of_pairs() -> list[list[int]]:
    """The micro-batches of an update of 1,024 pairs of lines: log-normal lengths of 30 tokens on average."""
    generator = torch.Generator().manual_seed(0)
    length_B = (torch.randn(1024, generator=generator) * 0.6 + 3.2).exp().clamp(4, 128).int()
    rest = sorted(length_B.tolist(), reverse=True)
    parts = []
    while rest:
        size = max(1, TOKEN_BUDGET // rest[0])
        parts.append(rest[:size])
        rest = rest[size:]
    return parts


def main() -> None:
    per_round = counts()
    settings = {f"{length} tokens": [[length] * (TOKEN_BUDGET // length)] for length in (32, 64, 128)}
    settings["an update of pairs of lines"] = update_of_pairs()
    print("| sequences | tokens | instructions, tiles | bands | bytes, tiles | bands | ms, tiles | bands |")
    print("|" + " --- |" + " ---: |" * 7)
    for name, parts in settings.items():
        num_tokens = sum(map(sum, parts))
        tiles, bands = (
            [sum(column) for column in zip(*(design(part, per_round) for part in parts), strict=True)]
            for design in (of_tiles, of_bands)
        )
        cells = [f"{x / 1e6:,.0f} M" for x in (tiles[0], bands[0], tiles[1], bands[1])]
        cells += [f"{1e3 * modelled_seconds(*design):.2f}" for design in (tiles, bands)]
        print(f"| {name} | {num_tokens:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
