"""Where the time of a training update on a CPU goes, by PyTorch's profiler.

    PYTHONPATH=. python benchmarks/profile_update.py [--corpus FILES ...]       writes results/profile.md

The update is that of LSM: the student's forward and backward pass, the teacher's forward pass, the codes, and
AdamW, on pairs of lines as `bench_training.py` makes them. One thread computes it. The time of an operator is
what it takes itself, without the operators that it calls, so the parts of a row add up to the whole. Beside
them stands the least time that the matrix products need at the rate at which this processor multiplies large
matrices.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import result_page
import torch
from bench_training import SIDES, make_update, model_operations, precisions
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from kernels.lasso import LassoResult
from mlsm.coding.dictionary import Dictionary
from mlsm.config import EMBEDDED_CORPUS, DataConfig, ModelConfig, TrainConfig, baby, small, tiny
from mlsm.device import choose_precision
from mlsm.model import deberta
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_tokenizer
from mlsm.training.optim import make_optimizers

SEQUENCES, TOKEN_BUDGET = 64, 2048
MODELS = {name: preset().model for name, preset in {"tiny": tiny, "baby": baby, "small": small}.items()}
LSM = next(side for side in SIDES if side.objective == "LSM" and side.name == "ours")

# Parts of an update. An operator belongs to the range that it runs in, or else to the part of its name.
ATTENTION, CODER, DATA, OPTIMIZER = "attention", "coder", "data", "AdamW"
RANGES = (ATTENTION, CODER, DATA, OPTIMIZER)
PRODUCTS, COPIES, ELEMENTWISE = "linear products", "copies and casts", "elementwise"
NAMES = {
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    COPIES: ("aten::copy_", "aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous"),
}
PARTS = (PRODUCTS, ATTENTION, ELEMENTWISE, COPIES, OPTIMIZER, CODER, DATA)

P = ParamSpec("P")
R = TypeVar("R")


def marked(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in a range of the profiler."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with record_function(name):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def marked_parts() -> Iterator[None]:
    """Mark attention and coder in the profiler within the `with` block."""
    attend, code = deberta.disentangled_attention, Dictionary.code

    def marked_code(self: Dictionary, *args: Any, **kwargs: Any) -> LassoResult:
        with record_function(CODER):
            return code(self, *args, **kwargs)

    deberta.disentangled_attention = marked(ATTENTION, attend)
    Dictionary.code = marked_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        deberta.disentangled_attention = attend
        Dictionary.code = code  # type: ignore[method-assign]


def range_of(event: FunctionEvent) -> str | None:
    """The range that an operator runs in."""
    while event is not None:
        if event.name in RANGES:
            return event.name
        event = event.cpu_parent
    return None


def seconds_of_parts(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """The processor time of each part. An operator of the backward pass belongs to the range of the operator
    whose gradient it computes, which has the same sequence number.
    """
    events = [*events]
    forward = {
        event.sequence_nr: part
        for event in events
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::") and (part := range_of(event))
    }
    seconds: Counter[str] = Counter(dict.fromkeys(PARTS, 0.0))
    for event in events:
        part = range_of(event) or _range_of_gradient(event, forward)
        if part is None:
            part = next((part for part, names in NAMES.items() if event.name in names), ELEMENTWISE)
        seconds[part] += event.self_cpu_time_total / 1e6
    return dict(seconds)


def _range_of_gradient(event: FunctionEvent, forward: dict[int, str]) -> str | None:
    while event is not None:
        if event.name.startswith("autograd::engine"):
            return forward.get(event.sequence_nr)
        event = event.cpu_parent
    return None


def profile_update(config: ModelConfig, amp: str, corpus: Corpus) -> tuple[dict[str, float], float, int]:
    """The seconds of each part of an update, after one to warm up, the operations of its matrix products, and
    its tokens.
    """
    precision = choose_precision(amp, torch.device("cpu"), config.width)
    torch.manual_seed(0)
    model, loss = LSM.build(config, precision)
    [optimizer] = make_optimizers(model.train(), TrainConfig())

    def run(number: int) -> tuple[float, int]:
        with record_function(DATA):
            update = make_update(corpus, number, LSM, SEQUENCES, TOKEN_BUDGET)
        for micro in update.micro_batches:
            with precision.autocast():
                summed = loss(micro)
            (summed / update.num_selected).backward()
        with record_function(OPTIMIZER):
            optimizer.step()
            optimizer.zero_grad()
        return model_operations(LSM, config, update), update.num_tokens

    with marked_parts():
        run(0)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            operations, num_tokens = run(1)
    return seconds_of_parts(profiler.events()), operations, num_tokens


def product_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 10) -> float:
    """Multiplications and additions a second in products of large square matrices, in one thread."""
    matrix = torch.randn(size, size, dtype=dtype)
    matrix @ matrix
    started = time.process_time()
    for _ in range(repeats):
        matrix @ matrix
    return 2 * size**3 * repeats / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", default=[EMBEDDED_CORPUS], help="text (default: embedded)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = DataConfig(corpus=tuple(args.corpus)), []
    for name in args.models:
        tokenizer = corpus_tokenizer(data, MODELS[name].vocab_size)
        config = dataclasses.replace(MODELS[name], vocab_size=tokenizer.vocab_size)
        corpus = Corpus(data, tokenizer)
        for amp in precisions():
            seconds, operations, num_tokens = profile_update(config, amp, corpus)
            rate = product_rate(torch.bfloat16 if amp == "bf16" else torch.float32)
            rows.append(row(name, amp, seconds, operations / rate, num_tokens))
            print(*rows[-1], file=sys.stderr)
    result_page.write("profile.md", _text(args, rows))


HEADER = ["model", "precision", "ms of 1,000 tokens", *PARTS, "products at the processor's rate"]


def row(model: str, amp: str, seconds: dict[str, float], least_s: float, num_tokens: int) -> list[str]:
    """A row of the table: shares of the whole update, the last of what the products need at least."""
    total = sum(seconds.values())
    shares = [f"{seconds[part] / total:.0%}" for part in PARTS]
    precision = {"off": "float32"}.get(amp, amp)
    return [model, precision, f"{1e6 * total / num_tokens:,.0f}", *shares, f"{least_s / total:.0%}"]


def _text(args: argparse.Namespace, rows: list[list[str]]) -> str:
    is_embedded = args.corpus == [EMBEDDED_CORPUS]
    command = "PYTHONPATH=. python benchmarks/profile_update.py" + ("" if is_embedded else " --corpus ...")
    return f"""# Where the time of an update goes

An LSM update of {SEQUENCES} pairs of lines in micro-batches of {TOKEN_BUDGET} tokens, one thread, by
PyTorch's profiler, which adds a few microseconds to each operator. Shares are of the whole update. Attention
has its matrix products, softmax and copies, forward and backward. The coder computes the codes. The last
column is what the products of the linear layers, and of the logits, would take at the rate of large square
matrices on this processor.

{result_page.circumstances(command)}

{result_page.table(HEADER, rows)}
"""


if __name__ == "__main__":
    main()
