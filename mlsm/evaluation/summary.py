"""The results of runs as rows of tables, and as the text of results.md."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlsm.evaluation.glue_scores import GlueResult
from mlsm.evaluation.minimal_pairs import SuiteResult
from mlsm.evaluation.paper import EWOK_TIES_CORRECT, GLUE_AVERAGE
from mlsm.evaluation.recipes import Recipe
from mlsm.evaluation.results import RESULTS_FILE, Numbers, Results, read_results, results_json
from mlsm.evaluation.tables import Cell, Spread, as_markdown
from mlsm.evaluation.tasks import GLUE, SUITES, Suite
from mlsm.files import write_json, write_text

CHANCE = 0.5  # of a minimal pair


def store(folder: Path, name: str, new: Results) -> None:
    """Add new results to the results.json of a run, and write its results.md anew. Results of other weights
    are dropped.
    """
    results = read_results(folder).updated(new)
    write_json(folder / RESULTS_FILE, results_json(results))
    write_text(folder / "results.md", markdown(name, results))


def row(results: Results) -> dict[str, Cell]:
    """The cells of a run, in the order of the paper's tables, for all tasks but the demo. There is an average
    of GLUE if all its tasks were measured with the same settings and seeds, and no seed failed.
    """
    cells: dict[str, Cell] = {
        suite.title: results.suites[name].average for name, suite in SUITES.items() if name in results.suites
    }
    if ewok := results.suites.get("ewok"):
        cells[EWOK_TIES_CORRECT] = ewok.average_by_ties["correct"]
    spreads = {name: results.glue[name].spread for name in GLUE if name in results.glue}
    cells |= {GLUE[name].title: spread for name, spread in spreads.items()}
    measured_by = {(result.settings, *sorted(result.seeds)) for result in results.glue.values()}
    has_failed = any(spread.failed for spread in spreads.values())
    if spreads.keys() == GLUE.keys() and len(measured_by) == 1 and not has_failed:
        cells[GLUE_AVERAGE] = statistics.fmean(spread.mean for spread in spreads.values())
    return cells


def numbers(results: Results) -> dict[str, float]:
    """Every measure of a run as one number, of seeds their mean; without those that are not finite."""
    cells = {**results.demo, **row(results)}
    values = {title: cell.mean if isinstance(cell, Spread) else cell for title, cell in cells.items()}
    return {title: value for title, value in values.items() if math.isfinite(value)}


def over_seeds(
    rows: Mapping[str, Mapping[str, Cell]], recipes: Mapping[str, Recipe]
) -> dict[str, dict[str, Cell]]:
    """A row of means and deviations for every two or more rows of one recipe with different seeds."""
    by_recipe: dict[str, dict[tuple[int, ...], str]] = {}
    num_rows: Counter[str] = Counter()
    for name, (settings, seeds) in recipes.items():
        by_recipe.setdefault(settings, {})[seeds] = name
        num_rows[settings] += 1
    means: dict[str, dict[str, Cell]] = {}
    for settings, by_seeds in by_recipe.items():
        names = list(by_seeds.values())
        if 1 < len(names) == num_rows[settings]:
            shared = [column for column in rows[names[0]] if all(column in rows[name] for name in names)]
            spreads = {column: _spread([rows[name][column] for name in names]) for column in shared}
            means["mean of " + ", ".join(names)] = {c: s for c, s in spreads.items() if s is not None}
    return means


def _spread(cells: Sequence[Cell]) -> Spread | None:
    """The mean and the deviation of cells; None if one of them has no mean because all its seeds failed."""
    values = [cell.mean if isinstance(cell, Spread) else cell for cell in cells]
    failed = [seed for cell in cells if isinstance(cell, Spread) for seed in cell.failed]
    if any(map(math.isnan, values)):
        return None
    deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return Spread(statistics.fmean(values), deviation, len(values), failed)


def demo_rows(rows: Mapping[str, Numbers], baselines: Mapping[str, Numbers]) -> dict[str, dict[str, Cell]]:
    """The rows of the demo without single phenomena. The baselines of all runs are one row if they agree, and
    else one row per run.
    """
    shown: dict[str, dict[str, Cell]] = {
        name: {column: value for column, value in row.items() if not column.startswith("pairs: ")}
        for name, row in rows.items()
    }
    common = {column: value for baseline in baselines.values() for column, value in baseline.items()}
    if all(baseline.items() <= common.items() for baseline in baselines.values()):
        return shown | {"baseline": dict(common)}
    return shown | {f"baseline of {name}": dict(baseline) for name, baseline in baselines.items()}


def chance_row(results: Results, majority: Mapping[str, float]) -> dict[str, Cell]:
    """The scores that need no model, for the suites in `results` and the GLUE tasks in `majority`: guessing
    between the texts of a pair, and the majority class.
    """
    cells: dict[str, Cell] = {suite.title: CHANCE for name, suite in SUITES.items() if name in results.suites}
    cells |= {GLUE[name].title: score for name, score in majority.items()}
    if majority.keys() == GLUE.keys():
        cells[GLUE_AVERAGE] = statistics.fmean(majority.values())
    return cells


def markdown(name: str, results: Results) -> str:
    """The text of results.md: everything in the results of a run; nothing without results."""
    sections = []
    if results.demo:
        rows = {name: results.demo, "baseline": results.demo_baseline}
        sections.append("## Held-out text and minimal pairs of our grammar\n\n" + as_markdown(rows))
    if cells := row(results):
        sections.append("## Tasks\n\n" + as_markdown({name: cells}))
    sections += [_suite_section(SUITES[suite], result) for suite, result in results.suites.items()]
    if results.glue:
        sections.append(_glue_section(results.glue))
    return "\n".join(sections)


def _suite_section(suite: Suite, result: SuiteResult) -> str:
    prefix = ", with the official prefix" if result.prefix else ""
    shares = {
        "**average**": result.average,
        **{f"*{group}*": share for group, share in result.groups.items()},
        **result.subtasks,
    }
    table = as_markdown({title: {"accuracy": f"{share:.4f}"} for title, share in shares.items()})
    return (
        f"## {suite.title}\n\n"
        f"Score: {result.score} of log p over the tokens{prefix}; ties count as {result.ties} "
        f"({result.num_ties} of {result.num_pairs} pairs tie). Averages are over sub-tasks: "
        f"{len(result.subtasks)} here, {suite.num_files} in the official data.\n\n{table}"
    )


def _glue_section(results: Mapping[str, GlueResult]) -> str:
    rows = {
        f"{GLUE[name].title}, seed {seed}": {
            "metric": "failed" if one.score is None else f"{one.score:.4f}",
            "best epoch": str(one.epoch),
            "truncated": str(one.num_truncated),
            "failure": one.failure,
        }
        for name, result in results.items()
        for seed, one in result.seeds.items()
    }
    settings = {
        f"Learning rate {one.settings.learning_rate:g}, batches of {one.settings.batch_size}, at most "
        f"{one.settings.max_epochs} epochs."
        for one in results.values()
    }
    return "## GLUE by seed\n\n" + "\n".join(sorted(settings)) + "\n\n" + as_markdown(rows)
