"""Reading and writing files. Directories may come from strangers, so readers take regular files of a limited
size only, and writers never write through a link.

A file or a directory is written whole or not at all. Of many processes rank 0 writes, and on the others the
writers do nothing. Only safetensors and JSON are read: neither can execute code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlsm import distributed

LARGEST_JSON = 64 << 20  # bytes of a JSON file or a tokenizer
LARGEST_TEXT = 1 << 30  # bytes of a file of JSON lines


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, also at the end of a link, opened for reading. Raises ValueError for a directory, and
    for a FIFO or a device, which may have no end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait for a FIFO's writer
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is not a regular file; remove it")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file. Raises ValueError for more than `largest` bytes, and as `open_file`."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path} has {size:,} bytes, more than the {largest:,} that are read")
        return file.read(size)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ValueError for other bytes, and as `read_bytes`."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason})") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file, hexadecimal. Raises ValueError as `open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_within(root: Path, *names: str) -> Path:
    """The folder root/name/..., for writing. Raises ValueError if a link on the way leaves the root.

    The root itself may be a link, for example to a larger disk.
    """
    folder = root.joinpath(*names)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} is a link that leaves {root}, nothing is written there: remove it")
    return folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a new file beside `path`, flush it to the disk and move it into place. If `path` is a
    link, the file replaces the link. Permissions follow the umask.
    """
    if not distributed.is_rank_zero():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    mode = _create(temporary)
    try:
        write(temporary)
        os.chmod(temporary, mode)  # safetensors makes a file that only its owner can read
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _create(path: Path) -> int:
    """Create an empty file that was not there; returns its permissions."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, with the keys in the order given. Half a character, which JSON can name and UTF-8
    cannot write, is written as JSON names it.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError naming the file if it is missing or not JSON."""
    try:
        return parse_json(read_bytes(path, LARGEST_JSON), str(path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None


def read_object(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises ValueError as `read_json`, and if the file holds another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold an object")
    return value


def parse_json(content: bytes, source: str) -> Any:
    """The value of a JSON text. Raises ValueError naming the source if it is not JSON, holds a key twice or
    is nested too deep.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON ({error})") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(key for key, _ in pairs)}")
    return values


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda p: _save(stored, p, metadata))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    """Call save_file of safetensors, and turn its error for a full disk or another fault of the system into
    the OSError that it is.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ValueError as `open_tensors`."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file of which the header has been read. Raises ValueError naming the file if it is
    missing, truncated or not safetensors.
    """
    try:
        open_file(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from None


def write_directory(final: Path, fill: Callable[[Path], None]) -> Path:
    """Call `fill` on a new directory beside `final` and move it into the place of `final`; returns `final`.
    Raises OSError if `final` is no directory.
    """
    if not distributed.is_rank_zero():
        return final
    work = final.with_name(f".{final.name}.tmp")
    remove_directory(work)
    work.mkdir(parents=True)
    try:
        fill(work)
        remove_directory(final)
        os.rename(work, final)
    finally:
        remove_directory(work)
    _flush(final.parent)
    return final


def remove_directory(path: Path) -> None:
    """Remove a directory and what is in it, as far as possible. Links in it are removed and not followed, and
    what is no directory stays: rmtree would wait for the writer of a FIFO.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
