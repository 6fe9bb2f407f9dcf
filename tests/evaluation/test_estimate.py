"""The estimate of an evaluation: the time of a few examples, times what there is to do."""

from pathlib import Path

import pytest
from small_runs import random_run
from task_files import write_cola, write_suites

from mlsm.evaluation import estimate
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue import read_task_data
from mlsm.evaluation.minimal_pairs import SUITES, Scoring, read_files
from mlsm.evaluation.subject import Subject, of_run
from mlsm.runs.run import load_run


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return of_run(load_run(random_run(tmp_path_factory.mktemp("runs") / "mine")), "mine")


def test_a_suite_takes_the_time_of_its_pairs(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts the pairs that are scored."""
    scored: list[int] = []
    plain = estimate.score_pairs
    monkeypatch.setattr(estimate, "score_pairs", lambda m, p, b: scored.append(len(p)) or plain(m, p, b))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(sum(scored)))
    monkeypatch.setattr(estimate, "SHARE", 0.2)
    files = read_files(SUITES["blimp"], write_suites(tmp_path))
    assert estimate.suite_seconds(subject, "blimp", files, Scoring()) == pytest.approx(3 * 10)
    assert scored == [1, 6]


def test_fine_tuning_takes_the_time_of_its_updates_and_validations(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which an update takes a second, and an example of a validation set too."""
    clock = [0.0]
    monkeypatch.setattr(estimate, "fine_tune", lambda *args: clock.append(1.0))
    monkeypatch.setattr(estimate, "predict", lambda model, items: clock.append(len(items)))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: sum(clock))
    data = read_task_data(write_cola(tmp_path, 100, 80), "cola", ["cola"])
    settings = FineTuneSettings(batch_size=16, max_epochs=5)
    seconds = estimate.fine_tuning_seconds(subject, data, settings, num_seeds=3)
    assert seconds == pytest.approx(3 * 5 * (7 + 80))


def test_a_divergence_is_no_error(subject: Subject, tmp_path: Path) -> None:
    data = read_task_data(write_cola(tmp_path, 8, 8), "cola", ["cola"])
    subject.model.encoder.token_embedding.weight.data[20:] = float("nan")
    assert estimate.fine_tuning_seconds(subject, data, FineTuneSettings(max_epochs=1), 1) > 0
