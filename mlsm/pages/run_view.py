"""Runs as people look at them: curves in black and white, and a page of one file.

The page needs nothing from elsewhere and runs no script. Its pictures are SVG, each an image of its own.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlsm.evaluation.recipes import recipe_of
from mlsm.evaluation.summary import demo_rows, over_seeds
from mlsm.evaluation.tables import Rows, as_html, draw_grammar
from mlsm.pages.run_facts import (
    ASKED_FOR,
    FOUND,
    RunFacts,
    compute_row,
    dictionary_rows,
    differing,
    glue_rows,
    learning_rows,
    settings_rows,
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
IN_NATS = ("cross_entropy", "concept_kl")  # the axes of all others begin at zero
COLUMNS = 3  # of panels
MOST_POINTS = 400  # of a curve; longer ones are means of neighbours
# Lines that can be told apart without colour; after eight they come again.
STYLES = [(line, grey) for grey in ("0", "0.55") for line in ("-", "--", ":", "-.")]


def page(runs: Sequence[RunFacts], tasks: Rows, quoted: Mapping[str, Rows]) -> str:
    """The page as one text: what the runs took, how they learnt, what they can do, how they were set.

    `tasks` are the columns of the paper's tables by run, means over seeds among them; `quoted` the paper's
    own rows, of "tasks" and of "compute".
    """
    names = ", ".join(run.name for run in runs)
    settings = settings_rows(runs, ASKED_FOR)
    sections = [
        f"<h1>{html.escape(names)}</h1>",
        "<p>Rows in italics are quoted from the paper (Berend 2024): DeBERTa base on the text of BabyLM, "
        "which other sizes on other text cannot be held to.</p>",
        "<h2>What it took</h2>",
        as_html(
            {run.name: compute_row(run) for run in runs} | dict(quoted["compute"]), "", quoted["compute"]
        ),
        "<h2>Learning</h2>",
        _image(draw_curves(runs), "What each run logged over its updates; the table below has the ends"),
        as_html(learning_rows(runs, MEASURES), "At the end (circles above: text held out)"),
        as_html(dictionary_rows(runs), "Dictionaries that students learnt from"),
        "<h2>Results</h2>",
        *_results(runs, tasks, quoted["tasks"]),
        "<h2>Settings</h2>",
        as_html(differing(settings, runs), "What differs between the runs") if len(runs) > 1 else "",
        _folded("All settings", as_html(settings, "")),
        as_html(settings_rows(runs, FOUND), "Text, concepts and environment"),
    ]
    body = "\n".join(section for section in sections if section)
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{title}", html.escape(names), 1).replace("{body}", body, 1)


def _results(runs: Sequence[RunFacts], tasks: Rows, quoted: Rows) -> list[str]:
    """Whatever evaluate.py left in the runs."""
    parts = []
    demo = {run.name: run.results.demo for run in runs if run.results.demo}
    if demo:
        baselines = {run.name: run.results.demo_baseline for run in runs if run.name in demo}
        shown = demo_rows(demo, baselines)
        shown |= over_seeds(shown, {run.name: recipe_of(run.record) for run in runs if run.name in demo})
        parts += [
            as_html(shown, "Held-out text and minimal pairs of a small grammar"),
            _image(
                _picture(lambda axes: draw_grammar(axes, demo)), "Minimal pairs right, by phenomenon", "small"
            ),
        ]
    if tasks:
        parts.append(as_html({**tasks, **quoted}, "Tasks of the paper", quoted))
    for title, rows in subtask_rows(runs).items():
        parts.append(_folded(f"{title} by sub-task", as_html(rows, "")))
    if by_seed := glue_rows(runs):
        parts.append(_folded("GLUE by seed", as_html(by_seed, "")))
    return parts or ["<p>None of these runs has been evaluated.</p>"]


def draw_curves(runs: Sequence[RunFacts]) -> bytes:
    """An SVG with a panel for everything in MEASURES that a run logged; held-out values are circles."""
    shown = [name for name in MEASURES if any(line.get(name) for run in runs for line in run.training)]
    num_lines = max(1, -(-len(shown) // COLUMNS))

    def draw(figure: Any) -> None:
        panels = figure.subplots(num_lines, COLUMNS, squeeze=False).ravel()
        lines = {}
        for axes, name in zip(panels, shown, strict=False):
            for number, run in enumerate(runs):
                style, grey = STYLES[number % len(STYLES)]
                if points := [(line["step"], line[name]) for line in run.training if name in line]:
                    [lines[run.name]] = axes.plot(*zip(*thinned(points), strict=True), style, color=grey)
                if (heldout := run.heldout.get(f"heldout_{name}")) is not None:
                    axes.plot(run.training[-1]["step"], heldout, "o", color=grey, fillstyle="none")
            axes.set_title(MEASURES[name], fontsize="medium")
            axes.ticklabel_format(useOffset=False)
            if name not in IN_NATS:
                axes.set_ylim(0, 1.05 * axes.dataLim.y1)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        named = [run.name for run in runs if run.name in lines]
        figure.legend(
            [lines[name] for name in named], named, loc="outside upper left", ncols=4, frameon=False
        )
        figure.supxlabel("update", fontsize="medium")

    return _svg(draw, 12, 0.7 + 2.3 * num_lines)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of as many neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _picture(draw: Callable[[Any], None]) -> bytes:
    return _svg(lambda figure: draw(figure.subplots()), 7, 4)


def _svg(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """A figure, in inches; names are text there, never formulas, and the same figure is the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "svg.hashsalt": "mlsm"}):
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        draw(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return drawn.getvalue()


def _image(svg: bytes, description: str, size: str = "wide") -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return f'<figure class={size}><img src="{source}" alt="{html.escape(description)}"></figure>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>" if content else ""
