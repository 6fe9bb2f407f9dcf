"""Runs as a page: one HTML file with tables and curves, without a script and without anything from elsewhere.

The curves are SVG, each embedded as an image.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from mlsm.evaluation.recipes import recipe_of
from mlsm.evaluation.summary import demo_rows, over_seeds
from mlsm.evaluation.tables import Rows, as_html, draw_grammar
from mlsm.figures import new_figure
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

TEMPLATE = Path(__file__).with_name("run_page.html")
MEASURES = {
    "cross_entropy": "cross-entropy of words (nats)",
    "concept_kl": "KL to the concepts (nats)",
    "token_accuracy": "words predicted (share)",
    "top_concept_accuracy": "largest concept predicted (share)",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "nonzeros_per_code": "non-zeros per code",
    "gap_max": "worst relative duality gap",
    "dead_concepts": "concepts that no target used",
    "coding_share": "coding (share of the time)",
    "skipped_updates": "updates skipped",
}
IN_NATS = ("cross_entropy", "concept_kl")  # the axes of all other measures begin at zero
PANELS_PER_LINE = 3
MAX_POINTS = 400  # of a curve; in longer ones neighbours are averaged
# Lines that can be told apart without colour; the ninth run looks like the first.
STYLES = [(line, grey) for grey in ("0", "0.55") for line in ("-", "--", ":", "-.")]


def run_page(runs: Sequence[RunFacts], tasks: Rows, quoted_tasks: Rows, quoted_compute: Rows) -> str:
    """The page as HTML: what the runs took, how they learnt, their results and their settings.

    `tasks` has the columns of the paper's tables, a row for each run and for means over seeds; the `quoted_`
    rows are the paper's own.
    """
    names = html.escape(", ".join(run.name for run in runs))
    settings = record_rows(runs, SETTINGS_PARTS)
    compute = {run.name: compute_row(run) for run in runs}
    sections = [
        f"<h1>{names}</h1>",
        "<p>Rows in italics are quoted from the paper (Berend 2024): DeBERTa base on the text of BabyLM. "
        "They do not compare with models of another size or on other text.</p>",
        "<h2>Compute</h2>",
        as_html({**compute, **quoted_compute}, "", quoted_compute),
        "<h2>Learning</h2>",
        _image(
            draw_curves(runs), "What each run logged over its updates; the table below has the last values"
        ),
        as_html(learning_rows(runs, MEASURES), "Last values (circles above: held-out text)"),
        as_html(dictionary_rows(runs), "Dictionaries that students learnt from"),
        "<h2>Results</h2>",
        *_results(runs, tasks, quoted_tasks),
        "<h2>Settings</h2>",
        as_html(differing(settings, runs), "Settings that differ between the runs") if len(runs) > 1 else "",
        _folded("All settings", as_html(settings, "")),
        as_html(record_rows(runs, ENVIRONMENT_PARTS), "Text, concepts and environment"),
    ]
    body = "\n".join(section for section in sections if section)
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{title}", names, 1).replace("{body}", body, 1)


def _results(runs: Sequence[RunFacts], tasks: Rows, quoted_tasks: Rows) -> list[str]:
    """The sections on everything that evaluate.py measured."""
    sections = []
    if evaluated := {run.name: run for run in runs if run.results.demo}:
        demo = {name: run.results.demo for name, run in evaluated.items()}
        rows = demo_rows(demo, {name: run.results.demo_baseline for name, run in evaluated.items()})
        rows |= over_seeds(rows, {name: recipe_of(run.record) for name, run in evaluated.items()})
        drawing = BytesIO()
        with new_figure(drawing, 7, 4) as figure:
            draw_grammar(figure.subplots(), demo)
        sections += [
            as_html(rows, "Held-out text and minimal pairs of a small grammar"),
            _image(drawing, "Accuracy on minimal pairs by phenomenon", "small"),
        ]
    if tasks:
        sections.append(as_html({**tasks, **quoted_tasks}, "Tasks of the paper", quoted_tasks))
    for title, subtasks in subtask_rows(runs).items():
        sections.append(_folded(f"{title} by sub-task", as_html(subtasks, "")))
    sections.append(_folded("GLUE by seed", as_html(glue_rows(runs), "")))
    return sections if any(sections) else ["<p>None of these runs has been evaluated.</p>"]


def draw_curves(runs: Sequence[RunFacts]) -> BytesIO:
    """An SVG with a panel for each of MEASURES that a run logged; held-out values are circles."""
    shown = [name for name in MEASURES if any(line.get(name) for run in runs for line in run.training)]
    num_lines = max(1, -(-len(shown) // PANELS_PER_LINE))
    drawing = BytesIO()
    with new_figure(drawing, 12, 0.7 + 2.3 * num_lines) as figure:
        panels = figure.subplots(num_lines, PANELS_PER_LINE, squeeze=False).ravel()
        curves = {}  # one of each run, for the legend
        for axes, name in zip(panels, shown, strict=False):
            for number, run in enumerate(runs):
                style, grey = STYLES[number % len(STYLES)]
                if points := [(line["step"], line[name]) for line in run.training if name in line]:
                    [curves[run.name]] = axes.plot(*zip(*thinned(points), strict=True), style, color=grey)
                if (heldout := run.heldout.get(f"heldout_{name}")) is not None:
                    axes.plot(run.training[-1]["step"], heldout, "o", color=grey, fillstyle="none")
            axes.set_title(MEASURES[name], fontsize="medium")
            axes.ticklabel_format(useOffset=False)
            if name not in IN_NATS:
                axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        figure.legend(curves.values(), curves, loc="outside upper left", ncols=4, frameon=False)
        figure.supxlabel("update", fontsize="medium")
    return drawing


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means over equally many neighbours."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _image(svg: BytesIO, description: str, size: str = "wide") -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()
    return f'<figure class={size}><img src="{source}" alt="{html.escape(description)}"></figure>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>" if content else ""
