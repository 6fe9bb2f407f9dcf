"""Do the paper's claims hold? A teacher, its students and their controls, with small models and three seeds.

    python experiments/study.py --corpus TEXT/*.txt --data evaluation_data --budget 1200
    python experiments/study.py --corpus TEXT/*.txt --data evaluation_data --budget 1200 --plan
    python experiments/study.py --corpus TEXT/*.txt --data evaluation_data --questions 1,2 --budget 300

experiments/study_design.py has the questions, the models and the thresholds of the answers. --budget is the
processor time of the whole study, and decides how long models are trained and on how many examples they are
measured. The cores share the work, a command each; --plan prints what would be run. A study that was stopped
continues with the same command. The page is written at the end, and before with --report.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    step_file,
    stop_commands,
)
from study_design import FINE_TUNING_SHARE, PAIRS_SHARE, SEEDS, TASKS, TRAINING_SHARE, Model
from study_jobs import SPEED_SHARE, START_S, UPDATE_PASSES, Job, Jobs, Study, kind_of

from mlsm import command_line
from mlsm.command_line import Parser
from mlsm.config import DEVICE_HELP, PRESETS, DataConfig
from mlsm.device import choose_device
from mlsm.evaluation.glue import read_items
from mlsm.evaluation.minimal_pairs import read_files
from mlsm.evaluation.tables import as_text
from mlsm.evaluation.tasks import SUITES
from mlsm.files import read_json, remove_directory, write_json
from mlsm.log import duration, read_metrics, say
from mlsm.runs.hub_import import convert
from mlsm.settings import check_fields, check_positive, from_json, option, override
from mlsm.text.corpus import corpus_files

SPEED_UPDATES = 16  # of the runs that measure the speed of training
CHARACTERS_PER_TOKEN, LONGEST = 4.5, 128  # of fine-tuning
KINDS = ("training", "pairs", "fine-tuning")  # of jobs


@dataclass(frozen=True)
class Settings:
    """The text and the tasks of the study, its size, and where it is written."""

    corpus: tuple[Path, ...] = option(MISSING, "UTF-8 text, a sentence per line", metavar="FILE")
    data: Path = option(
        MISSING, "folder with blimp_filtered, supplement_filtered, glue_filtered", metavar="FOLDER"
    )
    budget: float = option(1200.0, "processor minutes that the whole study is sized for, not a limit")
    preset: str = option("tiny", "size and recipe of the models", tuple(PRESETS))
    questions: str = option("1,2,3,4,5,6", "questions of study_design.py to answer", metavar="NUMBERS")
    strong_teacher: Path | None = option(
        None, "an encoder as transformers saves it, for question 6 (default: none)", metavar="DIRECTORY"
    )
    tasks: str = option(",".join(TASKS), "tasks to fine-tune on", metavar="NAMES")
    updates: int | None = option(None, "updates of the teacher (default: what the budget allows)")
    pairs: int | None = option(None, "minimal pairs of a file of BLiMP (default: what the budget allows)")
    examples: int | None = option(None, "examples of a file of a task (default: what the budget allows)")
    output: Path = option(Path("runs/study"), "directory of the study", metavar="DIRECTORY")
    result: Path = option(
        ROOT / "results" / "study.md",
        "page to write, with figures beside it (default: results/study.md)",
        metavar="FILE",
    )
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    jobs: int | None = option(None, "commands at a time (default: one a core; one on a GPU)")
    plan: bool = option(False, "measure speeds, print what would be run, and stop")
    report: bool = option(False, "only write the page, from what there is so far")

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("updates", "pairs", "examples", "jobs") if getattr(self, name) is not None]
        check_positive(self, "budget", *given)
        check_training_sets("--tasks", self.tasks)
        if not set(self.questions.split(",")) <= set("123456"):
            raise ValueError(f"--questions takes numbers from 1 to 6, such as 1,2; got {self.questions!r}")


def load_or_begin(settings: Settings, executor: Executor) -> Study:
    """The study of the directory, or a new one that fits the budget. ValueError is raised for files that are
    missing or damaged before anything is run.
    """
    file = settings.output / "study.json"
    if file.exists():
        study = from_json(Study, read_json(file))
        say(f"{settings.output} stays as it began: budget {study.budget:g}, preset {study.preset}, questions "
            f"{','.join(map(str, study.questions))}; --output begins another")  # fmt: skip
        return study
    if settings.report:
        raise ValueError(f"no study at {settings.output}: run it first, without --report")
    corpus, tasks = tuple(map(str, settings.corpus)), tuple(settings.tasks.split(","))
    corpus_files(DataConfig(corpus=corpus))
    for name in ("blimp", "supplement"):
        read_files(SUITES[name], settings.data)
    study = Study(
        corpus=corpus,
        data=str(settings.data),
        preset=settings.preset,
        budget=settings.budget,
        device=str(choose_device(settings.device)),
        questions=tuple(sorted(map(int, settings.questions.split(",")))),
        tasks=tasks,
        task_tokens=sum(mean_tokens(settings.data, task) for task in tasks),
        task_sizes=tuple(len(read_items(settings.data, task, "valid")) for task in tasks),
        strong_teacher=str(settings.strong_teacher or ""),
    )
    if settings.strong_teacher:
        convert(settings.strong_teacher, settings.output / "outside")
        convert(settings.strong_teacher, settings.output / "speed" / "outside")
    seconds = measured_seconds(Jobs(study, settings.output / "speed", SPEED_UPDATES), settings, executor)
    study = sized(dataclasses.replace(study, seconds=seconds), settings)
    if not settings.plan:
        write_json(file, dataclasses.asdict(study))
    return study


def mean_tokens(data: Path, task: str) -> float:
    """The tokens of an example, about. Raises ValueError for a task whose files are missing or damaged."""
    texts = [" ".join(item.segments) for part in ("train", "valid") for item in read_items(data, task, part)]
    return statistics.fmean(min(LONGEST, len(text) / CHARACTERS_PER_TOKEN) for text in texts)


def measured_seconds(jobs: Jobs, settings: Settings, executor: Executor) -> dict[str, float]:
    """The seconds of a study, from short runs on this machine: a run of every kind and a token head."""
    seed = SEEDS[0]
    needed = {job.row for job in jobs.all()} & jobs.models.keys()
    of_kind: dict[str, Model] = {}
    for name in sorted(needed, key=list(jobs.models).index):
        of_kind.setdefault(kind_of(jobs.models[name]), jobs.models[name])
    students = [model for model in of_kind.values() if model.has_head]
    heads = [f"train {jobs.with_words(model.name, seed).name}" for model in students]
    short = {
        job.name: job for m in of_kind.values() for job in jobs.training(m, seed) if job.name not in heads[1:]
    }
    if errors := run_all([*short.values()], executor(jobs.folder, 1), num_at_once(settings, jobs.study)):
        raise ValueError("; ".join(errors.values()))
    clock = "processor_seconds" if jobs.study.device == "cpu" else "seconds"
    seconds = {kind: seconds_per_update(jobs.run(m.name, seed), clock) for kind, m in of_kind.items()}
    for student in students[:1]:
        seconds["head"] = seconds_per_update(jobs.with_words(student.name, seed), clock)
        fitting = step_file(jobs.folder, f"fit {jobs.dictionary(student, seed).stem}")
        seconds["dictionary"] = SPEED_SHARE * max(1.0, read_json(fitting)["seconds"] - START_S)
    lines = [line for line in read_metrics(jobs.run("teacher", seed)) if "tokens_per_s" in line]
    num_tokens = sum(line["tokens_per_s"] * line["seconds"] for line in lines) / lines[-1]["step"]
    return seconds | {"token": seconds["mlm teacher"] / num_tokens / UPDATE_PASSES}


def sized(study: Study, settings: Settings) -> Study:
    """The study with as many updates, pairs and examples as the budget allows, or as the settings say."""

    def fitting(field: str, kind: str, share: float) -> int:
        """The expected time is a line in each of the three sizes."""
        few, many = (_expected_s(override(study, {field: n}), kind) for n in (1000, 2000))
        allowed = 1000 + 1000 * (60 * study.budget * share - few) / max(1e-9, many - few)
        return int(float(f"{allowed:.2g}"))

    sizes = {
        "num_updates": settings.updates or max(20, fitting("num_updates", "training", TRAINING_SHARE)),
        "pairs": settings.pairs or min(1000, max(2, fitting("pairs", "pairs", PAIRS_SHARE))),
        "examples": settings.examples or max(16, fitting("examples", "fine-tuning", FINE_TUNING_SHARE)),
    }
    return override(study, sizes)


def _expected_s(study: Study, kind: str) -> float:
    return sum(job.seconds for job in Jobs(study, Path()).all() if job.kind == kind)


def num_at_once(settings: Settings, study: Study) -> int:
    """How many commands run side by side."""
    return settings.jobs or (1 if study.device != "cpu" else os.cpu_count() or 1)


def run_all(jobs: Sequence[Job], execute: Execute, num_at_once: int) -> dict[str, str]:
    """Run jobs, the first that are ready first. Returns the error of each that failed, or that needs a job
    which did: the others are run nevertheless. What a job needs beside these jobs is there.
    """
    waiting, errors = {job.name: job for job in jobs}, dict[str, str]()
    done = {name for job in jobs for name in job.needs} - waiting.keys()
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(num_at_once) as pool:
        start = pool.submit if num_at_once > 1 else _at_once
        while waiting or running:
            for job in [*waiting.values()]:
                if failed := errors.keys() & {*job.needs}:
                    errors[waiting.pop(job.name).name] = f"{job.name} needs {min(failed)}"
                elif len(running) < num_at_once and done.issuperset(job.needs):
                    running[start(_run, waiting.pop(job.name), execute)] = job.name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, error = running.pop(future), future.exception()
                if isinstance(error, ValueError):
                    errors[name] = str(error)
                elif error:
                    raise error
                else:
                    done.add(name)
    return errors


def _run(job: Job, execute: Execute) -> None:
    """Run a job, and remove the checkpoints of a run that it has finished, thrice as large as its weights."""
    step = Step(job.name, job.command())
    execute(step)
    if "--output" in step.command:
        output = Path(step.command[step.command.index("--output") + 1])
        for checkpoint in output.glob("checkpoints/step-*"):
            remove_directory(checkpoint)


def _at_once(function: Callable[[Job, Execute], None], job: Job, execute: Execute) -> Future[None]:
    """As the `submit` of a pool, in this thread."""
    future = Future[None]()
    try:
        function(job, execute)
        future.set_result(None)
    except ValueError as error:
        future.set_exception(error)
    return future


def plan_text(jobs: Jobs, every: Sequence[Job], num_at_once: int) -> str:
    """What a study would run, as a table, and how long that is expected to take."""
    study, rows = jobs.study, {}
    for name, of_row in itertools.groupby(sorted(every, key=lambda job: job.row), key=lambda job: job.row):
        these = [*of_row]
        minutes = {kind: sum(job.seconds for job in these if job.kind == kind) / 60 for kind in KINDS}
        rows[name] = {"commands": len(these), **{f"{kind}, min": value for kind, value in minutes.items()}}
    order = list(dict.fromkeys(job.row for job in every))
    rows["all"] = {column: sum(row[column] for row in rows.values()) for column in rows[order[0]]}
    total = sum(job.seconds for job in every)
    table = as_text({name: rows[name] for name in (*order, "all")}, "Expected processor minutes of all seeds")
    sizes = f"{study.num_updates:,} updates, {study.pairs} pairs and {study.examples} examples of a file"
    taken = (
        f"{duration(total)} of a core, {duration(total / num_at_once)} with {num_at_once} commands at a time"
    )
    return f"{table}\n{sizes}, {len(SEEDS)} seeds: {taken}"


def run(settings: Settings, executor: Executor = in_a_process) -> None:
    """Run the whole study, or what is left of it, and write its page. Raises ValueError at the end if a
    command has failed.
    """
    study = load_or_begin(settings, executor)
    jobs, at_once = Jobs(study, settings.output), num_at_once(settings, study)
    every, errors = jobs.all(), dict[str, str]()
    if not settings.report:
        print(plan_text(jobs, every, at_once), flush=True)
        if settings.plan:
            return
        num_threads = max(1, (os.cpu_count() or 1) // at_once)
        errors = run_all(every, executor(settings.output, num_threads), at_once)
    study_page.write(jobs, every, settings.result)
    say(f"page: {settings.result}")
    if errors:
        raise ValueError("; ".join(errors.values()))


def flags() -> Parser:
    """The parser of the command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line, run or continue the study, write its page."""
    settings = command_line.parse(Settings, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, stop_commands)
    run(settings)
