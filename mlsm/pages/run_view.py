"""Runs as a page: one HTML file with results, curves and settings, and nothing from elsewhere.

The page is run_page.html, with the script run_page.js and its data as JSON. Without scripts it shows the same
tables, and the curves over updates. Nothing in a file of a run can run there: no tag can begin in the JSON,
all other text is escaped, and the page's policy allows only its own script and style, by their digests.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlsm.evaluation import paper
from mlsm.evaluation.babylm import curves as babylm
from mlsm.evaluation.recipes import recipe_of
from mlsm.evaluation.results import Numbers
from mlsm.evaluation.summary import demo_rows, over_seeds
from mlsm.evaluation.tables import Rows, as_html
from mlsm.pages.content_policy import content_policy
from mlsm.pages.run_curves import MEASURES, RunCurves, as_json, drawings, run_curves
from mlsm.pages.run_facts import (
    ENVIRONMENT_PARTS,
    SETTINGS_PARTS,
    RunFacts,
    compute_row,
    dictionary_rows,
    differing,
    glue_rows,
    learning_rows,
    record_rows,
    subtask_rows,
)
from mlsm.runs.revisions import MAIN

TEMPLATE = Path(__file__).with_name("run_page.html")
SCRIPT = Path(__file__).with_name("run_page.js")
MOST_NAMES = 4  # of runs in the title


def run_page(runs: Sequence[RunFacts], tasks: Rows, quoted_tasks: Rows, quoted_compute: Rows) -> str:
    """The page as HTML: the results of the runs, how they learnt, what they took, and their settings.

    `tasks` has the columns of the paper's tables, a row for each run and for means over seeds; the `quoted_`
    rows are the paper's own.
    """
    title = ", ".join(run.name for run in runs) if len(runs) <= MOST_NAMES else f"{len(runs)} runs"
    settings = record_rows(runs, SETTINGS_PARTS)
    compute = {run.name: compute_row(run) for run in runs}
    curves = run_curves(runs)
    script = SCRIPT.read_text(encoding="utf-8")
    template = TEMPLATE.read_text(encoding="utf-8")
    [style] = re.findall("<style>(.*?)</style>", template, re.DOTALL)
    parts = {
        "policy": content_policy(script, style),
        "title": html.escape(title),
        "results": _results(runs, tasks, quoted_tasks),
        "legend": _legend(curves),
        "curves": drawings(curves),
        "learning": as_html(learning_rows(runs, MEASURES), "Last values"),
        "compute": as_html({**compute, **quoted_compute}, "", quoted_compute)
        + _notes(
            "Rows in italics are quoted from the paper (Berend 2024) and do not compare with other models."
        )
        + as_html(dictionary_rows(runs), "Dictionaries that students learnt from"),
        "settings": as_html(differing(settings, runs) if len(runs) > 1 else {}, "Settings that differ")
        + _folded("All settings", as_html(settings, ""))
        + _folded("Text, concepts and environment", as_html(record_rows(runs, ENVIRONMENT_PARTS), "")),
        "data": as_json(curves),
        "script": script,
    }
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], template)


def _results(runs: Sequence[RunFacts], tasks: Rows, quoted_tasks: Rows) -> str:
    """Everything that evaluate.py measured."""
    sections = []
    if evaluated := {run.name: run for run in runs if run.results.demo}:
        demo = {name: run.results.demo for name, run in evaluated.items()}
        rows = demo_rows(demo, {name: run.results.demo_baseline for name, run in evaluated.items()})
        rows |= over_seeds(rows, {name: recipe_of(run.record) for name, run in evaluated.items()})
        sections += [as_html(rows, "Held-out text and minimal pairs of a small grammar"), _grammar(demo)]
    if tasks:
        sections.append(as_html({**tasks, **quoted_tasks}, "Tasks of the paper", quoted_tasks))
        sections.append(_notes(*paper.notes(quoted_tasks)))
    measured = {run.name: run.babylm[MAIN] for run in runs if MAIN in run.babylm}
    if entries := babylm.full_table(measured):
        quoted = {name.rstrip(" *"): row for name, row in babylm.baselines(entries).items()}
        sections.append(as_html({**entries, **quoted}, "Tasks of BabyLM 2026, the finished models", quoted))
        sections.append(_notes(f"Rows in italics are quoted from {babylm.SOURCE}."))
    for run in runs:
        by_words = as_html(babylm.fast_table(run.babylm), "")
        sections.append(_folded(f"{run.name}: fast tasks of BabyLM 2026 by words seen", by_words))
    for title, subtasks in subtask_rows(runs).items():
        sections.append(_folded(f"{title} by sub-task", as_html(subtasks, "")))
    sections.append(_folded("GLUE by seed", as_html(glue_rows(runs), "")))
    return "\n".join(sections) if any(sections) else "<p>None of these runs has been evaluated yet.</p>"


def _grammar(demo: Mapping[str, Numbers]) -> str:
    """The minimal pairs by phenomenon, for the runs that were measured on them; each cell has a bar, with a
    line at chance.
    """
    prefix = "pairs: "
    rows: dict[str, dict[str, float]] = {}
    for name, numbers in demo.items():
        for column, share in numbers.items():
            if column.startswith(prefix):
                rows.setdefault(column.removeprefix(prefix).replace("_", " "), {})[name] = share
    table = as_html(rows, "Minimal pairs by phenomenon: share that is right (line: chance)")
    bar = (
        r'\g<0><svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">'
        r'<rect width="\1" height="1"/><rect x="0.495" width="0.01" height="1" class="chance"/></svg>'
    )
    return re.sub(r"(?<=>)([01]\.\d+)(?=</td>)", bar, table)


def _legend(curves: Sequence[RunCurves]) -> str:
    """The runs and their strokes. The page's script replaces it by switches."""
    items = [
        '<li><svg class="swatch" viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" '
        f'stroke="{run.stroke.color}" stroke-dasharray="{run.stroke.svg_dashes}"/></svg> '
        f"<bdi>{html.escape(run.name)}</bdi></li>"
        for run in curves
    ]
    return f'<ul id="legend">{"".join(items)}</ul>'


def _notes(*lines: str) -> str:
    return f'<p class="faint">{"<br>".join(map(html.escape, lines))}</p>' if lines else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>" if content else ""
