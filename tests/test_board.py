"""What TensorBoard and the trackers get. A test of a real tracker needs its package."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import random_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlsm.board import Board, add_results, open_tracker, settings_of, tag_of
from mlsm.config import TRACKERS
from mlsm.evaluation.results import Results
from mlsm.evaluation.summary import numbers
from mlsm.log import RunLog

VALUES = {"cross_entropy": 2.0, "heldout_cross_entropy": 3.0, "gap_max": 0.5, "tokens_per_s": 9.0}
TAGS = ["train/cross_entropy", "heldout/cross_entropy", "codes/gap_max", "speed/tokens_per_s"]


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_metrics_settings_histograms_and_results_have_their_groups(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    with RunLog(run, 0) as log:
        log.write(2, VALUES)
        log.write_histogram("concept_use", torch.tensor([0, 0, 7]), 2)
    add_results(run, numbers(Results(demo={"minimal pairs": 0.75, "perplexity": float("inf")})), 100)
    events = events_of(run)
    assert [tag_of(name) for name in VALUES] == TAGS
    assert {*events.Tags()["scalars"]} == {*TAGS, "evaluation/minimal pairs"}
    [result] = events.Scalars("evaluation/minimal pairs")
    assert (result.step, result.value) == (100, 0.75)
    [uses] = events.Histograms("codes/concept_use")
    assert (uses.histogram_value.num, uses.histogram_value.sum) == (3, 7)
    plugin = events.PluginTagToContent("hparams")
    assert "heldout/cross_entropy" in str(plugin["_hparams_/experiment"])
    assert "train/learning_rate" in str(plugin["_hparams_/session_start_info"])


def test_a_resumed_run_replaces_what_came_after_its_step(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    for start, value in ((0, 2.0), (1, 5.0)):
        with RunLog(run, start) as log:
            log.write(1, {"cross_entropy": value})
            log.write(2, {"cross_entropy": value})
    points = events_of(run).Scalars("train/cross_entropy")
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (2, 5.0)]


def test_a_tracker_gets_the_settings_and_every_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    tracker = SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append("finished")
    )
    package = SimpleNamespace(init=lambda **about: calls.append(about) or tracker)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = random_run(tmp_path / "run")
    with RunLog(run, 0, "wandb") as log:
        log.write(2, VALUES)
    about, metrics, end = calls
    assert isinstance(about, dict)
    assert (about["name"], about["mode"], about["config"]) == ("run", "offline", settings_of(run))
    assert json.loads(json.dumps(about["config"]))["train/learning_rate"] == 1e-4
    assert metrics == (2, dict(zip(TAGS, VALUES.values(), strict=True)))
    assert end == "finished"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"--tracker {name} needs the package {name}: pip install {name}"):
        open_tracker(name, tmp_path, {})


@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_tracker_takes_a_run_offline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # trackio reads it when it is imported
    pytest.importorskip(name, reason=f"needs the package {name}")
    run = random_run(tmp_path / "run")
    for start in (0, 2):
        board = Board(run, start, name)
        board.add(start + 1, VALUES)
        board.close()
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db", ".lance", ".parquet")]
    assert written
