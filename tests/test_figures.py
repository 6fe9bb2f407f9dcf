"""Figures: their format and size, their strokes, and nothing written after an error."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlsm.figures import new_figure, stroke_of


def test_a_figure_has_its_size_and_takes_any_text(tmp_path: Path) -> None:
    with new_figure(tmp_path / "a.png", 4, 2) as figure:
        figure.subplots().plot([1, 2], label="$\\frac{$ 猫 \u0e01")  # no formula, and no glyph
        figure.legend()
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (600, 300))


def test_strokes_are_drawn(tmp_path: Path) -> None:
    for number, suffix in enumerate("abcd"):
        stroke = stroke_of(number)
        with new_figure(tmp_path / f"{suffix}.png", 3, 2) as figure:
            figure.subplots().plot([1, 2], color=stroke.color, linestyle=stroke.linestyle)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_an_error_while_drawing_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_figure(tmp_path / "a.png", 3, 2):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, mlsm.figures, mlsm.evaluation.tables, mlsm.pages.run_view; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mlsm.figures" in done.stdout.split()
    assert "matplotlib" not in done.stdout.split()
