"""How settings are declared: frozen dataclasses whose fields carry a help line, and the checks they share.

`mlsm.command_line` turns the fields into flags, and `from_json` reads them from a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # a module of type checkers alone

_PLAIN = (bool, int, float, str, Path)
LARGEST_NUMBER = 1 << 62  # in a field; a file may be damaged or hostile

SettingsT = TypeVar("SettingsT", bound="DataclassInstance")


class Line(NamedTuple):
    """A value that goes from its first in the first update of a run to its last in the last update."""

    first: float
    last: float | None = None  # None: it stays at the first

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the first and of the last update."""
        return self.first, self.first if self.last is None else self.last

    def at(self, step: int, num_steps: int) -> float:
        """The value of update `step`, from 0, on a straight line from the first to the last."""
        if self.last is None or step == 0:
            return self.first
        share = step / (num_steps - 1)
        return (1 - share) * self.first + share * self.last

    def in_halves(self, step: int, num_steps: int) -> float:
        """The first value for the first half of the updates, the last value for the second half."""
        return self.ends[2 * step >= num_steps]

    def __str__(self) -> str:
        return f"{self.first:g}" if self.last is None else f"{self.first:g}:{self.last:g}"

    @classmethod
    def parse(cls, value: object) -> Line:
        """A line from a number, its text, or two numbers as "0.4:0.15" or as a list, the second of which may
        be None. Raises ValueError for anything else.
        """
        parts = value if isinstance(value, list) else str(value).split(":")
        try:
            first, *rest = parts
            [last] = rest or [None]
            return cls(float(str(first)), None if last is None else float(str(last)))
        except ValueError:
            raise ValueError(f"a number, or two as 0.4:0.15, is needed; got {value!r}") from None


FlagValue = str | int | float | bool | Path | Line | tuple[str, ...] | tuple[Path, ...] | None
Flags = Mapping[str, FlagValue]
"""The flags that were given on a command line, by the name of their field."""


def as_text(value: object, separator: str = " ") -> str:
    """A value of a field as people read it."""
    if isinstance(value, tuple) and not isinstance(value, Line):
        return separator.join(map(str, value))
    return str(value)


def option(
    default: object,
    help_line: str,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    *,
    is_common: bool = False,
) -> Any:
    """A dataclass field that is a flag: `metavar` names its value in --help, which also shows the default
    unless the help line mentions it. A flag whose default is dataclasses.MISSING is required. --help shows
    common flags first.
    """
    metadata = {"help": help_line, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=metadata | {"is_common": is_common, "is_argument": False})


def argument(help_line: str, metavar: str, *, default: object = dataclasses.MISSING) -> Any:
    """A dataclass field that is an argument without a flag; without a default it is required."""
    metadata = {"help": help_line, "choices": None, "metavar": metavar}
    return field(default=default, metadata=metadata | {"is_common": True, "is_argument": True})


@functools.cache  # a command asks hundreds of times, and every answer evaluates the annotations
def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name."""
    return typing.get_type_hints(cls)


def element_type(cls: type, name: str) -> tuple[type, bool]:
    """The type of one value of a field, without None, and whether the field takes several."""
    kind = field_types(cls)[name]
    if isinstance(kind, types.UnionType):
        [kind] = [part for part in typing.get_args(kind) if part is not types.NoneType]
    return (typing.get_args(kind)[0], True) if typing.get_origin(kind) is tuple else (kind, False)


def _has_type(value: object, kind: Any) -> bool:
    """Whether a value has a type, or one of the types of a union. A bool is no number; an int is a float."""
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, typing.get_args(kind)[0]) for part in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else typing.get_origin(kind) or kind)


def _wrong_type(name: str, kind: Any, value: object) -> ValueError:
    return ValueError(f"{name} must be {kind.__name__ if kind in _PLAIN else kind}, got {value!r}")


def check_fields(config: DataclassInstance) -> None:
    """Raise ValueError if a field holds another type than its annotation, a number that is too large or not
    finite, or a value outside its choices.
    """
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if not _has_type(value, kind):
            raise _wrong_type(name, kind, value)
        if any("\0" in str(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must not hold a null character, got {value!r}")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"{name} must be at most {LARGEST_NUMBER}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    for f in dataclasses.fields(config):
        choices, value = f.metadata.get("choices"), getattr(config, f.name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError for the first named field that is not above zero."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def check_not_negative(config: object, *names: str) -> None:
    """Raise ValueError for the first named field that is below zero."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be below 0, got {getattr(config, name)}")


def from_json(cls: type[SettingsT], values: object) -> SettingsT:
    """Settings, or another record, from the mapping that a JSON file holds, with the records in it. A field
    that the file lacks gets its default: it is newer than the file, and the default is what was computed
    before the field existed.

    Raises ValueError for what is no mapping, and naming fields that are unknown, required or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be an object, got {values!r}")
    fields = dataclasses.fields(cls)
    known = {f.name for f in fields}
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if odd := sorted((values.keys() - known) | (required - values.keys())):
        raise ValueError(f"{cls.__name__}: fields that are unknown or missing: {', '.join(odd)}")
    kinds = field_types(cls)
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _from_json(kinds[name], value)
        except TypeError:
            raise _wrong_type(name, kinds[name], value) from None
    return cls(**converted)


def _from_json(kind: Any, value: object) -> object:
    """A value in the form of a type: JSON knows no lines, tuples and records. Raises TypeError for a value of
    another type, and ValueError as `from_json` for a record.
    """
    if type(value) is kind:
        return value
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [_from_json(parts[0], part) for part in value]
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(kinds) == len(value):
            return tuple(map(_from_json, kinds, value))
    elif isinstance(kind, types.UnionType):
        for part in parts:
            with contextlib.suppress(TypeError):
                return _from_json(part, value)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _from_json(parts[1], part) for name, part in value.items()}
    elif isinstance(value, dict) and isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_json(kind, value)
    elif kind is Line and value is not None:
        return Line.parse(value)
    elif hasattr(kind, "_fields") and isinstance(value, list) and len(value) == len(kind._fields):
        return kind(*map(_from_json, field_types(kind).values(), value))
    elif _has_type(value, kind):
        return value
    raise TypeError


def override(config: SettingsT, given: Flags) -> SettingsT:
    """The settings with the flags that were given. Raises ValueError for values that are not valid."""
    names = {f.name for f in dataclasses.fields(config)}
    values = {name: value for name, value in given.items() if name in names}
    return dataclasses.replace(config, **values)


def from_flags(cls: type[SettingsT], given: Flags) -> SettingsT:
    """The settings of a command from the flags that were given. Raises ValueError for values that are not
    valid.
    """
    return cls(**given)
