"""The scores of a model on GLUE tasks over seeds of fine-tuning. What each seed predicted is stored in a file
of its own, so that an interrupted evaluation continues with the next seed.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mlsm import distributed
from mlsm.evaluation.finetune import Classifier, Diverged, EncodedItem, FineTuneSettings, fine_tune
from mlsm.evaluation.glue import Item, TaskData, encode_item
from mlsm.evaluation.subject import Subject
from mlsm.evaluation.tables import Spread
from mlsm.evaluation.tasks import GLUE
from mlsm.files import folder_within, read_json, write_text
from mlsm.log import progress, say
from mlsm.settings import check_fields


@dataclass(frozen=True)
class SeedResult:
    """A task with one seed of fine-tuning."""

    score: float | None  # the metric of the task; None: the fine-tuning failed
    epoch: int  # the best one, from 1
    failure: str  # why it failed, or nothing
    num_truncated: int  # examples longer than max_length, in all files of the training

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class GlueResult:
    """A task over all seeds."""

    seeds: Mapping[int, SeedResult]
    settings: FineTuneSettings

    @property
    def spread(self) -> Spread:
        """The metric over the seeds that finished; nan if none did."""
        values = [result.score for result in self.seeds.values() if result.score is not None]
        failed = [seed for seed, result in self.seeds.items() if result.score is None]
        if not values:
            return Spread(math.nan, math.nan, 0, failed)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return Spread(statistics.fmean(values), deviation, len(values), failed)


class TrainedSeed(NamedTuple):
    """The predictions of one fine-tuning, as they are stored in its file."""

    predictions: dict[str, list[int]]  # by task; empty if it failed
    epoch: int
    failure: str
    truncated: int
    selected_by: Sequence[float] = ()  # the selecting metric after each epoch


def score_seeds(
    subject: Subject,
    data: TaskData,
    tasks: Sequence[str],
    settings: FineTuneSettings,
    seeds: Sequence[int],
) -> dict[str, GlueResult]:
    """The results of the tasks that share a training. A seed that is stored in the subject's folder for the
    same weights, data and settings is not trained again. Each of several processes trains other seeds.
    """
    paths = {seed: _path(subject, data, settings, seed) for seed in seeds}
    origin: dict[str, object] = {
        "weights": subject.weights,
        "data": data.digest,
        "settings": asdict(settings),
    }
    stored = {seed: _stored(path, origin | {"seed": seed}, data) for seed, path in paths.items()}
    trained = distributed.broadcast_from_zero({seed: t for seed, t in stored.items() if t is not None})
    missing = [seed for seed in seeds if seed not in trained]
    for first in range(0, len(missing), distributed.world_size()):
        mine = distributed.shard(missing[first : first + distributed.world_size()])  # one seed, or none
        for results in distributed.all_gather({seed: _train(subject, data, settings, seed) for seed in mine}):
            for seed, result in results.items():
                trained[seed] = result
                values = {"origin": origin | {"seed": seed}, **result._asdict()}
                write_text(paths[seed], json.dumps(values) + "\n")
    for seed in seeds:
        if trained[seed].failure:
            say(f"{subject.name}: {data.trained_on}, seed {seed} failed: {trained[seed].failure}")
    if num_truncated := trained[seeds[0]].truncated:
        longest = min(settings.max_length, subject.model.config.max_positions)
        say(f"{data.trained_on}: {num_truncated} examples cut to {longest} tokens")
    return {
        task: GlueResult({seed: _seed_result(data, task, trained[seed]) for seed in seeds}, settings)
        for task in tasks
    }


def stored_predictions(
    subject: Subject, data: TaskData, settings: FineTuneSettings, seed: int
) -> dict[str, list[int]]:
    """The labels by task that a seed of `score_seeds` predicted; none if its fine-tuning failed."""
    predictions = read_json(_path(subject, data, settings, seed))["predictions"]
    return {task: [int(label) for label in labels] for task, labels in predictions.items()}


def _path(subject: Subject, data: TaskData, settings: FineTuneSettings, seed: int) -> Path:
    """The file of a seed's predictions; each recipe has its own."""
    recipe = "" if settings.recipe == "2024" else f"-{settings.recipe}"
    folder = folder_within(subject.folder, "evaluation", "glue")
    return folder / f"{data.trained_on}{recipe}-seed-{seed}.json"


def _seed_result(data: TaskData, task: str, trained: TrainedSeed) -> SeedResult:
    score = None
    if not trained.failure:
        true = [item.label for item in data.validations[task]]
        score = GLUE[task].metric(trained.predictions[task], true)
    return SeedResult(score, trained.epoch, trained.failure, trained.truncated)


# Settings that files of earlier versions lack, with what was computed then.
_NEWER_SETTINGS = {"recipe": "2024", "selects_by": "labels"}


def _stored(path: Path, origin: dict[str, object], data: TaskData) -> TrainedSeed | None:
    """An earlier result with the same origin; None if there is none or its file is damaged."""
    try:
        values = read_json(path)
        former = values.pop("origin")
        is_same = former | {"settings": _NEWER_SETTINGS | former["settings"]} == origin
        trained = TrainedSeed(**values)
        is_whole = trained.failure or all(
            len(trained.predictions[task]) == len(items) for task, items in data.validations.items()
        )
        return trained if is_same and is_whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def encode_items(subject: Subject, items: Sequence[Item], max_length: int) -> tuple[list[EncodedItem], int]:
    """The items as the model reads them, and how many of them were cut."""
    longest = min(max_length, subject.model.config.max_positions)
    rows = [encode_item(subject.tokenizer, item.segments, longest) for item in items]
    encoded = [EncodedItem(ids, item.label) for (ids, _), item in zip(rows, items, strict=True)]
    return encoded, sum(num_cut > 0 for _, num_cut in rows)


def new_classifier(subject: Subject, task: str, seed: int, recipe: str) -> Classifier:
    """A copy of the subject's encoder with a new head for a task."""
    model, num_labels = subject.model, GLUE[task].num_labels
    return Classifier(model.encoder, num_labels, model.config.init_std, seed, recipe).to(model.device)


def _train(subject: Subject, data: TaskData, settings: FineTuneSettings, seed: int) -> TrainedSeed:
    parts = (data.training, *data.validations.values())
    encoded, nums_truncated = zip(
        *(encode_items(subject, items, settings.max_length) for items in parts), strict=True
    )
    (training, *validations), num_truncated = encoded, sum(nums_truncated)
    model = new_classifier(subject, data.trained_on, seed, settings.recipe)
    total = settings.max_epochs * settings.num_updates(len(training))
    with progress(total, f"{subject.name}: {data.trained_on}, seed {seed}") as bar:
        try:
            best = fine_tune(model, training, validations, settings, seed, bar)
        except Diverged as failure:
            return TrainedSeed({}, 0, str(failure), num_truncated)
    predictions = dict(zip(data.validations, best.predicted, strict=True))
    return TrainedSeed(predictions, best.epoch, "", num_truncated, best.selected_by)
