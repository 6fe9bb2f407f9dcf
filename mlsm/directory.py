"""Directories to write in: a place that cannot be written to is found before the work, and a run's directory
belongs to one process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlsm import distributed
from mlsm.log import say

LOCK_FILE = ".lock"
_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)


def check_writable(directory: Path) -> None:
    """Raise ValueError if files cannot be written in a directory, or it cannot be made; leaves nothing."""
    try:
        nearest = next(p for p in (directory, *directory.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ValueError(f"cannot write in {directory}: {error.strerror}; name another directory") from None


@contextlib.contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Hold a directory, made if need be, for a `with` block; rank 0 holds it for all ranks. Raises ValueError
    naming the process that holds it.

    The kernel lets go when a process ends, however it ends; the file that is left behind says nothing.
    """
    if not distributed.is_rank_zero():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                file.seek(0)
                raise ValueError(
                    f"{directory} is in use by process {file.read()}; wait for it to end, "
                    "or name another directory"
                ) from None
            say(f"{directory} cannot be locked ({error.strerror}): start no second process in it")
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield
