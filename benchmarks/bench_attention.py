"""Disentangled attention, forward and backward: the fused kernels, the strided form and the definition.

    PYTHONPATH=. python benchmarks/bench_attention.py                  writes results/attention.md

Heads of 64, as many as `tiny`, `baby` and `base` have, with dropout 0.1; bf16 and time on a GPU, float32 and
processor time on a CPU, where the Triton kernels do not run. They are compared with torch's attention without
position terms on the padded rectangle, which computes less and so shows what the position terms cost. All are
timed in turns on the same tensors.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import result_page
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.attention import disentangled_attention

HEAD_WIDTH, DROPOUT_P = 64, 0.1
NUM_HEADS = {"tiny": 3, "baby": 4, "base": 12}
ROUNDS = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOKENS = 16_384 if DEVICE == "cuda" else 2_048
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time  # other work may share the processor


def lengths_of_pairs(number: int) -> list[int]:
    """Lengths like those of a corpus: log-normal, 30 tokens on average, at most 128."""
    generator = torch.Generator().manual_seed(0)
    length = (torch.randn(number, generator=generator) * 0.6 + 3.2).exp().clamp(4, 128)
    return length.int().tolist()


def middle_of_a_sorted_update() -> list[int]:
    """Lengths of a micro-batch from the middle of 1,024 pairs that were sorted by length."""
    return [24 + 2 * i // (TOKENS // 25) for i in range(TOKENS // 25)]


SETTINGS = {
    "pairs of lines, sorted by length": middle_of_a_sorted_update(),
    "pairs of lines, in any order": lengths_of_pairs(TOKENS // 30),
    "128 tokens": [128] * (TOKENS // 128),
    "512 tokens": [512] * (TOKENS // 512),
}


def ours(implementation: str, lengths: list[int]) -> Callable[..., Tensor]:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)

    def attend(*tensors: Tensor) -> Tensor:
        return disentangled_attention(
            *tensors, cu_seqlens, max(lengths), dropout_p=DROPOUT_P, implementation=implementation
        )

    return attend


def without_positions(lengths: list[int]) -> Callable[..., Tensor]:
    rectangle = (len(lengths), max(lengths))
    inside_BL = torch.arange(max(lengths), device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
    slot_T = inside_BL.flatten().nonzero()[:, 0]
    mask = None if bool(inside_BL.all()) else inside_BL[:, None, None, :]

    def pad(x_THE: Tensor) -> Tensor:
        slots = x_THE.new_zeros(inside_BL.numel(), *x_THE.shape[1:]).index_copy(0, slot_T, x_THE)
        return slots.unflatten(0, rectangle).transpose(1, 2)

    def attend(qkv_THXE: Tensor, *_tables: Tensor) -> Tensor:
        q, k, v = map(pad, qkv_THXE.unbind(2))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=DROPOUT_P)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, slot_T)

    return attend


def seconds(attend: Callable[..., Tensor], tensors: list[Tensor], gradient_THE: Tensor) -> float:
    """The time of one forward and backward pass."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    synchronize()
    started = CLOCK()
    out = attend(*tensors)
    torch.autograd.grad(out, tensors, gradient_THE, allow_unused=True)
    synchronize()
    return CLOCK() - started


def measure(lengths: list[int], num_heads: int = NUM_HEADS["base"]) -> dict[str, float]:
    """The median time of each implementation in seconds."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, DTYPE).requires_grad_()

    qkv = random(sum(lengths), num_heads, 3, HEAD_WIDTH)
    tensors = [qkv, *(random(2 * max(lengths), num_heads, HEAD_WIDTH) for _ in range(2))]
    gradient_THE = random(sum(lengths), num_heads, HEAD_WIDTH).detach()
    fastest = "triton" if DEVICE == "cuda" else "c"
    sides = {name: ours(name, lengths) for name in (fastest, "strided", "reference")}
    sides["SDPA, no positions"] = without_positions(lengths)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, attend in sides.items():
            taken = seconds(attend, tensors, gradient_THE)
            if number:  # the first is the warm-up
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    rows = []
    for (preset, num_heads), (setting, lengths) in itertools.product(NUM_HEADS.items(), SETTINGS.items()):
        times = measure(lengths, num_heads)
        shape = f"{len(lengths)} x {min(lengths)} to {max(lengths)}"
        for name, taken in times.items():
            speed = f"{sum(lengths) / taken:,.0f}"
            ratio = f"{taken / next(iter(times.values())):.2f}"
            rows.append([f"{preset} ({num_heads})", setting, shape, name, f"{1e3 * taken:.1f}", speed, ratio])
    gpu = "" if DEVICE == "cuda" else "Measured without a GPU, so the Triton kernels are not timed.\n"
    clock = "Time" if DEVICE == "cuda" else "Processor time"
    settings = f"Heads of {HEAD_WIDTH}, dropout {DROPOUT_P}, {DTYPE}"
    header = ["heads of", "lengths", "sequences", "implementation", "ms", "tokens/s", "x the first"]
    text = f"""# Disentangled attention, forward and backward

{settings}. {clock}, median of {ROUNDS} turns after a warm-up.
SDPA is torch's attention on the padded rectangle without position terms: it computes less. The last column
has the time in units of that of the first implementation.
{gpu}
{result_page.circumstances("PYTHONPATH=. python benchmarks/bench_attention.py")}

{result_page.table(header, rows)}
"""
    print(text)
    result_page.write("attention.md", text)


if __name__ == "__main__":
    main()
