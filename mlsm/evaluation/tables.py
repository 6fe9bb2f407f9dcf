"""Results as people read them: a table on the screen, the same in Markdown, and a picture."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlsm.files import write_whole
from mlsm.log import read_metrics


class Spread(NamedTuple):
    """A metric over seeds."""

    mean: float
    deviation: float  # sample standard deviation; 0 of a single seed, and not shown then
    num_seeds: int  # that finished
    failed: Sequence[int] = ()  # seeds without a result


Cell = float | Spread
Rows = Mapping[str, Mapping[str, Cell | str]]  # row name -> column name -> value


def columns_of(rows: Rows) -> list[str]:
    """All columns in the order in which they first appear."""
    return list(dict.fromkeys(name for values in rows.values() for name in values))


def _cell(value: Cell | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Spread):
        if not value.num_seeds:
            return f"failed ({len(value.failed)})"
        failed = f", {len(value.failed)} failed" if value.failed else ""
        deviation = f" ±{value.deviation:.3f}" if value.num_seeds > 1 else ""
        return f"{value.mean:.3f}{deviation} ({value.num_seeds}{failed})"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def as_text(rows: Rows, title: str) -> str:
    """Columns aligned for a terminal: numbers to the right, text to the left."""
    lines = [["", *columns_of(rows)]]
    is_text = [True, *(any(isinstance(r.get(c), str) for r in rows.values()) for c in lines[0][1:])]
    lines += [[name, *(_cell(values.get(c)) for c in lines[0][1:])] for name, values in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, shown[0], "-" * max(map(len, shown)), *shown[1:]])


def as_markdown(rows: Rows) -> str:
    """The same as a Markdown table."""
    columns = columns_of(rows)
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(values.get(c)) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def as_html(rows: Rows, caption: str, quoted: Collection[str] = ()) -> str:
    """The same as an HTML table, "" without rows; rows that are `quoted` have that class."""
    if not rows:
        return ""
    columns = columns_of(rows)

    def line(cells: Iterable[str], kind: str) -> str:
        return "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)

    body = "".join(
        f"<tr{' class=quoted' if name in quoted else ''}><th scope=row>{html.escape(name)}</th>"
        + line((_cell(values.get(column)) for column in columns), "td")
        + "</tr>\n"
        for name, values in rows.items()
    )
    head = f"<thead><tr><td></td>{line(columns, 'th')}</tr></thead>"
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<div class=scroll><table>{title}{head}<tbody>\n{body}</tbody></table></div>"


def draw(path: Path, runs: Mapping[str, Path], rows: Mapping[str, Mapping[str, float]]) -> None:
    """One picture: the loss of each run (by its name) over its updates, and the accuracy of minimal pairs by
    phenomenon.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, bars) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    _draw_losses(curves, runs)
    draw_grammar(bars, rows)
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=150))
    pyplot.close(figure)


def _draw_losses(axes: Any, runs: Mapping[str, Path]) -> None:
    styles = ["-", "--", ":", "-."]
    for number, (title, run) in enumerate(runs.items()):
        metrics = [m for m in read_metrics(run) if "cross_entropy" in m or "concept_kl" in m]
        measure = "concept_kl" if any("concept_kl" in m for m in metrics) else "cross_entropy"
        name = "KL to the concepts" if measure == "concept_kl" else "cross-entropy of words"
        shown = [(m["step"], m[measure]) for m in metrics if measure in m]
        if shown:
            style = styles[number % len(styles)]
            axes.plot(*zip(*shown, strict=True), style, color="black", label=f"{title}: {name}")
    axes.set(xlabel="update", ylabel="training loss (nats per token)", title="Learning")
    _legend_below(axes)


def draw_grammar(axes: Any, rows: Rows) -> None:
    """Accuracy of minimal pairs by phenomenon (columns "pairs: ..."), a bar a row that has them."""
    greys = ["0.15", "0.45", "0.65", "0.8"]
    phenomena = [c for c in columns_of(rows) if c.startswith("pairs: ")]
    named = [name for name in rows if any(p in rows[name] for p in phenomena)]
    height = 0.8 / max(1, len(named))
    for number, name in enumerate(named):
        places = [i + number * height for i in range(len(phenomena))]
        values = [rows[name].get(p, 0.0) for p in phenomena]
        axes.barh(places, values, height, color=greys[number % len(greys)], edgecolor="black", label=name)
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(phenomena))])
    axes.set_yticklabels([p.removeprefix("pairs: ").replace("_", " ") for p in phenomena])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of minimal pairs right (chance: 0.5)", title="Grammar")
    _legend_below(axes)


def _legend_below(axes: Any) -> None:
    """Where no curve can cross it."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))
