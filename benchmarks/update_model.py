"""A model of one LSM update on an H100: what each part takes, from counts and named assumptions.

    PYTHONPATH=. python benchmarks/update_model.py                       prints the table

Nothing here is timed. A part takes the time of its largest demand: matrix products, bytes of memory, or
instructions. `step_model.py` models the coder. `bench_gpu.py` writes measured times beside these.
"""

from __future__ import annotations

from typing import NamedTuple

from step_model import GPUS, SIGNALS_OF_AN_UPDATE, WARPS_AT_ONCE, Counts, coder_time, counts

from mlsm.config import ModelConfig, base

# The card: an H100 SXM, as NVIDIA states it.
PEAK_FLOPS = 989e12  # dense bf16 products
CARD = GPUS["H100"]
# Assumptions about what is reached of these.
SHARE_OF_PEAK = 0.55  # of the products of cuBLAS at these shapes
SHARE_OF_BANDWIDTH = 0.9

# The update: 1,024 pairs of lines, the preset base, concepts of every ordinary token.
NUM_TOKENS, NUM_SIGNALS = 28_700, SIGNALS_OF_AN_UPDATE
MODEL, NUM_CONCEPTS = base().model, 1500
NUM_WEIGHTS = 113e6
EARLIER_CODER = Counts(programs=3, warps=4, instructions=512)  # the first design of results/lasso-designs.md

# Bytes that a layer reads and writes for each of its T x D hidden numbers besides matrix products and
# attention, counted by hand: in float32 between layers, in bf16 inside. Eager PyTorch has a kernel for each
# cast, dropout, sum, LayerNorm and GELU; compiled, what follows a product is one kernel.
EAGER_TEACHER, EAGER_FORWARD, EAGER_BACKWARD = 64, 74, 150
COMPILED_FORWARD, COMPILED_BACKWARD = 40, 80
OPTIMIZER_BYTES = 40  # for each weight: norm 4, clip 8, AdamW 28
# Bytes of the concepts' loss for each position and concept, as results/attention-designs.md lists them.
LOSS_BYTES_BEFORE = 126
LOSS_BYTES_IN_KERNEL, LOSS_BYTES_OF_PRODUCTS = 8, 6
ISSUE_SHARE = 0.5  # of the rate at which a card can issue instructions
# The forward passes of student and teacher, and the backward pass: estimated from the kernels' instructions.
ATTENTION_MS = 6.0 + 15.0
HOST_BEFORE_MS = 6.0  # an update prepared row by row on one core, and the wait for the norm before AdamW
HOST_AFTER_MS = 0.3  # until the first kernel of the next update, after the norm has been read


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
    return 1e3 * num_bytes / (CARD.memory_bytes * SHARE_OF_BANDWIDTH)


def layers_ms(bytes_per_number: int) -> float:
    """The elementwise work of all layers."""
    return memory_ms(bytes_per_number * NUM_TOKENS * MODEL.width * MODEL.depth)


def coder_ms(descent: Counts) -> float:
    """The coder, with the counts of its loop."""
    return 1e3 * NUM_SIGNALS * coder_time(CARD, descent).total


def coder_now() -> Counts:
    """The counts of the coder's present loop."""
    return counts("_descend_kernel D 768 K 1500", CARD.target)


def issue_ms(num_instructions: float) -> float:
    """The time in which the card issues so many instructions of single warps."""
    return 1e3 * num_instructions / (CARD.multiprocessors * WARPS_AT_ONCE * CARD.clock_hz * ISSUE_SHARE)


def concept_loss_ms() -> float:
    """The loss of concepts in one kernel, whose memory or instructions bind, and what reads its gradient."""
    kernel = counts(f"loss_kernel bfloat16 V {NUM_CONCEPTS} distributions", CARD.target)
    num_logits = NUM_SIGNALS * NUM_CONCEPTS
    num_instructions = NUM_SIGNALS * kernel.instructions * kernel.warps
    kernel_ms = max(memory_ms(LOSS_BYTES_IN_KERNEL * num_logits), issue_ms(num_instructions))
    return kernel_ms + memory_ms(LOSS_BYTES_OF_PRODUCTS * num_logits)


def parts() -> list[Part]:
    """The parts of an update, before the changes that the reasons name and after them."""
    loss_ms = memory_ms(LOSS_BYTES_BEFORE * NUM_SIGNALS * NUM_CONCEPTS)
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
        Part("attention, forward and backward", ATTENTION_MS, ATTENTION_MS, "the same in this table"),
        Part("coder", coder_ms(EARLIER_CODER), coder_ms(coder_now()), "fewer instructions, no barriers"),
        Part("loss", loss_ms, concept_loss_ms(), "one kernel over the logits"),
        Part("AdamW and clipping", optimizer_ms, optimizer_ms, "the same"),
        Part("host, while the GPU waits", HOST_BEFORE_MS, HOST_AFTER_MS, "updates prepared in a thread"),
    ]


def table() -> str:
    """The parts as a Markdown table, with their sum."""
    listed = parts()
    total = Part("sum", sum(p.before_ms for p in listed), sum(p.after_ms for p in listed), "")
    rows = [f"| {p.name} | {p.before_ms:.1f} | {p.after_ms:.1f} | {p.reason} |" for p in [*listed, total]]
    return "\n".join(["| part | ms before | ms after | why |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
