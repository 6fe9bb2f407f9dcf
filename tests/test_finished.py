"""A finished run that is resumed says so at once, and everything else is left to the training command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_text import NANO_FLAGS, text_flags, write_corpus

import train
from mlsm.finished import _is_finished, say_if_finished
from mlsm.runs.checkpoint import MODEL_FILE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and with a finished run of it."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder / "text.txt")
    train.main([*flags(folder), f"--output={folder / 'run'}"])
    return folder


def flags(folder: Path) -> list[str]:
    return ["--objective=mlm", "--resume", *text_flags(folder), *NANO_FLAGS]


def again(folder: Path) -> list[str]:
    """The flags without the size of the vocabulary: the tokenizer of a small text comes out smaller."""
    return [flag for flag in flags(folder) if not flag.startswith("--vocab-size")]


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that shows whether PyTorch was imported."""
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    words = [f"import sys; sys.argv[:] = sys.argv[1:]\n{code}", str(ROOT / "train.py"), *again(folder), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, env=environment)


def test_it_is_said_without_pytorch(folder: Path) -> None:
    run = folder / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = command(folder, f"--output={run}", "--device=cpu", "--log-every=3")
    assert result.returncode == 0
    assert result.stderr == f"{run} is finished\n"
    assert result.stdout == "False\n"
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_the_last_words_are_those_of_the_command_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([*flags(folder), f"--output={folder / 'run'}"])
    assert capsys.readouterr().err.splitlines()[-1] == f"{folder / 'run'} is finished"


def test_another_setting_is_refused_as_ever(folder: Path) -> None:
    result = command(folder, f"--output={folder / 'run'}", "--vocab-size=80", "--num-steps=7")
    assert result.returncode == 2
    assert "cannot resume" in result.stderr
    assert "num_steps was 6 and is now 7" in result.stderr
    assert result.stdout == "True\n"


GIVEN = {"objective": "mlm", "resume": True}
RECORD = {
    "preset": "tiny",
    "model": {"width": 16},
    "data": {"corpus": ["a", "b"]},
    "train": {"objective": "mlm", "learning_rate": 1e-3, "mask_share": [0.4, 0.1], "compile": None},
}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, True),
        ({"preset": "tiny"}, True),
        ({"preset": "small"}, False),
        ({"width": 16, "corpus": ("a", "b"), "learning_rate": 0.001}, True),
        ({"width": 17}, False),
        ({"corpus": ("a",)}, False),
        ({"corpus": ("a b",)}, False),
        ({"learning_rate": 0.002}, False),
        ({"compile": False}, False),
        ({"device": "cuda", "threads": 3, "output": Path("x"), "yes": True}, True),
        ({"unknown": 1}, False),
    ],
)
def test_settings_are_compared(more: dict[str, object], expected: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    (tmp_path / MODEL_FILE).touch()
    assert _is_finished(tmp_path, GIVEN | more) == expected
    (tmp_path / MODEL_FILE).unlink()
    assert not _is_finished(tmp_path, GIVEN | more)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"train": 1, "model": {}, "data": {}, "preset": "tiny"}', "null"]
)
def test_a_damaged_record_is_left_to_the_command(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / MODEL_FILE).touch()
    assert not _is_finished(tmp_path, GIVEN)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"a": ' + b" " * (1 << 20) + b"1}"])
def test_a_file_that_is_no_record_is_left_to_the_command(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / MODEL_FILE).touch()
    monkeypatch.setattr(sys, "argv", ["train.py", "--objective=mlm", "--resume", f"--output={tmp_path}"])
    monkeypatch.delenv("RANK", raising=False)
    say_if_finished("__main__", train.flags)  # returns


def test_a_run_without_resume_and_a_job_of_processes_are_left_to_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in again(folder) if word != "--resume"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, f"--output={folder / 'run'}"])
    say_if_finished("__main__", train.flags)
    monkeypatch.setattr(sys, "argv", ["train.py", *again(folder), f"--output={folder / 'run'}"])
    say_if_finished("train", train.flags)
    monkeypatch.setenv("RANK", "0")
    say_if_finished("__main__", train.flags)
    monkeypatch.delenv("RANK")
    with pytest.raises(SystemExit) as end:
        say_if_finished("__main__", train.flags)
    assert not end.value.code
