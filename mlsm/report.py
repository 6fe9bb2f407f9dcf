"""A page about runs: what they took, their curves, their results beside the paper's, how they were set.

    python -m mlsm.report runs/teacher runs/lsm-random runs/token-head-lsm-random
    python -m mlsm.report runs/lsm-teacher --paper 100M --output lsm.html

One HTML file that holds everything and can be sent or printed. It tells what the files of the runs hold, also
of a run that is still training; results are those that evaluate.py has left there. Nothing is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlsm import cli
from mlsm.directory import check_writable
from mlsm.evaluation import paper, summary
from mlsm.evaluation.lineage import lineage, row_names
from mlsm.evaluation.tables import Rows, columns_of
from mlsm.files import write_text
from mlsm.pages import run_view
from mlsm.pages.run_facts import read_facts

FILE = "report.html"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = cli.plain_parser(__doc__ or "")
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    made.add_argument(
        "--paper",
        choices=paper.SIZES,
        default="10M",
        help="words of the corpus whose rows are quoted from the paper (default: 10M)",
    )
    made.add_argument(
        "--output", type=Path, metavar="FILE", help=f"file to write (default: {FILE} in the last run)"
    )
    return made


def main(argv: list[str]) -> None:
    """Read the command line, read the runs, write the page."""
    args = parser().parse_args(argv)
    directories = list(dict.fromkeys(args.runs))
    output = args.output or directories[-1] / FILE
    if output.is_dir():
        raise ValueError(f"{output} is a directory; --output names a file")
    runs = [read_facts(*these) for these in zip(directories, row_names(directories), strict=True)]
    check_writable(output.parent)
    tasks = {run.name: row for run in runs if (row := summary.row(run.results))}
    tasks |= summary.over_seeds(tasks, {run.name: lineage(run.config) for run in runs if run.name in tasks})
    quoted: dict[str, Rows] = {
        "tasks": paper.quoted_rows(args.paper, columns_of(tasks)),
        "compute": paper.quoted_compute(args.paper),
    }
    write_text(output, run_view.page(runs, tasks, quoted))
    print(f"written: {output}")


if __name__ == "__main__":
    cli.run(main)
