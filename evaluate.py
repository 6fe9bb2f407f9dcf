"""Evaluate finished runs side by side.

    python evaluate.py runs/teacher runs/lsm-random runs/token-head-lsm-random --tasks demo
    python evaluate.py runs/token-head-lsm-random --tasks blimp,supplement,ewok,glue --paper 10M

The table goes to the screen, with a row of means for runs that differ in their seed only; each run gets its
own numbers in results.json and results.md, its predictions in evaluation/, and with the demo the last run
gets the picture. An evaluation that was interrupted continues with the first file (zero-shot) or seed (GLUE)
that has no result yet.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlsm import cli
from mlsm.config import DEVICE_HELP
from mlsm.device import choose_device
from mlsm.directory import check_writable, only_process
from mlsm.evaluation import finetune, glue, minimal_pairs, paper, summary
from mlsm.evaluation.grammar import demo_pairs
from mlsm.evaluation.heldout import MASKED, score_concepts, score_unigram, score_words
from mlsm.evaluation.lineage import Lineage, lineage, row_names
from mlsm.evaluation.pseudo_likelihood import REDUCTIONS, score_sentences
from mlsm.evaluation.subject import Subject, of_run, random_twin
from mlsm.evaluation.tables import Cell, Spread, as_text, columns_of, draw
from mlsm.files import write_json, write_text
from mlsm.log import progress, say
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import Run, load_run
from mlsm.runs.teacher import teacher_of, text_of
from mlsm.settings import argument, check_fields, from_flags, option
from mlsm.text.batches import Corpus
from mlsm.training.objectives import find_objective

TASKS = ("demo", *minimal_pairs.SUITES, "glue", *glue.TASKS)
TOKEN_BUDGET = 8192  # tokens a forward pass holds
SCORING_BUDGET = 4096  # the same for suites; on a CPU core at width 128, 8192 is 9 % slower


def demo(run: Run, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out words and concepts, and the minimal pairs of our grammar: (the run's row, the baseline's)."""
    record, model = run.record, run.model
    corpus = Corpus(text_of(record, {}), run.tokenizer)
    words, unigram = score_words(model, corpus, TOKEN_BUDGET), score_unigram(corpus, TOKEN_BUDGET)
    row = {"word accuracy": words.accuracy, "word perplexity": words.perplexity}
    baseline = {"word accuracy": unigram.accuracy, "word perplexity": unigram.perplexity}
    if record.concepts:
        teacher = teacher_of(record.concepts, record.train, device)
        selection = find_objective(record.concepts.objective).selection(MASKED.share)
        concepts = score_concepts(model, teacher, corpus, selection, TOKEN_BUDGET)
        row["concept KL"], baseline["concept KL"] = concepts.kl, concepts.constant_kl
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


def zero_shot(subject: Subject, name: str, args: Settings) -> dict[str, Any]:
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
    subject: Subject, data: finetune.TaskData, tasks: Sequence[str], args: Settings
) -> dict[str, Any]:
    """Tasks that share a training, as results.json holds them, by task."""
    settings, seeds = args.finetuning(), args.seed_numbers()
    results = finetune.score_seeds(subject, data, settings, seeds, progress)
    for seed, result in results.items():
        if result.failure:
            say(f"{subject.name}: {data.trained_on}, seed {seed} failed: {result.failure}")
    if num_truncated := results[seeds[0]].num_truncated:
        longest = min(settings.max_length, subject.model.config.max_positions)
        say(f"{data.trained_on}: {num_truncated} examples cut to {longest} tokens")
    return {task: summary.glue_result(task, results, settings) for task in tasks}


def evaluate(
    subject: Subject,
    tasks: Sequence[str],
    trainings: dict[str, finetune.TaskData],
    args: Settings,
) -> dict[str, Any]:
    """Every task but the demo; what is done is in results.json before the next one starts."""
    done: dict[str, Any] = {}
    for name in tasks:
        if name in minimal_pairs.SUITES:
            done[name] = zero_shot(subject, name, args)
            keep(subject.folder, subject.name, subject.weights, done)
    for trained_on, data in trainings.items():
        rows = [name for name in tasks if name in glue.TASKS and glue.TASKS[name].trained_on == trained_on]
        done["glue"] = done.get("glue", {}) | fine_tuned(subject, data, rows, args)
        keep(subject.folder, subject.name, subject.weights, done)
    return done


def keep(folder: Path, name: str, weights: str, new: dict[str, Any]) -> None:
    """Add to a run's results.json, or begin it anew if it is of other weights, and write its results.md."""
    results = summary.read_results(folder)
    if results.get("weights", weights) != weights:
        results = {}
    if glue_rows := results.get("glue", {}) | new.get("glue", {}):
        new = new | {"glue": glue_rows}
    results |= {"weights": weights} | new
    write_json(folder / summary.RESULTS_FILE, results)
    write_text(folder / "results.md", summary.markdown(name, results))


def read_trainings(tasks: Sequence[str], data: Path) -> dict[str, finetune.TaskData]:
    """The data of every GLUE training; files of pairs are checked, too: mistakes show before any work."""
    for name in tasks:
        if name in minimal_pairs.SUITES:
            minimal_pairs.check_suite(minimal_pairs.SUITES[name], data)
    asked: dict[str, list[str]] = {}
    for name in tasks:
        if name in glue.TASKS:
            asked.setdefault(glue.TASKS[name].trained_on, []).append(name)
    return {
        trained_on: finetune.read_task_data(data, trained_on, names) for trained_on, names in asked.items()
    }


def show_demo(runs: Mapping[str, Run], lineages: Mapping[str, Lineage], device: torch.device) -> None:
    """The demo's table on the screen, and its picture in the last run."""
    rows: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        rows[name], baselines[name] = demo(run, device)
        results = {"demo": rows[name], "demo baseline": baselines[name]}
        keep(run.directory, name, fingerprint(run.directory), results)
    directories = {name: run.directory for name, run in runs.items()}
    picture = list(directories.values())[-1] / "demo.png"
    draw(picture, directories, rows)
    shown = summary.demo_rows(rows, baselines)
    print(as_text(shown | summary.over_seeds(shown, lineages), "Held-out text and minimal pairs"))
    print("\nbaseline: words by their frequency, the best constant distribution over concepts, chance")
    print("concept KL: at masked tokens for students that learnt from those, else at every token")
    print(f"picture: {picture}")


def show_tasks(
    subjects: Sequence[Subject],
    lineages: Mapping[str, Lineage],
    tasks: Sequence[str],
    trainings: dict[str, finetune.TaskData],
    args: Settings,
) -> None:
    """Suites and GLUE: the table on the screen."""
    measured = {subject.name: evaluate(subject, tasks, trainings, args) for subject in subjects}
    rows: dict[str, dict[str, Cell]] = {name: summary.row(results) for name, results in measured.items()}
    rows |= summary.over_seeds(rows, lineages)
    if args.baseline:
        majority = {
            task: glue.majority_score(data.training, items, task)
            for data in trainings.values()
            for task, items in data.validations.items()
            if task in tasks
        }
        rows["chance, or the majority class"] = summary.floor_row(measured[subjects[0].name], majority)
    if args.paper:
        rows |= paper.quoted_rows(args.paper, columns_of(rows))
    title = []
    if set(tasks) & minimal_pairs.SUITES.keys():
        title.append(f"score {args.score}, ties {args.ties}" + ", official prefix" * args.prefix)
    if any(isinstance(cell, Spread) for cells in rows.values() for cell in cells.values()):
        title.append("mean ±sd (seeds, of fine-tuning or of the runs)")
    print(as_text(rows, "Tasks: " + "; ".join(title)))


@dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    runs: tuple[Path, ...] = argument("directory of a finished run", "RUN")
    tasks: str = option("demo", f"what to measure, of {', '.join(TASKS)}", metavar="NAMES")
    data: Path = option(
        Path("evaluation_data"),
        "folder with blimp_filtered, supplement_filtered, ewok_filtered, glue_filtered",
        metavar="FOLDER",
    )
    score: str = option(
        "mean",
        "score of a sentence: mean (as the organisers) or sum of log p over its tokens",
        REDUCTIONS,
    )
    ties: str = option(
        "wrong",
        "what equal scores of a pair count as; the official scorer has correct",
        tuple(minimal_pairs.TIES),
    )
    prefix: bool = option(
        False,
        "as the official pipeline: [SEP] before a sentence, and a lone word boundary that is scored too",
    )
    seeds: str = option("12,13,14,15,16", "seeds of fine-tuning", metavar="NUMBERS")
    max_epochs: int = option(10, "most epochs of a fine-tuning")
    baseline: bool = option(False, "also a row of random weights, and one of chance and the majority class")
    paper: str | None = option(
        None, "also the rows the paper prints for this many words, quoted", tuple(paper.SIZES)
    )
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")

    def __post_init__(self) -> None:
        check_fields(self)
        self.finetuning()
        self.seed_numbers()

    def finetuning(self) -> finetune.Settings:
        """The settings of fine-tuning. Raises ValueError for a number of epochs that cannot be."""
        return finetune.Settings(max_epochs=self.max_epochs)

    def seed_numbers(self) -> list[int]:
        """The numbers of `seeds`, each once. Raises ValueError for a text that is no list of numbers."""
        try:
            return list(dict.fromkeys(int(seed) for seed in self.seeds.split(",")))
        except ValueError:
            raise ValueError(
                f"--seeds takes whole numbers with commas between them, got {self.seeds!r}"
            ) from None

    def task_names(self) -> list[str]:
        """The tasks, each once, glue as its eleven rows. Raises ValueError for an unknown one."""
        names = [name.strip() for name in self.tasks.split(",")]
        for name in names:
            if name not in TASKS:
                raise ValueError(f"--tasks takes {', '.join(TASKS)}, got {name!r}")
        rows = [row for name in names for row in (glue.TASKS if name == "glue" else [name])]
        return list(dict.fromkeys(rows))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def _say_unused(given: Iterable[str], tasks: Sequence[str]) -> None:
    """Name the flags that were given and change nothing in these tasks."""
    if not set(tasks) & minimal_pairs.SUITES.keys():
        cli.say_unused(given, "no suite is scored", {"score", "ties", "prefix"})
    if not set(tasks) & glue.TASKS.keys():
        cli.say_unused(given, "nothing is fine-tuned", {"seeds", "max_epochs"})
    if set(tasks) == {"demo"}:
        cli.say_unused(given, "the demo makes its own", {"data", "baseline", "paper"})


def main(argv: list[str]) -> None:
    """Read the command line, evaluate every run, report."""
    given = cli.parse_flags(parser(), argv)
    args = from_flags(Settings, given)
    tasks = args.task_names()
    _say_unused(given, tasks)
    others = [task for task in tasks if task != "demo"]
    device = choose_device(args.device)
    directories = list(dict.fromkeys(args.runs))
    names = row_names(directories)
    runs = {name: load_run(directory, device) for name, directory in zip(names, directories, strict=True)}
    lineages = {name: lineage(run.record) for name, run in runs.items()}
    for directory in directories:
        check_writable(directory)
        summary.read_results(directory)
    with contextlib.ExitStack() as held:
        for directory in {directory.resolve(): directory for directory in directories}.values():
            held.enter_context(only_process(directory))
        trainings = read_trainings(others, args.data)
        if "demo" in tasks:
            show_demo(runs, lineages, device)
        if others:
            subjects = [of_run(run, name) for name, run in runs.items()]
            if args.baseline:
                subjects.append(random_twin(runs[names[0]]))
            show_tasks(subjects, lineages, others, trainings, args)


if __name__ == "__main__":
    cli.run(main)
