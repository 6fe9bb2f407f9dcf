"""What is evaluated: a run, or a model of the same shape with random weights to compare it with."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import Run
from mlsm.text.tokenizer import Tokenizer

RANDOM_SEED = 12


class Subject(NamedTuple):
    """A model under evaluation."""

    name: str  # of its row in tables
    model: LanguageModel
    tokenizer: Tokenizer
    folder: Path  # where its results and predictions are stored
    weights: str  # identifies the weights; stored results of other weights are not used


def of_run(run: Run, name: str) -> Subject:
    """A run as a subject, under a name that is unique in the table."""
    return Subject(name, run.model, run.tokenizer, run.directory, fingerprint(run.directory))


def random_twin(run: Run) -> Subject:
    """A model of the same shape and tokenizer with random weights. Words are predicted by the tied decoder,
    because an untrained token head gives all words the same probability.
    """
    config = dataclasses.replace(run.model.config, num_concepts=0, has_token_head=False)
    model = LanguageModel(config, seed=RANDOM_SEED).to(run.model.device).eval()
    identity = repr((config, RANDOM_SEED, run.tokenizer.fingerprint))
    return Subject(
        f"random weights, shape of {run.directory.name}",
        model,
        run.tokenizer,
        run.directory / "evaluation" / "random-weights",
        "random-" + hashlib.sha256(identity.encode()).hexdigest()[:16],
    )
