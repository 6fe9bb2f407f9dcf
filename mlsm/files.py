"""Files a run writes: each is whole or absent, and a checkpoint that was damaged is named and passed over.
Of many processes rank 0 writes them, and on the others these functions do nothing.

Only safetensors and JSON: nothing here can execute code when it is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlsm import distributed


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk and move it into place."""
    if not distributed.is_rank_zero():
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


def write_directory(final: Path, fill: Callable[[Path], None]) -> Path:
    """A directory that is whole or absent; one of that name is replaced."""
    if not distributed.is_rank_zero():
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
