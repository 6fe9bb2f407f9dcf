"""Evaluate finished runs side by side.

    python evaluate.py runs/teacher runs/lsm-random runs/token-head-lsm-random --tasks demo
    python evaluate.py runs/lsm-random --tasks blimp,supplement,ewok,glue --data evaluation_data --paper 10M

The table goes to the screen, with a row of means for runs that differ in their seed only; each run gets its
own numbers in results.json and results.md, its predictions in evaluation/, and with the demo the last run
gets the picture. An evaluation that was interrupted continues with the first file (zero-shot) or seed (GLUE)
that has no result yet.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mlsm import cli
from mlsm.checkpoint import read_json, write_json, write_text
from mlsm.config import TrainConfig, from_json
from mlsm.data import Corpus
from mlsm.directory import check_writable, only_process
from mlsm.evaluation import finetune, glue, minimal_pairs, paper, summary
from mlsm.evaluation.grammar import demo_pairs
from mlsm.evaluation.heldout import MASKED, score_concepts, score_unigram, score_words
from mlsm.evaluation.pseudo_likelihood import REDUCTIONS, score_sentences
from mlsm.evaluation.subject import Subject, of_run, random_twin, recipe
from mlsm.evaluation.tables import Cell, as_text, draw
from mlsm.log import progress, say
from mlsm.objectives import OBJECTIVES
from mlsm.optim import choose_device
from mlsm.plan import load_teacher, text_of
from mlsm.run import Run, load_run

TASKS = ("demo", *minimal_pairs.SUITES, "glue", *glue.TASKS)
TOKEN_BUDGET = 8192  # tokens a forward pass holds
SCORING_BUDGET = 4096  # the same for suites; on a CPU core at width 128, 8192 is 9 % slower


def demo(run: Run, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out words and concepts, and the minimal pairs of our grammar: (the run's row, the baseline's)."""
    config = from_json(TrainConfig, run.config["train"])
    corpus = Corpus(text_of(run.config, {}), run.tokenizer, say)
    words, unigram = score_words(run, corpus, TOKEN_BUDGET), score_unigram(corpus, TOKEN_BUDGET)
    row = {"word accuracy": words.accuracy, "word perplexity": words.perplexity}
    baseline = {"word accuracy": unigram.accuracy, "word perplexity": unigram.perplexity}
    if origin := run.config["concepts"]:
        teacher = load_teacher(
            Path(origin["teacher"]),
            Path(origin["dictionary"]),
            config,
            device,
            origin["dictionary_fingerprint"],
        )
        selection = OBJECTIVES[origin["objective"]].selection(MASKED.share)
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


def chosen_tasks(text: str) -> list[str]:
    """The tasks of --tasks, each once, glue as its eleven rows. Raises ValueError for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASKS:
            raise ValueError(f"--tasks takes {', '.join(TASKS)}, got {name!r}")
    rows = [row for name in names for row in (glue.TASKS if name == "glue" else [name])]
    return list(dict.fromkeys(rows))


def zero_shot(subject: Subject, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One suite of minimal pairs, as results.json holds it."""
    suite = minimal_pairs.SUITES[name]
    longest = subject.model.config.max_positions
    subtasks = minimal_pairs.read_suite(suite, args.data, subject.tokenizer, longest, args.prefix)
    if len(subtasks) != suite.num_files:
        say(f"{suite.title}: {len(subtasks)} files, not {suite.num_files}; the average is over these")
    scores = minimal_pairs.score_suite(
        subject,
        subtasks,
        subject.folder / "evaluation" / name,
        has_prefix=args.prefix,
        token_budget=SCORING_BUDGET,
        progress=lambda total: progress(total, f"{subject.name}: {suite.title}", unit="token"),
    )
    return summary.suite_result(
        subtasks, scores, reduction=args.score, ties=args.ties, has_prefix=args.prefix
    )


def fine_tuned(
    subject: Subject, data: finetune.TaskData, tasks: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Tasks that share a training, as results.json holds them, by task."""
    settings = args.settings
    results = finetune.score_seeds(subject, data, settings, args.seeds, progress)
    for seed, result in results.items():
        if result.failure:
            say(f"{subject.name}: {data.trained_on}, seed {seed} failed: {result.failure}")
    if num_truncated := results[args.seeds[0]].num_truncated:
        say(f"{data.trained_on}: {num_truncated} examples cut to {settings.max_length} tokens")
    return {task: summary.glue_result(task, results, settings) for task in tasks}


def evaluate(
    subject: Subject,
    tasks: Sequence[str],
    trainings: dict[str, finetune.TaskData],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Every task but the demo; what is done is in results.json before the next one starts."""
    done: dict[str, Any] = {}
    for name in tasks:
        if name in minimal_pairs.SUITES:
            done[name] = zero_shot(subject, name, args)
            keep(subject.folder, subject.name, done)
    for trained_on, data in trainings.items():
        rows = [name for name in tasks if name in glue.TASKS and glue.TASKS[name].trained_on == trained_on]
        done["glue"] = done.get("glue", {}) | fine_tuned(subject, data, rows, args)
        keep(subject.folder, subject.name, done)
    return done


def keep(folder: Path, name: str, new: dict[str, Any]) -> None:
    """Add to a run's results.json and write its results.md anew."""
    path = folder / "results.json"
    results = read_json(path) if path.exists() else {}
    try:
        glue_rows = results.get("glue", {}) | new.get("glue", {})
        results |= new | ({"glue": glue_rows} if glue_rows else {})
        told = summary.markdown(name, results)
        write_json(path, results)  # a lone surrogate is no text
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program ({error!r}); remove it") from None
    write_text(folder / "results.md", told)


def read_trainings(tasks: Sequence[str], data: Path) -> dict[str, finetune.TaskData]:
    """The data of every GLUE training, all read before the first one starts, so that mistakes show early."""
    asked: dict[str, list[str]] = {}
    for name in tasks:
        if name in glue.TASKS:
            asked.setdefault(glue.TASKS[name].trained_on, []).append(name)
    return {
        trained_on: finetune.read_task_data(data, trained_on, names) for trained_on, names in asked.items()
    }


def show_demo(runs: Sequence[Run], device: torch.device) -> None:
    """The demo's table on the screen, and its picture in the last run."""
    rows: dict[str, dict[str, float]] = {}
    baselines: dict[str, float] = {}
    for run in runs:
        rows[run.directory.name], baseline = demo(run, device)
        baselines |= baseline
        keep(run.directory, run.directory.name, {"demo": rows[run.directory.name], "demo baseline": baseline})
    rows["baseline"] = baselines
    picture = runs[-1].directory / "demo.png"
    draw(picture, [run.directory for run in runs], rows)
    shown: dict[str, dict[str, Cell]] = {
        n: {c: v for c, v in r.items() if not c.startswith("pairs: ")} for n, r in rows.items()
    }
    shown |= summary.over_seeds(shown, {run.directory.name: recipe(run.config) for run in runs})
    print(as_text(shown, "Held-out text and minimal pairs"))
    print("\nbaseline: words by their frequency, the best constant distribution over concepts, chance")
    print(f"picture: {picture}")


def show_tasks(subjects: Sequence[Subject], tasks: Sequence[str], args: argparse.Namespace) -> None:
    """Suites and GLUE: the table on the screen."""
    trainings = read_trainings(tasks, args.data)
    for name in tasks:
        if name in minimal_pairs.SUITES:
            minimal_pairs.check_suite(minimal_pairs.SUITES[name], args.data)
    measured = {subject.name: evaluate(subject, tasks, trainings, args) for subject in subjects}
    rows: dict[str, dict[str, Cell]] = {name: summary.row(results) for name, results in measured.items()}
    rows |= summary.over_seeds(rows, args.recipes)
    if args.baseline:
        majority = {
            task: glue.majority_score(data.training, items, task)
            for data in trainings.values()
            for task, items in data.validations.items()
            if task in tasks
        }
        rows["chance, or the majority class"] = summary.floor_row(measured[subjects[0].name], majority)
    if args.paper:
        columns = {column for cells in rows.values() for column in cells}
        for name, quoted in paper.quoted_rows(args.paper).items():
            if cells := {column: value for column, value in quoted.items() if column in columns}:
                rows[name] = dict(cells)
    print(
        as_text(
            rows, f"Score {args.score}, ties {args.ties}; mean ±sd (seeds, of fine-tuning or of the runs)"
        )
    )


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = cli.plain_parser(__doc__ or "")
    made.add_argument("runs", nargs="+", metavar="RUN", help="directory of a finished run")
    made.add_argument(
        "--tasks", default="demo", help=f"what to measure, of {', '.join(TASKS)} (default: demo)"
    )
    made.add_argument(
        "--data",
        type=Path,
        default=Path("evaluation_data"),
        help="folder with blimp_filtered, supplement_filtered, ewok_filtered, glue_filtered "
        "(default: evaluation_data)",
    )
    made.add_argument(
        "--score",
        choices=REDUCTIONS,
        default="mean",
        help="score of a sentence: mean or sum of log p over its tokens (default: mean, as the organisers)",
    )
    made.add_argument(
        "--ties",
        choices=minimal_pairs.TIES,
        default="wrong",
        help="what equal scores of a pair count as; the official scorer has correct (default: wrong)",
    )
    made.add_argument(
        "--prefix",
        action="store_true",
        help="as the official pipeline: [SEP] before a sentence, and a lone word boundary that is scored too",
    )
    made.add_argument(
        "--seeds", type=_seeds, default=list(finetune.SEEDS), help="of fine-tuning (default: 12,13,14,15,16)"
    )
    made.add_argument("--max-epochs", type=int, default=10, help="most epochs of a fine-tuning (default: 10)")
    made.add_argument(
        "--baseline",
        action="store_true",
        help="also a row of random weights, and one of chance and the majority class",
    )
    made.add_argument(
        "--paper", choices=paper.SIZES, help="also the rows the paper prints for this many words, quoted"
    )
    made.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return made


def _say_idle(args: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Name the flags that were given (differ from their default) and change nothing in these tasks."""
    given = {name: value for name, value in vars(args).items() if value != parser().get_default(name)}
    if not set(tasks) & minimal_pairs.SUITES.keys():
        cli.say_idle(given, "no suite is scored", "score", "ties", "prefix")
    if not set(tasks) & glue.TASKS.keys():
        cli.say_idle(given, "nothing is fine-tuned", "seeds", "max_epochs")
    if set(tasks) == {"demo"}:
        cli.say_idle(given, "the demo makes its own", "data", "baseline", "paper")


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas between them, got {text!r}") from None


def main(argv: list[str]) -> None:
    """Read the command line, evaluate every run, report."""
    args = parser().parse_args(argv)
    args.settings = finetune.Settings(max_epochs=args.max_epochs)
    tasks = chosen_tasks(args.tasks)
    _say_idle(args, tasks)
    device = choose_device(args.device)
    directories = list(dict.fromkeys(Path(name) for name in args.runs))
    runs = [load_run(directory, device) for directory in directories]
    for directory in directories:
        check_writable(directory)
    with contextlib.ExitStack() as held:
        for directory in {directory.resolve(): directory for directory in directories}.values():
            held.enter_context(only_process(directory))
        if "demo" in tasks:
            show_demo(runs, device)
        if others := [task for task in tasks if task != "demo"]:
            names = [directory.name for directory in directories]
            subjects = [
                of_run(run, name if names.count(name) == 1 else str(run.directory))
                for run, name in zip(runs, names, strict=True)
            ]
            args.recipes = {s.name: recipe(run.config) for s, run in zip(subjects, runs, strict=True)}
            if args.baseline:
                subjects.append(random_twin(runs[0]))
            show_tasks(subjects, others, args)


if __name__ == "__main__":
    cli.run(main)
