"""Checkpoints of a training run: each is whole or absent, and a damaged one is named and passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mlsm import distributed
from mlsm.files import (
    LARGEST_JSON,
    file_digest,
    folder_within,
    read_bytes,
    read_json,
    read_tensors,
    remove_directory,
    write_directory,
    write_json,
    write_tensors,
)
from mlsm.naming import MODEL_FILE
from mlsm.settings import LARGEST_NUMBER

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """What a run has counted so far, and the loss scale of fp16."""

    words_seen: int
    skipped_updates: int
    scaler: Mapping[str, float] = field(default_factory=dict)  # of a GradScaler; empty in other precisions
    best_loss: float | None = None  # on held-out text; None: not measured yet
    evals_since_best: int = 0

    def __post_init__(self) -> None:
        for name in ("words_seen", "skipped_updates", "evals_since_best"):
            if type(value := getattr(self, name)) is not int or not 0 <= value <= LARGEST_NUMBER:
                raise ValueError(f"{name} cannot be {value!r}")
        if self.best_loss is not None and type(self.best_loss) is not float:
            raise ValueError(f"best_loss cannot be {self.best_loss!r}")
        if not isinstance(self.scaler, dict):
            raise ValueError(f"scaler cannot be {self.scaler!r}")


class Checkpoint(NamedTuple):
    """A training run between two updates."""

    step: int  # updates done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainingState


# Names that weights had in files written by earlier versions, and their present names.
_FORMER_NAMES = {
    "words.": "token_embedding.",
    "word_norm.": "embedding_norm.",
    "distances.": "relative_embedding.",
    "vocabulary_bias": "decoder_bias",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model or optimiser file under their present names. Raises ValueError as
    `read_tensors`.
    """
    return {_present_name(name): tensor for name, tensor in read_tensors(path).items()}


def _present_name(name: str) -> str:
    prefix = "encoder." if name.startswith("encoder.") else ""
    rest = name.removeprefix(prefix)
    former = next((former for former in _FORMER_NAMES if rest.startswith(former)), "")
    return prefix + _FORMER_NAMES.get(former, "") + rest.removeprefix(former)


def fingerprint(run: Path) -> str:
    """Sixteen hexadecimal digits that identify the weights of a finished run."""
    return file_digest(run / MODEL_FILE)[:16]


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write checkpoints/step-N, a run directory of its own, and return it. Then remove the checkpoints of
    later steps, which are damaged (or the run would have resumed there), and of the others all but the newest
    `keep`.
    """
    files = {MODEL_FILE: checkpoint.model, OPTIMIZER_FILE: checkpoint.optimizer}
    final = _write(run, f"step-{checkpoint.step}", files, checkpoint.step, checkpoint.state)
    if distributed.is_rank_zero():
        found = _checkpoints(run)
        num_later = sum(step > checkpoint.step for step, _ in found)
        for _, old in found[:num_later] + found[num_later + keep :]:
            remove_directory(old)
    return final


def save_milestone(run: Path, name: str, step: int, model: dict[str, Tensor], state: TrainingState) -> None:
    """Write checkpoints/NAME, which is never removed. It has no optimizer, because training does not resume
    from it.
    """
    _write(run, name, {MODEL_FILE: model}, step, state)


def _write(
    run: Path, name: str, files: Mapping[str, dict[str, Tensor]], step: int, state: TrainingState
) -> Path:
    """Write checkpoints/NAME: the run's settings and tokenizer, files of tensors, and state.json with the
    step, the state, and the checksum of every file.
    """

    def fill(work: Path) -> None:
        for path in (run / "config.json", *run.glob("tokenizer.*")):
            (work / path.name).write_bytes(read_bytes(path, LARGEST_JSON))
        for file, tensors in files.items():
            write_tensors(work / file, tensors)
        digests = {path.name: file_digest(path) for path in sorted(work.iterdir())}
        write_json(work / STATE_FILE, {"step": step, **asdict(state), "sha256": digests})

    return write_directory(_folder(run) / name, fill)


def words_name(words: int) -> str:
    """The name of the model that is kept after this many words: words-10M, or words-2500."""
    return f"words-{shortened(words)}"


def shortened(words: int) -> str:
    """A number of words as names of checkpoints have it: 10M, or 2500."""
    return f"{words // 1_000_000}M" if words % 1_000_000 == 0 else str(words)


def _folder(run: Path) -> Path:
    """The folder of the checkpoints. Raises ValueError if it is a link that leaves the run."""
    return folder_within(run, "checkpoints")


def load_newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none. Damaged ones are named through `say`. Raises
    ValueError if the folder of the checkpoints is a link that leaves the run.
    """
    checkpoints = _checkpoints(run)
    for step, directory in checkpoints:
        try:
            stored_step, state = read_state(directory)
            if stored_step != step:
                raise ValueError(f"{directory / STATE_FILE} is of step {stored_step}")
            model, optimizer = read_weights(directory / MODEL_FILE), read_weights(directory / OPTIMIZER_FILE)
        except (ValueError, OSError) as error:
            say(f"checkpoint step-{step} cannot be used: {error}")
            continue
        return Checkpoint(step, model, optimizer, state)
    if checkpoints:
        say(f"no checkpoint of {run} can be used: training starts again from its first update")
    return None


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint, which may be damaged; 0 without one."""
    return max((step for step, _ in _checkpoints(run)), default=0)


def read_state(checkpoint: Path) -> tuple[int, TrainingState]:
    """The step and the state of a checkpoint's directory. Raises ValueError if one of its files is missing or
    damaged.
    """
    path = checkpoint / STATE_FILE
    values = read_json(path)
    digests = values.get("sha256") if isinstance(values, dict) else None
    if not isinstance(digests, dict) or MODEL_FILE not in digests:
        raise ValueError(f"{path} does not describe a checkpoint")
    for name, digest in digests.items():
        file = checkpoint / name
        if file.parent != checkpoint or not file.is_file() or file_digest(file) != digest:
            raise ValueError(f"{file} is damaged (its checksum differs)")
    try:
        known = {name: values[name] for name in TrainingState.__dataclass_fields__ if name in values}
        return values["step"], TrainingState(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a checkpoint: {error}") from None


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, directory), newest first."""
    paths = _folder(run).glob("step-*")
    return sorted(
        ((int(p.name[5:]), p) for p in paths if re.fullmatch("step-[0-9]{1,18}", p.name)), reverse=True
    )
