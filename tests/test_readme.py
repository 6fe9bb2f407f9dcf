"""The README says nothing that is not so: its commands parse, its files and flags exist."""

import re
import shlex

import pytest
from pipeline import ROOT

import evaluate
import fit_dictionary
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip().split("#")[0] for line in README.splitlines() if line.startswith("    ")]
PARSERS = {"train.py": train.flags, "fit_dictionary.py": fit_dictionary.flags, "evaluate.py": evaluate.parser}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_commands_parse(command: str) -> None:
    _, script, *flags = shlex.split(command)
    assert (ROOT / script).is_file()
    PARSERS[script]().parse_args(flags)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_files_and_flags_exist() -> None:
    for name in re.findall(r"`([\w./-]+\.(?:py|c|md|txt))`", README):
        is_of_a_run = name == "results.md"
        assert is_of_a_run or (ROOT / name).is_file(), name
    known = {option for parser in PARSERS.values() for option in parser()._option_string_actions}
    flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(COMMANDS)) + re.findall(r"`(--[a-z-]+)", README)
    for flag in flags:
        assert flag in known | {"--help"}, flag


def test_the_two_commands_that_were_asked_for_are_there_word_for_word() -> None:
    assert "python train.py --objective lsm --init random" in README
    assert "python fit_dictionary.py --layer 12 --k 1500 --lam 0.05" in README


def test_what_the_readme_says_of_the_embedded_corpus(tmp_path) -> None:
    from mlsm.data import embedded_corpus

    words = len(embedded_corpus(tmp_path).read_text(encoding="utf-8").split())
    assert f"({words:,} words" in README
