"""The process of a command: scripts that build what is missing, and how a command ends, with its exit code,
its one line for a mistake, and its signals. `mlsm.command_line` reads the flags.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO, cast

import torch

from kernels.backend import logger as kernels_logger
from mlsm import distributed
from mlsm.log import Screen, printable, say
from mlsm.settings import Flags

EXIT_MISTAKE = 2
LONGEST_LINE = 600  # characters of a message; a name from a file may be longer
SECONDS_TO_REPORT = 10.0  # for a process of a job that has lost another one
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], object] | int | None


class Stopped(Exception):
    """A signal asked the program to stop, and it has saved its work."""

    def __init__(self, signal_number: int, how_to_continue: str) -> None:
        super().__init__(how_to_continue)
        self.exit_code = 128 + signal_number


def build_first(script: str, flags: Sequence[str], missing: str) -> None:
    """Run another script of this project, which makes what is missing at its default place. Raises SystemExit
    with its exit code if it fails. A signal to stop is left to that script: it saves its work, while this
    process waits for it.
    """
    say(f"{missing} is missing; building it first: python {shlex.join([script, *flags])}")
    package = Path(__file__).resolve().parent
    if (package / script).exists():  # installed; -P, so that no file of the working directory is imported
        words = ["-P", "-m", f"mlsm.{script.removesuffix('.py')}"]
    else:
        words = [str(package.parent / script)]
    environment = os.environ | distributed.SINGLE_PROCESS_ENVIRONMENT
    process = subprocess.Popen([sys.executable, *words, *flags], env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # which the terminal sends to both processes
            process.send_signal(number)

    before = _handle_stop_signals(pass_on)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(128 - code if code < 0 else code)


def say_unused(given: Iterable[str], reason: str, names: Collection[str]) -> None:
    """Print which of these flags were given, and why they change nothing."""
    if unused := [name for name in given if name in names]:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        say(f"without effect: {flags} ({reason})")


def pass_along(given: Flags, *names: str) -> list[str]:
    """The given flags of these names as words of a command line, for another script."""
    flags: list[str] = []
    for name in names:
        if name in given:
            value, flag = given[name], name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            words = map(str, value) if isinstance(value, tuple) else [str(value)]
            flags += [f"--{flag}", *words]
    return flags


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's main on the command line and exit. A mistake ends with one line and exit code 2."""
    screen = Screen(sys.stdout)
    with (
        contextlib.redirect_stdout(cast(TextIO, screen)),
        contextlib.redirect_stderr(cast(TextIO, Screen(sys.stderr))),
    ):
        code = _exit_code(main)
        screen.flush()
        if screen.failure and not isinstance(screen.failure, BrokenPipeError):
            say(f"error: cannot write to standard output: {screen.failure.strerror}")
            code = code or EXIT_MISTAKE
        sys.stderr.flush()
    sys.exit(code)


def _exit_code(main: Callable[[list[str]], None]) -> int:
    """Run main and print how it ended. A traceback is shown for a fault of the program, or with --debug."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        with distributed.job(_give_up), _output_of_rank_zero():
            main(sys.argv[1:])
    except SystemExit as end:  # after --help, or of a prerequisite, which has printed why
        if end.code:
            distributed.claim_error_report()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Stopped as stop:
        say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        is_mistake = isinstance(error, ValueError | OSError) or _is_out_of_memory(error)
        if "--debug" in sys.argv or not is_mistake:
            raise
        _report(error)
        return EXIT_MISTAKE
    return 0


def _report(error: Exception) -> None:
    """Print an error in one line, on the rank that is the first to end."""
    if distributed.claim_error_report():
        say(f"error: {one_line(error)}", from_any_rank=True)


def _give_up(error: ConnectionError) -> None:
    """End the process from another thread than the main one. It ends within seconds, even if the machine that
    knows which rank is the first to end has vanished.
    """
    timer = threading.Timer(SECONDS_TO_REPORT, os._exit, [EXIT_MISTAKE])
    timer.daemon = True
    timer.start()
    _report(error)
    os._exit(EXIT_MISTAKE)


@contextlib.contextmanager
def _output_of_rank_zero() -> Iterator[None]:
    """For a `with` block, discard what other ranks print, and let the kernels print which implementation runs
    once.
    """
    if distributed.is_rank_zero():
        kernels_logger.setLevel(logging.INFO)
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def one_line(error: Exception) -> str:
    """The message of an error for the user, in one printable line of limited length."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run the command again"
    line, half = printable(" ".join(str(error).split())), LONGEST_LINE // 2
    if _is_out_of_memory(error):
        line = f"out of memory: take a smaller model, or for training a lower --token-budget ({line})"
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the host had no memory left, which PyTorch reports by the text of the error alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class StopSignals:
    """In a `with` block, a signal to stop sets `received` instead of interrupting. A second Ctrl-C
    interrupts. A second SIGTERM does not: a cluster's scheduler and torchrun may both send one.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            say("stopping ...")
        self.received = self.received or number

    def __enter__(self) -> StopSignals:
        self._before = _handle_stop_signals(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # not one that was set since, as in a lost job
                signal.signal(number, handler)


def _handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, _Handler]:
    """Set the handler of the signals to stop; returns the former ones. SIGHUP stays ignored under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = STOP_SIGNALS[:-1] if is_ignored else STOP_SIGNALS
    return {number: signal.signal(number, handler) for number in numbers}
