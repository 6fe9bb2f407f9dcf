"""Command lines: flags from dataclasses, and settings files that hold the same settings in TOML.

A flag on the command line wins over the settings file, and the settings file over the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from mlsm.config import PRESETS
from mlsm.settings import Flags, FlagValue, Line, SettingsT, as_text, element_type, from_flags
from mlsm.version import __version__

EXIT_CODES = """
exit codes: 0 done; 2 a mistake or a full disk, said in one line; 128 + N stopped by signal N (130: Ctrl-C)
"""
LARGEST_FILE = 1 << 20  # bytes of a settings file
COMMAND = "mlsm "  # with the name of a command, it is sys.argv[0] of what `mlsm` starts


class Setting(NamedTuple):
    """What a settings file may hold for a flag."""

    kind: type  # of one value
    is_list: bool
    choices: Sequence[str] | None


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError for a mistake, and knows the settings behind its flags."""

    settings: dict[str, Setting]

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


def program() -> str:
    """The words that started this command, as --help shows them."""
    spec = sys.modules["__main__"].__spec__
    is_module = spec is not None and spec.origin == sys.argv[0]
    return f"python -m {spec.name}" if spec and is_module else Path(sys.argv[0]).name


def parser(description: str, groups: Mapping[str, type], *, has_presets: bool = False) -> Parser:
    """A parser with one flag for each field of the settings classes, which are the groups by their titles.
    The fields that are declared as common come first, in a group of their own.
    """
    command_line = Parser(
        prog=program(),
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    command_line.settings = {}
    default = _preset_defaults if has_presets else _default
    common = command_line.add_argument_group("common")
    for cls in groups.values():
        for field in _flags_of(cls):
            if field.metadata["is_common"]:
                _add_flag(command_line, common, cls, field, default)
    if has_presets:
        _add_preset(command_line, common)
    common.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE.toml",
        help="settings file with lines such as num-steps = 500; flags win over it",
    )
    for title, cls in groups.items():
        if rare := [field for field in _flags_of(cls) if not field.metadata["is_common"]]:
            group = command_line.add_argument_group(title, inspect.getdoc(cls))
            for field in rare:
                _add_flag(command_line, group, cls, field, default)
    other = command_line.add_argument_group("other flags")
    other.add_argument("-h", "--help", action="help", help="show this help and exit")
    other.add_argument("--version", action="version", version=f"mlsm {__version__}", help="show the version")
    other.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command_line.usage = _usage(command_line)
    return command_line


def _flags_of(cls: type) -> list[dataclasses.Field[FlagValue]]:
    return [field for field in dataclasses.fields(cls) if field.metadata.get("help")]


def _usage(command_line: Parser) -> str:
    """The arguments and the flags that are required; --help lists the others."""
    words = []
    for action in command_line._actions:
        if not action.option_strings and action.nargs == "?":
            words.append(f"[{action.metavar}]")
        elif action.required:
            value = f"{action.metavar} [{action.metavar} ...]" if action.nargs == "+" else f"{action.metavar}"
            words.append(" ".join([*action.option_strings[:1], value]))
    return " ".join(["%(prog)s", *words, "[--flag ...]"])


def _add_preset(command_line: Parser, group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help="settings to start from (default: those of the teacher, or of the run of --init; for a "
        "teacher, tiny with the embedded corpus, base with one's own text)",
    )
    command_line.settings["preset"] = Setting(str, False, tuple(PRESETS))


def _add_flag(
    command_line: Parser,
    group: argparse._ArgumentGroup,
    cls: type,
    field: dataclasses.Field[FlagValue],
    default: Callable[[type, dataclasses.Field[FlagValue]], str],
) -> None:
    kind, is_list = element_type(cls, field.name)
    metavar, help_line = field.metadata["metavar"], field.metadata["help"].replace("%", "%%")
    nargs = "+" if is_list else None
    if field.metadata["is_argument"]:
        has_default = field.default is not dataclasses.MISSING
        group.add_argument(
            field.name,
            type=kind,
            nargs="?" if has_default else nargs,
            default=field.default if has_default else argparse.SUPPRESS,
            metavar=metavar,
            help=help_line,
        )
        return
    flag, help_line = "--" + field.name.replace("_", "-"), help_line + default(cls, field)
    choices = field.metadata["choices"]
    command_line.settings[field.name] = Setting(kind, is_list, choices)
    if kind is bool:
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_line
        )
        return
    group.add_argument(
        flag,
        type=Line.parse if kind is Line else kind,
        nargs=nargs,
        choices=choices,
        required=field.default is dataclasses.MISSING,
        default=argparse.SUPPRESS,
        metavar=metavar or (None if choices else kind.__name__.upper()),
        help=help_line,
    )


def _default(cls: type, field: dataclasses.Field[FlagValue]) -> str:
    """The default as --help shows it: "" if it is None or False, or if the help line names it."""
    if field.default in (None, False, dataclasses.MISSING) or "default" in field.metadata["help"]:
        return ""
    return f" (default: {as_text(field.default)})"


def _preset_defaults(cls: type, field: dataclasses.Field[FlagValue]) -> str:
    """The default as --help shows it: one value, or one for each preset, or three for the training phases."""
    if field.default is None or "default" in field.metadata["help"]:
        return ""
    shown = []
    for preset in (make() for make in PRESETS.values()):
        phases = [preset.teacher, preset.student, preset.token_head]
        configs = [c for c in (*phases, preset.model, preset.data, preset.dictionary) if isinstance(c, cls)]
        values = [as_text(getattr(config, field.name)) for config in configs] or [as_text(field.default)]
        shown.append(values[0] if len(set(values)) == 1 else " / ".join(values))
    of = " for mlm / students / token-head" if any(" / " in values for values in shown) else ""
    each = "; ".join(f"{name} {values}" for name, values in zip(PRESETS, shown, strict=True))
    return f" (default{of}: {shown[0] if len(set(shown)) == 1 else each})"


def is_started(module: str) -> bool:
    """Whether a module is the command that was started, in a single process with standard output."""
    is_command = module == "__main__" or sys.argv[0].startswith(COMMAND)
    return is_command and sys.stdout is not None and "RANK" not in os.environ


def show_help(module: str, make_parser: Callable[[], Parser]) -> None:
    """If a module is the command that was started, and the command line asks for help, print it and exit.
    Called before PyTorch is imported, it answers at once; without standard output, or in a job of several
    processes, the command itself answers.
    """
    if not is_started(module) or {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        return
    try:
        make_parser().print_help()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def parse_flags(command_line: Parser, argv: Sequence[str]) -> Flags:
    """The flags that were given, on the command line or in the settings file that --config names, without
    those that every command has. Raises ValueError for a mistake.
    """
    given = _read_settings(command_line, argv)
    for action in command_line._actions:
        action.required = action.required and action.dest not in given
    values, unknown = command_line.parse_known_args(argv, argparse.Namespace(**given))
    if unknown:
        word = unknown[0].partition("=")[0]
        known = command_line._option_string_actions
        is_flag = word.startswith("-")
        command_line.error(
            f"there is no flag {word}{did_you_mean(word, known)}" if is_flag else f"{word!r} is one too many"
        )
    flags = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(values).items()}
    return {name: value for name, value in flags.items() if name not in ("debug", "config")}


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A question that ends a message about an unknown word; "" if no known word is like it."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_settings(command_line: Parser, argv: Sequence[str]) -> dict[str, FlagValue]:
    """The settings of the file that --config names, by the names of their fields. Raises ValueError, naming
    file and setting, for one that is unknown or of another type than its flag.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path, nargs="?", help="the settings file")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"no settings file at {path}; --config takes a file in TOML")
    try:
        with open(path, "rb") as file:
            table = tomllib.loads(file.read(LARGEST_FILE).decode())
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    given: dict[str, FlagValue] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in command_line.settings:
            names = [known.replace("_", "-") for known in command_line.settings]
            raise ValueError(f"{path}: there is no setting {key}{did_you_mean(key.replace('_', '-'), names)}")
        try:
            given[name] = _from_toml(command_line.settings[name], value)
        except ValueError as error:
            raise ValueError(f"{path}: {key} {error}") from None
    return given


def _from_toml(setting: Setting, value: object) -> FlagValue:
    """A value of a settings file as the flag has it. Raises ValueError for another type, or for a value that
    is not among the choices.
    """
    if setting.is_list and isinstance(value, list) and value:
        return tuple(_one_from_toml(setting, part) for part in value)  # type: ignore[return-value]
    one = _one_from_toml(setting, value)
    return (one,) if setting.is_list else one  # type: ignore[return-value]


def _one_from_toml(setting: Setting, value: object) -> FlagValue:
    kind, choices = setting.kind, setting.choices
    if kind is Line:
        return Line.parse(value)
    as_written: dict[type, tuple[type, ...]] = {float: (int, float), Path: (str,)}
    if not isinstance(value, as_written.get(kind, (kind,))) or (kind is not bool and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"takes {names.get(kind, 'a text in quotes')}, got {value!r}")
    if choices and value not in choices:
        raise ValueError(f"takes one of {', '.join(choices)}, got {value!r}")
    return kind(value)


def parse(cls: type[SettingsT], argv: Sequence[str], description: str) -> SettingsT:
    """The settings of a command from its command line. Raises ValueError for a mistake."""
    return from_flags(cls, parse_flags(parser(description, {"settings": cls}), argv))
