"""Task files as the organisers publish them: one JSON object per line. Errors name the file and the line.

A byte order mark, CRLF line ends and blank lines are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlsm.files import parse_json, read_bytes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
T = TypeVar("T")


class Example(NamedTuple):
    """One line of a task file."""

    line: int  # its number, from 1
    texts: dict[str, str]  # by the name of the field
    label: int  # 0 in a task without labels


def spaced(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of the items, at even distances; all of them if it is None."""
    if limit is None or len(items) <= limit:
        return items
    return [items[number * len(items) // limit] for number in range(limit)]


def read_examples(
    path: Path, fields: Collection[str], *, num_labels: int = 0, may_be_empty: bool = False
) -> list[Example]:
    """The lines of a file with the texts of these fields, which are not empty unless they `may_be_empty`, and
    with a label below `num_labels`, if that is not 0.

    Raises ValueError naming the file and the line of what cannot be used.
    """
    try:
        lines = read_bytes(path).removeprefix(BYTE_ORDER_MARK).split(b"\n")
    except OSError as error:
        raise ValueError(f"no file {path} ({error.strerror}): --data names the folder of the tasks") from None
    examples = []
    for number, content in enumerate(lines, start=1):
        if content.strip():
            try:
                values = _checked(parse_json(content, "the line"), fields, num_labels, may_be_empty)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            texts = {name: values[name] for name in fields}
            examples.append(Example(number, texts, values["label"] if num_labels else 0))
    if not examples:
        raise ValueError(f"{path} is empty")
    return examples


def _checked(values: Any, fields: Collection[str], num_labels: int, may_be_empty: bool) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"a line must be an object with fields, got {values!r}")
    for name in [*fields, *["label"] * bool(num_labels)]:
        if name not in values:
            raise ValueError(f"no field {name!r}; there are {', '.join(values)}")
    for name in fields:
        if not isinstance(values[name], str):
            raise ValueError(f"{name} must be text, got {values[name]!r}")
        if not (may_be_empty or values[name].strip()):
            raise ValueError(f"{name} is empty")
    if num_labels and (type(label := values["label"]) is not int or not 0 <= label < num_labels):
        raise ValueError(f"label must be a whole number in 0..{num_labels - 1}, got {label!r}")
    return values
