"""Fine-tuning of a backbone on one classification task with one seed, with the organisers' settings.

A fresh head reads the first position: dropout(0) - dense - GELU - dropout(0.1) - classifier, also where
the model was trained without dropout. The concept and token heads of a run take no part. After each epoch the
validation set is scored and the best epoch is kept: by F1 if there are two labels, else by accuracy.
Float32 throughout.

Legend: B sequences, D width, C labels.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mlsm import distributed
from mlsm.evaluation.glue import TASKS, Item, accuracy, encode_item, f1, read_items, task_file
from mlsm.evaluation.subject import Subject
from mlsm.evaluation.tables import Spread
from mlsm.files import file_digest, write_text
from mlsm.model.deberta import Encoder, init_weights_
from mlsm.seeds import generator_for, seed_for
from mlsm.text.batches import cut_by_token_budget
from mlsm.text.sequences import Sequences

SEEDS = (12, 13, 14, 15, 16)  # of the paper
HEAD_DROPOUT = 0.1
TOKEN_BUDGET = 16_384  # tokens a forward pass holds
SHORTEST_SHARE = 0.75  # on a CPU, of the longest sequence of a micro-batch: bounds the padding


@dataclass(frozen=True)
class Settings:
    """The organisers' settings; the clipping is the default of the Trainer they use."""

    learning_rate: float = 5e-5
    batch_size: int = 64
    max_epochs: int = 10
    patience: int = 3  # epochs without an improvement of more than `threshold`
    threshold: float = 0.001
    max_length: int = 128
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "max_epochs", "patience", "max_length", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


class Row(NamedTuple):
    """An example for the model."""

    ids: list[int]  # with special ones
    label: int


class Outcome(NamedTuple):
    """The best epoch of a seed."""

    epoch: int  # from 1
    selected_by: list[float]  # the selecting metric after each epoch that was trained
    predicted: list[list[int]]  # of each validation set, in its order


class Diverged(Exception):
    """A loss or gradient that is not finite: this seed has no result."""


class Classifier(nn.Module):
    """A copy of a backbone with a fresh head."""

    def __init__(self, encoder: Encoder, num_labels: int, init_std: float, seed: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        width = encoder.token_embedding.embedding_dim
        self.dense = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_labels)
        generator = generator_for("classifier", seed)
        for part in (self.dense, self.classifier):
            init_weights_(part, init_std, generator)

    def forward(self, sequences: Sequences) -> Tensor:
        first_BD = self.encoder(sequences, sequences.first_B)
        pooled_BD = F.dropout(F.gelu(self.dense(first_BD)), HEAD_DROPOUT, self.training)
        return self.classifier(pooled_BD)


def fine_tune(
    model: Classifier,
    training: Sequence[Row],
    validations: Sequence[Sequence[Row]],
    settings: Settings,
    seed: int,
    bar: tqdm,
) -> Outcome:
    """Train on `training`, choose the epoch on the first validation set. Raises Diverged.

    Everything random depends on the seed alone; torch's generators are left as they were.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_for("fine-tuning", seed))  # dropout draws from the global generator
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        num_steps = settings.max_epochs * num_updates(training, settings)
        step, since_improvement, best = 0, 0, Outcome(0, [], [])
        selected_by: list[float] = []
        for epoch in range(1, settings.max_epochs + 1):
            for batch in _batches(training, settings.batch_size, seed, epoch):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * (1 - step / num_steps)
                _update(model, optimizer, batch, settings.clip_norm)
                step += 1
                bar.update()
            predicted = [predict(model, rows) for rows in validations]
            value = selecting_metric(predicted[0], [row.label for row in validations[0]], model)
            bar.set_postfix_str(f"epoch {epoch}: {value:.3f}")
            best_value = max(selected_by, default=-1.0)
            since_improvement = 0 if value > best_value + settings.threshold else since_improvement + 1
            selected_by.append(value)
            if value > best_value:
                best = Outcome(epoch, selected_by, predicted)
            if since_improvement >= settings.patience:
                break
        return best


def num_updates(training: Sequence[Row], settings: Settings) -> int:
    """Of an epoch."""
    return -(-len(training) // settings.batch_size)


def selecting_metric(predicted: Sequence[int], true: Sequence[int], model: Classifier) -> float:
    """What the best epoch is chosen by: F1 with two labels, else accuracy."""
    return (f1 if model.classifier.out_features == 2 else accuracy)(predicted, true)


def _batches(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> Iterator[list[Row]]:
    order = torch.randperm(len(rows), generator=generator_for("fine-tuning order", seed, epoch)).tolist()
    for first in range(0, len(order), batch_size):
        yield [rows[i] for i in order[first : first + batch_size]]


def _update(
    model: Classifier, optimizer: torch.optim.Optimizer, batch: Sequence[Row], clip_norm: float
) -> None:
    """One update by the mean loss of a batch, over micro-batches of similar length."""
    model.train()
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for numbers in micro_batches(batch, device):
        rows = [batch[i] for i in numbers]
        labels_B = torch.tensor([row.label for row in rows], device=device)
        loss = F.cross_entropy(model(_sequences(rows, device)), labels_B, reduction="sum") / len(batch)
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if not torch.isfinite(total + norm):
        raise Diverged(f"the loss became {float(total)}, the norm of its gradient {float(norm)}")
    optimizer.step()
    optimizer.zero_grad()


def micro_batches(rows: Sequence[Row], device: torch.device) -> list[list[int]]:
    """The numbers of the rows by micro-batch, longest first; on a CPU micro-batches hold little padding."""
    shortest_share = SHORTEST_SHARE if device.type == "cpu" else 0.0
    return cut_by_token_budget([len(row.ids) for row in rows], TOKEN_BUDGET, shortest_share=shortest_share)


def _sequences(rows: Sequence[Row], device: torch.device) -> Sequences:
    return Sequences.of([torch.tensor(row.ids) for row in rows]).to(device)


@torch.no_grad()
def predict(model: Classifier, rows: Sequence[Row]) -> list[int]:
    """The most probable label of each row, in their order."""
    model.eval()
    device = next(model.parameters()).device
    predicted = [0] * len(rows)
    for numbers in micro_batches(rows, device):
        labels = model(_sequences([rows[i] for i in numbers], device)).argmax(-1).tolist()
        for i, label in zip(numbers, labels, strict=True):
            predicted[i] = label
    return predicted


class TaskData(NamedTuple):
    """The sets of one training: some tasks are scored with the model of another."""

    trained_on: str
    training: list[Item]
    validations: dict[str, list[Item]]  # by task; the first chooses the epoch
    digest: str  # of the files


def read_task_data(data: Path, trained_on: str, tasks: Sequence[str]) -> TaskData:
    """The files of a training, of the tasks asked for, and of those that it can score besides, which need no
    other training when they are asked for later. Raises ValueError naming file and line of what cannot be
    used.
    """
    siblings = [
        name
        for name, task in TASKS.items()
        if task.trained_on == trained_on and task_file(data, name, "valid").exists()
    ]
    scored = list(dict.fromkeys((trained_on, *tasks, *siblings)))
    files = [task_file(data, trained_on, "train"), *(task_file(data, task, "valid") for task in scored)]
    training = read_items(data, trained_on, "train")
    validations = {task: read_items(data, task, "valid") for task in scored}
    return TaskData(trained_on, training, validations, "-".join(file_digest(path)[:16] for path in files))


class SeedResult(NamedTuple):
    """What one seed gave."""

    scores: dict[str, float]  # by task; empty for a seed that failed
    epoch: int  # the best, from 1
    failure: str  # why, or nothing
    num_truncated: int  # examples longer than the settings' max_length


def score_seeds(
    subject: Subject,
    data: TaskData,
    settings: Settings,
    seeds: Sequence[int],
    progress: Callable[[int, str], tqdm],
) -> dict[int, SeedResult]:
    """Metrics of each seed: from the subject's folder if they are stored there for the same weights, data and
    settings, else trained and stored. Of several processes each trains another seed.

    `progress` makes a bar from a number of updates and a description.
    """
    folder = subject.folder / "evaluation" / "glue"
    paths = {seed: folder / f"{data.trained_on}-seed-{seed}.json" for seed in seeds}
    origin = {"weights": subject.weights, "data": data.digest, "settings": asdict(settings)}
    found = {seed: _stored(path, {**origin, "seed": seed}) for seed, path in paths.items()}
    stored = distributed.broadcast_from_zero(
        {seed: result for seed, result in found.items() if result is not None}
    )
    missing = [seed for seed in seeds if seed not in stored]
    for first in range(0, len(missing), distributed.world_size()):
        mine = distributed.shard(missing[first : first + distributed.world_size()])  # one seed, or none
        trained = {seed: _train_seed(subject, data, settings, seed, progress) for seed in mine}
        for results in distributed.all_gather(trained):
            for seed, result in results.items():
                stored[seed] = {"origin": {**origin, "seed": seed}, **result}
                write_text(paths[seed], json.dumps(stored[seed]) + "\n")
    return {seed: _seed_result(data, stored[seed]) for seed in seeds}


def _seed_result(data: TaskData, stored: dict[str, Any]) -> SeedResult:
    scores = {
        task: TASKS[task].metric(predicted, [item.label for item in data.validations[task]])
        for task, predicted in stored["predictions"].items()
    }
    return SeedResult(scores, stored["epoch"], stored["failure"], stored["truncated"])


def _stored(path: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier result with the same origin; None if there is none (or it is damaged)."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        is_complete = stored.keys() >= {"predictions", "epoch", "failure", "truncated"}
        return stored if stored["origin"] == origin and is_complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _train_seed(
    subject: Subject,
    data: TaskData,
    settings: Settings,
    seed: int,
    progress: Callable[[int, str], tqdm],
) -> dict[str, Any]:
    longest = min(settings.max_length, subject.model.config.max_positions)

    num_truncated = 0

    def rows(items: Sequence[Item]) -> list[Row]:
        nonlocal num_truncated
        encoded = [encode_item(subject.tokenizer, item.segments, longest) for item in items]
        num_truncated += sum(num_cut > 0 for _, num_cut in encoded)
        return [Row(ids, item.label) for (ids, _), item in zip(encoded, items, strict=True)]

    training = rows(data.training)
    validations = [rows(items) for items in data.validations.values()]
    device = next(subject.model.parameters()).device
    num_labels = TASKS[data.trained_on].num_labels
    model = Classifier(subject.model.encoder, num_labels, subject.model.config.init_std, seed).to(device)
    total = settings.max_epochs * num_updates(training, settings)
    with progress(total, f"{subject.name}: {data.trained_on}, seed {seed}") as bar:
        try:
            outcome = fine_tune(model, training, validations, settings, seed, bar)
        except Diverged as failure:
            return {"predictions": {}, "epoch": 0, "failure": str(failure), "truncated": num_truncated}
    return {
        "predictions": dict(zip(data.validations, outcome.predicted, strict=True)),
        "epoch": outcome.epoch,
        "selected_by": outcome.selected_by,
        "failure": "",
        "truncated": num_truncated,
    }


def spread(results: dict[int, SeedResult], task: str) -> Spread | None:
    """Over the seeds that finished; None if none did."""
    values = [result.scores[task] for result in results.values() if not result.failure]
    failed = [seed for seed, result in results.items() if result.failure]
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), deviation, len(values), failed)
