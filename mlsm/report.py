"""Write a page about runs: their results beside the paper's, how they learnt, what they took, their settings.

    python -m mlsm.report runs/teacher runs/lsm-random runs/token-head-lsm-random
    python -m mlsm.report runs/lsm-teacher --paper 100M --output lsm.html

The page is one HTML file that holds everything it shows. Its curves are drawn over updates, words or hours;
runs are switched on and off, and parts of a curve enlarged. It is made from the files of the runs, which may
still be training; results are those that evaluate.py has written there. No model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, show_help
from mlsm.evaluation.tasks import SIZES
from mlsm.settings import argument, option

DEFAULT_NAME = "report.html"


@dataclass(frozen=True)
class Settings:
    """Which runs the page is about, and where it is written."""

    runs: tuple[Path, ...] = argument("directory of a run", "RUN")
    paper: str = option("10M", "words of the corpus whose rows are quoted from the paper", SIZES)
    output: Path | None = option(
        None, f"file to write (default: {DEFAULT_NAME} in the last run)", metavar="FILE"
    )


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

from mlsm import cli
from mlsm.directory import check_writable
from mlsm.evaluation import paper, summary
from mlsm.evaluation.recipes import recipe_of, row_names
from mlsm.evaluation.tables import columns_of
from mlsm.files import write_text
from mlsm.log import printable
from mlsm.pages.run_facts import read_facts
from mlsm.pages.run_view import run_page


def main(argv: list[str]) -> None:
    """Read the command line, read the runs, write the page."""
    args = command_line.parse(Settings, argv, __doc__ or "")
    directories = list(dict.fromkeys(args.runs))
    output = args.output or directories[-1] / DEFAULT_NAME
    if output.is_dir():
        raise ValueError(f"{output} is a directory; --output names a file")
    runs = [*map(read_facts, directories, row_names(directories))]
    check_writable(output.parent)
    tasks = {run.name: row for run in runs if (row := summary.row(run.results))}
    tasks |= summary.over_seeds(tasks, {run.name: recipe_of(run.record) for run in runs if run.name in tasks})
    quoted_tasks = paper.quoted_rows(args.paper, columns_of(tasks))
    write_text(output, run_page(runs, tasks, quoted_tasks, paper.quoted_compute(args.paper)))
    print(f"written: {printable(str(output))}")


if __name__ == "__main__":
    cli.run(main)
