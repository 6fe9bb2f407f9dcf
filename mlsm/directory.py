"""Checks of the directory that a command writes in, before it starts to work: whether files can be written
there, and that no other process uses it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mlsm import distributed
from mlsm.files import open_file
from mlsm.log import say

LOCK_FILE = ".lock"
_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)


def check_writable(directory: Path) -> None:
    """Raise ValueError if a directory cannot be made, or no file can be written in it. Leaves no file."""
    try:
        nearest = next(p for p in (directory, *directory.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ValueError(f"cannot write in {directory}: {error.strerror}; name another directory") from None


@contextlib.contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Lock a directory, which is made if it does not exist, for a `with` block; rank 0 does so for all ranks.
    Raises ValueError naming the process that has locked it.

    The kernel unlocks it when the process ends. The lock file stays, and has no effect.
    """
    if not distributed.is_rank_zero():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with _lock_file(directory / LOCK_FILE) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                raise ValueError(
                    f"{directory} is in use by process {file.read(200)}; wait for it to end, "
                    "or name another directory"
                ) from None
            say(f"{directory} cannot be locked ({error.strerror}): start no second process in it")
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def is_in_use(directory: Path) -> bool:
    """Whether a process has locked a directory with `only_process`. Changes nothing."""
    try:
        with open_file(directory / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD_BY_ANOTHER
    return False


def _lock_file(path: Path) -> TextIO:
    """The lock file, opened at its start, and created if it does not exist. Raises ValueError for a link or a
    special file, because the process would overwrite what is behind it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ValueError(f"{path} is no file of this program; remove it") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # a hard link is a second name
        os.close(handle)
        raise ValueError(f"{path} is no file of this program; remove it")
    return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
