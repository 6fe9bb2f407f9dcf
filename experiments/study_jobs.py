"""The commands of a study, what they wait for, and how long they are expected to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from steps import processor_seconds, step_file
from study_design import (
    EPOCHS,
    FINE_TUNING_FLAGS,
    HELDOUT_SHARE,
    SEEDS,
    STARTS,
    TENTH,
    Model,
    models,
    questions,
)

from mlsm.coding.dictionary import Dictionary
from mlsm.config import PRESETS
from mlsm.evaluation.tasks import SUITES
from mlsm.files import read_json
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import words_name
from mlsm.settings import check_fields

START_S = 20.0  # processor time of a command beside its updates: it starts, and measures held-out text
PAIR_TOKENS = 400  # of the masked copies of a minimal pair of BLiMP, on average
NUM_PAIR_FILES = sum(SUITES[name].num_files for name in ("blimp", "supplement"))
SPEED_SHARE = 10  # dictionaries whose speed is measured have so much less to do
UPDATE_PASSES = 3.0  # an update takes as long as so many forward passes


@dataclass(frozen=True)
class Study:
    """What a study reads, and its sizes. It is kept in study.json, so that a study continues as it began."""

    corpus: tuple[str, ...]
    data: str
    preset: str
    budget: float  # minutes
    device: str
    questions: tuple[int, ...]
    tasks: tuple[str, ...]  # to fine-tune on
    task_tokens: float  # of an example, added up over the tasks
    task_sizes: tuple[int, ...]  # examples that each task is scored on
    strong_teacher: str = ""  # directory of an encoder; empty: none
    num_updates: int = 1  # N
    pairs: int = 1  # minimal pairs of a file
    examples: int = 1  # of a file of a task
    # Of an update by its kind (see `kind_of`), of fitting a dictionary, and of a token in a forward pass.
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Job(NamedTuple):
    """A command that is run once, when the jobs that it needs are done."""

    name: str
    needs: tuple[str, ...]
    command: Callable[[], list[str]]
    row: str  # the model that it is for
    kind: str  # training, pairs or fine-tuning
    seconds: float  # that are expected


def kind_of(model: Model) -> str:
    """Models of a kind take as long for an update."""
    return f"{model.objective} {model.teacher} {model.flags}" if model.has_head else f"mlm {model.teacher}"


def _timed_by(model: Model) -> str:
    """The masked LM whose updates say how many of them fit into as many hours; "" for other models."""
    if model.equal != "hours":
        return ""
    return "teacher" if model.teacher == "teacher" else "strong-mlm-words"


class Jobs:
    """The jobs of a study, which write into its folder."""

    def __init__(self, study: Study, folder: Path, num_updates_each: int | None = None) -> None:
        """With `num_updates_each`, all runs and dictionaries are short: their speed is measured."""
        self.study, self.folder, self.preset = study, folder, PRESETS[study.preset]()
        self._num_updates_each = num_updates_each
        self.models = models(self.preset, bool(study.strong_teacher))
        every = questions(self.models)
        self.questions = {number: every[number] for number in study.questions}

    def run(self, name: str, seed: int) -> Path:
        """The run of a model, or the weights that it started from."""
        if name in STARTS:
            return self.run(STARTS[name], seed) / "checkpoints" / words_name(0)
        return self.folder / f"{name}-{seed}"

    def with_words(self, name: str, seed: int) -> Path:
        """The run that predicts words: that of the token head, if the model has one."""
        has_head = name in self.models and self.models[name].has_head
        return self.folder / f"{name}-{seed}-words" if has_head else self.run(name, seed)

    def dictionary(self, model: Model, seed: int) -> Path:
        """The dictionary of a model, which it has for itself if it has flags for it."""
        name = model.name if model.dictionary else "usual" if model.teacher == "teacher" else model.teacher
        return self.folder / f"dictionary-{name}-{seed}.safetensors"

    def all(self) -> list[Job]:
        """Every job once, those of the first questions first, and each after those that it needs."""
        jobs: dict[str, Job] = {}
        for question in self.questions.values():
            rows = [self.models[name] for name in question.rows if name in self.models]
            found = [job for model in rows for seed in SEEDS for job in self.training(model, seed)]
            found += [job for name in question.rows for job in self.scoring(name, question.measures)]
            for job in found:
                jobs.setdefault(job.name, job)
        return list(jobs.values())

    def training(self, model: Model, seed: int) -> list[Job]:
        """The jobs that a model needs, and those that train it."""
        before, needs = list[Job](), list[str]()
        for name in dict.fromkeys((model.teacher, model.init, model.as_long_as, _timed_by(model))):
            if name in self.models and name != model.name:
                these = self.training(self.models[name], seed)
                before, needs = [*before, *these], [*needs, *(job.name for job in these)]
        if model.has_head:
            path = self.dictionary(model, seed)
            fitting = Job(
                f"fit {path.stem}", tuple(needs), partial(self._fit, model, seed), model.name, "training",
                START_S + self.study.seconds.get("dictionary", 0.0),
            )  # fmt: skip
            before, needs = [*before, fitting], [*needs, fitting.name]
        run, head = self.run(model.name, seed), self.with_words(model.name, seed)
        seconds = self._expected_s(kind_of(model), model.length)
        if model.as_long_as:  # as many words take about as long as the same hours
            seconds = sum(job.seconds for job in self.training(self.models[model.as_long_as], seed))
        train = partial(self._train, model, seed)
        jobs = [*before, Job(f"train {run.name}", tuple(needs), train, model.name, "training", seconds)]
        if model.has_head:
            train, seconds = partial(self._train_head, model, seed), self._expected_s("head", TENTH)
            jobs.append(Job(f"train {head.name}", (jobs[-1].name,), train, model.name, "training", seconds))
        return list({job.name: job for job in jobs}.values())

    def _expected_s(self, kind: str, length: float) -> float:
        return START_S + self.updates(length) * self.study.seconds.get(kind, 0.0)

    def updates(self, length: float) -> int:
        """A share of N in updates."""
        return self._num_updates_each or max(1, round(length * self.study.num_updates))

    def scoring(self, name: str, measures: Sequence[str]) -> list[Job]:
        """The jobs that measure a row with all its seeds."""
        words = [self.with_words(name, seed) for seed in SEEDS]
        alone = [self.run(name, seed) for seed in SEEDS]
        demo = "demo," if name in STARTS else ""  # for the words of a model that knows their frequency alone
        pairs = f"--tasks {demo}blimp,supplement --limit {self.study.pairs}"
        jobs = [self._scoring_job(f"pairs {name}", words, pairs, name, "pairs")]
        if "bare" in measures and words != alone:
            jobs.append(self._scoring_job(f"pairs {name} alone", alone, pairs, name, "pairs"))
        if "glue" in measures:
            flags = f"--tasks {','.join(self.study.tasks)} --limit {self.study.examples} {FINE_TUNING_FLAGS}"
            jobs.append(self._scoring_job(f"fine-tune {name}", alone, flags, name, "fine-tuning"))
        return jobs

    def _scoring_job(self, job: str, runs: Sequence[Path], flags: str, name: str, kind: str) -> Job:
        study = self.study
        num_tokens: float = study.pairs * NUM_PAIR_FILES * PAIR_TOKENS
        if kind == "fine-tuning":
            num_tokens = study.examples * study.task_tokens * EPOCHS * (UPDATE_PASSES + 1)
        seconds = START_S + len(runs) * num_tokens * study.seconds.get("token", 0.0)
        command = [
            "evaluate.py",
            *map(str, runs),
            *flags.split(),
            "--data",
            study.data,
            "--device",
            study.device,
        ]
        trained = {run.parents[1] if run.name == words_name(0) else run for run in runs}
        needs = tuple(f"train {run.name}" for run in trained)
        return Job(job, needs, lambda: command, name, kind, seconds)

    def _fit(self, model: Model, seed: int) -> list[str]:
        command = ["fit_dictionary.py", "--teacher", str(self._teacher(model, seed))]
        text = [] if model.teacher == "teacher" else self._text()
        command += ["--output", str(self.dictionary(model, seed)), "--seed", str(seed), *text]
        if self._num_updates_each:
            fit = self.preset.dictionary
            command += ["--num-tokens", str(max(fit.k + fit.k // 9, fit.num_tokens // SPEED_SHARE))]
            command += ["--num-updates", str(max(1, fit.num_updates // SPEED_SHARE))]
        return [*command, "--device", self.study.device, *model.dictionary.split()]

    def _train(self, model: Model, seed: int) -> list[str]:
        flags = ["--num-steps", str(self.updates(model.length))]
        if model.as_long_as and not self._num_updates_each:
            flags = self._as_long_as(model, seed)
        if model.name in (*STARTS.values(), "strong"):
            flags += ["--checkpoint-words", "0"]
        init = model.init
        if model.teacher != "teacher" and not model.has_head:
            init = str(self.run("strong", seed) / "checkpoints" / words_name(0))
        elif init in self.models and not model.has_head:
            init = str(self.run(init, seed))
        if model.has_head:
            flags += ["--teacher", str(self._teacher(model, seed))]
            flags += ["--dictionary", str(self.dictionary(model, seed))]
        if init == "random" and (not model.has_head or model.teacher != "teacher"):
            flags += self._text()
        return self.train(
            model.objective, init, self.run(model.name, seed), seed, *flags, *model.flags.split()
        )

    def _train_head(self, model: Model, seed: int) -> list[str]:
        run, output = self.run(model.name, seed), self.with_words(model.name, seed)
        return self.train("token-head", str(run), output, seed, "--num-steps", str(self.updates(TENTH)))

    def train(self, objective: str, init: str, output: Path, seed: int, *flags: str) -> list[str]:
        """A command of train.py."""
        command = ["train.py", "--objective", objective, "--init", init, "--output", str(output), "--resume"]
        command += ["--seed", str(seed), "--device", self.study.device, "--keep-checkpoints", "1", "--yes"]
        if self._num_updates_each:
            command += ["--log-every", str(max(1, self._num_updates_each // 4))]
        return [*command, *flags]

    def _teacher(self, model: Model, seed: int) -> Path:
        return self.run("teacher", seed) if model.teacher == "teacher" else self.folder / model.teacher

    def _text(self) -> list[str]:
        share = str(HELDOUT_SHARE)
        return ["--preset", self.study.preset, "--corpus", *self.study.corpus, "--heldout-share", share]

    def parts(self, name: str, seed: int) -> list[Path]:
        """The runs that a model consists of, and its dictionary, without its teacher."""
        model = self.models[name]
        runs = list(dict.fromkeys([self.run(name, seed), self.with_words(name, seed)]))
        return [*runs, self.dictionary(model, seed)] if model.has_head else runs

    def stands_on(self, name: str, seed: int) -> list[Path]:
        """The parts of a model and of the models that it stands on; an outside teacher has none."""
        model = self.models[name]
        before = {model.init, model.teacher if model.has_head else ""} & self.models.keys()
        return [part for one in (*sorted(before), name) for part in self.parts(one, seed)]

    def words_of(self, part: Path) -> int:
        """The words that a run or a dictionary has read."""
        if part.suffix:
            return Dictionary.load(part).words or 0
        return max((int(line.get("words_seen", 0)) for line in read_metrics(part)), default=0)

    def seconds_of(self, part: Path) -> float:
        """The processor time of a run, or the time of its GPU. Of a dictionary it is the wall time."""
        if part.suffix:
            return float(read_json(step_file(self.folder, f"fit {part.stem}"))["seconds"])
        if self.study.device != "cpu":
            return sum(line.get("seconds", 0.0) for line in read_metrics(part))
        return processor_seconds(part)

    def _as_long_as(self, model: Model, seed: int) -> list[str]:
        """How long masked LM reads as many words as another model, or takes as many hours. Raises ValueError
        if the other model is not finished.
        """
        parts = self.stands_on(model.as_long_as, seed)
        if model.equal == "words":
            return ["--words", str(sum(map(self.words_of, parts)))]
        of_mlm = self.run(_timed_by(model), seed)
        update_s = self.seconds_of(of_mlm) / max(line["step"] for line in read_metrics(of_mlm))
        return ["--num-steps", str(max(1, round(sum(map(self.seconds_of, parts)) / update_s)))]
