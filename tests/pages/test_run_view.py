"""The curves of the report."""

import statistics
from xml.etree import ElementTree

import pytest

from mlsm.pages import run_view
from mlsm.pages.run_facts import RunFacts


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(float(x), float(x % 7)) for x in range(run_view.MAX_POINTS * 5)]
    thin = run_view.thinned(points)
    assert len(thin) == run_view.MAX_POINTS
    for axis in (0, 1):
        assert statistics.fmean(p[axis] for p in thin) == pytest.approx(
            statistics.fmean(p[axis] for p in points)
        )
    assert run_view.thinned(points[:3]) == points[:3]


def test_many_runs_can_be_told_apart() -> None:
    runs = [RunFacts(f"run {n}", {}, [{"step": 1, "concept_kl": 1.0 + n}], {}, {}, {}) for n in range(8)]
    assert len(set(run_view.STYLES)) == len(runs)
    ElementTree.fromstring(run_view.draw_curves(runs).getvalue())
