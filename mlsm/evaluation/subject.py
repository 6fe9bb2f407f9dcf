"""What is evaluated: a run, or a model of the same shape with random weights, which shows what the numbers of
the run are worth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlsm.checkpoint import fingerprint
from mlsm.model import LanguageModel
from mlsm.run import Run
from mlsm.tokenizer import Tokenizer

RANDOM_SEED = 12


class Subject(NamedTuple):
    """A model under evaluation."""

    name: str  # of its row
    model: LanguageModel
    tokenizer: Tokenizer
    folder: Path  # its predictions and results
    weights: str  # identifies the weights; stored results of others are not used


SEED_AND_PLACES = {
    "seed",
    "teacher",
    "dictionary",
    "init",
    "device",
}  # in which two runs of a recipe may differ


def recipe(config: Mapping[str, Any]) -> str:
    """Equal for runs that differ in their seed only, and in where the runs lie that they began from."""
    train = {name: value for name, value in config["train"].items() if name not in SEED_AND_PLACES}
    begins_random = config["train"].get("init") == "random"
    return json.dumps([train, begins_random, config["model"], config["data"]], sort_keys=True)


def of_run(run: Run, name: str) -> Subject:
    """The run itself, under a name that tells it from others."""
    return Subject(name, run.model, run.tokenizer, run.directory, fingerprint(run.directory))


def random_twin(run: Run) -> Subject:
    """The same shape and tokenizer with random weights."""
    model = LanguageModel(run.model.config, seed=RANDOM_SEED).to(next(run.model.parameters()).device).eval()
    identity = repr((run.model.config, RANDOM_SEED, run.tokenizer.fingerprint))
    return Subject(
        f"random weights, shape of {run.directory.name}",
        model,
        run.tokenizer,
        run.directory / "evaluation" / "random-weights",
        "random-" + hashlib.sha256(identity.encode()).hexdigest()[:16],
    )
