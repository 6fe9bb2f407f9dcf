"""From what a run's results.json holds to rows of a table, and to the run's results.md.

Legend of results.json: a key a task; zero-shot suites and GLUE carry the settings they were measured with.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlsm.evaluation.finetune import SeedResult, Settings, spread
from mlsm.evaluation.glue import TASKS
from mlsm.evaluation.lineage import Lineage
from mlsm.evaluation.minimal_pairs import SUITES, TIES, Scores, SubTask, summarize
from mlsm.evaluation.paper import EWOK_TIES_CORRECT, GLUE_AVERAGE
from mlsm.evaluation.tables import Cell, Spread, as_markdown
from mlsm.files import read_json

RESULTS_FILE = "results.json"
CHANCE = 0.5  # of a minimal pair


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run, empty without one. Raises ValueError if it cannot be told as a table."""
    path = folder / RESULTS_FILE
    results = read_json(path) if path.exists() else {}
    try:
        markdown(folder.name, results)
        json.dumps(results, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program ({error!r}); remove it") from None
    return results


def suite_result(
    subtasks: Sequence[SubTask],
    scores: dict[str, list[Scores]],
    *,
    reduction: str,
    ties: str,
    has_prefix: bool,
) -> dict[str, Any]:
    """A suite as results.json holds it."""
    summary = summarize(subtasks, scores, reduction, ties)
    by_ties = {name: summarize(subtasks, scores, reduction, name).average for name in TIES}
    return {
        **summary._asdict(),
        "average_by_ties": by_ties,
        "score": reduction,
        "ties": ties,
        "prefix": has_prefix,
    }


def glue_result(task: str, results: dict[int, SeedResult], settings: Settings) -> dict[str, Any]:
    """A GLUE task as results.json holds it."""
    over_seeds = spread(results, task)
    return {
        **(over_seeds._asdict() if over_seeds else {"mean": None, "failed": list(results)}),
        "seeds": {
            seed: {**result._asdict(), "scores": result.scores.get(task)} for seed, result in results.items()
        },
        "settings": asdict(settings),
    }


def row(results: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of a run, in the order of the paper's tables; of every task but the demo."""
    cells: dict[str, Cell] = {}
    for name, suite in SUITES.items():
        if name in results:
            cells[suite.title] = results[name]["average"]
    if "ewok" in results:
        cells[EWOK_TIES_CORRECT] = results["ewok"]["average_by_ties"]["correct"]
    glue = results.get("glue", {})
    for name, task in TASKS.items():
        if parts := glue.get(name):
            if parts["mean"] is None:
                cells[task.title] = Spread(math.nan, math.nan, 0, parts["failed"])
            else:
                cells[task.title] = Spread(
                    parts["mean"], parts["deviation"], parts["num_seeds"], parts["failed"]
                )
    is_complete = all(name in glue and not glue[name]["failed"] for name in TASKS)
    measured_by = {json.dumps([parts["settings"], sorted(parts["seeds"])]) for parts in glue.values()}
    if is_complete and len(measured_by) == 1:
        cells[GLUE_AVERAGE] = statistics.fmean(glue[name]["mean"] for name in TASKS)
    return cells


def over_seeds(
    rows: Mapping[str, Mapping[str, Cell]], lineages: Mapping[str, Lineage]
) -> dict[str, dict[str, Cell]]:
    """A row of means and deviations for every two or more rows of one recipe and of seeds that differ."""
    by_recipe: dict[str, dict[tuple[int, ...], str]] = {}
    num_rows: Counter[str] = Counter()
    for name, (recipe, seeds) in lineages.items():
        by_recipe.setdefault(recipe, {})[seeds] = name
        num_rows[recipe] += 1
    means: dict[str, dict[str, Cell]] = {}
    for recipe, by_seeds in by_recipe.items():
        names = list(by_seeds.values())
        if 1 < len(names) == num_rows[recipe]:
            shared = [column for column in rows[names[0]] if all(column in rows[name] for name in names)]
            spreads = {column: _spread([rows[name][column] for name in names]) for column in shared}
            means["mean of " + ", ".join(names)] = {c: s for c, s in spreads.items() if s is not None}
    return means


def _spread(cells: Sequence[Cell]) -> Spread | None:
    """None if a cell has no mean, as of a task whose every seed failed."""
    values = [cell.mean if isinstance(cell, Spread) else cell for cell in cells]
    failed = [seed for cell in cells if isinstance(cell, Spread) for seed in cell.failed]
    if any(map(math.isnan, values)):
        return None
    deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return Spread(statistics.fmean(values), deviation, len(values), failed)


def demo_rows(
    rows: Mapping[str, Mapping[str, float]], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Cell]]:
    """The demo's rows without the single phenomena, and one baseline where those of all runs agree, else one
    a run.
    """
    shown: dict[str, dict[str, Cell]] = {
        name: {column: value for column, value in row.items() if not column.startswith("pairs: ")}
        for name, row in rows.items()
    }
    common = {column: value for baseline in baselines.values() for column, value in baseline.items()}
    if all(baseline.items() <= common.items() for baseline in baselines.values()):
        return shown | {"baseline": dict(common)}
    return shown | {f"baseline of {name}": dict(baseline) for name, baseline in baselines.items()}


def floor_row(results: Mapping[str, Any], majority: Mapping[str, float]) -> dict[str, Cell]:
    """What no model is needed for: chance in pairs, the majority class in GLUE; for tasks in `results`."""
    cells: dict[str, Cell] = {suite.title: CHANCE for name, suite in SUITES.items() if name in results}
    cells |= {TASKS[name].title: score for name, score in majority.items()}
    if majority.keys() == TASKS.keys():
        cells[GLUE_AVERAGE] = statistics.fmean(majority.values())
    return cells


def markdown(name: str, results: Mapping[str, Any]) -> str:
    """results.md of a run: everything in its results.json."""
    sections = []
    if "demo" in results:
        rows = {name: results["demo"], "baseline": results.get("demo baseline", {})}
        sections.append("## Held-out text and minimal pairs of our grammar\n\n" + as_markdown(rows))
    if cells := row(results):
        sections.append("## Tasks\n\n" + as_markdown({name: cells}))
    for suite_name, suite in SUITES.items():
        if suite_name in results:
            sections.append(_suite_section(suite.title, suite.num_files, results[suite_name]))
    if "glue" in results:
        sections.append(_glue_section(results["glue"]))
    return "\n".join(sections)


def _suite_section(title: str, num_files: int, result: Mapping[str, Any]) -> str:
    found = len(result["subtasks"])
    prefix = ", with the official prefix" if result["prefix"] else ""
    lines = [
        f"## {title}",
        "",
        f"Score: {result['score']} of log p over the tokens{prefix}; ties count as {result['ties']} "
        f"({result['num_ties']} of {result['num_pairs']} pairs tie). Averages are over sub-tasks: {found} "
        f"here, {num_files} in the official data.",
        "",
        "| | accuracy |",
        "| --- | ---: |",
        f"| **average** | {result['average']:.4f} |",
        *(f"| *{group}* | {value:.4f} |" for group, value in result["groups"].items()),
        *(f"| {subtask} | {value:.4f} |" for subtask, value in result["subtasks"].items()),
    ]
    return "\n".join(lines) + "\n"


def _glue_section(result: Mapping[str, Any]) -> str:
    lines = ["## GLUE by seed", "", "| | seed | metric | best epoch | truncated | |", "|" + " --- |" * 6]
    for name, task in result.items():
        for seed, one in task["seeds"].items():
            metric = "failed" if one["scores"] is None else f"{one['scores']:.4f}"
            lines.append(
                f"| {TASKS[name].title} | {seed} | {metric} | {one['epoch']} | {one['num_truncated']} | "
                f"{one['failure']} |"
            )
    return "\n".join(lines) + "\n"
