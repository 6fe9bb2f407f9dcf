"""A search for the settings that train a small model best, at equal processor time or at equal words.

    python experiments/recipe.py --budget 10                                       teachers of ten minutes
    python experiments/recipe.py --budget 10 --equal words                         of as many words
    python experiments/recipe.py --budget 5 --phase student --teacher runs/teacher

--budget is the processor time of one full training. Candidates are the preset's recipe, every recipe that
differs from it in one ingredient, and others of the grid, drawn at random. All are trained with a ninth of
the budget. The best third of them is trained from random weights with a third. The best third of those, and
the preset's recipe, have the whole budget and three seeds (successive halving: Jamieson and Talwalkar 2016).
A search that was stopped continues with the same command. All searches of a folder are on one page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import random
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import recipe_page
from recipe_page import MEASURES, Found, Ingredients, Trial
from steps import (
    ROOT,
    Execute,
    Executor,
    Step,
    in_a_process,
    processor_seconds,
    seconds_per_update,
    stop_commands,
)

from mlsm import command_line
from mlsm.config import DEFAULT_TEACHER, EMBEDDED_CORPUS, PRESETS, TrainConfig
from mlsm.evaluation.results import read_results
from mlsm.files import write_json
from mlsm.log import read_metrics, say
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.settings import check_fields, check_positive, option

KEPT_SHARE = 3  # a rung keeps one of so many candidates, and trains them so many times as long
NUM_RUNGS = 3
SEEDS = (12, 13, 14)  # of the finalists
HEAD_WIDTH = 64  # of the attention heads of all shapes
SPEED_UPDATES, SPEED_LOGGED = 15, 5  # of the run that measures a shape's processor time
# Ingredients that change the time of an update.
TIMED = ("shape", "feed-forward", "optimizer", "length-schedule", "batch-size")
RATES = (0.25, 0.5, 1, 2, 4)  # times the preset's

GRIDS: dict[str, Ingredients] = {
    "teacher": {
        "feed-forward": ("x1", "x4"),
        "optimizer": ("adamw", "muon"),
        "schedule": ("linear", "wsd", "cosine"),
        "mask-share": ("0.15", "0.4", "0.4:0.15"),
        "batch-size": ("8", "16", "32"),
    },
    "student": {
        "init": ("random", "teacher"),
        "length-schedule": ("none", "32:64"),
        "batch-size": ("8", "16", "32"),
    },
}


@dataclass(frozen=True)
class Settings:
    """What is searched, for how long, and where the runs and the page are written."""

    phase: str = option("teacher", "what is trained: teacher (mlm) or student (lsm)", tuple(GRIDS))
    budget: float = option(
        10.0, "processor minutes of one full training; the search takes some twenty of them"
    )
    equal: str = option(
        "time", "what all recipes have the same amount of: processor time, or words", ("time", "words")
    )
    candidates: int = option(27, "recipes that are tried at first, those with one change among them")
    shapes: tuple[str, ...] = option(
        ("12x128", "8x256", "6x384"), "layers x width of the teachers", metavar="LxW"
    )
    preset: str = option("tiny", "recipe to start from", tuple(PRESETS))
    teacher: Path = option(Path(DEFAULT_TEACHER), "teacher of the students", metavar="DIRECTORY")
    corpus: tuple[str, ...] = option((EMBEDDED_CORPUS,), "UTF-8 text, a sentence per line", metavar="FILE")
    data: Path | None = option(
        None,
        "folder with blimp_filtered: finalists are scored on BLiMP, too (default: not)",
        metavar="FOLDER",
    )
    output: Path = option(Path("runs/recipe"), "folder of all searches", metavar="DIRECTORY")
    result: Path = option(
        ROOT / "results" / "recipe.md", "page to write (default: results/recipe.md)", metavar="FILE"
    )
    jobs: int = option(os.cpu_count() or 1, "trainings at a time, of one thread each (default: one a core)")
    report: bool = option(False, "only write the page, from what there is so far")

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "budget", "candidates", "jobs")
        for shape in self.shapes:
            depth, _, width = shape.partition("x")
            if not (depth.isdecimal() and width.isdecimal() and int(width) % HEAD_WIDTH == 0):
                raise ValueError(f"--shapes takes layers x width, a multiple of {HEAD_WIDTH}; got {shape!r}")
        if self.phase == "student" and not (self.teacher / MODEL_FILE).exists():
            raise ValueError(f"no finished teacher at {self.teacher}: name one with --teacher")

    def folder(self) -> Path:
        """The folder of this search."""
        return self.output / f"{self.phase}-{self.equal}-{self.budget:g}m"

    def train_config(self) -> TrainConfig:
        """The preset's settings of the phase."""
        preset = PRESETS[self.preset]()
        return preset.teacher if self.phase == "teacher" else preset.student


Recipe = dict[str, str]  # a value by the name of each ingredient


def start_recipe(settings: Settings) -> Recipe:
    """The preset's recipe."""
    model, train = PRESETS[settings.preset]().model, settings.train_config()
    shape = {"shape": f"{model.depth}x{model.width}"} if settings.phase == "teacher" else {}
    own = {"optimizer": train.optimizer, "schedule": train.schedule, "mask-share": f"{train.mask_share}"}
    own |= {
        "feed-forward": f"x{model.ffn_width // model.width}",
        "init": "random",
        "length-schedule": "none",
        "batch-size": f"{train.batch_size}",
    }
    return {**shape, "learning-rate": f"{train.learning_rate:g}"} | {n: own[n] for n in GRIDS[settings.phase]}


def grid(settings: Settings) -> Ingredients:
    """All values of each ingredient; the preset's are among them."""
    start = start_recipe(settings)
    peak = settings.train_config().learning_rate
    values = {"learning-rate": tuple(f"{peak * factor:g}" for factor in RATES), **GRIDS[settings.phase]}
    if settings.phase == "teacher":
        values["shape"] = settings.shapes
    return {name: tuple(dict.fromkeys((start[name], *values[name]))) for name in start}


def candidates(settings: Settings) -> list[Recipe]:
    """The preset's recipe, those with one change, and others drawn from the grid."""
    start, choices = start_recipe(settings), grid(settings)
    single = [{**start, name: value} for name in start for value in choices[name] if value != start[name]]
    every = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    others = [recipe for recipe in every if recipe not in (start, *single)]
    random.Random(0).shuffle(others)
    return [start, *single, *others][: max(settings.candidates, 1 + len(single))]


def name_of(recipe: Recipe) -> str:
    """A short name for a run, from the values of the recipe."""
    return "-".join(value.replace(":", "to") for value in recipe.values())


def flags_of(recipe: Recipe) -> list[str]:
    """The flags of train.py that give the recipe."""
    flags = {name: value for name, value in recipe.items() if value != "none"}
    if shape := flags.pop("shape", ""):
        depth, width = map(int, shape.split("x"))
        flags |= {"depth": f"{depth}", "width": f"{width}", "num-heads": f"{max(1, width // HEAD_WIDTH)}"}
        flags["ffn-width"] = f"{int(flags.pop('feed-forward')[1:]) * width}"
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


class NotFinishedError(ValueError):
    """A training that a report needs has not come to its end."""


class Search:
    """One search: its commands, and what its runs measured."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self.settings, self.folder = settings, settings.folder()
        self._execute = executor(self.folder, 1)

    def train(self, recipe: Recipe, num_updates: int, seed: int, name: str, *more: str) -> Path:
        """Train a recipe for so many updates; returns its run."""
        settings, run = self.settings, self.folder / name
        objective = {"teacher": "mlm", "student": "lsm"}[settings.phase]
        command = ["train.py", "--objective", objective, "--output", str(run), "--resume", "--yes"]
        command += ["--num-steps", str(num_updates), "--seed", str(seed), *flags_of(recipe)]
        command += ["--device", "cpu", "--keep-checkpoints", "1"]
        if settings.phase == "teacher":
            command += ["--preset", settings.preset, "--corpus", *settings.corpus]
        else:
            command += ["--teacher", str(settings.teacher)]
        self._execute(Step(f"train {name}", [*command, *more]))
        if not (run / MODEL_FILE).exists():
            raise NotFinishedError(f"{run} is not finished")
        return run

    def seconds_per_update(self, recipe: Recipe) -> float:
        """Processor seconds of an update, by a short run. Rates, schedules and masks change them little."""
        start = start_recipe(self.settings)
        timed = {name: recipe[name] if name in TIMED else start[name] for name in start}
        name = f"speed-{name_of(timed)}"
        run = self.train(timed, SPEED_UPDATES, SEEDS[0], name, "--log-every", str(SPEED_LOGGED))
        return seconds_per_update(run)

    def num_updates(self, recipe: Recipe, share: float) -> int:
        """The updates that a share of the budget pays for, or those that read as many words as the preset's
        recipe reads in it.
        """
        start, budget_s = start_recipe(self.settings), 60 * self.settings.budget * share
        if self.settings.equal == "time":
            return max(1, round(budget_s / self.seconds_per_update(recipe)))
        num_sequences = budget_s / self.seconds_per_update(start) * int(start.get("batch-size", 1))
        return max(1, round(num_sequences / int(recipe.get("batch-size", 1))))

    def trial(self, recipe: Recipe, rung: int, seed: int) -> Trial:
        """Train a recipe on a rung (the last has the whole budget) and read what it measured."""
        num_updates = self.num_updates(recipe, KEPT_SHARE ** (rung - NUM_RUNGS + 1))
        run = self.train(recipe, num_updates, seed, f"{name_of(recipe)}-{num_updates}-seed{seed}")
        if self.settings.data and rung == NUM_RUNGS - 1 and self.settings.phase == "teacher":
            command = ["evaluate.py", str(run), "--tasks", "blimp", "--data", str(self.settings.data)]
            self._execute(Step(f"evaluate {run.name}", command))
        last = {name: value for line in read_metrics(run) for name, value in line.items()}
        blimp = read_results(run).suites.get("blimp")
        return Trial(
            recipe=dict(recipe),
            rung=rung,
            seed=seed,
            num_updates=num_updates,
            words=int(last["words_seen"]),
            processor_s=processor_seconds(run),
            values={name: last[name] for name in MEASURES[self.settings.phase]},
            blimp=blimp.average if blimp else None,
        )

    def rungs(self) -> Iterator[list[Trial]]:
        """The trials of one rung after the other; each rung has the best recipes of the one before. The last
        rung of a search that was stopped has those that were finished.
        """
        start, recipes = start_recipe(self.settings), candidates(self.settings)
        for rung in range(NUM_RUNGS):
            seeds = SEEDS if rung == NUM_RUNGS - 1 else SEEDS[:1]
            trials = self._at_once(recipes, rung, seeds)
            yield trials
            if len(trials) < len(recipes) * len(seeds):
                return
            best = [t.recipe for t in sorted(trials, key=lambda t: t.loss(self.settings.phase))]
            recipes = best[: math.ceil(len(recipes) / KEPT_SHARE)]
            if start not in recipes:
                recipes = [*recipes, start]

    def _at_once(self, recipes: Sequence[Recipe], rung: int, seeds: Sequence[int]) -> list[Trial]:
        """One trial of each recipe and seed, as many at a time as the settings say."""
        for recipe in recipes:  # speeds first: two trainings at once would measure the same shape twice
            with contextlib.suppress(NotFinishedError):
                self.num_updates(recipe, 1.0)
        pairs = [(recipe, seed) for seed in seeds for recipe in recipes]
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            run_each = pool.map if self.settings.jobs > 1 else map
            trials = [*run_each(lambda pair: self._finished_trial(pair[0], rung, pair[1]), pairs)]
        return [trial for trial in trials if trial]

    def _finished_trial(self, recipe: Recipe, rung: int, seed: int) -> Trial | None:
        try:
            return self.trial(recipe, rung, seed)
        except NotFinishedError:
            return None


def run(settings: Settings, executor: Executor = in_a_process) -> None:
    """Run or continue a search, and write the page after each rung. A report runs nothing, and takes what is
    finished. Raises ValueError if that is nothing.
    """
    trials: list[Trial] = []
    for rung, found in enumerate(Search(settings, nothing if settings.report else executor).rungs()):
        trials += found
        if not found:
            break
        best = min(found, key=lambda trial: trial.loss(settings.phase))
        say(f"rung {rung + 1}: {len(found)} trainings, the best is {name_of(best.recipe)}")
        about = Found(
            phase=settings.phase,
            equal=settings.equal,
            budget=settings.budget,
            preset=settings.preset,
            start=start_recipe(settings),
            trials=tuple(map(dataclasses.asdict, trials)),
            command=command_of(settings),
        )
        write_json(settings.folder() / recipe_page.FILE, dataclasses.asdict(about))
        recipe_page.write(settings.output, settings.result)
    if not trials:
        recipe_page.write(settings.output, settings.result)


def command_of(settings: Settings) -> str:
    """The command line of a search."""
    words = ["python experiments/recipe.py", "--phase", settings.phase, "--budget", f"{settings.budget:g}"]
    words += ["--equal", settings.equal, "--candidates", f"{settings.candidates}"]
    words += ["--preset", settings.preset]
    if settings.phase == "student":
        words += ["--teacher", str(settings.teacher)]
    else:
        words += ["--shapes", *settings.shapes, "--corpus", *(Path(name).name for name in settings.corpus)]
    return " ".join(words)


def nothing(folder: Path, num_threads: int) -> Execute:
    """An executor that runs no step."""
    return lambda step: None


def main(argv: list[str]) -> None:
    """Read the command line, search, write the page."""
    settings = command_line.parse(Settings, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, stop_commands)
    run(settings)
