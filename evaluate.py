"""Evaluate finished runs side by side.

    python evaluate.py runs/teacher runs/lsm-random runs/token-head-lsm-random --tasks demo
    python evaluate.py runs/token-head-lsm-random --tasks blimp,supplement,ewok,glue --paper 10M
    python evaluate.py runs/teacher --tasks babylm2026,fast

The table is printed, with a row of means for runs that differ only in their seed. Each run gets its own
numbers in results.json and results.md, and its predictions in evaluation/. The demo also draws a picture, in
the last run. An evaluation that was interrupted continues with the first file of a suite or the first seed of
GLUE that has no result yet.

The tasks of BabyLM 2026 have their own scoring and their own folder, RUN/evaluation/babylm2026: `babylm2026`
measures the finished model, and `fast` all models that were kept by words seen (docs/babylm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, show_help
from mlsm.config import DEVICE_HELP, THREADS_HELP, check_threads, parse_word_counts
from mlsm.evaluation.tasks import (
    BABYLM,
    FAST,
    GLUE,
    GLUE_OF_2026,
    RECIPES,
    REDUCTIONS,
    SIZES,
    SUITES,
    TASKS,
    TIES,
)
from mlsm.settings import argument, check_fields, check_positive, from_flags, option, override


@dataclass(frozen=True)
class Settings:
    """The runs, the tasks, and how they are measured."""

    runs: tuple[Path, ...] = argument("directory of a finished run", "RUN")
    tasks: str = option("demo", f"what to measure, of {', '.join(TASKS)}", metavar="NAMES", is_common=True)
    data: Path = option(
        Path("evaluation_data"),
        "folder with blimp_filtered, supplement_filtered, ewok_filtered, glue_filtered; for BabyLM 2026 with "
        "full_eval and fast_eval",
        metavar="FOLDER",
        is_common=True,
    )
    score: str = option(
        "mean",
        "score of a sentence: mean (as the organisers) or sum of log p over its tokens",
        REDUCTIONS,
    )
    ties: str = option(
        "wrong", "what equal scores of a pair count as; the official scorer has correct", tuple(TIES)
    )
    prefix: bool = option(
        False,
        "as the official pipeline: [SEP] before a sentence, and a lone word boundary that is scored too",
    )
    recipe: str = option(
        "2024",
        "the organisers' recipe of fine-tuning; that of 2026 has seven tasks, in full_eval/glue_filtered",
        RECIPES,
    )
    seeds: str | None = option(
        None, "seeds of fine-tuning (default: 12,13,14,15,16; 42 in 2026)", metavar="NUMBERS"
    )
    max_epochs: int | None = option(None, "most epochs of a fine-tuning (default: 10; 30 for wsc in 2026)")
    learning_rate: float | None = option(None, "learning rate of fine-tuning (default: 5e-5; 3e-5 in 2026)")
    batch_size: int | None = option(
        None, "examples of an update of fine-tuning (default: 64; 32 or 16, by task, in 2026)"
    )
    limit: int | None = option(
        None,
        "only so many examples of each file, for a first look; their results are not stored with the run's, "
        "but in RUN/evaluation/limit-N; BabyLM 2026 then leaves out reading times and children's words",
    )
    track: str | None = option(
        None,
        "BabyLM 2026: measure the models that a track asks for, strict-small or strict, or those after these "
        "numbers of words, such as 0,1M,20M (default: all that the run kept)",
        metavar="TRACK",
    )
    tie_seed: int = option(12, "BabyLM 2026: seed of the draws between equal scores")
    baseline: bool = option(False, "also a row of random weights, and one of chance and the majority class")
    paper: str | None = option(None, "also the rows the paper prints for this many words, quoted", SIZES)
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    threads: int | None = option(None, THREADS_HELP, metavar="NUMBER")

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)
        if self.limit is not None:
            check_positive(self, "limit")
        self.fine_tuning()
        self.seed_numbers()

    def scoring(self) -> Scoring:
        """How minimal pairs are scored."""
        return Scoring(self.score, self.ties, self.prefix)

    def fine_tuning(self, task: str = "cola") -> FineTuneSettings:
        """The settings of fine-tuning on a task. Raises ValueError for one that is not positive."""
        settings = settings_of_2026(task) if self.recipe == "2026" else FineTuneSettings()
        given = {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "max_epochs": self.max_epochs,
        }
        return override(settings, {name: value for name, value in given.items() if value is not None})

    def seed_numbers(self) -> list[int]:
        """The numbers of `seeds`, each once. Raises ValueError if it is not a list of numbers."""
        seeds = self.seeds or ("42" if self.recipe == "2026" else "12,13,14,15,16")
        try:
            return list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
        except ValueError:
            raise ValueError(
                f"--seeds takes whole numbers with commas between them, got {self.seeds!r}"
            ) from None

    def revisions(self, run: Path) -> list[Revision]:
        """The models of a run that the tasks of BabyLM 2026 measure, the finished one last. Raises ValueError
        naming those that the run does not have.
        """
        if self.track is None:
            return kept_revisions(run)
        main, *others = find_revisions(run, parse_word_counts(self.track, "--track"))
        return [*others, main]

    def task_names(self) -> list[str]:
        """The tasks, each once; glue stands for those of the recipe. Raises ValueError for an unknown one."""
        names = [name.strip() for name in self.tasks.split(",")]
        for name in names:
            if name not in TASKS:
                raise ValueError(f"--tasks takes {', '.join(TASKS)}, got {name!r}")
        of_recipe = GLUE_OF_2026 if self.recipe == "2026" else GLUE
        if others := [name for name in names if name in GLUE and name not in of_recipe]:
            raise ValueError(f"the recipe of 2026 has {', '.join(of_recipe)}, got {', '.join(others)}")
        tasks = [task for name in names for task in (of_recipe if name == "glue" else [name])]
        return list(dict.fromkeys(tasks))


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

import collections
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from mlsm import board, cli
from mlsm.device import choose_device, choose_num_threads
from mlsm.directory import check_writable, only_process
from mlsm.evaluation import estimate, glue, paper, summary
from mlsm.evaluation.babylm import entry
from mlsm.evaluation.babylm.curves import SOURCE, baselines, fast_table, full_table, write_report
from mlsm.evaluation.babylm.formats import FULL
from mlsm.evaluation.demo import score_demo
from mlsm.evaluation.finetune import FineTuneSettings, settings_of_2026
from mlsm.evaluation.glue_scores import score_seeds, stored_predictions
from mlsm.evaluation.minimal_pairs import Files, Scoring, read_files, score_suite
from mlsm.evaluation.recipes import Recipe, recipe_of, row_names
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.subject import Subject, of_run, random_twin
from mlsm.evaluation.tables import Cell, Spread, as_text, columns_of, draw
from mlsm.files import folder_within
from mlsm.log import duration, say
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.revisions import MAIN, Revision, find_revisions, kept_revisions
from mlsm.runs.run import Run, load_run
from mlsm.training.objectives import find_objective


class Tasks(NamedTuple):
    """The data of suites and of fine-tuning."""

    suites: dict[str, Files]  # by the names of SUITES
    trainings: list[glue.TaskData]
    names: Sequence[str]  # of the tasks that were asked for


def read_tasks(names: Sequence[str], settings: Settings) -> Tasks:
    """Read every file of these tasks, so that a mistake in any of them is reported before the work begins."""
    data, limit = settings.data, settings.limit
    suites = {name: read_files(SUITES[name], data, limit) for name in names if name in SUITES}
    trained_on = dict.fromkeys(GLUE[name].trained_on for name in names if name in GLUE)
    root = data / FULL if settings.recipe == "2026" else data
    trainings = [glue.read_task_data(root, name, names, limit) for name in trained_on]
    return Tasks(suites, trainings, names)


class Entry(NamedTuple):
    """What the tasks of BabyLM 2026 measure."""

    data: dict[str, entry.Data]  # by task: BABYLM, FAST
    revisions: dict[str, list[Revision]]  # by run; the finished model is the last one


def read_entry(names: Sequence[str], runs: Mapping[str, Run], settings: Settings) -> Entry:
    """The data of the tasks of BabyLM 2026 that were asked for, and the models of each run. Mistakes in the
    data, models that a run lacks and runs without words are reported before the work begins.
    """
    data = {
        name: entry.read_data(settings.data, is_fast=name == FAST, limit=settings.limit)
        for name in names
        if name in (BABYLM, FAST)
    }
    if not data:
        return Entry({}, {})
    for name, run in runs.items():
        if not find_objective(run.record.train.objective).predicts_words:
            raise ValueError(f"{name} predicts no words, and the tasks of BabyLM 2026 ask for words")
    return Entry(data, {name: settings.revisions(run.directory) for name, run in runs.items()})


def say_estimate(subjects: Sequence[Subject], tasks: Tasks, settings: Settings) -> None:
    """Measure the speed of every subject, and print how long all tasks take together."""
    num_seeds = len(settings.seed_numbers())
    seconds = {
        SUITES[name].title: sum(estimate.suite_seconds(s, name, files, settings.scoring()) for s in subjects)
        for name, files in tasks.suites.items()
    }
    for data in tasks.trainings:
        seconds[data.trained_on] = sum(
            estimate.fine_tuning_seconds(s, data, settings.fine_tuning(data.trained_on), num_seeds)
            for s in subjects
        )
    _say_time(seconds)


def say_estimate_of_entry(runs: Mapping[str, Run], asked: Entry) -> None:
    """Measure the speed of the finished models, and print how long the tasks of BabyLM 2026 take together."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for name, run in runs.items():
        tokenizer, revisions = huggingface_tokenizer(run.tokenizer), asked.revisions[name]
        num_trained = sum(1 for revision in revisions[:-1] if revision.words)
        for task, these in asked.data.items():
            num_models = len(revisions) if task == FAST else 1
            for title, each in estimate.entry_seconds(run.model, tokenizer, these).items():
                seconds[title] += num_models * each
            if num_trained and these.occurrences:
                each = estimate.acquisition_seconds(run.model, tokenizer, these)
                seconds["words of children"] += num_trained * each
    _say_time(seconds)


def _say_time(seconds: Mapping[str, float]) -> None:
    parts = ", ".join(f"{title} {duration(these)}" for title, these in seconds.items())
    say(f"this takes at most about {duration(sum(seconds.values()))}, less what is stored ({parts})")


def measure(subject: Subject, tasks: Tasks, settings: Settings) -> Results:
    """The results of all tasks. Each is in results.json before the next one is measured."""
    results = Results(subject.weights)
    for name, files in tasks.suites.items():
        result = score_suite(subject, name, files, settings.scoring())
        results = results.updated(Results(subject.weights, suites={name: result}))
        summary.store(subject.folder, subject.name, results)
    for data in tasks.trainings:
        names = [name for name in data.validations if name in tasks.names]
        fine_tuning, seeds = settings.fine_tuning(data.trained_on), settings.seed_numbers()
        scores = score_seeds(subject, data, names, fine_tuning, seeds)
        results = results.updated(Results(subject.weights, glue=scores))
        if settings.recipe == "2024":
            summary.store(subject.folder, subject.name, results)
        else:
            found = {name: scores[name].spread.mean for name in names if scores[name].spread.num_seeds}
            predictions = stored_predictions(subject, data, fine_tuning, seeds[0])
            entry.store_glue(subject.folder, subject.weights, found, predictions)
    return results


def show_demo(runs: Mapping[str, Run], recipes: Mapping[str, Recipe], device: torch.device) -> None:
    """Measure the demo, print its table, and draw its picture in the last run."""
    results: dict[str, Results] = {}
    for name, run in runs.items():
        results[name] = score_demo(run, device)
        summary.store(run.directory, name, results[name])
    rows = {name: these.demo for name, these in results.items()}
    shown = summary.demo_rows(rows, {name: these.demo_baseline for name, these in results.items()})
    directories = {name: run.directory for name, run in runs.items()}
    picture = list(directories.values())[-1] / "demo.png"
    draw(picture, directories, rows)
    notes = {name: note for name, run in runs.items() if (note := run.record.heldout_note())}
    marked = {name + " *" * (name in notes): row for name, row in shown.items()}
    print(as_text(marked | summary.over_seeds(shown, recipes), "Held-out text and minimal pairs"))
    for name, note in notes.items():
        print(f"\n* {name}: {note}")
    print("\nbaseline: words by their frequency, the best constant distribution over concepts, chance")
    print("concept KL: at masked tokens for students that learnt from those, else at every token")
    print(f"picture: {picture}")


def show_tasks(
    subjects: Sequence[Subject],
    runs: Mapping[str, Run],
    recipes: Mapping[str, Recipe],
    tasks: Tasks,
    settings: Settings,
) -> None:
    """Measure suites and GLUE tasks, and print their table."""
    results = {subject.name: measure(subject, tasks, settings) for subject in subjects}
    rows: dict[str, dict[str, Cell]] = {name: summary.row(these) for name, these in results.items()}
    rows |= summary.over_seeds(rows, recipes)
    if settings.baseline:
        majority = {
            task: glue.majority_score(data, task)
            for data in tasks.trainings
            for task in data.validations
            if task in tasks.names
        }
        rows["chance, or the majority class"] = summary.chance_row(results[subjects[0].name], majority)
    if settings.paper:
        rows |= paper.quoted_rows(settings.paper, columns_of(rows))
    title = []
    if settings.limit:
        title.append(f"at most {settings.limit} examples of each file")
    if tasks.suites:
        title.append(f"score {settings.score}, ties {settings.ties}" + ", official prefix" * settings.prefix)
    if any(isinstance(cell, Spread) for cells in rows.values() for cell in cells.values()):
        title.append("mean ±sd (seeds, of fine-tuning or of the runs)")
    print("\n".join([as_text(rows, "Tasks: " + "; ".join(title)), *paper.notes(rows)]))
    for name, run in runs.items():
        if tasks.suites and not find_objective(run.record.train.objective).predicts_words:
            print(f"{name} predicts no words: its scores of minimal pairs are those of an untrained decoder")


def show_entry(runs: Mapping[str, Run], asked: Entry, settings: Settings, device: torch.device) -> None:
    """Measure the tasks of BabyLM 2026, print their tables, and write what the organisers collect."""
    data = asked.data
    for name, run in runs.items():
        place = entry.place_of(run.directory, settings.limit)
        if BABYLM in data:
            *checkpoints, main = asked.revisions[name]
            entry.measure(place, [main], data[BABYLM], settings.tie_seed, device)
            if data[BABYLM].occurrences:
                trained = [revision for revision in checkpoints if revision.words]
                path = entry.write_surprisals(place, trained, data[BABYLM], device)
                say(f"surprisal of children's words at {len(trained)} checkpoints: {path}")
        if FAST in data:
            entry.measure(place, asked.revisions[name], data[FAST], settings.tie_seed, device)
        results = entry.read_results(place)
        note = f", at most {settings.limit} items of each file" if settings.limit else ""
        if FAST not in data or BABYLM in data:
            table = full_table({name: results[MAIN]})
            print(as_text(table | baselines(table), f"BabyLM 2026, the finished model{note}"))
            print(f"* quoted: {SOURCE}\n")
        if FAST in data:
            print(
                as_text(fast_table(results), f"{name}: fast tasks of BabyLM 2026 by words seen{note}") + "\n"
            )
        for path in write_report(place.folder, results):
            say(f"wrote {path}")
        if not settings.limit:
            say(
                f"the organisers' collate_preds takes: --results_dir {place.folder / 'results'} "
                f"--model_path_or_name {place.name} --backend {entry.BACKEND}"
            )


def _say_unused(given: Iterable[str], tasks: Sequence[str]) -> None:
    """Name the flags that were given and change nothing in these tasks."""
    if set(SUITES).isdisjoint(tasks):
        cli.say_unused(given, "no suite is scored", {"score", "ties", "prefix"})
    if set(GLUE).isdisjoint(tasks):
        names = {"recipe", "seeds", "max_epochs", "learning_rate", "batch_size"}
        cli.say_unused(given, "nothing is fine-tuned", names)
    if not {BABYLM, FAST} & set(tasks):
        cli.say_unused(given, "BabyLM 2026 is not measured", {"track", "tie_seed"})
    elif set(tasks) <= {BABYLM, FAST}:
        cli.say_unused(given, "the tasks of BabyLM 2026 do not use it", {"baseline", "paper"})
    if set(tasks) == {"demo"}:
        cli.say_unused(given, "only the demo is measured", {"data", "baseline", "paper", "limit"})


def main(argv: list[str]) -> None:
    """Read the command line, load the runs, measure the tasks, print the tables."""
    given = command_line.parse_flags(parser(), argv)
    settings = from_flags(Settings, given)
    tasks = settings.task_names()
    _say_unused(given, tasks)
    device = choose_device(settings.device)
    choose_num_threads(settings.threads, device)
    directories = list(dict.fromkeys(settings.runs))
    names = row_names(directories)
    runs = {name: load_run(directory, device) for name, directory in zip(names, directories, strict=True)}
    recipes = {name: recipe_of(run.record) for name, run in runs.items()}
    for directory in directories:
        check_writable(directory)
        read_results(directory)
    with contextlib.ExitStack() as locks:
        for directory in {directory.resolve(): directory for directory in directories}.values():
            locks.enter_context(only_process(directory))
        other_tasks = [task for task in tasks if task not in ("demo", BABYLM, FAST)]
        asked = read_entry(tasks, runs, settings)
        data = read_tasks(other_tasks, settings)
        if "demo" in tasks:
            show_demo(runs, recipes, device)
        if other_tasks:
            subjects = [of_run(run, name) for name, run in runs.items()]
            if settings.baseline:
                subjects.append(random_twin(runs[names[0]]))
            if settings.limit:
                subjects = [_apart(subject, f"limit-{settings.limit}") for subject in subjects]
            say_estimate(subjects, data, settings)
            show_tasks(subjects, runs, recipes, data, settings)
        has_glue_of_2026 = settings.recipe == "2026" and data.trainings and not settings.limit
        if asked.data:
            say_estimate_of_entry(runs, asked)
        if asked.data or has_glue_of_2026:
            show_entry(runs, asked, settings, device)
        for run in runs.values():
            results = summary.numbers(read_results(run.directory))
            board.add_results(run.directory, results, run.record.train.num_steps)


def _apart(subject: Subject, name: str) -> Subject:
    """The subject with its results in a folder of their own."""
    return subject._replace(folder=folder_within(subject.folder, "evaluation", name))


if __name__ == "__main__":
    cli.run(main)
