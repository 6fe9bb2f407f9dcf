"""Evaluate finished runs side by side.

    python evaluate.py runs/teacher runs/lsm-random runs/token-head-lsm-random --tasks demo
    python evaluate.py runs/token-head-lsm-random --tasks blimp,supplement,ewok,glue --paper 10M

The table is printed, with a row of means for runs that differ only in their seed. Each run gets its own
numbers in results.json and results.md, and its predictions in evaluation/. The demo also draws a picture, in
the last run. An evaluation that was interrupted continues with the first file of a suite or the first seed of
GLUE that has no result yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mlsm import cli
from mlsm.command_line import Parser
from mlsm.config import DEVICE_HELP
from mlsm.device import choose_device
from mlsm.directory import check_writable, only_process
from mlsm.evaluation import glue, paper, summary
from mlsm.evaluation.demo import score_demo
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import score_seeds
from mlsm.evaluation.minimal_pairs import SUITES, TIES, Scoring, read_files, score_suite
from mlsm.evaluation.pseudo_likelihood import REDUCTIONS
from mlsm.evaluation.recipes import Recipe, recipe_of, row_names
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.subject import Subject, of_run, random_twin
from mlsm.evaluation.tables import Cell, Spread, as_text, columns_of, draw
from mlsm.runs.run import Run, load_run
from mlsm.settings import argument, check_fields, from_flags, option

TASKS = ("demo", *SUITES, "glue", *glue.TASKS)


@dataclass(frozen=True)
class Settings:
    """The runs, the tasks, and how they are measured."""

    runs: tuple[Path, ...] = argument("directory of a finished run", "RUN")
    tasks: str = option("demo", f"what to measure, of {', '.join(TASKS)}", metavar="NAMES", is_common=True)
    data: Path = option(
        Path("evaluation_data"),
        "folder with blimp_filtered, supplement_filtered, ewok_filtered, glue_filtered",
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
    seeds: str = option("12,13,14,15,16", "seeds of fine-tuning", metavar="NUMBERS")
    max_epochs: int = option(10, "most epochs of a fine-tuning")
    baseline: bool = option(False, "also a row of random weights, and one of chance and the majority class")
    paper: str | None = option(
        None, "also the rows the paper prints for this many words, quoted", tuple(paper.SIZES)
    )
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")

    def __post_init__(self) -> None:
        check_fields(self)
        self.fine_tuning()
        self.seed_numbers()

    def scoring(self) -> Scoring:
        """How minimal pairs are scored."""
        return Scoring(self.score, self.ties, self.prefix)

    def fine_tuning(self) -> FineTuneSettings:
        """The settings of fine-tuning. Raises ValueError for a number of epochs that is not positive."""
        return FineTuneSettings(max_epochs=self.max_epochs)

    def seed_numbers(self) -> list[int]:
        """The numbers of `seeds`, each once. Raises ValueError if it is not a list of numbers."""
        try:
            return list(dict.fromkeys(int(seed) for seed in self.seeds.split(",")))
        except ValueError:
            raise ValueError(
                f"--seeds takes whole numbers with commas between them, got {self.seeds!r}"
            ) from None

    def task_names(self) -> list[str]:
        """The tasks, each once; glue stands for its eleven tasks. Raises ValueError for an unknown task."""
        names = [name.strip() for name in self.tasks.split(",")]
        for name in names:
            if name not in TASKS:
                raise ValueError(f"--tasks takes {', '.join(TASKS)}, got {name!r}")
        tasks = [task for name in names for task in (glue.TASKS if name == "glue" else [name])]
        return list(dict.fromkeys(tasks))


def read_trainings(tasks: Sequence[str], data: Path) -> list[glue.TaskData]:
    """The data of each fine-tuning. The files of suites are checked, too, so that a mistake in any file is
    reported before the work begins.
    """
    for name in tasks:
        if name in SUITES:
            read_files(SUITES[name], data)
    names = dict.fromkeys(glue.TASKS[name].trained_on for name in tasks if name in glue.TASKS)
    return [glue.read_task_data(data, trained_on, tasks) for trained_on in names]


def measure(
    subject: Subject, tasks: Sequence[str], trainings: Sequence[glue.TaskData], settings: Settings
) -> Results:
    """The results of all tasks but the demo. Each is in results.json before the next one is measured."""
    results = Results(subject.weights)
    for name in tasks:
        if name in SUITES:
            result = score_suite(subject, name, settings.data, settings.scoring())
            results = results.updated(Results(subject.weights, suites={name: result}))
            summary.store(subject.folder, subject.name, results)
    for data in trainings:
        names = [name for name in data.validations if name in tasks]
        scores = score_seeds(subject, data, names, settings.fine_tuning(), settings.seed_numbers())
        results = results.updated(Results(subject.weights, glue=scores))
        summary.store(subject.folder, subject.name, results)
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
    recipes: Mapping[str, Recipe],
    tasks: Sequence[str],
    trainings: Sequence[glue.TaskData],
    settings: Settings,
) -> None:
    """Measure suites and GLUE tasks, and print their table."""
    results = {subject.name: measure(subject, tasks, trainings, settings) for subject in subjects}
    rows: dict[str, dict[str, Cell]] = {name: summary.row(these) for name, these in results.items()}
    rows |= summary.over_seeds(rows, recipes)
    if settings.baseline:
        majority = {
            task: glue.majority_score(data, task)
            for data in trainings
            for task in data.validations
            if task in tasks
        }
        rows["chance, or the majority class"] = summary.chance_row(results[subjects[0].name], majority)
    if settings.paper:
        rows |= paper.quoted_rows(settings.paper, columns_of(rows))
    title = []
    if not SUITES.keys().isdisjoint(tasks):
        title.append(f"score {settings.score}, ties {settings.ties}" + ", official prefix" * settings.prefix)
    if any(isinstance(cell, Spread) for cells in rows.values() for cell in cells.values()):
        title.append("mean ±sd (seeds, of fine-tuning or of the runs)")
    print(as_text(rows, "Tasks: " + "; ".join(title)))


def parser() -> Parser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def _say_unused(given: Iterable[str], tasks: Sequence[str]) -> None:
    """Name the flags that were given and change nothing in these tasks."""
    if SUITES.keys().isdisjoint(tasks):
        cli.say_unused(given, "no suite is scored", {"score", "ties", "prefix"})
    if glue.TASKS.keys().isdisjoint(tasks):
        cli.say_unused(given, "nothing is fine-tuned", {"seeds", "max_epochs"})
    if set(tasks) == {"demo"}:
        cli.say_unused(given, "only the demo is measured", {"data", "baseline", "paper"})


def main(argv: list[str]) -> None:
    """Read the command line, load the runs, measure the tasks, print the tables."""
    given = cli.parse_flags(parser(), argv)
    settings = from_flags(Settings, given)
    tasks = settings.task_names()
    _say_unused(given, tasks)
    device = choose_device(settings.device)
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
        other_tasks = [task for task in tasks if task != "demo"]
        trainings = read_trainings(other_tasks, settings.data)
        if "demo" in tasks:
            show_demo(runs, recipes, device)
        if other_tasks:
            subjects = [of_run(run, name) for name, run in runs.items()]
            if settings.baseline:
                subjects.append(random_twin(runs[names[0]]))
            show_tasks(subjects, recipes, other_tasks, trainings, settings)


if __name__ == "__main__":
    cli.run(main)
