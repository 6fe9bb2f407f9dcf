"""Tables of results as aligned text, Markdown and HTML, and the figures that evaluate.py draws.

Names and texts may come from other people's files, so every cell is made printable.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlsm.figures import new_figure, stroke_of
from mlsm.log import printable, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Spread(NamedTuple):
    """A metric over seeds."""

    mean: float
    deviation: float  # sample standard deviation; 0 of a single seed, and not shown then
    num_seeds: int  # that finished
    failed: Sequence[int] = ()  # seeds without a result


Cell = float | Spread
Row = Mapping[str, Cell | str]  # values by the name of their column
Rows = Mapping[str, Row]


def columns_of(rows: Rows) -> list[str]:
    """All columns in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows.values() for name in row))


def _shown(value: Cell | str | None) -> str:
    """A cell as printable text; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str | int):
        return printable(str(value))
    if isinstance(value, Spread):
        if not value.num_seeds:
            return f"failed ({len(value.failed)})"
        failed = f", {len(value.failed)} failed" if value.failed else ""
        deviation = f" ±{value.deviation:.3f}" if value.num_seeds > 1 else ""
        return f"{value.mean:.3f}{deviation} ({value.num_seeds}{failed})"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:z.3f}"


def _lines(rows: Rows | Sequence[Row]) -> tuple[list[list[str]], list[bool]]:
    """The head and all rows as printable text, and for each column whether it is aligned to the left: if it
    has a text that does not begin with a digit. The names of `Rows` are a first column without a name.
    """
    listed = [{"": name, **row} for name, row in rows.items()] if isinstance(rows, Mapping) else rows
    columns = list(dict.fromkeys(name for row in listed for name in row))
    is_text = [
        number == 0
        or any(isinstance(text := row.get(column), str) and text and not text[0].isdigit() for row in listed)
        for number, column in enumerate(columns)
    ]
    cells = [[_shown(row.get(column)) for column in columns] for row in listed]
    return [[printable(column) for column in columns], *cells], is_text


def as_text(rows: Rows, title: str) -> str:
    """A table for a terminal, with aligned columns."""
    lines, is_text = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, shown[0], "-" * max(map(len, shown)), *shown[1:]])


def as_markdown(rows: Rows | Sequence[Row]) -> str:
    """A Markdown table that ends with a line break. A sequence of rows has no column of names."""
    (head, *body), is_text = _lines(rows)
    marks = ["---" if left else "---:" for left in is_text]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, marks, *body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def as_html(rows: Rows, caption: str, quoted: Collection[str] = ()) -> str:
    """An HTML table, "" without rows; rows that are `quoted` have that class. Each cell carries the title of
    its column, which a narrow page shows before it.
    """
    if not rows:
        return ""
    lines, _ = _lines(rows)
    (_, *head), *body = [[html.escape(cell) for cell in line] for line in lines]
    shown = "".join(
        f"<tr{' class=quoted' if name in quoted else ''}><th scope=row>{first}</th>"
        + "".join(f'<td data-column="{title}">{cell}</td>' for title, cell in zip(head, cells, strict=True))
        + "</tr>\n"
        for name, (first, *cells) in zip(rows, body, strict=True)
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    columns = f"<thead><tr><td></td>{''.join(f'<th scope=col>{cell}</th>' for cell in head)}</tr></thead>"
    return f"<div class=scroll><table>{title}{columns}<tbody>\n{shown}</tbody></table></div>"


def draw(path: Path, runs: Mapping[str, Path], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the loss of each run (by its name) over its updates, and the accuracy of minimal pairs by
    phenomenon.
    """
    with new_figure(path, 11, 4.6) as figure:
        curves, bars = figure.subplots(1, 2)
        _draw_losses(curves, runs)
        _draw_grammar(bars, rows)


def _draw_losses(axes: Axes, runs: Mapping[str, Path]) -> None:
    for number, (title, run) in enumerate(runs.items()):
        metrics = read_metrics(run)
        measure = "concept_kl" if any("concept_kl" in line for line in metrics) else "cross_entropy"
        name = "KL to the concepts" if measure == "concept_kl" else "cross-entropy of words"
        if points := [(line["step"], line[measure]) for line in metrics if measure in line]:
            line = stroke_of(number)
            label = f"{printable(title)}: {name}"
            axes.plot(*zip(*points, strict=True), color=line.color, linestyle=line.linestyle, label=label)
    axes.set(xlabel="update", ylabel="training loss (nats per token)", title="Learning")
    _legend_below(axes)


def _draw_grammar(axes: Axes, rows: Rows) -> None:
    """Draw the accuracy of minimal pairs by phenomenon (columns "pairs: ..."), a bar for each row that has
    them.
    """
    phenomena = [column for column in columns_of(rows) if column.startswith("pairs: ")]
    names = [name for name, row in rows.items() if not row.keys().isdisjoint(phenomena)]
    height = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places = [i + number * height for i in range(len(phenomena))]
        values = [rows[name].get(phenomenon, 0.0) for phenomenon in phenomena]
        color = stroke_of(list(rows).index(name)).color  # that of its curve
        axes.barh(places, values, height, color=color, label=printable(name))
    axes.axvline(0.5, color="black", linewidth=0.8)
    labels = [printable(phenomenon.removeprefix("pairs: ").replace("_", " ")) for phenomenon in phenomena]
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(phenomena))], labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of minimal pairs right (chance: 0.5)", title="Grammar")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Put the legend below the axes, where it covers no curve."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))
