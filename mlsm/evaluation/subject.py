"""What is evaluated: a run, or a model of the same shape with random weights, which shows what the numbers of
the run are worth.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from mlsm.files import folder_within
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.run import Run
from mlsm.text.tokenizer import Tokenizer

RANDOM_SEED = 12


class Subject(NamedTuple):
    """A model under evaluation."""

    name: str  # of its row
    model: LanguageModel
    tokenizer: Tokenizer
    folder: Path  # its predictions and results
    weights: str  # identifies the weights; stored results of others are not used


def of_run(run: Run, name: str) -> Subject:
    """The run itself, under a name that tells it from others."""
    return Subject(name, run.model, run.tokenizer, run.directory, fingerprint(run.directory))


def random_twin(run: Run) -> Subject:
    """The same shape and tokenizer with random weights. Words come from the vocabulary rows: an untrained
    token head would call them all equal.
    """
    config = dataclasses.replace(run.model.config, num_concepts=0, has_token_head=False)
    model = LanguageModel(config, seed=RANDOM_SEED).to(next(run.model.parameters()).device).eval()
    identity = repr((config, RANDOM_SEED, run.tokenizer.fingerprint))
    return Subject(
        f"random weights, shape of {run.directory.name}",
        model,
        run.tokenizer,
        folder_within(run.directory, "evaluation", "random-weights"),
        "random-" + hashlib.sha256(identity.encode()).hexdigest()[:16],
    )
