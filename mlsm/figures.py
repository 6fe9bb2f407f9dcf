"""What all figures share: strokes, fonts, size, and drawing without a display.

matplotlib takes a second to import, so it is imported when the first figure is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlsm.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito 2008, "Color Universal Design"), the darkest
# first, and a grey. Their yellow is too pale on paper, and their black does not show on a dark page.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
DASHES = ((), (5.0, 2.0), (1.5, 1.5), (6.0, 1.5, 1.5, 1.5))  # line, gap, ... in widths of the line


@dataclass(frozen=True)
class Stroke:
    """How a line is drawn. The dashes tell lines apart in print without colour."""

    color: str
    dashes: tuple[float, ...]  # line, gap, ... in widths of the line; none for a solid line

    @property
    def svg_dashes(self) -> str:
        """The dashes as SVG has them, for a line two units wide."""
        return " ".join(f"{2 * length:g}" for length in self.dashes) or "none"

    @property
    def linestyle(self) -> tuple[int, tuple[float, ...]] | str:
        """The dashes as matplotlib has them."""
        return (0, self.dashes) if self.dashes else "-"


def stroke_of(number: int) -> Stroke:
    """The stroke of line `number`: the first 28 differ, the first seven of them in colour."""
    return Stroke(COLORS[number % len(COLORS)], DASHES[number % len(DASHES)])


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches, written as PNG when the block ends without an error."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and looks for a display

    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"font.size": 9, "text.parse_math": False}),  # a "$" in a name is no formula
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # from a script that the font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_whole(path, lambda path: figure.savefig(path, format="png", dpi=150))
