"""The set-up that all figures share: fonts, size, file format, and drawing without a display.

matplotlib takes a second to import, so it is imported when the first figure is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlsm.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RC_PARAMS: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a name is no formula
    "svg.hashsalt": "mlsm",  # the same figure is written as the same bytes
}


@contextmanager
def new_figure(target: Path | BytesIO, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches, written to `target` when the block ends without an error.

    A path ends in .png or .svg; what is written into memory is SVG.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and looks for a display

    with warnings.catch_warnings(), matplotlib.rc_context(RC_PARAMS):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # from a script that the font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if isinstance(target, Path):
            form = target.suffix.removeprefix(".")
            write_whole(target, lambda path: figure.savefig(path, format=form, dpi=150))
        else:
            figure.savefig(target, format="svg", metadata={"Date": None})
