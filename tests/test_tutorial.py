"""The commands of docs/tutorial.md, in order, on a small text and with small models."""

import re
import shlex
from pathlib import Path

import pytest
from pipeline import ROOT
from small_text import NANO_FLAGS, write_corpus

import evaluate
import fit_dictionary
import train
from mlsm import concepts, export, report

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
MAINS = {
    "train.py": train.main,
    "fit_dictionary.py": fit_dictionary.main,
    "evaluate.py": evaluate.main,
    "mlsm.concepts": concepts.main,
    "mlsm.report": report.main,
    "mlsm.export": export.main,
}
SHORT = [flag for flag in NANO_FLAGS if flag.startswith(("--batch", "--token", "--num-steps", "--check"))]
SMALLER = {
    "fit_dictionary.py": ["--k=24", "--num-tokens=900", "--num-updates=2", "--batch-size=100"],
    "mlsm.concepts": ["--num-tokens=300"],
}


def test_the_commands_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [program] = re.findall(r'^python -c "(.*)"$', PAGE, re.MULTILINE)
    exec(program, {})
    assert (tmp_path / "corpora" / "world-english-bible.txt").exists()
    write_corpus(tmp_path / "text.txt")
    commands = re.findall(r"^    python (?:-m )?(.*)$", PAGE, re.MULTILINE)
    assert {shlex.split(command)[0] for command in commands} == MAINS.keys()
    for command in commands:
        script, *flags = shlex.split(command)
        smaller = SMALLER.get(script, [])
        if script == "train.py":
            smaller = NANO_FLAGS if "--corpus" in flags else SHORT
        MAINS[script]([*flags, *smaller])
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(program, {})
    for file in ("runs/token-head-lsm-random/report.html", "runs/lsm-random/concepts.html", "exported/words"):
        assert (tmp_path / file).exists()
