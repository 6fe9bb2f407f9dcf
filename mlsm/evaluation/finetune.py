"""Fine-tuning of an encoder on one classification task with one seed, with the organisers' settings.

The recipe of 2024: a new head reads the first position (dense - GELU - dropout - classifier), and the
learning rate falls in a line. The recipe of 2026: the head reads the last position (norm - dense - GELU -
norm - dropout - classifier, where the norms have no weights), the learning rate rises in the first 6 % of the
updates and then falls along a cosine to a tenth, gradients are not clipped, a last batch that is not full is
left out, and training goes on to the last epoch.

The head has dropout also where the model was trained without. The concept head and the token head of a run
take no part. The validation set is scored after each epoch, and the best epoch is kept. Everything is in
float32.

Legend: B sequences, D width, C labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mlsm.evaluation.tasks import RECIPES, accuracy, f1
from mlsm.model.deberta import Encoder, init_weights_
from mlsm.seeds import generator_for, seed_for
from mlsm.settings import check_fields, check_positive
from mlsm.text.batches import cut_by_token_budget
from mlsm.text.sequences import Sequences

WARMUP_SHARE, LOWEST_RATE = 0.06, 0.1  # of the updates, and of the peak, in the recipe of 2026
HEAD_DROPOUT = 0.1
TOKEN_BUDGET = 16_384  # tokens of a micro-batch
SHORTEST_SHARE = 0.75  # of the longest sequence of a micro-batch on a CPU: bounds the padding


@dataclass(frozen=True)
class FineTuneSettings:
    """The organisers' settings, by default those of 2024. Gradients are then clipped as by default in the
    Trainer of transformers, which they used.
    """

    learning_rate: float = 5e-5
    batch_size: int = 64
    max_epochs: int = 10
    patience: int = 3  # epochs without an improvement of more than `threshold`, in the recipe of 2024
    threshold: float = 0.001
    max_length: int = 128  # tokens
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # in the recipe of 2024
    recipe: str = "2024"
    selects_by: str = "labels"  # the metric of the best epoch: f1, accuracy, or f1 where there are two labels

    def __post_init__(self) -> None:
        check_fields(self)
        if self.recipe not in RECIPES or self.selects_by not in ("labels", "f1", "accuracy"):
            raise ValueError(f"unknown recipe {self.recipe!r} or metric {self.selects_by!r}")
        check_positive(
            self, "learning_rate", "batch_size", "max_epochs", "patience", "max_length", "clip_norm"
        )

    def num_updates(self, num_examples: int) -> int:
        """The number of updates of an epoch."""
        if self.recipe == "2026":
            return max(1, num_examples // self.batch_size)
        return -(-num_examples // self.batch_size)

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of an update, from 0."""
        if self.recipe == "2024":
            return self.learning_rate * (1 - step / num_steps)
        if step < (warmup := int(WARMUP_SHARE * num_steps)):
            return self.learning_rate * step / warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
        return self.learning_rate * (LOWEST_RATE + (1 - LOWEST_RATE) * cosine)


def settings_of_2026(task: str) -> FineTuneSettings:
    """The settings of the organisers' script eval_finetuning.sh for a task."""
    return FineTuneSettings(
        learning_rate=3e-5,
        batch_size=16 if task in ("boolq", "multirc") else 32,
        max_epochs=30 if task == "wsc" else 10,
        max_length=512,
        weight_decay=0.01,
        recipe="2026",
        selects_by="f1" if task in ("mrpc", "qqp") else "accuracy",
    )


class EncodedItem(NamedTuple):
    """An example of a task as the model reads it."""

    ids: list[int]  # with [CLS] and [SEP]
    label: int


class BestEpoch(NamedTuple):
    """The result of one fine-tuning."""

    epoch: int  # from 1
    selected_by: list[float]  # the selecting metric after each epoch that was trained
    predicted: list[list[int]]  # labels of each validation set, in its order


class Diverged(Exception):
    """The loss or its gradient is not finite, so that this seed has no result."""


class Classifier(nn.Module):
    """A copy of an encoder with a new head."""

    def __init__(
        self, encoder: Encoder, num_labels: int, init_std: float, seed: int, recipe: str = "2024"
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        width = encoder.token_embedding.embedding_dim
        self.dense = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_labels)
        generator = generator_for("classifier", seed)
        for part in (self.dense, self.classifier):
            if recipe == "2024":
                init_weights_(part, init_std, generator)
            else:  # as nn.Linear does by default
                for weight in part.parameters():
                    nn.init.uniform_(weight, -(width**-0.5), width**-0.5, generator=generator)

    @property
    def device(self) -> torch.device:
        return self.dense.weight.device

    def forward(self, sequences: Sequences) -> Tensor:
        """The logits of the labels (B, C)."""
        if self.recipe == "2024":
            hidden_BD = F.gelu(self.dense(self.encoder(sequences, sequences.first_B)))
        else:
            normal_BD = _normalised(self.encoder(sequences, sequences.last_B))
            hidden_BD = _normalised(F.gelu(self.dense(normal_BD)))
        return self.classifier(F.dropout(hidden_BD, HEAD_DROPOUT, self.training))


def _normalised(rows_BD: Tensor) -> Tensor:
    return F.layer_norm(rows_BD, rows_BD.shape[-1:], eps=1e-5)


def fine_tune(
    model: Classifier,
    training: Sequence[EncodedItem],
    validations: Sequence[Sequence[EncodedItem]],
    settings: FineTuneSettings,
    seed: int,
    bar: tqdm,
) -> BestEpoch:
    """Train on `training` and choose the epoch on the first validation set; `bar` counts updates.

    Everything random depends on the seed alone, and the state of torch's generators does not change. Raises
    Diverged if a loss or gradient is not finite.
    """
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed_for("fine-tuning", seed))  # dropout draws from the global generator
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        num_steps = settings.max_epochs * settings.num_updates(len(training))
        step, since_improvement, best = 0, 0, BestEpoch(0, [], [])
        selected_by: list[float] = []
        for epoch in range(1, settings.max_epochs + 1):
            order = torch.randperm(len(training), generator=generator_for("fine-tuning order", seed, epoch))
            for numbers in order.split(settings.batch_size)[: settings.num_updates(len(training))]:
                batch = [training[i] for i in numbers.tolist()]
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate(step, num_steps)
                clip_norm = settings.clip_norm if settings.recipe == "2024" else math.inf
                _update(model, optimizer, batch, clip_norm)
                step += 1
                bar.update()
            predicted = [predict(model, items) for items in validations]
            value = selecting_metric(
                predicted[0], [item.label for item in validations[0]], model, settings.selects_by
            )
            bar.set_postfix_str(f"epoch {epoch}: {value:.3f}")
            best_value = max(selected_by, default=-1.0)
            since_improvement = 0 if value > best_value + settings.threshold else since_improvement + 1
            selected_by.append(value)
            if value > best_value:
                best = BestEpoch(epoch, selected_by, predicted)
            if settings.recipe == "2024" and since_improvement >= settings.patience:
                break
        return best


def selecting_metric(
    predicted: Sequence[int], true: Sequence[int], model: Classifier, selects_by: str = "labels"
) -> float:
    """The metric that chooses the best epoch: f1 or accuracy. By the labels, it is F1 where there are two."""
    is_f1 = selects_by == "f1" or (selects_by == "labels" and model.classifier.out_features == 2)
    return (f1 if is_f1 else accuracy)(predicted, true)


def _update(
    model: Classifier, optimizer: torch.optim.Optimizer, batch: Sequence[EncodedItem], clip_norm: float
) -> None:
    """One update by the mean loss of a batch, over micro-batches of similar length."""
    model.train()
    total = torch.zeros((), device=model.device)
    for numbers in micro_batches(batch, model.device):
        items = [batch[i] for i in numbers]
        labels_B = torch.tensor([item.label for item in items], device=model.device)
        loss = F.cross_entropy(model(_sequences(items, model.device)), labels_B, reduction="sum") / len(batch)
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if not torch.isfinite(total + norm):
        raise Diverged(f"the loss became {float(total)}, the norm of its gradient {float(norm)}")
    optimizer.step()
    optimizer.zero_grad()


def micro_batches(items: Sequence[EncodedItem], device: torch.device) -> list[list[int]]:
    """The numbers of the items by micro-batch, the longest first; on a CPU there is little padding."""
    shortest_share = SHORTEST_SHARE if device.type == "cpu" else 0.0
    return cut_by_token_budget([len(item.ids) for item in items], TOKEN_BUDGET, shortest_share=shortest_share)


def _sequences(items: Sequence[EncodedItem], device: torch.device) -> Sequences:
    return Sequences.of([torch.tensor(item.ids) for item in items]).to(device)


@torch.no_grad()
def predict(model: Classifier, items: Sequence[EncodedItem]) -> list[int]:
    """The most probable label of each item, in their order."""
    model.eval()
    predicted = [0] * len(items)
    for numbers in micro_batches(items, model.device):
        labels = model(_sequences([items[i] for i in numbers], model.device)).argmax(-1).tolist()
        for i, label in zip(numbers, labels, strict=True):
            predicted[i] = label
    return predicted
