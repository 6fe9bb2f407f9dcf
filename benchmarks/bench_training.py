"""A training update of masked LM and of LSM: ours against the recipe of the paper and its peers.

    PYTHONPATH=. python benchmarks/bench_training.py [--corpus FILES ...]       writes results/training.md

All sides of a model make the same updates: forward and backward passes over the same pairs of lines, and
AdamW. "Random" is the order of the paper: micro-batches of 64 sequences in random order, padded to the
longest. "Sorted" is ours. Sides run one after another, each in a process of its own, which measures its peak
memory; a round runs every side once. Padding does not count as tokens. Every side is timed in float32, and in
bf16 too on a processor that multiplies it natively. Ratios compare with ours in the precision that `--amp
auto` takes.

On a GPU updates are larger, everything runs in its autocast precision, and memory is the GPU's. The share of
the card's peak that the model's matrix products reach is measured too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paper_recipe
import result_page
import torch
from signals import NUM_MOST, coding_problem
from torch import Tensor, nn
from transformers import DebertaForMaskedLM, DebertaModel
from update_model import flops_per_token

from kernels.lasso import LassoResult
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import Teacher
from mlsm.config import EMBEDDED_CORPUS, DataConfig, ModelConfig, TrainConfig, base, small, tiny
from mlsm.device import Precision, choose_device, choose_precision, has_native_bf16
from mlsm.model.language_model import LanguageModel
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, MicroBatch, Selection, Update
from mlsm.text.corpus import corpus_tokenizer
from mlsm.training.objectives import OBJECTIVES
from mlsm.training.optim import make_optimizers

SEQUENCES, SEQUENCES_ON_A_GPU, SEQUENCES_A_RANDOM_BATCH = 128, 1024, 64
SEQUENCES_TO_WARM_UP = 16
K, LAM = 1500, 0.05
MODELS = {
    "tiny": dataclasses.replace(tiny().model, dropout=0.1),
    "small": small().model,
    "base, 4 layers": dataclasses.replace(base().model, depth=4),
    "base": base().model,
}
ON_A_CPU = ("tiny", "small", "base, 4 layers")
# Tokens of a sorted micro-batch. On 2 cores, tiny is 13 % faster with 4096 than with 1024, small 20 % slower.
TOKEN_BUDGETS = {"tiny": 4096, "small": 1024, "base, 4 layers": 1024, "base": 1024}
TOKEN_BUDGET_ON_A_GPU = 16_384
# Dense bf16 products with float32 sums, operations a second, as NVIDIA states them for the SXM cards.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
PRECISIONS = {"off": "float32", "bf16": "bf16", "auto": "autocast"}  # names in the table, by --amp
MASKED, EVERYWHERE = Selection(0.15, is_masked=True), Selection(1.0, is_masked=False)
Loss = Callable[[MicroBatch], Tensor]


class Side(NamedTuple):
    """One way to make an update: a model, and its loss summed over a micro-batch that lies in CPU memory."""

    objective: str
    name: str
    is_sorted: bool
    build: Callable[[ModelConfig, Precision], tuple[nn.Module, Loss]]


class Case(NamedTuple):
    """A row of the table: a side in a precision."""

    side: int  # its number in SIDES
    amp: str  # as --amp of train.py takes it


Results = dict[Case, dict[str, list[float]]]  # what `run_side` measures, of all rounds


@dataclasses.dataclass(frozen=True, eq=False)
class RealSignals(Dictionary):
    """A dictionary that codes real signals in place of the states it is given: those of an untrained teacher
    have no sparse codes.
    """

    signals_ND: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def code(self, signals_ND: Tensor, **options: Any) -> LassoResult:
        return super().code(self.signals_ND[: len(signals_ND)], **options)


def our_masked_lm(config: ModelConfig, precision: Precision) -> tuple[nn.Module, Loss]:
    device = torch.device(precision.device_type)
    model = LanguageModel(config).to(device)
    return model, lambda micro: OBJECTIVES["mlm"].loss(model, micro.to(device), None, TrainConfig()).loss


def our_lsm(config: ModelConfig, precision: Precision) -> tuple[nn.Module, Loss]:
    device = torch.device(precision.device_type)
    signals_ND, atoms_DK, _, _ = coding_problem(config.width, K, NUM_MOST)
    signals_ND = signals_ND.to(device)
    dictionary = RealSignals(atoms_DK, LAM, layer=config.depth, teacher="random", signals_ND=signals_ND)
    encoder = LanguageModel(config, seed=1).encoder.eval().to(device)
    teacher = Teacher(encoder, dictionary.to(device), precision)
    student = LanguageModel(dataclasses.replace(config, num_concepts=K)).to(device)
    train = TrainConfig()
    return student, lambda micro: OBJECTIVES["lsm"].loss(student, micro.to(device), teacher, train).loss


def published_masked_lm(config: ModelConfig, precision: Precision) -> tuple[nn.Module, Loss]:
    model = DebertaForMaskedLM(paper_recipe.deberta_config(config)).to(precision.device_type)
    return model, lambda micro: paper_recipe.masked_lm_loss(model, micro)


def bert_masked_lm(config: ModelConfig, precision: Precision) -> tuple[nn.Module, Loss]:
    model = paper_recipe.bert(config).to(precision.device_type)
    return model, lambda micro: paper_recipe.masked_lm_loss(model, micro)


def recipe_lsm(config: ModelConfig, precision: Precision) -> tuple[nn.Module, Loss]:
    device = torch.device(precision.device_type)
    signals_ND, atoms_DK = (matrix.to(device) for matrix in coding_problem(config.width, K, NUM_MOST)[:2])
    teacher = DebertaModel(paper_recipe.deberta_config(config)).eval().to(device)
    wider = dataclasses.replace(config, vocab_size=config.vocab_size + K)
    student = DebertaForMaskedLM(paper_recipe.deberta_config(wider)).to(device)
    return student, lambda micro: paper_recipe.concept_loss(
        student, teacher, micro, atoms_DK, LAM, signals_ND
    )


SIDES = [
    Side("masked LM", "ours", True, our_masked_lm),
    Side("masked LM", "Hugging Face DeBERTa, eager, sorted", True, published_masked_lm),
    Side("masked LM", "Hugging Face DeBERTa, eager, random", False, published_masked_lm),
    Side("masked LM", "BERT + SDPA, sorted", True, bert_masked_lm),
    Side("LSM", "ours", True, our_lsm),
    Side("LSM", "the paper's recipe, random", False, recipe_lsm),
]


def make_update(corpus: Corpus, number: int, side: Side, size: int, token_budget: int) -> Update:
    """Update `number`, the same sequences and positions for every side of an objective."""
    selection = MASKED if side.objective == "masked LM" else EVERYWHERE
    order = torch.randperm(len(corpus.training), generator=generator_for("bench", number))
    sequences = corpus.training[order[:size]]
    if side.is_sorted:
        return corpus.cut(sequences, token_budget, selection, generator_for("mask", number))
    parts = [
        corpus.cut(part, 1 << 30, selection, generator_for("mask", number, i))
        for i, part in enumerate(np.array_split(sequences, -(-size // SEQUENCES_A_RANDOM_BATCH)))
    ]
    return Update(
        [micro for part in parts for micro in part.micro_batches],
        *(sum(getattr(p, n) for p in parts) for n in ("num_selected", "num_tokens", "num_words")),
    )


def run_side(
    side: Side, amp: str, config: ModelConfig, corpus: Corpus, token_budget: int, first: int, rounds: int
) -> dict[str, list[float]]:
    """Tokens a second, processor seconds and operations a second (of the model's matrix products) of each
    update after a warm-up, and the memory that training took, in MiB.
    """
    device = choose_device("auto")
    precision = choose_precision(amp, device, config.width)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
    before = _peak_mib(device)
    torch.manual_seed(0)
    model, loss = side.build(config, precision)
    [optimizer] = make_optimizers(model.train(), TrainConfig())
    speeds, processor_s, operations = [], [], []
    sizes = [SEQUENCES_TO_WARM_UP] + [SEQUENCES] * rounds
    if device.type == "cuda":  # a smaller update would leave kernels to choose and memory to reserve
        sizes = [SEQUENCES_ON_A_GPU] * (1 + rounds)
    for number, size in enumerate(sizes, first):
        update = make_update(corpus, number, side, size, token_budget)
        _finish(device)
        started, started_processor = time.perf_counter(), time.process_time()
        for micro in update.micro_batches:
            with precision.autocast():
                summed = loss(micro)
            (summed / update.num_selected).backward()
        optimizer.step()
        optimizer.zero_grad()
        _finish(device)
        seconds = time.perf_counter() - started
        speeds.append(update.num_tokens / seconds)
        operations.append(model_operations(side, config, update) / seconds)
        processor_s.append(time.process_time() - started_processor)
    mib = _peak_mib(device) - before
    results = {"speeds": speeds, "processor_s": processor_s, "operations": operations}
    return {name: values[1:] for name, values in results.items()} | {"mib": [mib]}


def model_operations(side: Side, config: ModelConfig, update: Update) -> float:
    """Multiplications and additions that an update needs at least: the encoder's linear layers on all tokens
    and the logits of selected tokens, three times (forward, and backward for inputs and weights), and for LSM
    the teacher's encoder once. The products within attention are left out, as is all padding.
    """
    encoder = flops_per_token(config) * update.num_tokens
    is_masked_lm = side.objective == "masked LM"
    logits = 2 * config.width * (config.vocab_size if is_masked_lm else K) * update.num_selected
    return 3 * (encoder + logits) + (0 if is_masked_lm else encoder)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_mib(device: torch.device) -> float:
    """Peak memory since the counter was reset: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", default=[EMBEDDED_CORPUS], help="text (default: embedded)")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS if torch.cuda.is_available() else ON_A_CPU),
        help="(default: all, on a CPU all but base)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="times around the sides (default: 1)")
    parser.add_argument("--updates", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)  # model, number of a side, amp, round
    return parser


def main() -> None:
    args = flags().parse_args()
    data = DataConfig(corpus=tuple(args.corpus))
    if args.only:
        model, number, amp, turn = args.only
        tokenizer = corpus_tokenizer(data, MODELS[model].vocab_size)
        config = dataclasses.replace(MODELS[model], vocab_size=tokenizer.vocab_size)
        corpus = Corpus(data, tokenizer)
        budget = TOKEN_BUDGET_ON_A_GPU if torch.cuda.is_available() else TOKEN_BUDGETS[model]
        first = int(turn) * args.updates
        print(json.dumps(run_side(SIDES[int(number)], amp, config, corpus, budget, first, args.updates)))
        return
    blocks = []
    for model in args.models:
        cases = [Case(number, amp) for number in range(len(SIDES)) for amp in precisions()]
        results: Results = {case: {} for case in cases}
        for turn in range(args.rounds):
            for case, result in results.items():
                only = ["--only", model, str(case.side), case.amp, str(turn)]
                command = [sys.executable, __file__, *sys.argv[1:], *only]
                answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                for name, values in answer.items():
                    result.setdefault(name, []).extend(values)
                side = SIDES[case.side]
                print(f"{model}, {side.objective}, {side.name}, {case.amp}: {answer}", file=sys.stderr)
        blocks.append(f"## {model}\n\n" + table(results))
    result_page.write("training.md", _text(args, blocks))


def precisions() -> list[str]:
    """Values of --amp that are compared; the last is what auto takes for these models."""
    if torch.cuda.is_available():
        return ["auto"]
    return ["off", "bf16"] if has_native_bf16() else ["off"]


def table(results: Results) -> str:
    """A Markdown table of all cases, compared with ours in the last precision."""
    ours = {SIDES[n].objective: result for (n, _), result in results.items() if SIDES[n].name == "ours"}
    header = ["objective", "side", "precision", "real tokens/s", "ours is x times as fast"]
    header += ["its processor seconds, of ours", "MiB", "ours takes x of it"]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for name, value in PEAKS.items() if name in card), None)
    if peak:
        header.append("of the card's peak")
    rows = []
    for case, result in results.items():
        side = SIDES[case.side]
        own = ours[side.objective]
        ratios = [a / b for a, b in zip(own["speeds"], result["speeds"], strict=True)]
        work = [b / a for a, b in zip(own["processor_s"], result["processor_s"], strict=True)]
        memory, own_memory = statistics.median(result["mib"]), statistics.median(own["mib"])
        rows.append(
            (
                side.objective,
                side.name,
                PRECISIONS[case.amp],
                f"{statistics.median(result['speeds']):,.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(work):.2f}",
                f"{memory:,.0f}",
                f"{own_memory / memory:.2f}",
                *([f"{statistics.median(result['operations']) / peak:.1%}"] if peak else []),
            )
        )
    return result_page.table(header, rows)


def _text(args: argparse.Namespace, blocks: list[str]) -> str:
    is_embedded = args.corpus == [EMBEDDED_CORPUS]
    command = "PYTHONPATH=. python benchmarks/bench_training.py" + ("" if is_embedded else " --corpus ...")
    on_gpu = torch.cuda.is_available()
    sequences = SEQUENCES_ON_A_GPU if on_gpu else SEQUENCES
    budgets = ", ".join(str(TOKEN_BUDGET_ON_A_GPU if on_gpu else TOKEN_BUDGETS[m]) for m in args.models)
    return f"""# A training update against the paper's recipe

Written by the command below: rounds {args.rounds}, updates timed in each {args.updates}, after a warm-up,
{sequences} pairs of lines each, from {"the embedded corpus" if is_embedded else f"{len(args.corpus)} files"};
medians, and the medians of the ratios of a round, which compare with ours in {PRECISIONS[precisions()[-1]]}.
Other work on the machine disturbs processor seconds less than speed. Dropout 0.1. LSM codes real signals
(states of a small public encoder) with {K} concepts, lambda {LAM}. Micro-batches of ours, and of peers that
are sorted, hold {budgets} tokens ({"; ".join(args.models)}). Memory is what training takes at its peak beyond
what the process takes after its imports.

{result_page.circumstances(command)}

{chr(10).join(block + chr(10) for block in blocks)}"""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
