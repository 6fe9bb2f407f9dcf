"""Rows of tables from results: averages only where all their parts were measured alike."""

import math
from pathlib import Path

import pytest

from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.recipes import Recipe
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.summary import demo_rows, markdown, over_seeds, row, store
from mlsm.evaluation.tables import Spread
from mlsm.evaluation.tasks import GLUE


def results_of(tasks: list[str], scores: dict[int, float | None], max_epochs: int = 10) -> Results:
    seeds = {seed: SeedResult(score, 1, "" if score else "failed", 0) for seed, score in scores.items()}
    return Results(
        "w", glue={task: GlueResult(seeds, FineTuneSettings(max_epochs=max_epochs)) for task in tasks}
    )


def test_the_average_needs_all_tasks_without_failures() -> None:
    scores: dict[int, float | None] = {12: 0.5, 13: 0.7}
    everything, wsc = results_of(list(GLUE), scores), results_of(["wsc"], scores)
    assert row(everything)["GLUE avg."] == pytest.approx(0.6)
    assert "| WSC, seed 12 | 0.5000 |" in markdown("mine", everything)
    assert "GLUE avg." not in row(results_of(list(GLUE), {12: 0.5, 13: None}))
    assert "GLUE avg." not in row(results_of([task for task in GLUE if task != "wsc"], scores))
    for other in (results_of(["wsc"], {12: 0.5}), results_of(["wsc"], scores, max_epochs=9)):
        assert "GLUE avg." not in row(everything.updated(other))
    assert "GLUE avg." in row(everything.updated(wsc))


def test_the_average_of_several_invocations(tmp_path: Path) -> None:
    for task in GLUE:
        store(tmp_path, "mine", results_of([task], {12: 0.25, 13: 0.75}))
    assert row(read_results(tmp_path))["GLUE avg."] == 0.5
    assert "GLUE avg." in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_means_of_runs_leave_out_what_has_none() -> None:
    failed = Spread(math.nan, math.nan, 0, [12, 13])
    rows = {
        name: {"CoLA": failed, "RTE": Spread(mean, 0.1, 4, [16]), "ppl": math.inf}
        for name, mean in {"a": 0.4, "b": 0.6}.items()
    }
    [mean] = over_seeds(rows, {"a": Recipe("same", (1,)), "b": Recipe("same", (2,))}).values()
    assert mean["RTE"] == Spread(0.5, pytest.approx(math.sqrt(0.02)), 2, [16, 16])
    assert mean["ppl"].mean == math.inf  # type: ignore[union-attr]
    assert "CoLA" not in mean


def test_a_run_without_minimal_pairs_shares_the_baseline_of_the_others() -> None:
    rows = {"teacher": {"ppl": 5.0, "minimal pairs": 0.7}, "student": {"ppl": 9.0}}
    shown = demo_rows(rows, {"teacher": {"ppl": 8.0, "minimal pairs": 0.5}, "student": {"ppl": 8.0}})
    assert shown == {**rows, "baseline": {"ppl": 8.0, "minimal pairs": 0.5}}
