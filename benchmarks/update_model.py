"""A model of one LSM update on an H100: what each part takes, from counts and named assumptions.

    PYTHONPATH=. python benchmarks/update_model.py                       prints the table

Nothing here is timed. A part takes the time of its largest demand: matrix products, bytes of memory, or
instructions that are issued. `benchmarks/bench_gpu.py` writes measured times beside these.
"""

from __future__ import annotations

from typing import NamedTuple

from mlsm.config import ModelConfig, base

# The card: an H100 SXM, as NVIDIA states it.
PEAK_FLOPS = 989e12  # dense bf16 products
BYTES_PER_S = 3.35e12
ISSUE_SLOTS_PER_S = 132 * 4 * 1.755e9  # multiprocessors x schedulers x clock
# Assumptions about what is reached of these.
SHARE_OF_PEAK = 0.55  # of the products of cuBLAS at these shapes
SHARE_OF_BANDWIDTH = 0.9
SHARE_OF_SLOTS = 0.5  # of the coder's loop: three or four programs on a multiprocessor wait in turn

# The update: 1,024 pairs of lines, the preset base, concepts of every ordinary token.
NUM_TOKENS, NUM_SIGNALS = 28_700, 26_600
MODEL, NUM_CONCEPTS = base().model, 1500
NUM_WEIGHTS = 113e6
UPDATES_PER_SIGNAL = 193  # of the coder, measured on real states at a tolerance of 1e-3

# Bytes that a layer reads and writes for each of its T x D hidden numbers besides matrix products and
# attention, counted by hand: in float32 between layers, in bf16 inside. Eager PyTorch has a kernel for each
# cast, dropout, sum, LayerNorm and GELU; compiled, what follows a product is one kernel.
EAGER_TEACHER, EAGER_FORWARD, EAGER_BACKWARD = 64, 74, 150
COMPILED_FORWARD, COMPILED_BACKWARD = 40, 80
OPTIMIZER_BYTES = 40  # for each weight: norm 4, clip 8, AdamW 28
LOSS_PASSES = 14  # over float32 logits of concepts


class Part(NamedTuple):
    """A part of an update, in milliseconds."""

    name: str
    before_ms: float
    after_ms: float
    reason: str  # what changed, or why nothing did


def flops_per_token(model: ModelConfig) -> int:
    """The products of a forward pass through the layers. Forward and backward are three of them."""
    return 2 * model.depth * (4 * model.width**2 + 2 * model.width * model.ffn_width)


def products_ms(num_passes: int) -> float:
    """The products of all layers in so many passes."""
    flops = num_passes * NUM_TOKENS * flops_per_token(MODEL)
    return 1e3 * flops / (PEAK_FLOPS * SHARE_OF_PEAK)


def memory_ms(num_bytes: float) -> float:
    """The time that reading and writing so many bytes takes."""
    return 1e3 * num_bytes / (BYTES_PER_S * SHARE_OF_BANDWIDTH)


def layers_ms(bytes_per_number: int) -> float:
    """The elementwise work of all layers."""
    return memory_ms(bytes_per_number * NUM_TOKENS * MODEL.width * MODEL.depth)


def coder_ms(instructions: int, num_warps: int) -> float:
    """The loop of the coder, for instructions of a warp in an update of one coefficient."""
    issued = NUM_SIGNALS * UPDATES_PER_SIGNAL * instructions * num_warps
    return 1e3 * issued / (ISSUE_SLOTS_PER_S * SHARE_OF_SLOTS)


def parts() -> list[Part]:
    """The parts of an update, before the changes that the reasons name and after them."""
    loss_ms = memory_ms(LOSS_PASSES * 4 * NUM_SIGNALS * NUM_CONCEPTS)
    optimizer_ms = memory_ms(OPTIMIZER_BYTES * NUM_WEIGHTS)
    return [
        Part("products, student", products_ms(3), products_ms(3), "the same"),
        Part("products, teacher", products_ms(1), products_ms(1), "the same"),
        Part(
            "elementwise, student",
            layers_ms(EAGER_FORWARD + EAGER_BACKWARD),
            layers_ms(COMPILED_FORWARD + COMPILED_BACKWARD),
            "compiled",
        ),
        Part("elementwise, teacher", layers_ms(EAGER_TEACHER), layers_ms(COMPILED_FORWARD), "compiled"),
        Part("attention, forward and backward", 21.0, 21.0, "from results/gpu-counts.md, not changed here"),
        Part("coder", coder_ms(509, 4), coder_ms(509, 4), "509 instructions x 4 warps, not changed here"),
        Part("loss", loss_ms, loss_ms, "the same"),
        Part("AdamW and clipping", optimizer_ms, optimizer_ms, "the same"),
        Part("host, while the GPU waits", 6.0, 0.3, "the next update is prepared in a thread"),
    ]


def table() -> str:
    """The parts as a Markdown table, with their sum."""
    listed = parts()
    total = Part("sum", sum(p.before_ms for p in listed), sum(p.after_ms for p in listed), "")
    rows = [f"| {p.name} | {p.before_ms:.1f} | {p.after_ms:.1f} | {p.reason} |" for p in [*listed, total]]
    return "\n".join(["| part | ms before | ms after | why |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
