"""The steps of experiments: each is run once, signals stop them, and every experiment starts anywhere."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import steps
from pipeline import ROOT
from steps import Step


def test_a_step_is_run_once_and_its_failure_names_the_log(tmp_path: Path) -> None:
    execute = steps.in_a_process(tmp_path, 1)
    step = Step("show help", ["train.py", "--version"])
    execute(step)
    [log] = tmp_path.glob("steps/*.log")
    said = log.read_text(encoding="utf-8")
    assert said.startswith("mlsm ")
    execute(step)
    assert log.read_text(encoding="utf-8") == said
    with pytest.raises(ValueError, match=r"exit code 2: see .*steps/wrong\.log"):
        execute(Step("wrong", ["train.py", "--nonsense"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_experiment_and_waits_for_its_commands(
    number: signal.Signals, tmp_path: Path
) -> None:
    late = tmp_path / "late.txt"
    script = "import signal, sys, time, pathlib\ndef save(number, _):\n time.sleep(0.5)\n"
    script += f" pathlib.Path({str(late)!r}).write_text(str(number)); sys.exit()\n"
    script += "signal.signal(signal.SIGTERM, save)\nprint(flush=True)\nwhile True: time.sleep(0.1)"
    before = signal.signal(signal.SIGTERM, steps.stop_commands)
    # A shell's background jobs ignore it.
    before_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()

            def stop() -> None:
                while process not in steps._running:
                    time.sleep(0.01)
                time.sleep(0.3)
                os.kill(os.getpid(), number)
                if number == signal.SIGINT:  # which a terminal sends to both
                    process.terminate()

            threading.Thread(target=stop).start()
            with pytest.raises(KeyboardInterrupt):
                steps._exit_code(process)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before_interrupt)
    assert late.read_text(encoding="utf-8") == str(int(signal.SIGTERM))


@pytest.mark.parametrize("name", ["study", "recipe", "strong_teacher"])
def test_a_command_runs_from_any_folder(name: str, tmp_path: Path) -> None:
    flags = ["--budget=0"] if name == "recipe" else ["--corpus=x", "--data=x", "--budget=0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: budget must be above 0, got 0(\.0)?\n", done.stderr)


def test_the_time_of_a_run_is_that_of_its_updates(tmp_path: Path) -> None:
    lines = [{"step": 5, "processor_seconds": 90.0}, {"step": 10, "processor_seconds": 5.0}]
    lines += [{"step": 12, "processor_seconds": 6.0}, {"step": 17, "processor_seconds": 10.0}]
    lines.append({"step": 17, "heldout_cross_entropy": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert steps.processor_seconds(tmp_path) == 111.0
    assert steps.seconds_per_update(tmp_path) == 2.0  # the median of 1, 3 and 2
