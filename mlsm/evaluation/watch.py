"""Held-out text during training: when it is measured, which model was the best, when training stops early.
Measuring changes no weight and no random state of the training.
"""

from __future__ import annotations

from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig
from mlsm.evaluation.heldout import heldout_metrics
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import TrainingState
from mlsm.text.batches import Corpus
from mlsm.training.objectives import find_objective, heldout_loss


class HeldoutWatch:
    """The measurements of a run on its held-out text, and what follows from them."""

    def __init__(
        self,
        model: LanguageModel,
        teacher: Teacher | None,
        corpus: Corpus,
        config: TrainConfig,
        before: TrainingState,
    ) -> None:
        """`before` is the state of the training so far. Raises ValueError if measurements are asked for and
        there is nothing to measure on.
        """
        if config.eval_every and not len(corpus.heldout):
            raise ValueError(
                "--eval-every measures held-out text, and none was held out: see --heldout-share"
            )
        self._model, self._teacher, self._corpus, self._config = model, teacher, corpus, config
        self.best_loss, self.evals_since_best = before.best_loss, before.evals_since_best

    def is_due(self, step: int) -> bool:
        """Whether the model is measured after this many updates. After the last one it is measured anyway."""
        every = self._config.eval_every
        return every > 0 and step % every == 0 and step < self._config.num_steps

    def has_stopped_improving(self) -> bool:
        """Whether the last `patience` measurements were all no better than one before them."""
        return 0 < self._config.patience <= self.evals_since_best

    def measure(self) -> tuple[dict[str, float], bool]:
        """The measures of the model, under names that begin with heldout_, and whether its loss is the lowest
        so far.
        """
        model, config, was_training = self._model, self._config, self._model.training
        objective = find_objective(config.objective)
        values = heldout_metrics(model.eval(), self._teacher, self._corpus, objective, config.token_budget)
        model.train(was_training)
        loss = heldout_loss(values, config)
        is_best = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if is_best else self.best_loss
        self.evals_since_best = 0 if is_best else self.evals_since_best + 1
        return {f"heldout_{name}": value for name, value in values.items()}, is_best
