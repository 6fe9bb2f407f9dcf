"""The table of what kernels take on each GPU, results/gpu-counts.md: written, read and compared."""

import triton
from assembly import Counts

MARGIN = 1.05
"""A count that grows beyond this is worse."""
COLUMNS = (
    "kernel", "target", "registers", "spilled", "shared", "programs", "warps", "instructions", "barriers",
    "shuffles", "products",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * 2}{' ---: |' * (len(COLUMNS) - 2)}"
PAGE = """# What the compiled Triton kernels take on each GPU

    python tests/kernels/aot.py --targets all --write results/gpu-counts.md

Compiled with Triton {version}, without a GPU; nothing here was timed. `tests/kernels/test_aot.py` compares
the kernels with this table and fails when one is more than 5 % worse.

- registers: of a thread (vector registers on gfx942).
- spilled: bytes of spill traffic (spilled registers on gfx942).
- shared: bytes of shared memory of a program (thread block).
- programs: how many one multiprocessor runs at a time, from registers, warps, shared memory and the limits of
  the GPU. `tests/kernels/occupancy.py` has the limits and their sources.
- warps: of a program (waves on gfx942).
- instructions, barriers, shuffles, products: of one warp in one round of the inner loop. That is one update
  of `_descend_kernel`, one step through the inner dimension of the sparse coder's two products, and one tile
  of attention. `band_kernel` has no loop for sequences of up to 32 tokens, and all its instructions count.
  `loss_kernel` has none for rows of up to 2,048 classes. For longer rows the larger of its two loops counts.
  Products are instructions for tensor cores; how much one of them computes depends on the GPU.

{table}
"""
Key = tuple[str, str]
"""The name of a launch, and the target."""


def row(key: Key, counts: Counts) -> str:
    return f"| {' | '.join((*key, *map(str, counts)))} |"


def page(results: dict[Key, Counts]) -> str:
    table = "\n".join([HEADER, *(row(key, counts) for key, counts in results.items())])
    return PAGE.format(version=triton.__version__, table=table)


def read(text: str) -> dict[Key, Counts]:
    """The rows of a page."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {(name, target): Counts(*map(int, counts)) for name, target, *counts in rows[2:]}


def worse(before: Counts | None, now: Counts) -> list[str]:
    """What became more than 5 % worse. More registers are not worse where as many programs fit."""
    if before is None:
        return ["is not in the table; renew it"]
    messages = []
    for field in Counts._fields:
        old, new = getattr(before, field), getattr(now, field)
        if field == "programs":
            is_worse = new < old
        elif field in ("registers", "warps", "shared"):
            continue
        else:
            is_worse = new > MARGIN * old
        if is_worse:
            messages.append(f"{field} {new}, in the table {old}; renew it if that is worth it")
    return messages
