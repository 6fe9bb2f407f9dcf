"""The curves of the report: their points are those of the files, and damaged values leave a gap."""

import json
import math
import statistics
from pathlib import Path

import pytest
from logged_runs import logged_run

from mlsm.figures import stroke_of
from mlsm.pages import run_curves
from mlsm.pages.run_facts import read_facts


def curves_of(run: Path) -> run_curves.RunCurves:
    [curves] = run_curves.run_curves([read_facts(run, run.name)])
    return curves


def test_points_have_places_over_updates_words_and_hours(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 25, "heldout_concept_kl": 2.5}\n')
    curves = curves_of(run)
    assert curves.training.axes["step"] == [10, 20, 30, 40, 50]
    assert curves.training.axes["words"] == [70, 140, 210, 280, 350]
    assert curves.training.axes["hours"] == pytest.approx([2 / 3600 * n for n in range(1, 6)])
    assert curves.training.values["concept_kl"] == [5 / n for n in range(1, 6)]
    assert curves.heldout.values == {"concept_kl": [1.25, 2.5]}
    assert curves.heldout.axes["step"] == [50, 25]
    assert curves.heldout.axes["words"] == [350, 140]  # those of update 20


def test_what_was_not_logged_has_no_place(tmp_path: Path) -> None:
    curves = curves_of(logged_run(tmp_path / "run", has_clock=False))
    assert curves.training.axes["hours"] == [None] * 5
    assert "cross_entropy" not in curves.training.values


def test_long_curves_are_means_of_neighbours(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run", num_lines=5 * run_curves.MAX_POINTS)
    training = curves_of(run).training
    assert len(training.axes["step"]) == run_curves.MAX_POINTS
    longer = logged_run(tmp_path / "longer", num_lines=run_curves.MAX_POINTS + 1)
    assert len(curves_of(longer).training.axes["step"]) <= run_curves.MAX_POINTS
    lines = read_facts(run, "run").training
    for column, name in ((training.axes["step"], "step"), (training.values["concept_kl"], "concept_kl")):
        assert statistics.fmean(column) == pytest.approx(statistics.fmean(line[name] for line in lines))


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[1]["concept_kl"] = math.nan
    lines[2]["concept_kl"] = math.inf
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = curves_of(run)
    assert curves.training.values["concept_kl"] == [5.0, None, None, 1.25, 1.0]
    assert json.loads(run_curves.as_json([curves]))["runs"][0]["training"]["values"]["concept_kl"][1] is None
    assert "nan" not in run_curves.drawings([curves])


def test_many_runs_can_be_told_apart() -> None:
    strokes = [stroke_of(number) for number in range(28)]
    assert len(set(strokes)) == 28
    assert len({stroke.color for stroke in strokes[:7]}) == 7
    assert all(strokes[n].dashes != strokes[n + 1].dashes for n in range(27))
