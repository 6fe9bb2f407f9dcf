"""Flags and settings files: which of them wins, and what is refused with which words."""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipeline import ROOT

import train
from mlsm import list_runs
from mlsm.__main__ import COMMANDS
from mlsm.command_line import parse, parse_flags
from mlsm.settings import Line, argument, option


@dataclass(frozen=True)
class Settings:
    """One field of each kind."""

    runs: tuple[Path, ...] = argument("directories", "RUN")
    size: int = option(dataclasses.MISSING, "required")
    rate: float = option(0.5, "a number", is_common=True)
    name: str = option("a", "one of two", ("a", "b"))
    files: tuple[str, ...] = option((), "some", metavar="FILE")
    folder: Path | None = option(None, "a folder")
    share: Line = option(Line(0.1), "a line")
    resume: bool = option(False, "go on")


TOML = (
    'size = 3\nrate = 2\nname = "b"\nfiles = ["x", "y"]\nfolder = "here"\nshare = "0.4:0.1"\nresume = true\n'
)


def with_file(folder: Path, text: str, *argv: str) -> Settings:
    path = folder / "run.toml"
    path.write_text(text)
    return parse(Settings, [*argv, f"--config={path}"], "")


def test_an_argument_with_a_default_may_be_left_out() -> None:
    assert parse(list_runs.Settings, [], "") == list_runs.Settings(Path("runs"))
    assert parse(list_runs.Settings, ["there"], "") == list_runs.Settings(Path("there"))


def test_a_settings_file_sets_every_kind_of_flag(tmp_path: Path) -> None:
    expected = Settings((Path("r"),), 3, 2.0, "b", ("x", "y"), Path("here"), Line(0.4, 0.1), True)
    assert with_file(tmp_path, TOML, "r") == expected
    assert isinstance(with_file(tmp_path, TOML, "r").rate, float)
    assert with_file(tmp_path, 'size = 3\nfiles = "x"\nshare = 0.2', "r").files == ("x",)


def test_flags_win_over_the_settings_file(tmp_path: Path) -> None:
    flags = ["--size=4", "--rate=1", "--name=a", "--folder=z", "--share=0.3", "--no-resume", "--files", "q"]
    expected = Settings((Path("r"), Path("s")), 4, 1.0, "a", ("q",), Path("z"), Line(0.3), False)
    assert with_file(tmp_path, TOML, "r", "s", *flags) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise = 3", "run.toml: there is no setting sise; did you mean size?"),
        ("[train]\nsize = 3", "run.toml: there is no setting train"),
        ("runs = ['r']", "run.toml: there is no setting runs"),
        ("size = 3.5", "run.toml: size takes a whole number, got 3.5"),
        ("size = true", "run.toml: size takes a whole number, got True"),
        ("size = [3]", r"run.toml: size takes a whole number, got \[3\]"),
        ("rate = '2'", "run.toml: rate takes a number, got '2'"),
        ("resume = 1", "run.toml: resume takes true or false, got 1"),
        ("files = [1]", "run.toml: files takes a text in quotes, got 1"),
        ("files = []", r"run.toml: files takes a text in quotes, got \[\]"),
        ("name = 'c'", "run.toml: name takes one of a, b, got 'c'"),
        ("share = 'x'", "run.toml: share a number, or two as 0.4:0.15, is needed"),
        ("size = ", "run.toml is not TOML"),
        ("size = 3\nsize = 4", "run.toml is not TOML"),
    ],
)
def test_what_a_settings_file_may_not_hold_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        with_file(tmp_path, text, "r")


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(ValueError, match="no settings file at"):
            parse(Settings, ["r", "--config", str(path)], "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-step=5"], "there is no flag --num-step; did you mean --num-steps?"),
        (["--object", "mlm"], "there is no flag --object; did you mean --objective?"),
        (["--qqqq"], r"there is no flag --qqqq \(see --help\)"),
        (["mlm"], "'mlm' is one too many"),
    ],
)
def test_unknown_flags_and_abbreviations_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_flags(train.flags(), flags)


def test_help_shows_the_common_flags_first_after_a_short_usage() -> None:
    usage, _, rest = train.flags().format_help().partition("\n\n")
    assert usage == f"usage: {train.flags().prog} [--flag ...]"
    common, _, others = rest.partition("\ncommon:\n")[2].partition("\n\n")
    for flag in ("--objective", "--corpus", "--preset", "--num-steps", "--resume", "--config"):
        assert f"\n  {flag}" in "\n" + common
        assert f"\n  {flag}" not in others


# As a user starts them, with the words that the usage begins with.
STARTS = {
    "mlsm": "usage: mlsm COMMAND",
    **{f"mlsm {command} --help": f"usage: mlsm {command} " for command in COMMANDS},
    **{
        f"{script} --help": f"usage: {script} " for script in ("train.py", "fit_dictionary.py", "evaluate.py")
    },
    **{
        f"mlsm.{module} --help": f"usage: python -m mlsm.{module} "
        for module in ("concepts", "export", "list_runs", "report")
    },
}


def help_of(words: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
    """Start a command in a new Python, which writes the names of the modules it imports to stderr."""
    prefix = [] if words[0].endswith(".py") else ["-m"]
    return subprocess.run(
        [sys.executable, "-X", "importtime", *prefix, *words],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("start", STARTS)
def test_help_does_not_wait_for_pytorch(start: str) -> None:
    result = help_of(start.split(), subprocess.PIPE)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert result.returncode == 0
    assert result.stdout.startswith(STARTS[start])
    assert "mlsm.settings" in imported
    assert "torch" not in imported


def test_help_does_not_wait_for_its_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    gone = help_of(["train.py", "--help"], writer)
    os.close(writer)
    assert gone.returncode == 0
    assert {line.partition(":")[0] for line in gone.stderr.splitlines()} == {"import time"}


def test_a_command_that_does_not_exist_is_answered_with_one_that_does() -> None:
    for words, message in (
        (["tran"], "error: 'tran' is not a command; did you mean train?"),
        (["xyz"], "error: 'xyz' is not a command; take one of train, "),
    ):
        result = subprocess.run([sys.executable, "-m", "mlsm", *words], cwd=ROOT, capture_output=True)
        assert result.returncode == 2
        assert result.stderr.decode().startswith(message)
