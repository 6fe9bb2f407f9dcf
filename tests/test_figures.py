"""Figures: their format and size, the same bytes for the same drawing, and nothing written after an error."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from mlsm.figures import new_figure


def test_a_path_decides_the_format(tmp_path: Path) -> None:
    for name in ("a.png", "a.svg"):
        with new_figure(tmp_path / name, 4, 2) as figure:
            figure.subplots().plot([1, 2], label="$\\frac{$ 猫 \u0e01")  # no formula, and no glyph
            figure.legend()
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (600, 300))
    assert ElementTree.parse(tmp_path / "a.svg").getroot().get("width") == "288pt"


def test_the_same_figure_is_the_same_bytes() -> None:
    drawings = [BytesIO(), BytesIO()]
    for drawing in drawings:
        with new_figure(drawing, 3, 2) as figure:
            figure.subplots().plot([1, 2])
    assert drawings[0].getvalue() == drawings[1].getvalue()


def test_an_error_while_drawing_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_figure(tmp_path / "a.png", 3, 2):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, mlsm.figures, mlsm.evaluation.tables, mlsm.pages.run_view; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mlsm.figures" in done.stdout.split()
    assert "matplotlib" not in done.stdout.split()
