"""A training update of masked LM and of LSM: ours against the recipe of the paper and its peers.

    PYTHONPATH=. python benchmarks/bench_training.py [--corpus FILES ...]       writes results/training.md

All sides of a model make the same updates: forward and backward passes over the same pairs of lines, AdamW.
"Random" is the paper's way: micro-batches of 64 sequences as they come, padded to the longest; "sorted" is
ours. Each side runs in a process of its own, one after another, so that its peak memory is its own; the
rounds go around the sides. Tokens are real ones, without padding.
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
from typing import NamedTuple

import numpy as np
import recipe
import report
import torch
from signals import NUM_MOST, coding_problem
from torch import Tensor, nn
from transformers import DebertaForMaskedLM, DebertaModel

from kernels.lasso import LassoResult
from mlsm.chance import generator_for
from mlsm.config import EMBEDDED_CORPUS, DataConfig, ModelConfig, TrainConfig, base, small, tiny
from mlsm.data import Corpus, MicroBatch, Selection, Update, corpus_tokenizer
from mlsm.dictionary import Dictionary
from mlsm.heads import LanguageModel
from mlsm.objectives import OBJECTIVES
from mlsm.optim import adamw, choose_precision
from mlsm.targets import Teacher

SEQUENCES, SEQUENCES_A_RANDOM_BATCH = 128, 64
SEQUENCES_TO_WARM_UP = 16
K, LAM = 1500, 0.05
MODELS = {
    "tiny": dataclasses.replace(tiny().model, dropout=0.1),
    "small": small().model,
    "base, 4 layers": dataclasses.replace(base().model, depth=4),
}
# Tokens of a sorted micro-batch. On 2 cores, tiny is 13 % faster with 4096 than with 1024, small 20 % slower.
TOKEN_BUDGETS = {"tiny": 4096, "small": 1024, "base, 4 layers": 1024}
MASKED, EVERYWHERE = Selection(0.15, is_hidden=True), Selection(1.0, is_hidden=False)
Loss = Callable[[MicroBatch], Tensor]


class Side(NamedTuple):
    """One way to make an update: a model and its loss summed over a micro-batch."""

    objective: str
    name: str
    is_sorted: bool
    build: Callable[[ModelConfig], tuple[nn.Module, Loss]]


@dataclasses.dataclass(frozen=True, eq=False)
class RealSignals(Dictionary):
    """Codes as many real signals as it is given states: those of an untrained teacher would not be sparse."""

    signals_ND: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def code(self, signals_ND: Tensor, *, tol: float = 1e-3, solver: str = "auto") -> LassoResult:
        return super().code(self.signals_ND[: len(signals_ND)], tol=tol, solver=solver)


def our_masked_lm(config: ModelConfig) -> tuple[nn.Module, Loss]:
    model = LanguageModel(config)
    return model, lambda micro: OBJECTIVES["mlm"].loss(model, micro, None, TrainConfig()).loss


def our_lsm(config: ModelConfig) -> tuple[nn.Module, Loss]:
    signals_ND, atoms_DK, gram_KK, step = coding_problem(config.width, K, NUM_MOST)
    dictionary = RealSignals(
        atoms_DK, gram_KK, step, LAM, layer=config.depth, teacher="random", signals_ND=signals_ND
    )
    encoder = LanguageModel(config, seed=1).encoder.eval()
    teacher = Teacher(encoder, dictionary, choose_precision("off", torch.device("cpu")))
    student = LanguageModel(dataclasses.replace(config, num_concepts=K))
    return student, lambda micro: OBJECTIVES["lsm"].loss(student, micro, teacher, TrainConfig()).loss


def published_masked_lm(config: ModelConfig) -> tuple[nn.Module, Loss]:
    model = DebertaForMaskedLM(recipe.deberta_config(config))
    return model, lambda micro: recipe.masked_lm_loss(model, micro)


def bert_masked_lm(config: ModelConfig) -> tuple[nn.Module, Loss]:
    model = recipe.bert(config)
    return model, lambda micro: recipe.masked_lm_loss(model, micro)


def recipe_lsm(config: ModelConfig) -> tuple[nn.Module, Loss]:
    signals_ND, atoms_DK, _, _ = coding_problem(config.width, K, NUM_MOST)
    teacher = DebertaModel(recipe.deberta_config(config)).eval()
    wider = dataclasses.replace(config, vocab_size=config.vocab_size + K)
    student = DebertaForMaskedLM(recipe.deberta_config(wider))
    return student, lambda micro: recipe.concept_loss(student, teacher, micro, atoms_DK, LAM, signals_ND)


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
    side: Side, config: ModelConfig, corpus: Corpus, token_budget: int, first: int, rounds: int
) -> dict[str, list]:
    """Tokens a second and processor seconds of each update after a warm-up, and the memory that training
    took, in MiB.
    """
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _peak_mib()
    torch.manual_seed(0)
    model, loss = side.build(config)
    optimizer = adamw(model.train(), TrainConfig())
    speeds, processor_s = [], []
    sizes = [SEQUENCES_TO_WARM_UP] + [SEQUENCES] * rounds
    for number, size in enumerate(sizes, first):
        update = make_update(corpus, number, side, size, token_budget)
        started, started_processor = time.perf_counter(), time.process_time()
        for micro in update.micro_batches:
            (loss(micro) / update.num_selected).backward()
        optimizer.step()
        optimizer.zero_grad()
        speeds.append(update.num_tokens / (time.perf_counter() - started))
        processor_s.append(time.process_time() - started_processor)
    return {"speeds": speeds[1:], "processor_s": processor_s[1:], "mib": [_peak_mib() - before]}


def _peak_mib() -> float:
    """Most resident memory of this process since the peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", default=[EMBEDDED_CORPUS], help="text (default: embedded)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=1, help="times around the sides (default: 1)")
    parser.add_argument("--updates", type=int, default=1, help="timed in each round (default: 1)")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # model, number of a side, round
    return parser


def main() -> None:
    args = flags().parse_args()
    data = DataConfig(corpus=tuple(args.corpus))
    if args.only:
        model, side, first = args.only[0], SIDES[int(args.only[1])], int(args.only[2]) * args.updates
        tokenizer = corpus_tokenizer(data, MODELS[model].vocab_size, _quiet)
        config = dataclasses.replace(MODELS[model], vocab_size=tokenizer.vocab_size)
        corpus = Corpus(data, tokenizer, _quiet)
        print(json.dumps(run_side(side, config, corpus, TOKEN_BUDGETS[model], first, args.updates)))
        return
    blocks = []
    for model in args.models:
        results: dict[int, dict[str, list]] = {
            n: {"speeds": [], "processor_s": [], "mib": []} for n in range(len(SIDES))
        }
        for number in range(args.rounds):
            for side in results:
                command = [sys.executable, __file__, *sys.argv[1:], "--only", model, str(side), str(number)]
                answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                for name, values in answer.items():
                    results[side][name] += values
                _quiet(f"{model}, {SIDES[side].objective}, {SIDES[side].name}: {answer}")
        blocks.append(f"## {model}\n\n" + _table(results))
    report.write("training.md", _text(args, blocks))


def _table(results: dict[int, dict[str, list]]) -> str:
    ours = {SIDES[n].objective: result for n, result in results.items() if SIDES[n].name == "ours"}
    header = ["objective", "side", "real tokens/s", "ours is x times as fast"]
    header += ["its processor seconds, of ours", "MiB", "ours takes x of it"]
    rows = []
    for number, result in results.items():
        own = ours[SIDES[number].objective]
        ratios = [a / b for a, b in zip(own["speeds"], result["speeds"], strict=True)]
        work = [b / a for a, b in zip(own["processor_s"], result["processor_s"], strict=True)]
        memory, own_memory = statistics.median(result["mib"]), statistics.median(own["mib"])
        rows.append(
            (
                *SIDES[number][:2],
                f"{statistics.median(result['speeds']):,.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(work):.2f}",
                f"{memory:,.0f}",
                f"{own_memory / memory:.2f}",
            )
        )
    return report.table(header, rows)


def _text(args: argparse.Namespace, blocks: list[str]) -> str:
    is_embedded = args.corpus == [EMBEDDED_CORPUS]
    command = "PYTHONPATH=. python benchmarks/bench_training.py" + ("" if is_embedded else " --corpus ...")
    budgets = ", ".join(map(str, TOKEN_BUDGETS.values()))
    return f"""# A training update against the paper's recipe

Written by the command below: rounds {args.rounds}, updates timed in each {args.updates}, after a warm-up,
{SEQUENCES} pairs of lines each, from {"the embedded corpus" if is_embedded else f"{len(args.corpus)} files"};
medians, and the medians of the ratios of a round. Other work on the machine disturbs processor seconds less
than speed. Dropout 0.1, float32. LSM codes real signals (states of a small public encoder) with {K} concepts,
lambda {LAM}. Micro-batches of ours, and of peers that are sorted, hold {budgets} tokens (tiny, small, base).
Memory is what the process takes at its peak beyond what it takes after its imports.

{report.circumstances(command)}

{chr(10).join(block + chr(10) for block in blocks)}"""


def _quiet(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
