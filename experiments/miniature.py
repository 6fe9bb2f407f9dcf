"""The paper in miniature: its claims, tested on real text with small models.

    python experiments/miniature.py --corpus TEXT/*.txt --data evaluation_data             a night, 2 cores
    python experiments/miniature.py --corpus TEXT/*.txt --data evaluation_data --budget 100     100 minutes

A teacher makes N updates; students of every objective, from its weights and from random ones, N/10; token
heads N/10. Then one student for each other dictionary, solver, width and seed. N is what the budget allows on
this machine. A study that was stopped goes on with the same command; results/miniature.md and its picture
are written at the end, and before with --report.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import miniature_report  # noqa: E402

from mlsm import cli  # noqa: E402
from mlsm.config import PRESETS, DataConfig, ModelConfig  # noqa: E402
from mlsm.evaluation.glue import FOLDER, TASKS, read_task_data  # noqa: E402
from mlsm.evaluation.minimal_pairs import SUITES, read_files  # noqa: E402
from mlsm.files import read_json, write_json, write_text  # noqa: E402
from mlsm.log import read_metrics, say  # noqa: E402
from mlsm.settings import from_json, option  # noqa: E402
from mlsm.text.corpus import corpus_files  # noqa: E402

NIGHT = 600  # minutes
OBJECTIVES = ("mlsm", "lsm15", "lsm")
INITS = ("random", "teacher")
# Of the budget. All other training takes about three times as long as the teacher, zero-shot scores a tenth.
TEACHER_SHARE, FINE_TUNING_SHARE = 0.16, 0.2
PAIRS_A_TOKEN = 6e-3  # of the speed of the teacher's training: pairs a file and minute of the budget, over 60
SPEED_UPDATES = 30  # of the run that measures that speed
FINE_TUNED = 8  # models: the teacher, six students, random weights
CHARACTERS_A_TOKEN, FEWEST_EXAMPLES = 4, 16
DICTIONARY_FLAGS = ("--num-tokens", "200000", "--num-updates", "200")


@dataclass(frozen=True)
class Study:
    """What a study is made of; kept in study.json, so that it goes on as it began."""

    corpus: tuple[str, ...]
    budget: int  # minutes
    preset: str
    num_updates: int  # N, of the teacher
    batch_size: int
    learning_rate: float
    layer: int  # of the usual dictionary, as k and lam
    k: int
    lam: float
    glue: tuple[str, ...]
    pairs_a_file: int = 2  # of BLiMP and its supplement
    examples_a_task: int = FEWEST_EXAMPLES  # of GLUE, for training
    seeds: tuple[int, ...] = (12, 13, 14)  # of fine-tuning
    max_epochs: int = 3
    seed: int = 12


class Step(NamedTuple):
    """A command of the project, and the name under which it is remembered as done."""

    name: str
    command: list[str]


Executor = Callable[[Path, int], Callable[[Step], None]]
"""(directory of the study, threads) -> what runs a step, unless it is done."""


class Student(NamedTuple):
    """A run of the second phase, with what is not as usual about it."""

    name: str
    objective: str = "lsm"
    init: str = "random"
    dictionary: tuple[str, ...] = ()  # flags of fit_dictionary.py
    flags: tuple[str, ...] = ()  # of train.py


def students(study: Study, model: ModelConfig) -> list[Student]:
    """The six of the paper's tables, then the variations of LSM from random weights."""
    rows = [Student(f"{objective}-{init}", objective, init) for init in INITS for objective in OBJECTIVES]
    rows.append(Student("seed-13", flags=("--seed", "13")))
    rows += [Student(f"k-{k}", dictionary=("--k", str(k))) for k in (study.k // 3, study.k * 3)]
    rows += [
        Student(f"lam-{lam:g}", dictionary=("--lam", f"{lam:g}")) for lam in (study.lam / 2.5, study.lam * 4)
    ]
    layers = (model.depth // 3, 2 * model.depth // 3)
    rows += [Student(f"layer-{layer}", dictionary=("--layer", str(layer))) for layer in layers]
    rows.append(Student("tol-0.01", flags=("--code-tolerance", "0.01")))
    rows.append(
        Student("fista-25", flags=("--solver", "fista", "--code-steps", "25", "--code-tolerance", "1e-6"))
    )
    shape = {"width": model.width, "num-heads": max(2, model.num_heads), "ffn-width": model.ffn_width}
    halved = tuple(part for name, size in shape.items() for part in (f"--{name}", str(size // 2)))
    rows.append(Student("half-width", flags=halved))
    return rows


class Plan:
    """The commands of a study, in a directory."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.teacher = folder / "teacher"
        self.model = PRESETS[study.preset]().model
        self.students = students(study, self.model)
        self.of_the_paper = self.students[: len(INITS) * len(OBJECTIVES)]

    def train_teacher(self) -> Step:
        return Step("train teacher", self.train("mlm", "random", self.teacher, self.study.num_updates))

    def dictionary(self, student: Student | None = None) -> Step:
        """The usual dictionary, or that of a student."""
        given = student.dictionary if student else ()
        asked: dict[str, object] = {"--layer": self.study.layer, "--k": self.study.k, "--lam": self.study.lam}
        asked |= dict(zip(given[::2], given[1::2], strict=True))
        flags = [part for name, value in asked.items() for part in (name, str(value))]
        path = self._dictionary_file(student)
        command = ["fit_dictionary.py", "--teacher", str(self.teacher), *flags, "--output", str(path)]
        command += [*DICTIONARY_FLAGS, "--seed", str(self.study.seed)]
        return Step(path.stem.replace("-", " ", 1), command)

    def student(self, student: Student) -> list[Step]:
        """Its dictionary if it has its own, itself, its token head."""
        run, head = self.folder / student.name, self.folder / f"{student.name}-words"
        num_updates = max(1, self.study.num_updates // 10)
        command = self.train(student.objective, student.init, run, num_updates)
        command += ["--teacher", str(self.teacher), "--dictionary", str(self._dictionary_file(student))]
        return [
            *([self.dictionary(student)] if student.dictionary else []),
            Step(f"train {student.name}", [*command, *student.flags]),
            Step(f"train {head.name}", self.train("token-head", str(run), head, num_updates)),
        ]

    def zero_shot(self, name: str, *flags: str) -> Step:
        tasks = "demo,blimp,supplement"
        return Step(f"zero-shot {name}", [*self._evaluate(name, tasks), *flags])

    def fine_tune(self, name: str, *flags: str) -> Step:
        seeds = ",".join(map(str, self.study.seeds))
        command = self._evaluate(name, ",".join(self.study.glue))
        command += ["--seeds", seeds, "--max-epochs", str(self.study.max_epochs), *flags]
        return Step(f"fine-tune {name}", command)

    def chains(self) -> list[list[Step]]:
        """What follows teacher and dictionary; steps of a chain follow each other, chains do not."""
        chains = [[self.zero_shot("teacher", "--baseline")]]
        for student in self.students:
            steps = [*self.student(student), self.zero_shot(f"{student.name}-words")]
            if student in self.of_the_paper:
                steps.append(self.zero_shot(student.name))
            chains.append(steps)
        tuned = ["teacher", *(s.name for s in self.of_the_paper)]
        chains += [[self.fine_tune(name, *(["--baseline"] if name == "teacher" else []))] for name in tuned]
        return chains

    def _dictionary_file(self, student: Student | None) -> Path:
        own = student.name if student and student.dictionary else "usual"
        return self.teacher / f"dictionary-{own}.safetensors"

    def train(self, objective: str, init: str, output: Path, num_updates: int) -> list[str]:
        study = self.study
        command = ["train.py", "--objective", objective, "--init", init, "--output", str(output), "--resume"]
        command += ["--num-steps", str(num_updates), "--seed", str(study.seed)]
        command += ["--batch-size", str(study.batch_size), "--learning-rate", str(study.learning_rate)]
        command += ["--mask-share", "0.15", "--warmup-share", "0.05", "--checkpoint-every", "500"]
        if objective == "mlm":
            command += ["--preset", study.preset, "--corpus", *study.corpus]
        return command

    def _evaluate(self, name: str, tasks: str) -> list[str]:
        data = str(self.folder / "evaluation_data")
        return ["evaluate.py", str(self.folder / name), "--tasks", tasks, "--data", data]


def cut_data(data: Path, folder: Path, study: Study) -> None:
    """The first lines of every file that the study uses, in the official layout."""
    for suite in (SUITES["blimp"], SUITES["supplement"]):
        for path in sorted((data / suite.folder).glob("*.jsonl")):
            _copy_lines(path, folder / suite.folder / path.name, study.pairs_a_file)
    for task in study.glue:
        for part in ("train", "valid"):
            name = f"{task}.{part}.jsonl"
            _copy_lines(data / FOLDER / name, folder / FOLDER / name, study.examples_a_task)


def _copy_lines(source: Path, target: Path, most: int) -> None:
    lines = source.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    write_text(target, "".join(lines[:most]))


def glue_at_hand(data: Path) -> tuple[str, ...]:
    """The tasks that are trained on their own and whose files lie in `data`."""
    names = [name for name, task in TASKS.items() if task.trained_on == name]
    return tuple(n for n in names if (data / FOLDER / f"{n}.train.jsonl").exists())


def begin(args: Settings, execute: Callable[[Step], None]) -> Study:
    """The study of this directory, or a new one: its size is measured, its data cut."""
    file = args.output / "study.json"
    if file.exists():
        study = from_json(Study, read_json(file))
        say(
            f"{args.output} stays as it began: budget {study.budget}, preset {study.preset}, "
            f"{study.num_updates:,} updates; --output begins another"
        )
        return study
    if args.report:
        raise ValueError(f"no study at {args.output}: run it first, without --report")
    glue = tuple(args.glue.split(",")) if args.glue else glue_at_hand(args.data)
    check(args, glue)
    preset = PRESETS[args.preset]()
    study = Study(
        corpus=tuple(map(str, args.corpus)),
        budget=args.budget,
        preset=args.preset,
        num_updates=args.updates or SPEED_UPDATES,
        batch_size=2 * preset.teacher.batch_size,
        learning_rate=preset.teacher.learning_rate,
        layer=preset.model.depth,
        k=preset.dictionary.k,
        lam=preset.dictionary.lam,
        glue=glue,
    )
    if not args.updates:
        study = sized(study, args, execute)
    cut_data(args.data, args.output / "evaluation_data", study)
    write_json(file, dataclasses.asdict(study))
    return study


def check(args: Settings, glue: Sequence[str]) -> None:
    """Raises ValueError for what a study cannot begin with, before anything is run."""
    if args.budget < 1 or args.jobs < 1:
        raise ValueError("--budget and --jobs must be at least 1")
    corpus_files(DataConfig(corpus=tuple(map(str, args.corpus))))
    for name in ("blimp", "supplement"):
        read_files(SUITES[name], args.data)
    if not glue:
        raise ValueError(
            f"no task to fine-tune on in {args.data / FOLDER}: --data names the folder of the tasks"
        )
    for task in glue:
        if TASKS.get(task) is None or TASKS[task].trained_on != task:
            raise ValueError(
                f"--glue takes tasks with a training of their own, such as cola,sst2; got {task!r}"
            )
        read_task_data(args.data, task, [task])


def sized(study: Study, args: Settings, execute: Callable[[Step], None]) -> Study:
    """The study that fits the budget, by the speed of a short run on this machine."""
    trial = args.output / "speed"
    command = Plan(study, args.output).train("mlm", "random", trial, SPEED_UPDATES)
    execute(Step("speed", [*command, "--log-every", "5"]))
    lines = [line for line in read_metrics(trial) if "seconds" in line][1:]
    seconds_an_update = statistics.median(line["seconds"] for line in lines) / 5
    tokens_per_s = statistics.median(line["tokens_per_s"] for line in lines)
    num_updates = 60 * args.budget * TEACHER_SHARE / seconds_an_update
    trainings = FINE_TUNED * len(study.seeds) * study.max_epochs
    tokens = 60 * args.budget * FINE_TUNING_SHARE * tokens_per_s / trainings
    return dataclasses.replace(
        study,
        num_updates=max(100, int(num_updates) // 100 * 100),
        pairs_a_file=max(2, round(args.budget * tokens_per_s * PAIRS_A_TOKEN / 60)),
        examples_a_task=examples_that_fit(args.data, study.glue, tokens * CHARACTERS_A_TOKEN),
    )


def examples_that_fit(data: Path, tasks: Sequence[str], characters: float) -> int:
    """How many lines of every training file hold so many characters together; at least FEWEST_EXAMPLES."""
    sizes = []
    for task in tasks:
        text = (data / FOLDER / f"{task}.train.jsonl").read_text(encoding="utf-8-sig")
        sizes.append((text.count("\n"), len(text) / max(1, text.count("\n"))))
    most = max(count for count, _ in sizes)
    counts = range(FEWEST_EXAMPLES, most + 1)
    fitting = [n for n in counts if sum(min(n, count) * size for count, size in sizes) <= characters]
    return fitting[-1] if fitting else FEWEST_EXAMPLES


def in_a_process(folder: Path, threads: int) -> Callable[[Step], None]:
    """Runs a step as a user would, unless it is done; what it says goes to a file of its own."""

    def execute(step: Step) -> None:
        done, log = (folder / "steps" / f"{step.name.replace(' ', '-')}.{kind}" for kind in ("json", "log"))
        if done.exists() and read_json(done)["command"] == step.command:
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        started = time.perf_counter()
        with open(log, "a") as said:
            command = [sys.executable, str(ROOT / step.command[0]), *step.command[1:]]
            code = _finished(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
        if code:
            raise ValueError(f"{step.name} ended with exit code {code}: see {log}")
        write_json(done, {"command": step.command, "seconds": time.perf_counter() - started})
        say(f"{step.name}: {time.perf_counter() - started:.0f} s")

    return execute


_running: set[subprocess.Popen] = set()


def _finished(process: subprocess.Popen) -> int:
    """Its exit code. A terminal's Ctrl-C reaches the process, too: it is given the time to save its work."""
    _running.add(process)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        _running.discard(process)


def _terminated(*_: object) -> NoReturn:
    """SIGTERM reaches this process alone and is handed on; then it is as after Ctrl-C."""
    for process in [*_running]:
        process.terminate()
    raise KeyboardInterrupt


def follow(chain: Sequence[Step], execute: Callable[[Step], None]) -> str | None:
    """Run the steps of a chain. Returns what stopped it: other chains go on."""
    try:
        for step in chain:
            execute(step)
    except ValueError as error:
        return str(error)
    return None


def run(args: Settings, executor: Executor = in_a_process) -> None:
    """The whole study; raises ValueError at the end if a chain has failed."""
    cores = os.cpu_count() or 1
    alone = executor(args.output, cores)
    study = begin(args, alone)
    plan = Plan(study, args.output)
    if not args.report:
        say(f"{args.output}: a teacher of {study.num_updates:,} updates, {len(plan.students)} students")
        alone(plan.train_teacher())
        alone(plan.dictionary())
        beside = executor(args.output, max(1, cores // args.jobs))
        with ThreadPoolExecutor(args.jobs) as pool:
            each = pool.map if args.jobs > 1 else map
            problems = [*each(lambda chain: follow(chain, beside), plan.chains())]
        if stopped := [problem for problem in problems if problem]:
            raise ValueError("; ".join(stopped))
    miniature_report.write(plan, args.result)


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
        "page to write, a picture beside it (default: results/miniature.md)",
        metavar="FILE",
    )
    budget: int = option(NIGHT, "minutes the study is sized for, not a limit; the default is a night")
    updates: int | None = option(None, "updates of the teacher (default: what the budget allows)")
    preset: str = option("tiny", "size of the models", tuple(PRESETS))
    glue: str | None = option(
        None, "tasks to fine-tune on, such as cola,sst2 (default: all that --data has)", metavar="NAMES"
    )
    jobs: int = option(2, "commands at a time after the teacher; 1 on a GPU")
    report: bool = option(False, "only write the page, from what there is so far")


def flags() -> argparse.ArgumentParser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line, run or continue the study, write its page."""
    args = cli.parse(Settings, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, _terminated)
    run(args)


if __name__ == "__main__":
    cli.run(main)
