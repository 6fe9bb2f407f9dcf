"""Command lines: a flag for every field of a configuration, one line for every mistake, and prerequisites
built first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import inspect
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch

from mlsm import distributed
from mlsm.config import PRESETS
from mlsm.log import say
from mlsm.version import __version__

EXIT_MISTAKE = 2
LONGEST_LINE = 600  # characters that a mistake takes; what a file holds may be longer
SECONDS_OF_LAST_WORDS = 10.0
EXIT_CODES = """
exit codes: 0 done; 2 a mistake or a full disk, said in one line; 130, 143 stopped by Ctrl-C, by SIGTERM
"""
T = TypeVar("T")


class Stopped(Exception):
    """A signal asked the program to stop, and it has saved its work."""

    def __init__(self, signal_number: int, how_to_continue: str) -> None:
        super().__init__(how_to_continue)
        self.exit_code = 128 + signal_number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


def plain_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every script has."""
    made = _Parser(
        description=description, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"mlsm {__version__}")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def parser(
    description: str, groups: dict[str, type], *, without: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with `--preset` and one flag per field; flags not given leave no trace in the result."""
    made = plain_parser(description)
    made.add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help="settings to start from (default: those of the teacher, or of the run of --init; for a teacher, "
        "tiny with the embedded corpus, base with one's own text)",
    )
    for title, cls in groups.items():
        group = made.add_argument_group(title, inspect.getdoc(cls))
        for field in dataclasses.fields(cls):
            if field.name not in without:
                _add_flag(group, cls, field)
    return made


def _add_flag(group: Any, cls: type, field: dataclasses.Field) -> None:
    kind = str(field.type).removesuffix(" | None")
    name = "--" + field.name.replace("_", "-")
    about: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": field.metadata["help"].replace("%", "%%") + _defaults(cls, field),
    }
    if kind == "bool":
        group.add_argument(name, action=argparse.BooleanOptionalAction, **about)
        return
    group.add_argument(
        name,
        type={"int": int, "float": float}.get(kind, str),
        nargs="+" if kind.startswith("tuple") else None,
        choices=field.metadata["choices"],
        metavar=field.metadata["metavar"] or (None if field.metadata["choices"] else kind.upper()),
        **about,
    )


def _defaults(cls: type, field: dataclasses.Field) -> str:
    """The default as --help shows it: one value, or one per preset, or three for the phases of training."""
    if field.default is None or "default" in field.metadata["help"]:
        return ""
    told = []
    for preset in (make() for make in PRESETS.values()):
        phases = [preset.train_for(objective) for objective in ("mlm", "lsm", "token-head")]
        configs = [c for c in (*phases, preset.model, preset.data, preset.dictionary) if isinstance(c, cls)]
        values = [getattr(config, field.name) for config in configs]
        shown = [" ".join(value) if isinstance(value, tuple) else str(value) for value in values]
        told.append(shown[0] if len(set(shown)) == 1 else " / ".join(shown))
    of = " for mlm / students / token-head" if any(" / " in values for values in told) else ""
    each = "; ".join(f"{name} {values}" for name, values in zip(PRESETS, told, strict=True))
    text = told[0] if len(set(told)) == 1 else each
    return f" (default{of}: {text})"


def override(config: T, given: dict[str, Any]) -> T:
    """The configuration with the fields that were given as flags. Raises ValueError for values that are not
    valid.
    """
    names = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in names}
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def build_first(script: str, flags: Sequence[str], missing: str) -> None:
    """Run another script of this project for a prerequisite at its default place. Raises SystemExit with its
    code. Ctrl-C and SIGTERM are for that script to answer: it saves its work, and this one waits for it.
    """
    command = [script, *flags]
    say(f"{missing} is missing; building it first: python {shlex.join(command)}")
    path = Path(__file__).resolve().parent.parent / script
    environment = os.environ | distributed.SINGLE_PROCESS_ENVIRONMENT
    process = subprocess.Popen([sys.executable, str(path), *flags], env=environment)
    # The terminal sends Ctrl-C to both; SIGTERM reaches only this process, and is handed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(128 - code if code < 0 else code)


def say_idle(given: dict[str, Any], reason: str, *names: str) -> None:
    """Tell, in one line, which of these flags were given, and why they change nothing."""
    if idle := [name for name in names if name in given]:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        say(f"without effect: {flags} ({reason})")


def pass_along(given: dict[str, Any], *names: str) -> list[str]:
    """The given flags of these names, to hand to another script."""
    flags: list[str] = []
    for name in names:
        if name in given:
            value = given[name]
            flags += [
                "--" + name.replace("_", "-"),
                *(map(str, value) if isinstance(value, list) else [str(value)]),
            ]
    return flags


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's main on the command line; a mistake ends with one line and exit code 2, not with a
    traceback.
    """
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        with distributed.job(_give_up), _only_rank_0_speaks():
            main(sys.argv[1:])
    except SystemExit as end:  # after --help, or of a prerequisite, which has said why
        if end.code:
            distributed.claim_error_report()
        raise
    except Stopped as stop:
        say(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        is_mistake = isinstance(error, ValueError | OSError) or _is_out_of_memory(error)
        if "--debug" in sys.argv or not is_mistake:
            raise
        _say_why(error)
        sys.exit(EXIT_MISTAKE)
    sys.exit(0)


def _say_why(error: Exception) -> None:
    """One line, from the rank that is the first to end."""
    if distributed.claim_error_report():
        say(f"error: {_in_one_line(error)}", from_any_rank=True)


def _give_up(error: ConnectionError) -> None:
    """End the process from another thread than the main one; within seconds, even if the machine that says
    which rank is the first to end has vanished.
    """
    timer = threading.Timer(SECONDS_OF_LAST_WORDS, os._exit, [EXIT_MISTAKE])
    timer.daemon = True
    timer.start()
    _say_why(error)
    os._exit(EXIT_MISTAKE)


@contextlib.contextmanager
def _only_rank_0_speaks() -> Iterator[None]:
    """For a `with` block, let other ranks print nothing, and kernels tell once which implementation runs."""
    if distributed.is_rank_zero():
        logging.getLogger("kernels").setLevel(logging.INFO)
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run the command again (train.py: with --resume)"
    line, half = " ".join(str(error).split()), LONGEST_LINE // 2
    if _is_out_of_memory(error):
        line = f"out of memory: take a smaller model, or for train.py a lower --token-budget ({line})"
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, on a GPU or (which PyTorch tells by its text alone) on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class StopSignals:
    """In a `with` block, Ctrl-C and SIGTERM set `received` instead of interrupting; a second Ctrl-C
    interrupts. A second SIGTERM does not: a cluster's scheduler and torchrun may both send one.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            say("stopping after this update ...")
        self.received = self.received or number

    def __enter__(self) -> StopSignals:
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # what was set since then stays, as in a lost job
                signal.signal(number, handler)
