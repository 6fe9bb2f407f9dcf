"""Resuming a run that is finished: said at once, from the files of the run alone, without importing PyTorch.

Whatever is not plain, such as another setting than that of the run or a damaged file, is left to the training
command itself, which checks everything and says what is wrong.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from mlsm.command_line import Parser, is_started, parse_flags
from mlsm.config import RESUMABLE_CHANGES
from mlsm.naming import MODEL_FILE, RECORD_FILE, default_output, find_teacher_name
from mlsm.settings import Flags, FlagValue, as_text

LARGEST_RECORD = 1 << 20  # bytes
FREE = RESUMABLE_CHANGES | {"output", "resume", "yes"}  # settings that need not be those of the run


def say_if_finished(module: str, make_parser: Callable[[], Parser]) -> None:
    """If training is the command that was started, and it resumes a finished run with settings of the run,
    print that the run is finished and exit.
    """
    if not is_started(module):
        return
    try:
        given = parse_flags(make_parser(), sys.argv[1:])
        directory = _directory(given)
        is_finished = given.get("resume") is True and _is_finished(directory, given)
    except (ValueError, OSError):
        return
    if is_finished and str(directory).isprintable() and sys.stderr is not None:
        print(f"{directory} is finished", file=sys.stderr)
        sys.exit(0)


def _directory(given: Flags) -> Path:
    name = str(given.get("objective", ""))
    init = str(given.get("init", "random" if name == "mlm" else "teacher"))
    return Path(str(given.get("output") or default_output(name, init, find_teacher_name(given), given)))


def _is_finished(run: Path, given: Flags) -> bool:
    """Whether a run has its model, and its record has every setting that is given."""
    path = run / RECORD_FILE
    status = path.stat()
    if not (run / MODEL_FILE).is_file() or not stat.S_ISREG(status.st_mode):
        return False
    if status.st_size > LARGEST_RECORD:
        return False
    settings: dict[str, object] = {}
    match json.loads(path.read_bytes()):
        case {"preset": preset, "model": dict(model), "data": dict(data), "train": dict(train)}:
            settings = {"preset": preset, **model, **data, **train}
    names = given.keys() - FREE
    return "objective" in names and all(_same(given[name], settings.get(name)) for name in names)


def _same(given: FlagValue, recorded: object) -> bool:
    """Whether a flag has the value that JSON holds."""
    if isinstance(recorded, list) and not isinstance(given, tuple):
        return False
    return as_text(given, "\0") == as_text(tuple(recorded) if isinstance(recorded, list) else recorded, "\0")
