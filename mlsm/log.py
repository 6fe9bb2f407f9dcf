"""Output of a command: lines on the screen, progress bars, metrics.jsonl and TensorBoard.

A progress bar redraws itself on a terminal; into a file or a pipe it writes a line now and then. Names and
texts may come from strangers: control characters in them never reach a terminal.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

import torch
from tqdm import tqdm

from mlsm import distributed
from mlsm.board import Board
from mlsm.files import parse_json, read_bytes, write_text
from mlsm.settings import LARGEST_NUMBER

METRICS_FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 15.0  # of a progress bar that is not on a terminal


def printable(text: str, keep: str = "") -> str:
    """The text with a replacement mark for every control and formatting character that is not in `keep`."""
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in text)


def duration(seconds: float) -> str:
    """A duration in seconds, minutes, hours or days: 35 s, 12 min, 1.5 h, 9 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"


class Screen:
    """A wrapper of standard output or standard error, so that neither what is written nor a reader that has
    gone can harm the work: control characters are replaced, characters that the encoding lacks are escaped,
    and once a write fails, the rest is discarded.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """None is what Python has for a stream that was closed before it started."""
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        with self._discarding_after_failure():
            self._stream.write(printable(text, keep="\n\r\t"))
        return len(text)

    def flush(self) -> None:
        with self._discarding_after_failure():
            self._stream.flush()

    @contextlib.contextmanager
    def _discarding_after_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def say(text: str, *, from_any_rank: bool = False) -> None:
    """Print one line for the user, above any progress bar."""
    if from_any_rank or distributed.is_rank_zero():
        tqdm.write(printable(text), file=sys.stderr)
        sys.stderr.flush()


class _Lines:
    """A stream that turns each redrawing of a progress bar into a line of its own."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, description: str, *, done: int = 0, unit: str = "it") -> tqdm:
    """A progress bar to call `update()` on and to use in a `with` block."""
    bar = functools.partial(
        tqdm,
        total=total,
        initial=done,
        desc=printable(description),
        unit=unit,
        disable=not distributed.is_rank_zero(),
    )
    if sys.stderr.isatty():
        return bar(dynamic_ncols=True)
    return bar(
        file=_Lines(),
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
        ncols=100,
        ascii=True,
    )


class Stopwatch:
    """Measures the seconds spent in its blocks. On a GPU it uses the GPU's clock and waits only when it is
    read.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[_Moment, _Moment]] = []

    @contextlib.contextmanager
    def block(self, device: torch.device) -> Iterator[None]:
        start = _now(device)
        yield
        self._blocks.append((start, _now(device)))

    def read(self) -> float:
        """The seconds since this method was last called."""
        blocks, self._blocks = self._blocks, []
        return sum(_seconds(start, stop) for start, stop in blocks)


_Moment = float | torch.cuda.Event  # seconds, or an event in the GPU's stream


def _now(device: torch.device) -> _Moment:
    if device.type != "cuda":
        return time.perf_counter()
    return torch.cuda.current_stream(device).record_event(torch.cuda.Event(enable_timing=True))


def _seconds(start: _Moment, stop: _Moment) -> float:
    if isinstance(start, float) or isinstance(stop, float):
        return cast(float, stop) - cast(float, start)
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


class Meter:
    """Sums up what micro-batches report. `read` gives means over the tokens selected since the last `read`.

    For a name that ends in _max it gives the maximum, and for a vector of counts the number of zeros.
    """

    def __init__(self, coding_time: Stopwatch | None = None) -> None:
        """With `coding_time`, `read` gives its share of the time too."""
        self._coding_time = coding_time
        self.counts: dict[str, torch.Tensor] = {}  # the vectors behind the values of the last `read`
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._num_selected = self._num_tokens = 0
        self._since, self._processor_since = time.perf_counter(), time.process_time()
        self._coding_s = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For a `with` block, neither the time nor the coding counts."""
        if self._coding_time:
            self._coding_s += self._coding_time.read()
        start, processor_start = time.perf_counter(), time.process_time()
        yield
        self._since += time.perf_counter() - start
        self._processor_since += time.process_time() - processor_start
        if self._coding_time:
            self._coding_time.read()

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """Add what a micro-batch of this rank reports."""
        for name, value in parts.items():
            before = self._sums.get(name, torch.zeros_like(value))
            self._sums[name] = torch.maximum(before, value) if name.endswith("_max") else before + value

    def add_counts(self, num_selected: int, num_tokens: int) -> None:
        """Add the counts of a whole update, over all ranks."""
        self._num_selected += num_selected
        self._num_tokens += num_tokens

    def read(self) -> dict[str, float]:
        """The values over all ranks, and since this method was last called: the seconds, the processor time
        of this rank, tokens per second, and the share of the time that this rank spent coding.
        """
        by_rank = distributed.all_gather({name: total.cpu() for name, total in self._sums.items()})
        self._sums = {}
        for sums in by_rank:
            self.add(sums)
        values = {name: self._reduced(name, total) for name, total in self._sums.items()}
        self.counts = {name: total for name, total in self._sums.items() if total.ndim}
        # This waits for the GPU, so the clock is read after it.
        coding_s = self._coding_s + self._coding_time.read() if self._coding_time else None
        seconds = time.perf_counter() - self._since
        processor_seconds = time.process_time() - self._processor_since
        values |= {"seconds": seconds, "processor_seconds": processor_seconds}
        values["tokens_per_s"] = self._num_tokens / seconds
        if coding_s is not None:
            values["coding_share"] = coding_s / seconds
        self._clear()
        return values

    def _reduced(self, name: str, total: torch.Tensor) -> float:
        if total.ndim:
            return int((total == 0).sum())
        return float(total) / (1 if name.endswith("_max") else max(1, self._num_selected))


class RunLog:
    """Appends to a run's metrics.jsonl and TensorBoard file. The lines that a resumed run wrote after its
    step are removed first. On other ranks than 0 it does nothing.
    """

    def __init__(self, run: Path, step: int, tracker: str | None = None) -> None:
        """Raises ValueError if the package of the tracker is not installed."""
        self._is_open = distributed.is_rank_zero()
        if not self._is_open:
            return
        self._board = Board(run, step, tracker)
        path = run / METRICS_FILE
        if step and not path.exists():
            say(f"{path} is missing: the metrics of the first {step} updates are lost")
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        self._written = {(line["step"], *line) for line in kept}
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 -- open as long as the run

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line of metrics after update number `step`, unless there is one with these names, as
        in a run that was resumed.
        """
        if not self._is_open or (step, "step", *values) in self._written:
            return
        self._written.add((step, "step", *values))
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._board.add(step, values)

    def write_text(self, name: str, markdown: str, step: int) -> None:
        """Write a text for TensorBoard."""
        if self._is_open:
            self._board.add_text(name, markdown, step)

    def write_histogram(self, name: str, values: torch.Tensor, step: int) -> None:
        """Write a histogram for TensorBoard."""
        if self._is_open:
            self._board.add_histogram(name, values, step)

    def close(self) -> None:
        if self._is_open:
            self._file.close()
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, each with an integer "step". A last line that was cut off by a kill is left
    out. Raises ValueError naming any other malformed line.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    *whole, _ = read_bytes(path).split(b"\n")
    lines = []
    for number, content in enumerate(whole, start=1):
        line = parse_json(content, f"{path}, line {number},")
        if (
            not isinstance(line, dict)
            or type(line.get("step")) is not int
            or not all(map(_is_number, line.values()))
        ):
            raise ValueError(f"{path}, line {number}, is not a line of metrics; remove it")
        lines.append(line)
    return lines


def _is_number(value: object) -> bool:
    """Whether a value is a number that fits a float; a damaged file may hold an integer of 400 digits."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST_NUMBER)
