"""The curves of the report: what each run logged, as numbers for the page's script and as drawings that need
no script.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mlsm.board import HELDOUT
from mlsm.figures import Stroke, stroke_of
from mlsm.pages.run_facts import RunFacts

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
MAX_POINTS = 1000  # of a curve; in longer ones neighbours are averaged
NUM_DIGITS = 5  # of a number on the page
WIDTH, HEIGHT = 400, 170  # of a drawing, in its own units
Values = list[float | None]


@dataclass(frozen=True)
class Curves:
    """Points of several curves: `axes` has their places by the name of an axis, `values` by a measure."""

    axes: Mapping[str, Values]
    values: Mapping[str, Values]


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run."""

    name: str
    stroke: Stroke
    training: Curves
    heldout: Curves

    @property
    def parts(self) -> tuple[Curves, Curves]:
        """What was logged while training, and on held-out text."""
        return self.training, self.heldout


def run_curves(runs: Sequence[RunFacts]) -> list[RunCurves]:
    """The curves of each run, in strokes that can be told apart."""
    return [_curves_of(run, stroke_of(number)) for number, run in enumerate(runs)]


def _curves_of(run: RunFacts, stroke: Stroke) -> RunCurves:
    seconds = 0.0
    places: list[dict[str, float]] = []  # of each line of training
    for line in run.training:
        seconds += line.get("seconds", math.nan)
        words = line.get("words_seen", math.nan)
        places.append({"step": line["step"], "words": words, "hours": seconds / 3600})
    heldout = [  # words and hours are those of the line of training before it
        next((place for place in reversed(places) if place["step"] <= line["step"]), {})
        | {"step": line["step"]}
        for line in run.heldout_lines
    ]
    return RunCurves(
        run.name,
        stroke,
        _thinned(_columns(places, run.training, "")),
        _columns(heldout, run.heldout_lines, HELDOUT),
    )


def _columns(
    places: Sequence[Mapping[str, float]], lines: Sequence[Mapping[str, float]], prefix: str
) -> Curves:
    """The columns that hold a number."""
    names = [name for name in MEASURES if any(prefix + name in line for line in lines)]
    return Curves(
        {axis: [_finite(place.get(axis)) for place in places] for axis in ("step", "words", "hours")},
        {name: [_finite(line.get(prefix + name)) for line in lines] for name in names},
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _thinned(curves: Curves) -> Curves:
    """At most MAX_POINTS points: means over equally many neighbours."""
    size = -(-len(curves.axes["step"]) // MAX_POINTS)
    if size <= 1:
        return curves
    axes, values = (
        {name: [_mean(column[i : i + size]) for i in range(0, len(column), size)] for name, column in part}
        for part in (curves.axes.items(), curves.values.items())
    )
    return Curves(axes, values)


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def measures_of(curves: Sequence[RunCurves]) -> dict[str, str]:
    """The titles of the measures that a run logged other values of than zero."""
    parts = [part.values for run in curves for part in run.parts]
    return {name: title for name, title in MEASURES.items() if any(any(p.get(name, ())) for p in parts)}


def as_json(curves: Sequence[RunCurves]) -> str:
    """The data of the page's script, without "<", so that no tag can begin in it."""
    content = {
        "measures": [
            {"name": name, "title": title, "from_zero": name not in IN_NATS}
            for name, title in measures_of(curves).items()
        ],
        "runs": [_rounded(asdict(run)) for run in curves],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _rounded(value: object) -> object:
    """A value of JSON with rounded numbers."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.{NUM_DIGITS}g}") if isinstance(value, float) else value


def drawings(curves: Sequence[RunCurves]) -> str:
    """A figure for each measure, over updates. The page's script replaces what is in each `svg`."""
    return "\n".join(_figure(curves, name, title) for name, title in measures_of(curves).items())


def _points(curves: Curves, name: str) -> list[tuple[float, float]]:
    """The points of a measure over updates."""
    pairs = zip(curves.axes["step"], curves.values.get(name, []), strict=False)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _figure(curves: Sequence[RunCurves], name: str, title: str) -> str:
    lines = [(run.stroke, part is run.heldout, _points(part, name)) for run in curves for part in run.parts]
    points = [point for *_, line in lines for point in line]
    least = min(y for _, y in points) if name in IN_NATS else 0.0
    last, most = max(x for x, _ in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[str, str]:
        height = (y - least) / (most - least or 1)
        return f"{(WIDTH - 8) * x / (last or 1):.1f}", f"{HEIGHT - 8 - (HEIGHT - 16) * height:.1f}"

    drawn = []
    for stroke, is_heldout, line in lines:
        places = [place(*point) for point in line]
        if is_heldout:
            drawn += [f'<circle cx="{x}" cy="{y}" r="4" stroke="{stroke.color}"/>' for x, y in places]
        else:
            path = " ".join(map(",".join, places))
            drawn.append(
                f'<polyline points="{path}" stroke="{stroke.color}" stroke-dasharray="{stroke.svg_dashes}"/>'
            )
    return (
        f'<figure class="panel" data-measure="{name}"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(drawn)}'
        f"</svg><p>from {least:.4g} (bottom) to {most:.4g} (top), over {last:,.0f} updates</p></figure>"
    )
