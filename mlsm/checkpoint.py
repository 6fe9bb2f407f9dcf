"""Files a run writes: each is whole or absent, and a checkpoint that was damaged is named and passed over.
Of many processes rank 0 writes them, and on the others these functions do nothing.

Only safetensors and JSON: nothing here can execute code when it is read.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlsm import distributed

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """A training run between two updates."""

    step: int  # updates done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # small facts: loss scale, words seen


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(run: Path) -> str:
    """Sixteen hexadecimal digits that identify the weights of a finished run."""
    return file_digest(run / MODEL_FILE)[:16]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk and move it into place."""
    if not distributed.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """JSON for people: indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Raises ValueError naming the file if it is missing or not JSON."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None


def parse_json(content: bytes, source: str) -> Any:
    """Raises ValueError naming the source of what is not JSON, holds a key twice, or nests too deep."""
    try:
        return json.loads(content.decode(), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON ({error})") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(key for key, _ in pairs)}")
    return made


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors as safetensors, whole or not at all."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda p: _save(stored, p, metadata))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    """safetensors' save_file, with a full disk (or another fault of the system) as the OSError that it is."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ValueError naming the file if it is missing, truncated or not safetensors."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from None


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
    if distributed.is_first():
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


def write_directory(final: Path, fill: Callable[[Path], None]) -> Path:
    """A directory that is whole or absent; one of that name is replaced."""
    if not distributed.is_first():
        return final
    work = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        fill(work)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _flush(final.parent)
    return final


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
            model, optimizer = read_tensors(directory / MODEL_FILE), read_tensors(directory / OPTIMIZER_FILE)
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
