"""What reaches the screen, metrics.jsonl and TensorBoard."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO, cast

import pytest
import torch

from mlsm import log
from mlsm.log import METRICS_FILE, Meter, RunLog, Screen, Stopwatch, printable, progress, read_metrics, say

ESCAPES = "a\x1b[31m\u202eb\u0007\r\n ▁é猫"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def errors_to(stream: io.StringIO) -> Iterator[io.StringIO]:
    with contextlib.redirect_stderr(stream):
        yield stream


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_bar_redraws_on_a_terminal_only_and_nothing_is_coloured(stream: type[io.StringIO]) -> None:
    """No colour anywhere: NO_COLOR asks for nothing that is not so."""
    with errors_to(stream()) as written, progress(3000, "bar") as bar:
        for _ in range(3000):
            bar.update()
        say("a line between")
    lines = written.getvalue().splitlines()
    assert ("\r" in written.getvalue()) == (stream is Terminal)
    assert "\x1b" not in written.getvalue()
    assert any("100%" in line for line in lines)
    assert "a line between" in lines
    assert stream is Terminal or len(lines) <= 4  # its start, its end, and what was said


def test_a_bar_in_a_log_file_writes_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlsm.log.SECONDS_BETWEEN_LINES", 0.0)
    with errors_to(io.StringIO()) as written, progress(5, "bar") as bar:
        for _ in range(5):
            bar.update()
    shown = [f"{n}/5" for n in range(6)]
    assert [n for n in shown if n in written.getvalue()] == shown
    assert "\r" not in written.getvalue()


# ---- what strangers' files can put on the screen


def test_control_characters_are_replaced() -> None:
    assert printable(ESCAPES) == "a\ufffd[31m\ufffdb\ufffd\ufffd\ufffd ▁é猫"
    assert printable("a\x1b\n", keep="\n") == "a\ufffd\n"


def test_no_terminal_obeys_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"run {ESCAPES}")
    with progress(1, ESCAPES) as bar:
        bar.update()
    with contextlib.redirect_stdout(cast(TextIO, Screen(sys.stdout))):
        print(f"\x1b[2J{ESCAPES}\ttable")
    shown = capsys.readouterr()
    assert not {"\x1b", "\u202e", "\u0007"} & {*shown.out, *shown.err}
    assert shown.err.splitlines()[0] == f"run {printable(ESCAPES)}"
    assert "▁é猫\ttable\n" in shown.out


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen = Screen(stream)
    screen.write("▁é \ud800")
    screen.flush()
    assert cast(io.BytesIO, stream.buffer).getvalue() == rb"\u2581\xe9 \ufffd"


def test_a_screen_whose_reader_has_gone_discards_the_rest() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        os.close(reader)
        screen = Screen(stream)
        for _ in range(3):
            screen.write("lost\n" * 100_000)
            screen.flush()
        assert isinstance(screen.failure, BrokenPipeError)


def test_a_screen_that_was_closed_from_the_start_discards_all() -> None:
    screen = Screen(None)
    assert screen.write("lost") == 4
    screen.flush()
    assert screen.failure is None
    screen.close()


# ---- metrics


def test_concepts_that_no_target_uses_are_counted_over_the_interval() -> None:
    meter = Meter()
    for uses in ([0, 2, 0, 0], [1, 0, 0, 0]):
        meter.add({"dead_concepts": torch.tensor(uses)})
    assert meter.read()["dead_concepts"] == 2
    assert "dead_concepts" not in meter.read()


def test_a_pause_counts_neither_as_time_nor_as_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 0.0, "processor": 0.0}

    def wait(wall: float, processor: float) -> None:
        now["wall"] += wall
        now["processor"] += processor

    clock = SimpleNamespace(perf_counter=lambda: now["wall"], process_time=lambda: now["processor"])
    monkeypatch.setattr(log, "time", clock)
    coding_time = Stopwatch()
    meter = Meter(coding_time)
    meter.add_counts(num_selected=1, num_tokens=60)
    with coding_time.block(torch.device("cpu")):
        wait(1, 2)
    with meter.paused(), coding_time.block(torch.device("cpu")):
        wait(100, 200)
    wait(3, 5)
    expected = {"seconds": 4, "processor_seconds": 7, "tokens_per_s": 15, "coding_share": 0.25}
    assert meter.read() == expected


def test_a_resumed_run_refuses_damaged_metrics_by_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": "x"}\n{"step": 4')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not a line of metrics"):
        read_metrics(tmp_path)
    for number in (10**400, 10**30, -(10**400)):
        for line in ({"step": number}, {"step": 2, "loss": number}):
            (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is not a line of metrics"):
                read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": NaN}\n{"step": 4')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2]


def test_metrics_that_are_gone_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with RunLog(tmp_path, 0) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1.0})
    assert capsys.readouterr().err == ""
    with RunLog(tmp_path, 1):
        pass
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert capsys.readouterr().err == ""
    (tmp_path / METRICS_FILE).unlink()
    with RunLog(tmp_path, 2):
        pass
    assert "metrics.jsonl is missing: the metrics of the first 2 updates are lost" in capsys.readouterr().err
