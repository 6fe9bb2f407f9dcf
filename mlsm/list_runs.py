"""List the runs of a folder: their state, and what their files say of words seen, held-out text and tasks.

    mlsm runs
    python -m mlsm.list_runs runs/study

A run is finished, training now, resumable at its newest checkpoint, failed (its gradient was not finite ten
times in a row), or not begun. Numbers come from metrics.jsonl and results.json; no model is loaded. Runs with
a damaged file are listed by what is wrong, one line each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, show_help
from mlsm.settings import argument


@dataclass(frozen=True)
class Settings:
    """The folder that is searched."""

    directory: Path = argument("folder of the runs (default: runs)", "DIRECTORY", default=Path("runs"))


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

import re
from collections.abc import Iterator

from mlsm import cli
from mlsm.directory import is_in_use
from mlsm.evaluation import summary
from mlsm.evaluation.results import read_results
from mlsm.evaluation.tables import Cell, as_text
from mlsm.log import printable, read_metrics
from mlsm.runs.checkpoint import MODEL_FILE, newest_step
from mlsm.runs.record import read_record

DEEPEST = 2  # folders below the given one
HELDOUT = {
    "heldout_cross_entropy": "held-out loss",
    "heldout_token_accuracy": "accuracy",
    "heldout_concept_kl": "KL",
}


def find_runs(folder: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """The run directories in a folder and below it, in order of their names; none inside of a run."""
    if (folder / "config.json").exists():
        yield folder
    elif depth >= 0:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                yield from find_runs(path, depth - 1)


def state_of(run: Path) -> str:
    """The state of a run by the files that are there."""
    if (run / MODEL_FILE).exists():
        return "finished"
    if is_in_use(run):
        return "training"
    step = newest_step(run)
    names = [re.fullmatch(r"divergence-step-(\d{1,18})\.json", path.name) for path in run.iterdir()]
    failures = [int(name[1]) for name in names if name]
    if failures and max(failures) >= step:
        return f"failed at update {max(failures):,}"
    return f"resumable at update {step:,}" if step else "not begun"


def row_of(run: Path) -> dict[str, Cell | str]:
    """The row of a run. Raises ValueError or OSError if one of its files is damaged."""
    record, metrics, results = read_record(run), read_metrics(run), read_results(run)
    last = {name: value for line in metrics for name, value in line.items()}
    row: dict[str, Cell | str] = {"state": state_of(run), "objective": record.train.objective}
    row["updates"] = f"{last.get('step', 0):,} of {record.train.num_steps:,}"
    if "words_seen" in last:
        row["words seen"] = f"{last['words_seen']:,}"
        row["words in all"] = record.words_in_all(int(last["words_seen"]))
    row |= {title: last[name] for name, title in HELDOUT.items() if name in last}
    if "minimal pairs" in results.demo:
        row["minimal pairs"] = results.demo["minimal pairs"]
    return row | summary.row(results)


def main(argv: list[str]) -> None:
    """Read the command line, find the runs, print their table."""
    folder = command_line.parse(Settings, argv, __doc__ or "").directory
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; name the folder of the runs")
    rows, damaged = {}, []
    for run in find_runs(folder):
        name = str(run.relative_to(folder)) if run != folder else run.name
        try:
            rows[name] = row_of(run)
        except (ValueError, OSError) as error:
            damaged.append(f"damaged: {cli.one_line(error)}")
    if not rows and not damaged:
        raise ValueError(f"no run in {folder}: a run is a directory such as runs/lsm-random")
    if rows:
        print(as_text(rows, f"Runs in {printable(str(folder))}"))
    for line in damaged:
        print(line)


if __name__ == "__main__":
    cli.run(main)
