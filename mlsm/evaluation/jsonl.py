"""Task files as the organisers publish them: one JSON object per line. Errors name the file and the line.

A byte order mark, CRLF line ends and blank lines are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mlsm.files import parse_json, read_bytes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
T = TypeVar("T")


class Line(NamedTuple):
    """One line of a task file. Its methods raise ValueError naming the file and the line."""

    path: Path
    number: int  # from 1
    values: dict[str, object]

    def error(self, problem: str) -> ValueError:
        """The error to raise for a problem in this line."""
        return ValueError(f"{self.path}, line {self.number}: {problem}")

    def _value(self, name: str) -> object:
        if name not in self.values:
            raise self.error(f"no field {name!r}; there are {', '.join(self.values)}")
        return self.values[name]

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """The text of a field, which is not empty unless it may be."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self.error(f"{name} must be text, got {value!r}")
        if not (may_be_empty or value.strip()):
            raise self.error(f"{name} is empty")
        return value

    def texts(self, name: str) -> list[str]:
        """The texts of a field that holds a list of at least two."""
        value = self._value(name)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) for one in value):
            raise self.error(f"{name} must be a list of two or more texts, got {value!r}")
        return value

    def whole_number(self, name: str, end: int) -> int:
        """The number of a field, which is in 0..end-1."""
        value = self._value(name)
        if type(value) is not int or not 0 <= value < end:
            raise self.error(f"{name} must be a whole number in 0..{end - 1}, got {value!r}")
        return value


def read_lines(path: Path) -> list[Line]:
    """The lines of a file. Raises ValueError naming the file and the line of what is no JSON object."""
    try:
        contents = read_bytes(path).removeprefix(BYTE_ORDER_MARK).split(b"\n")
    except OSError as error:
        raise ValueError(f"no file {path} ({error.strerror}): --data names the folder of the tasks") from None
    lines = []
    for number, content in enumerate(contents, start=1):
        if content.strip():
            values = parse_json(content, f"{path}, line {number}: the line")
            if not isinstance(values, dict):
                raise ValueError(
                    f"{path}, line {number}: a line must be an object with fields, got {values!r}"
                )
            lines.append(Line(path, number, values))
    if not lines:
        raise ValueError(f"{path} is empty")
    return lines


class Example(NamedTuple):
    """The texts and the label of one line."""

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
    examples = []
    for line in read_lines(path):
        texts = {name: line.text(name, may_be_empty=may_be_empty) for name in fields}
        label = line.whole_number("label", num_labels) if num_labels else 0
        examples.append(Example(line.number, texts, label))
    return examples
