"""One masked-LM update, its sequences sorted by length before they are cut into micro-batches, or not.

    PYTHONPATH=. python benchmarks/bench_update.py [--corpus FILES ...]             writes results/update.md

The sum over the update is the same; what differs is the padding. Both sides take the same 1,024 sequences, in
turn, with micro-batches of the same number of sequences on average (the original code's rule, random order,
padded to the longest) or of the same token budget (ours). Tokens are real ones, without padding.
"""

import argparse
import dataclasses
import statistics
import time

import numpy as np
import report
import torch

from mlsm.chance import generator_for
from mlsm.config import EMBEDDED_CORPUS, DataConfig, TrainConfig, tiny
from mlsm.data import Corpus, MicroBatch, Selection, Update, corpus_tokenizer
from mlsm.heads import LanguageModel
from mlsm.objectives import OBJECTIVES

SEQUENCES, TOKEN_BUDGET, SEQUENCES_A_RANDOM_BATCH = 1024, 4096, 64
SELECTION = Selection(0.15, is_hidden=True)


def sorted_update(corpus: Corpus, sequences: np.ndarray) -> Update:
    """Ours: sorted, cut by the token budget."""
    return corpus.cut(sequences, TOKEN_BUDGET, SELECTION, generator_for("bench"))


def random_update(corpus: Corpus, sequences: np.ndarray) -> Update:
    """As in the original code: sequences as they come, 64 at a time, padded to the longest."""
    micro_batches: list[MicroBatch] = []
    parts = [
        corpus.cut(part, 1 << 30, SELECTION, generator_for("bench", i))
        for i, part in enumerate(np.split(sequences, SEQUENCES // SEQUENCES_A_RANDOM_BATCH))
    ]
    for part in parts:
        micro_batches += part.micro_batches
    return Update(
        micro_batches,
        *(sum(getattr(p, n) for p in parts) for n in ("num_selected", "num_tokens", "num_words")),
    )


def slots(update: Update) -> int:
    """Positions of all micro-batches if each is padded to its longest sequence."""
    return sum((len(m.text.cu_seqlens) - 1) * m.text.max_length for m in update.micro_batches)


def seconds(model: LanguageModel, update: Update) -> float:
    """Forward and backward passes of a whole update."""
    started = time.perf_counter()
    for micro in update.micro_batches:
        outcome = OBJECTIVES["mlm"].loss(model, micro, None, TrainConfig())
        (outcome.loss / update.num_selected).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", nargs="+", default=[EMBEDDED_CORPUS], help="text files (default: embedded)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="updates timed on each side (default: 3)")
    args = parser.parse_args()
    config = DataConfig(corpus=tuple(args.corpus))
    tokenizer = corpus_tokenizer(config, 25_000, print)
    corpus = Corpus(config, tokenizer)
    model = LanguageModel(dataclasses.replace(tiny().model, vocab_size=tokenizer.vocab_size))
    rows, times = [], {"sorted": [], "random": []}
    computed: dict[str, float] = {}
    num_tokens = []
    for number in range(args.rounds + 1):
        sequences = corpus.training[
            torch.randperm(len(corpus.training), generator=generator_for("b", number))
        ]
        for name, make in (("sorted", sorted_update), ("random", random_update)):
            update = make(corpus, sequences[:SEQUENCES])
            taken = seconds(model, update)
            if number:  # the first is the warm-up
                times[name].append(taken)
                computed[name] = slots(update) / update.num_tokens
        num_tokens.append(update.num_tokens)
    for name, taken in times.items():
        speed = [n / s for n, s in zip(num_tokens[1:], taken, strict=True)]
        rows.append([name, f"{computed[name]:.2f}", f"{statistics.median(speed):,.0f}"])
    ratio = statistics.median(r / s for s, r in zip(times["sorted"], times["random"], strict=True))
    names = "the embedded corpus" if args.corpus == [EMBEDDED_CORPUS] else f"{len(args.corpus)} files"
    command = "PYTHONPATH=. python benchmarks/bench_update.py" + (
        "" if args.corpus == [EMBEDDED_CORPUS] else " --corpus ..."
    )
    text = f"""# An update sorted by length against random micro-batches

Masked LM, model `tiny` with {tokenizer.vocab_size:,} pieces, {SEQUENCES} pairs of lines an update from
{names} ({num_tokens[-1] / SEQUENCES:.1f} tokens a pair), {args.rounds} rounds in turn, median.

{report.circumstances(command)}

{report.table(["micro-batches", "positions a token in attention", "real tokens/s"], rows)}

Sorted is {ratio:.2f} times as fast.
"""
    print(text)
    report.write("update.md", text)


if __name__ == "__main__":
    main()
