"""Task files as the organisers publish them: one JSON object per line. Errors name the file and the line.

A byte order mark, CRLF line ends and blank lines are ignored.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from mlsm.files import parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Example(NamedTuple):
    """One line of a task file."""

    line: int  # its number, from 1
    texts: dict[str, str]  # by the name of the field
    label: int  # 0 in a task without labels


def read_examples(
    path: Path, fields: Collection[str], *, num_labels: int = 0, may_be_empty: bool = False
) -> list[Example]:
    """The lines of a file with the texts of these fields, which are not empty unless they `may_be_empty`, and
    with a label below `num_labels`, if that is not 0.

    Raises ValueError naming the file and the line of what cannot be used.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        lines = path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n")
    except OSError as error:
        raise ValueError(f"no file {path} ({error.strerror}): --data names the folder of the tasks") from None
    examples = []
    for number, content in enumerate(lines, start=1):
        if content.strip():
            place = f"{path}, line {number}"
            values = parse_json(content, f"{place},")
            try:
                label = _label(values, num_labels) if num_labels else 0
                texts = {name: _text(values, name, may_be_empty) for name in fields}
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            examples.append(Example(number, texts, label))
    if not examples:
        raise ValueError(f"{path} is empty")
    return examples


def _field(values: object, name: str) -> object:
    if not isinstance(values, dict):
        raise ValueError(f"a line must be an object with fields, got {values!r}")
    if name not in values:
        raise ValueError(f"no field {name!r}; there are {', '.join(values)}")
    return values[name]


def _text(values: object, name: str, may_be_empty: bool) -> str:
    text = _field(values, name)
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text, got {text!r}")
    if not (may_be_empty or text.strip()):
        raise ValueError(f"{name} is empty")
    return text


def _label(values: object, num_labels: int) -> int:
    label = _field(values, "label")
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError(f"label must be a whole number, got {label!r}")
    if not 0 <= label < num_labels:
        raise ValueError(f"label must be in 0..{num_labels - 1}, got {label}")
    return label
