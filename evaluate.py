"""Evaluate finished runs side by side.

    python evaluate.py runs/teacher runs/lsm-random runs/token-head-lsm-random --tasks demo

The table goes to the screen; each run gets its own numbers in results.json and results.md, and the last one
the picture.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from mlsm import cli
from mlsm.checkpoint import read_json, write_json, write_text
from mlsm.config import DataConfig, TrainConfig, from_json
from mlsm.data import Corpus
from mlsm.evaluation.grammar import demo_pairs
from mlsm.evaluation.heldout import score_concepts, score_unigram, score_words
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.evaluation.tables import as_markdown, as_text, draw
from mlsm.heads import Run, load_run
from mlsm.log import progress, say
from mlsm.objectives import OBJECTIVES
from mlsm.optim import choose_device
from mlsm.plan import load_teacher

TASKS = ("demo",)
TOKEN_BUDGET = 8192  # tokens a forward pass holds


def demo(run: Run, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out words and concepts, and the minimal pairs of our grammar: (the run's row, the baseline's)."""
    config = from_json(TrainConfig, run.config["train"])
    corpus = Corpus(from_json(DataConfig, run.config["data"]), run.tokenizer, say)
    words, unigram = score_words(run, corpus, TOKEN_BUDGET), score_unigram(corpus, TOKEN_BUDGET)
    row = {"word accuracy": words.accuracy, "word perplexity": words.perplexity}
    baseline = {"word accuracy": unigram.accuracy, "word perplexity": unigram.perplexity}
    if origin := run.config["concepts"]:
        teacher = load_teacher(Path(origin["teacher"]), Path(origin["dictionary"]), config, device)
        selection = OBJECTIVES[origin["objective"]].selection(config.mask_share)
        concepts = score_concepts(run, teacher, corpus, selection, TOKEN_BUDGET)
        row["concept KL"], baseline["concept KL"] = concepts.student, concepts.constant
    pairs = demo_pairs(run.tokenizer)
    sentences = [s for these in pairs.values() for pair in these for s in pair]
    num_copies = sum(len(run.tokenizer.encode(s)) for s in dict.fromkeys(sentences))
    with progress(num_copies, f"{run.directory.name}: minimal pairs", unit="token") as bar:
        scores = iter(score_sentences(run, sentences, token_budget=TOKEN_BUDGET, bar=bar))
    shares = {}
    for name, these in pairs.items():
        shares[f"pairs: {name}"] = statistics.fmean(next(scores) > next(scores) for _ in these)
    row["minimal pairs"], baseline["minimal pairs"] = statistics.fmean(shares.values()), 0.5
    return row | shares, baseline


def main(argv: list[str]) -> None:
    """Read the command line, evaluate every run, report."""
    parser = cli.plain_parser(__doc__ or "")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--tasks", default="demo", help=f"what to measure, of {', '.join(TASKS)} (default: demo)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    args = parser.parse_args(argv)
    for task in args.tasks.split(","):
        if task not in TASKS:
            raise ValueError(f"--tasks takes {', '.join(TASKS)}, got {task!r}")
    device = choose_device(args.device)
    directories = [Path(name) for name in args.runs]
    runs = [load_run(directory, device) for directory in directories]
    rows: dict[str, dict[str, float]] = {}
    baselines: dict[str, float] = {}
    for run in runs:
        rows[run.directory.name], baseline = demo(run, device)
        baselines |= baseline
        path = run.directory / "results.json"
        write_json(path, (read_json(path) if path.exists() else {}) | {"demo": rows[run.directory.name]})
        own = as_markdown({run.directory.name: rows[run.directory.name], "baseline": baseline})
        write_text(run.directory / "results.md", own)
    rows["baseline"] = baselines
    shown = {n: {c: v for c, v in r.items() if not c.startswith("pairs: ")} for n, r in rows.items()}
    picture = directories[-1] / "demo.png"
    draw(picture, directories, rows)
    print(as_text(shown, "Held-out text and minimal pairs"))
    print("\nbaseline: words by their frequency, the best constant distribution over concepts, chance")
    print(f"picture: {picture}")


if __name__ == "__main__":
    cli.run(main)
