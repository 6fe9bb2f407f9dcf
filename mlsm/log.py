"""What a run tells: lines on the screen, progress bars, metrics.jsonl and TensorBoard.

A progress bar redraws itself on a terminal; into a file or a pipe it writes a line now and then.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mlsm import distributed
from mlsm.files import parse_json, write_text

SECONDS_BETWEEN_LINES = 15.0  # of a progress bar that is not on a terminal


def say(text: str, *, from_any_rank: bool = False) -> None:
    """One line for the user, above any progress bar."""
    if from_any_rank or distributed.is_rank_zero():
        tqdm.write(text, file=sys.stderr)
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
        tqdm, total=total, initial=done, desc=description, unit=unit, disable=not distributed.is_rank_zero()
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
    """Seconds spent in its blocks; those of a GPU by the GPU's own clock, so that no block waits for it."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def block(self, device: torch.device) -> Iterator[None]:
        start = _now(device)
        yield
        self._blocks.append((start, _now(device)))

    def read(self) -> float:
        """The seconds since the last reading; starts over."""
        blocks, self._blocks = self._blocks, []
        return sum(_seconds(start, stop) for start, stop in blocks)


def _now(device: torch.device) -> Any:
    """A moment: seconds, or an event in the GPU's stream of work."""
    if device.type != "cuda":
        return time.perf_counter()
    return torch.cuda.current_stream(device).record_event(torch.cuda.Event(enable_timing=True))


def _seconds(start: Any, stop: Any) -> float:
    if isinstance(start, float):
        return stop - start
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


class Meter:
    """Sums of what micro-batches report, read as means over the selected tokens since the last reading.

    A name that ends in _max is a maximum instead; a vector of counts is read as how many of them stayed zero.
    """

    def __init__(self, coding_time: Stopwatch | None = None) -> None:
        """`coding_time` is read as its share of the time since the last reading."""
        self._coding_time = coding_time
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._num_selected = self._num_tokens = 0
        self._since = time.perf_counter()

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """Of a micro-batch of this rank."""
        for name, value in parts.items():
            before = self._sums.get(name, torch.zeros_like(value))
            self._sums[name] = torch.maximum(before, value) if name.endswith("_max") else before + value

    def add_counts(self, num_selected: int, num_tokens: int) -> None:
        """Of a whole update, over all ranks."""
        self._num_selected += num_selected
        self._num_tokens += num_tokens

    def read(self) -> dict[str, float]:
        """The values of all ranks, the seconds since the last reading, tokens per second, and the share of
        the time that this rank spent coding; starts over.
        """
        by_rank = distributed.all_gather({name: total.cpu() for name, total in self._sums.items()})
        self._sums = {}
        for sums in by_rank:
            self.add(sums)
        values = {name: self._reduced(name, total) for name, total in self._sums.items()}
        # Waits for a GPU, so before the clock.
        coding_s = self._coding_time.read() if self._coding_time else None
        seconds = time.perf_counter() - self._since
        values |= {"seconds": seconds, "tokens_per_s": self._num_tokens / seconds}
        if coding_s is not None:
            values["coding_share"] = coding_s / seconds
        self._clear()
        return values

    def _reduced(self, name: str, total: torch.Tensor) -> float:
        if total.ndim:
            return int((total == 0).sum())
        return float(total) / (1 if name.endswith("_max") else max(1, self._num_selected))


class RunLog:
    """Appends to a run's metrics.jsonl and TensorBoard file; a resumed run first drops what came after its
    step. On other ranks than 0 it does nothing.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._is_open = distributed.is_rank_zero()
        if not self._is_open:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / "metrics.jsonl"
        kept = [
            m for m in read_metrics(run) if m["step"] <= step and not any("heldout" in name for name in m)
        ]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 -- open as long as the run
        self._board = SummaryWriter(str(run), purge_step=step + 1)
        settings = (run / "config.json").read_text(encoding="utf-8")
        self.write_text("config", f"```json\n{settings}```", step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics after update number `step`."""
        if not self._is_open:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def write_text(self, name: str, markdown: str, step: int) -> None:
        """A text for TensorBoard."""
        if self._is_open:
            self._board.add_text(name, markdown, step)

    def close(self) -> None:
        if self._is_open:
            self._file.close()
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off by a kill is left out. Raises ValueError
    naming any other malformed line.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, content in enumerate(whole, start=1):
        line = parse_json(content, f"{path}, line {number},")
        if not isinstance(line, dict) or type(line.get("step")) is not int or not _are_numbers(line.values()):
            raise ValueError(f"{path}, line {number}, is not a line of metrics; remove it")
        lines.append(line)
    return lines


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
