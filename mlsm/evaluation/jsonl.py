"""Task files as the organisers hand them out: JSON lines. Whatever is wrong is said with file and line.

A byte order mark, CRLF line ends and blank lines are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlsm.files import read_bytes

_KINDS = {str: "text", int: "a whole number"}


class Example(NamedTuple):
    """One line of a task file."""

    line: int  # from 1
    values: dict[str, Any]


def read_examples(path: Path, fields: Mapping[str, type], *, may_be_empty: bool = False) -> list[Example]:
    """The lines of a file, each with at least these fields, of these types; texts are not empty unless they
    `may_be`.

    Raises ValueError naming file and line.
    """
    try:
        lines = read_bytes(path).split(b"\n")
    except OSError as error:
        raise ValueError(f"no file {path} ({error.strerror}): --data names the folder of the tasks") from None
    examples = []
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                examples.append(Example(number, _checked(json.loads(text), fields, may_be_empty)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: nested too deep") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not examples:
        raise ValueError(f"{path} is empty")
    return examples


def _checked(values: Any, fields: Mapping[str, type], may_be_empty: bool) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"a line must be an object with fields, got {values!r}")
    for name, kind in fields.items():
        if name not in values:
            raise ValueError(f"no field {name!r}; there are {', '.join(values)}")
        value: Any = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} must be {_KINDS[kind]}, got {value!r}")
        if isinstance(value, str) and not value.strip() and not may_be_empty:
            raise ValueError(f"{name} is empty")
    return values
