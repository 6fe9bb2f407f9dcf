"""Checkpoints of a training run: each is whole or absent, and a damaged one is named and passed over."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mlsm import distributed
from mlsm.files import (
    file_digest,
    read_json,
    read_tensors,
    write_directory,
    write_json,
    write_tensors,
    write_whole,
)

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """A training run between two updates."""

    step: int  # updates done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # small facts: loss scale, words seen


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
    """Write checkpoints/step-N, a run directory of its own, which whatever takes a finished run can load;
    returns it. Then remove those of later steps, which are damaged (or the run would have resumed there), and
    of the others all but the newest `keep`.
    """

    def fill(work: Path) -> None:
        _copy_run_files(run, work)
        write_tensors(work / MODEL_FILE, checkpoint.model)
        write_tensors(work / OPTIMIZER_FILE, checkpoint.optimizer)
        _seal(work, checkpoint.step, checkpoint.state)

    final = write_directory(run / "checkpoints" / f"step-{checkpoint.step}", fill)
    if distributed.is_rank_zero():
        found = _checkpoints(run)
        num_later = sum(step > checkpoint.step for step, _ in found)
        for _, old in found[:num_later] + found[num_later + keep :]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def save_milestone(run: Path, words: int, step: int, model: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write checkpoints/words-N (words-10M), kept for good. Training does not resume from it, so it is a
    checkpoint without an optimizer.
    """

    def fill(work: Path) -> None:
        _copy_run_files(run, work)
        write_tensors(work / MODEL_FILE, model)
        _seal(work, step, state)

    name = f"{words // 1_000_000}M" if words % 1_000_000 == 0 else str(words)
    write_directory(run / "checkpoints" / f"words-{name}", fill)


def _copy_run_files(run: Path, directory: Path) -> None:
    for path in (run / "config.json", *run.glob("tokenizer.*")):
        write_whole(directory / path.name, functools.partial(shutil.copyfile, path))


def _seal(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write state.json: the facts, and the checksum of every file there is."""
    digests = {path.name: file_digest(path) for path in sorted(directory.iterdir())}
    write_json(directory / STATE_FILE, {"step": step, **state, "sha256": digests})


def load_newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None if there is none; damaged ones are named through `say`."""
    for step, directory in _checkpoints(run):
        try:
            state = read_state(directory)
            if state.pop("step") != step:
                raise ValueError(f"{directory / STATE_FILE} is of another step")
            for name in ("words_seen", "skipped_updates"):
                if type(state[name]) is not int or not 0 <= state[name] < 1 << 62:
                    raise ValueError(f"{directory / STATE_FILE}: {name} cannot be {state[name]!r}")
            model, optimizer = read_weights(directory / MODEL_FILE), read_weights(directory / OPTIMIZER_FILE)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            say(f"checkpoint step-{step} cannot be used: {error}")
            continue
        return Checkpoint(step, model, optimizer, state)
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The step and the small facts of a checkpoint's directory. Raises ValueError if one of its files is
    missing or damaged.
    """
    state = read_json(checkpoint / STATE_FILE)
    digests = state.pop("sha256", None) if isinstance(state, dict) else None
    if not isinstance(digests, dict) or MODEL_FILE not in digests:
        raise ValueError(f"{checkpoint / STATE_FILE} does not describe a checkpoint")
    for name, digest in digests.items():
        path = checkpoint / name
        if path.parent != checkpoint or not path.is_file() or file_digest(path) != digest:
            raise ValueError(f"{path} is damaged (its checksum differs)")
    return state


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, directory), newest first."""
    found = [(p.name.removeprefix("step-"), p) for p in (run / "checkpoints").glob("step-*")]
    return sorted(((int(step), p) for step, p in found if step.isdigit()), reverse=True)
