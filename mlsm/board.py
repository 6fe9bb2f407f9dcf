"""What a run shows in TensorBoard, and in trackio or W&B where the user asks for one of them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mlsm.files import read_json, read_text

PROJECT = "mlsm"  # of the tracker
# Groups of TensorBoard by the names of metrics.jsonl; names that begin with heldout_ are a group, too.
GROUPS = {
    "codes": ("nonzeros_per_code", "dead_concepts", "gap_max", "concept_use"),
    "speed": ("seconds", "processor_seconds", "tokens_per_s", "coding_share"),
}
HELDOUT = "heldout_"  # begins the names of held-out values in metrics.jsonl
COMPARED = ("cross_entropy", "token_accuracy", "concept_kl", "top_concept_accuracy")  # in the view HParams
NUM_BINS = 50  # of a histogram


class Tracker(Protocol):
    """A run of trackio or W&B."""

    def log(self, metrics: dict[str, float], step: int | None = None) -> object: ...
    def finish(self) -> object: ...


def tag_of(name: str) -> str:
    """The tag of a metric, with its group: train/cross_entropy, heldout/cross_entropy, codes/gap_max."""
    if name.startswith(HELDOUT):
        return "heldout/" + name.removeprefix(HELDOUT)
    return f"{next((group for group, names in GROUPS.items() if name in names), 'train')}/{name}"


class Board:
    """The event file of a run, which goes on after `step` updates, and its tracker."""

    def __init__(self, run: Path, step: int, tracker: str | None) -> None:
        """Raises ValueError if the package of the tracker is not installed."""
        from torch.utils.tensorboard import SummaryWriter

        settings = settings_of(run)
        self._tracker = open_tracker(tracker, run, settings) if tracker else None
        self._events = SummaryWriter(str(run), purge_step=step + 1)
        self.add_text("config", f"```json\n{read_text(run / 'config.json')}```", step)
        if step == 0:
            self._add_hparams(settings)

    def _add_hparams(self, settings: Mapping[str, str | float]) -> None:
        """Write the settings for the view HParams, with the measures that it compares. SummaryWriter's own
        method would write another event file.
        """
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(settings), {tag_of(HELDOUT + name): None for name in COMPARED}):
            self._events._get_file_writer().add_summary(summary)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics after `step` updates."""
        tagged = {tag_of(name): value for name, value in values.items()}
        for tag, value in tagged.items():
            self._events.add_scalar(tag, value, step)
        if self._tracker:
            self._tracker.log(tagged, step=step)

    def add_text(self, name: str, markdown: str, step: int) -> None:
        """Add a text, for TensorBoard only."""
        self._events.add_text(name, markdown, step)

    def add_histogram(self, name: str, values: Tensor, step: int) -> None:
        """Add a histogram, for TensorBoard only."""
        self._events.add_histogram(tag_of(name), values, step, bins=NUM_BINS)

    def close(self) -> None:
        """Write what is left."""
        self._events.close()
        if self._tracker:
            self._tracker.finish()


def settings_of(run: Path) -> dict[str, str | float]:
    """The settings in a run's config.json that a user makes, as part/name."""
    record = read_json(run / "config.json")
    parts = {part: record[part] for part in ("train", "model", "data") if part in record}
    return {
        f"{part}/{name}": value if isinstance(value, int | float) else str(value)
        for part, values in parts.items()
        for name, value in values.items()
    }


def open_tracker(name: str, run: Path, settings: Mapping[str, str | float]) -> Tracker:
    """A run of this name in trackio or W&B, continued if it is there. Both write on this machine: W&B is
    offline unless the environment variable WANDB_MODE says otherwise. Raises ValueError if the package is not
    installed.
    """
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f"--tracker {name} needs the package {name}: pip install {name}") from None
    about = {"project": PROJECT, "name": run.name, "config": dict(settings), "resume": "allow"}
    if name == "wandb":
        about |= {"dir": str(run), "mode": os.environ.get("WANDB_MODE", "offline")}
    tracker: Tracker = package.init(**about)
    return tracker


def add_results(run: Path, results: Mapping[str, float], step: int) -> None:
    """Add results of an evaluation to a run's TensorBoard, in the group evaluation."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), filename_suffix=".evaluation") as events:
        for name, value in results.items():
            events.add_scalar(f"evaluation/{name}", value, step)
