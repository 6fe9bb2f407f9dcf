"""The paper in miniature: its claims, tested on real text with small models.

    python experiments/miniature.py --corpus TEXT/*.txt --data evaluation_data             a night, 2 cores
    python experiments/miniature.py --corpus TEXT/*.txt --data evaluation_data --budget 100     100 minutes

A teacher makes N updates; students of every objective, from its weights and from random ones, N/10; token
heads N/10. One more student is trained for each other dictionary, solver, width and seed. N is what the
budget allows on this machine. A study that was stopped continues with the same command. results/miniature.md
and its figure are written at the end, and before with --report.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass
from pathlib import Path

import study_page
from steps import (
    ROOT,
    Execute,
    Executor,
    Step,
    check_training_sets,
    in_a_process,
    seconds_per_update,
    stop_commands,
)
from study import MIN_EXAMPLES, Commands, Study

from mlsm import command_line
from mlsm.command_line import Parser
from mlsm.config import PRESETS, DataConfig
from mlsm.evaluation.glue import FOLDER, read_task_data
from mlsm.evaluation.minimal_pairs import read_files
from mlsm.evaluation.tasks import GLUE, SUITES
from mlsm.files import read_json, write_json, write_text
from mlsm.log import read_metrics, say
from mlsm.settings import check_fields, check_positive, from_json, option
from mlsm.text.corpus import corpus_files

# Shares of the budget. All other training takes about three times as long as the teacher, zero-shot a tenth.
TEACHER_SHARE, FINE_TUNING_SHARE = 0.16, 0.2
# Minimal pairs per file, for each minute of the budget and each token per second of the teacher's training.
PAIRS_PER_TOKEN = 6e-3 / 60
SPEED_UPDATES = 30  # of the run that measures the speed of training
NUM_FINE_TUNED = 8  # models: the teacher, six students, random weights
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Settings:
    """The text and the tasks of the study, its size, and where it is written."""

    corpus: tuple[Path, ...] = option(MISSING, "UTF-8 text, a sentence per line", metavar="FILE")
    data: Path = option(
        MISSING, "folder with blimp_filtered, supplement_filtered, glue_filtered", metavar="FOLDER"
    )
    output: Path = option(Path("runs/miniature"), "directory of the study", metavar="DIRECTORY")
    result: Path = option(
        ROOT / "results" / "miniature.md",
        "page to write, with a figure beside it (default: results/miniature.md)",
        metavar="FILE",
    )
    budget: int = option(600, "minutes the study is sized for, not a limit; the default is a night")
    updates: int | None = option(None, "updates of the teacher (default: what the budget allows)")
    preset: str = option("tiny", "size of the models", tuple(PRESETS))
    glue: str | None = option(
        None, "tasks to fine-tune on, such as cola,sst2 (default: all that --data has)", metavar="NAMES"
    )
    jobs: int = option(2, "commands at a time after the teacher; 1 on a GPU")
    report: bool = option(False, "only write the page, from what there is so far")

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "budget", "jobs", *(["updates"] if self.updates is not None else []))
        if self.glue:
            check_training_sets("--glue", self.glue)

    def tasks(self) -> tuple[str, ...]:
        """The tasks of --glue, or those with a training set in `data`."""
        if self.glue:
            return tuple(self.glue.split(","))
        names = [name for name, task in GLUE.items() if task.trained_on == name]
        return tuple(name for name in names if (self.data / FOLDER / f"{name}.train.jsonl").exists())


def load_or_begin(settings: Settings, execute: Execute) -> Study:
    """The study of the directory, or a new one, for which speed is measured and data is cut. Before anything
    is run, ValueError is raised for files that are missing or damaged.
    """
    file = settings.output / "study.json"
    if file.exists():
        study = from_json(Study, read_json(file))
        say(
            f"{settings.output} stays as it began: budget {study.budget}, preset {study.preset}, "
            f"{study.num_updates:,} updates; --output begins another"
        )
        return study
    if settings.report:
        raise ValueError(f"no study at {settings.output}: run it first, without --report")
    data, tasks, corpus = settings.data, settings.tasks(), tuple(map(str, settings.corpus))
    corpus_files(DataConfig(corpus=corpus))
    for name in ("blimp", "supplement"):
        read_files(SUITES[name], data)
    if not tasks:
        raise ValueError(f"no task to fine-tune on in {data / FOLDER}: --data names the folder of the tasks")
    for task in tasks:
        read_task_data(data, task, [task])
    preset = PRESETS[settings.preset]()
    study = Study(
        corpus=corpus,
        budget=settings.budget,
        preset=settings.preset,
        num_updates=settings.updates or SPEED_UPDATES,
        batch_size=2 * preset.teacher.batch_size,
        learning_rate=preset.teacher.learning_rate,
        layer=preset.model.depth,
        k=preset.dictionary.k,
        lam=preset.dictionary.lam,
        glue=tasks,
    )
    if not settings.updates:
        study = sized(study, settings, execute)
    cut_data(data, settings.output / "evaluation_data", study)
    write_json(file, dataclasses.asdict(study))
    return study


def sized(study: Study, settings: Settings, execute: Execute) -> Study:
    """The study that fits the budget, by the speed of a short run on this machine."""
    run = settings.output / "speed"
    command = Commands(study, settings.output).train("mlm", "random", run, SPEED_UPDATES)
    execute(Step("speed", [*command, "--log-every", "5"]))
    [_, *lines] = [line for line in read_metrics(run) if "tokens_per_s" in line]
    tokens_per_s = statistics.median(line["tokens_per_s"] for line in lines)
    budget_s, num_epochs = 60 * study.budget, NUM_FINE_TUNED * len(study.seeds) * study.max_epochs
    num_characters = budget_s * FINE_TUNING_SHARE * tokens_per_s / num_epochs * CHARACTERS_PER_TOKEN
    return dataclasses.replace(
        study,
        num_updates=max(100, int(budget_s * TEACHER_SHARE / seconds_per_update(run, "seconds")) // 100 * 100),
        pairs_a_file=max(2, round(study.budget * tokens_per_s * PAIRS_PER_TOKEN)),
        examples_a_task=examples_that_fit(settings.data, study.glue, num_characters),
    )


def examples_that_fit(data: Path, tasks: Sequence[str], num_characters: float) -> int:
    """How many lines of every training file hold so many characters together, at least MIN_EXAMPLES."""
    sizes = []
    for task in tasks:
        text = (data / FOLDER / f"{task}.train.jsonl").read_text(encoding="utf-8-sig")
        sizes.append((text.count("\n"), len(text) / max(1, text.count("\n"))))
    counts = range(MIN_EXAMPLES, max(count for count, _ in sizes) + 1)
    fitting = [n for n in counts if sum(min(n, count) * size for count, size in sizes) <= num_characters]
    return max(fitting, default=MIN_EXAMPLES)


def cut_data(data: Path, folder: Path, study: Study) -> None:
    """Write the first lines of every file that the study uses, in the official layout."""
    pairs = [path for s in ("blimp", "supplement") for path in (data / SUITES[s].folder).glob("*.jsonl")]
    tasks = [data / FOLDER / f"{task}.{part}.jsonl" for task in study.glue for part in ("train", "valid")]
    for paths, num_lines in ((pairs, study.pairs_a_file), (tasks, study.examples_a_task)):
        for path in paths:
            lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
            write_text(folder / path.relative_to(data), "".join(lines[:num_lines]))


def follow(chain: Sequence[Step], execute: Execute) -> str | None:
    """Run the steps of a chain. Returns the error that stopped it, if any, so that other chains continue."""
    try:
        for step in chain:
            execute(step)
    except ValueError as error:
        return str(error)
    return None


def run(settings: Settings, executor: Executor = in_a_process) -> None:
    """Run the whole study and write its page. Raises ValueError at the end if a chain has failed."""
    num_cores = os.cpu_count() or 1
    execute = executor(settings.output, num_cores)
    study = load_or_begin(settings, execute)
    commands = Commands(study, settings.output)
    if not settings.report:
        num_students = len(commands.students)
        say(f"{settings.output}: a teacher of {study.num_updates:,} updates, {num_students} students")
        execute(commands.train_teacher())
        execute(commands.fit_dictionary())
        execute_beside = executor(settings.output, max(1, num_cores // settings.jobs))
        with ThreadPoolExecutor(settings.jobs) as pool:
            run_each = pool.map if settings.jobs > 1 else map
            errors = [*run_each(lambda chain: follow(chain, execute_beside), commands.chains())]
        if any(errors):
            raise ValueError("; ".join(error for error in errors if error))
    study_page.write(commands, settings.result)


def flags() -> Parser:
    """The parser of the command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line, run or continue the study, write its page."""
    settings = command_line.parse(Settings, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, stop_commands)
    run(settings)
