"""The backward pass of fused attention by bands and by tiles: instructions executed and bytes moved, counted.

    PYTHONPATH=. python benchmarks/count_attention.py

It prints a table of results/attention-designs.md. The instructions of a tile come from results/gpu-counts.md
(sm90, bfloat16, heads of 64), times the tiles and warps of the launches. What a program executes outside its
inner loop is left out where it has a loop. The bytes are those of the bands, each element read or written
once a pass, and of the partial sums of the tables' gradients. Both designs also read q, k, v and the gradient
of the output, and write the gradient of q, k, v. Products of the BLAS are not counted as instructions.

The milliseconds are modelled and not timed: the bytes after the instructions, at the rates of an H100 that
`update_model.py` assumes.
"""

from bench_attention import lengths_of_pairs
from step_model import counts
from update_model import CARD, issue_ms, memory_ms

from mlsm.text.batches import cut_by_token_budget

NUM_HEADS = 12
TILE, TOKEN_BUDGET = 32, 16_384
BAND_ROUNDS = {16: 1, 32: 1, 64: 4, 128: 8}
"""The most rounds of the kernel of bands, by the number of keys in its tile."""


def instructions_of_a_round(kernel: str) -> int:
    """The instructions of all warps of a program, for a name of results/gpu-counts.md."""
    counted = counts(kernel, CARD.target)
    return counted.instructions * counted.warps


def of_tiles(lengths: list[int]) -> tuple[float, float]:
    """Instructions and bytes of the three kernels for long sequences."""
    squares = sum((-(-length // TILE)) ** 2 for length in lengths)
    num_blocks = -(-max(lengths) // TILE)
    windows = sum(
        max(0, -(-(min(length, length + r0 + TILE - 1) - max(r0, 0)) // TILE))
        for length in lengths
        for r0 in range(-num_blocks * TILE, num_blocks * TILE, TILE)
    )
    num_tiles = {"queries": squares, "keys": squares, "distances": windows}
    instructions = sum(
        number * instructions_of_a_round(f"{name}_kernel bfloat16 E 64") for name, number in num_tiles.items()
    )
    return NUM_HEADS * instructions, 2 * 2 * 1024 * TILE * 64 * 4


def of_bands(lengths: list[int]) -> tuple[float, float]:
    """Instructions and bytes of the kernel of bands and its products."""
    longest = max(lengths)
    keys = next(size for size in BAND_ROUNDS if longest <= size)
    rounds = sum(-(-length * BAND_ROUNDS[keys] // keys) for length in lengths)
    instructions = rounds * instructions_of_a_round(f"band_kernel bfloat16 E 64 L {keys}")
    # Both products write, the kernel reads half of that and writes both gradients, which are read twice.
    return NUM_HEADS * instructions, NUM_HEADS * sum(lengths) * 2 * longest * (2 + 1 + 2 + 4) * 2


def update_of_pairs() -> list[list[int]]:
    """The lengths in each micro-batch of an update of 1,024 pairs of lines, cut as on a GPU."""
    lengths = lengths_of_pairs(1024)
    cut = cut_by_token_budget(lengths, TOKEN_BUDGET, counts_padding=False)
    return [[lengths[number] for number in numbers] for numbers in cut]


def main() -> None:
    settings = {f"{length} tokens": [[length] * (TOKEN_BUDGET // length)] for length in (32, 64, 128)}
    settings["an update of pairs of lines"] = update_of_pairs()
    print("| sequences | tokens | instructions, tiles | bands | bytes, tiles | bands | ms, tiles | bands |")
    print("|" + " --- |" + " ---: |" * 7)
    for name, parts in settings.items():
        num_tokens = sum(map(sum, parts))
        tiles, bands = (
            [sum(column) for column in zip(*map(design, parts), strict=True)]
            for design in (of_tiles, of_bands)
        )
        cells = [f"{x / 1e6:,.0f} M" for x in (tiles[0], bands[0], tiles[1], bands[1])]
        cells += [f"{issue_ms(design[0]) + memory_ms(design[1]):.2f}" for design in (tiles, bands)]
        print(f"| {name} | {num_tokens:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
