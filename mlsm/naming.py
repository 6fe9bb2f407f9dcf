"""The directories of runs whose flags name none, and the files that say what a directory is."""

from __future__ import annotations

import re
from pathlib import Path

from mlsm.config import DEFAULT_TEACHER, EMBEDDED_CORPUS
from mlsm.settings import Flags

MODEL_FILE, RECORD_FILE = "model.safetensors", "config.json"  # of a run; the first one when it is finished


def find_teacher_name(flags: Flags) -> Path:
    """The teacher that the flags name, or the default one: that of the embedded corpus is runs/teacher, that
    of other text is runs/teacher-TEXT.
    """
    return Path(str(flags.get("teacher", DEFAULT_TEACHER + _ending(text_name(flags)))))


def default_output(name: str, init: str, teacher: Path, flags: Flags) -> Path:
    """The directory of a run whose flags name none: runs/teacher and runs/OBJECTIVE-INIT for the embedded
    corpus. With other text, or another teacher, the name ends in that of the text or the teacher.
    """
    text = text_name(flags)
    if name == "mlm" and init == "random":
        return Path(DEFAULT_TEACHER + _ending(text))
    if init not in ("random", "teacher"):
        start = Path(init)
        run = f"{start.parent.parent.name}-" if start.parent.name == "checkpoints" else ""
        return Path(f"runs/{name}-{run}{start.name}" + _ending(text))
    default = Path(DEFAULT_TEACHER).name
    of_teacher = "" if teacher.name == default else teacher.name.removeprefix(f"{default}-")
    parts = dict.fromkeys(part for part in (of_teacher, text) if part)  # each once
    return Path("-".join([f"runs/{name}-{init}", *parts]))


def text_name(flags: Flags) -> str:
    """A short name of the text that --corpus gives: that of its file, or of the folder of its files; "" for
    the embedded corpus.
    """
    corpus = flags.get("corpus")
    if not isinstance(corpus, tuple) or corpus == (EMBEDDED_CORPUS,):
        return ""
    paths = [Path(str(name)) for name in corpus]
    folder = paths[0].parent
    is_one_folder = len(paths) > 1 and folder.name and all(path.parent == folder for path in paths)
    return re.sub(r"[^\w.]+", "-", folder.name if is_one_folder else paths[0].stem).strip("-.") or "text"


def _ending(name: str) -> str:
    return f"-{name}" if name else ""
