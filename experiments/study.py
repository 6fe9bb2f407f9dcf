"""What a study in miniature consists of: its size, its students, and the commands that make them.

A teacher makes N updates. Students of every objective, from its weights and from random ones, make N/10, as
do their token heads. One more student is trained for each other dictionary, solver, width and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from steps import Step

from mlsm.config import PRESETS, ModelConfig

OBJECTIVES = ("mlsm", "lsm15", "lsm")
INITS = ("random", "teacher")
MIN_EXAMPLES = 16  # of a task, to fine-tune on
DICTIONARY_FLAGS = ("--num-tokens", "200000", "--num-updates", "200")


@dataclass(frozen=True)
class Study:
    """The size of a study. It is kept in study.json, so that a study continues as it began."""

    corpus: tuple[str, ...]
    budget: int  # minutes
    preset: str
    num_updates: int  # N, of the teacher
    batch_size: int
    learning_rate: float
    layer: int  # of the default dictionary, as k and lam
    k: int
    lam: float
    glue: tuple[str, ...]
    pairs_a_file: int = 2  # minimal pairs of each file of BLiMP and its supplement
    examples_a_task: int = MIN_EXAMPLES  # training examples of each GLUE task
    seeds: tuple[int, ...] = (12, 13, 14)  # of fine-tuning
    max_epochs: int = 3
    seed: int = 12


class Student(NamedTuple):
    """A run of the second phase, and how it differs from the default student."""

    name: str
    objective: str = "lsm"
    init: str = "random"
    dictionary: Mapping[str, str] = {}  # flags of fit_dictionary.py
    flags: Sequence[str] = ()  # of train.py


def students(study: Study, model: ModelConfig) -> list[Student]:
    """The six students of the paper's tables, then the variations of LSM from random weights."""
    sizes = {"width": model.width, "num-heads": max(2, model.num_heads), "ffn-width": model.ffn_width}
    half_width = [part for name, size in sizes.items() for part in (f"--{name}", f"{size // 2}")]
    layers = (model.depth // 3, 2 * model.depth // 3)
    fista = ("--solver", "fista", "--code-steps", "25", "--code-tolerance", "1e-6")
    return [
        *(Student(f"{objective}-{init}", objective, init) for init in INITS for objective in OBJECTIVES),
        Student("seed-13", flags=("--seed", "13")),
        *(Student(f"k-{k}", dictionary={"--k": f"{k}"}) for k in (study.k // 3, study.k * 3)),
        *(Student(f"lam-{x:g}", dictionary={"--lam": f"{x:g}"}) for x in (study.lam / 2.5, study.lam * 4)),
        *(Student(f"layer-{layer}", dictionary={"--layer": f"{layer}"}) for layer in layers),
        Student("tol-0.01", flags=("--code-tolerance", "0.01")),
        Student("fista-25", flags=fista),
        Student("half-width", flags=half_width),
    ]


class Commands:
    """The commands of a study, which write into its directory."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder, self.teacher = study, folder, folder / "teacher"
        self.students = students(study, PRESETS[study.preset]().model)
        self.main_students = self.students[: len(INITS) * len(OBJECTIVES)]  # those of the paper's tables

    def train_teacher(self) -> Step:
        return Step("train teacher", self.train("mlm", "random", self.teacher, self.study.num_updates))

    def fit_dictionary(self, student: Student | None = None) -> Step:
        """The default dictionary, or that of a student."""
        study, path = self.study, self._dictionary_file(student)
        flags = {"--layer": f"{study.layer}", "--k": f"{study.k}", "--lam": f"{study.lam}"}
        flags |= student.dictionary if student else {}
        command = ["fit_dictionary.py", "--teacher", str(self.teacher)]
        command += [part for flag in flags.items() for part in flag]
        command += ["--output", str(path), *DICTIONARY_FLAGS, "--seed", str(study.seed)]
        return Step(path.stem.replace("-", " ", 1), command)

    def train_student(self, student: Student) -> list[Step]:
        """The steps of its dictionary, if it has its own, of the student and of its token head."""
        run, head = self.folder / student.name, self.folder / f"{student.name}-words"
        num_updates = max(1, self.study.num_updates // 10)
        command = self.train(student.objective, student.init, run, num_updates)
        command += ["--teacher", str(self.teacher), "--dictionary", str(self._dictionary_file(student))]
        return [
            *([self.fit_dictionary(student)] if student.dictionary else []),
            Step(f"train {run.name}", [*command, *student.flags]),
            Step(f"train {head.name}", self.train("token-head", str(run), head, num_updates)),
        ]

    def zero_shot(self, name: str, *flags: str) -> Step:
        return Step(f"zero-shot {name}", [*self._evaluate(name, "demo,blimp,supplement"), *flags])

    def fine_tune(self, name: str, *flags: str) -> Step:
        seeds = ",".join(map(str, self.study.seeds))
        command = [*self._evaluate(name, ",".join(self.study.glue)), "--seeds", seeds]
        return Step(f"fine-tune {name}", [*command, "--max-epochs", str(self.study.max_epochs), *flags])

    def chains(self) -> list[list[Step]]:
        """What follows teacher and dictionary. The steps of a chain need each other, chains do not."""
        chains = [[self.zero_shot("teacher", "--baseline")]]
        for student in self.students:
            names = [f"{student.name}-words", *([student.name] if student in self.main_students else [])]
            chains.append([*self.train_student(student), *map(self.zero_shot, names)])
        chains.append([self.fine_tune("teacher", "--baseline")])
        return [*chains, *([self.fine_tune(student.name)] for student in self.main_students)]

    def train(self, objective: str, init: str, output: Path, num_updates: int) -> list[str]:
        study = self.study
        command = ["train.py", "--objective", objective, "--init", init, "--output", str(output), "--resume"]
        command += ["--num-steps", str(num_updates), "--seed", str(study.seed)]
        command += ["--batch-size", str(study.batch_size), "--learning-rate", str(study.learning_rate)]
        command += ["--mask-share", "0.15", "--warmup-share", "0.05", "--checkpoint-every", "500"]
        return command + (["--preset", study.preset, "--corpus", *study.corpus] if objective == "mlm" else [])

    def _dictionary_file(self, student: Student | None) -> Path:
        name = student.name if student and student.dictionary else "usual"
        return self.teacher / f"dictionary-{name}.safetensors"

    def _evaluate(self, name: str, tasks: str) -> list[str]:
        data = str(self.folder / "evaluation_data")
        return ["evaluate.py", str(self.folder / name), "--tasks", tasks, "--data", data]
