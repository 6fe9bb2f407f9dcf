"""The estimate of an evaluation: the time of a few examples, times what there is to do."""

from pathlib import Path

import pytest
from babylm_files import write_babylm
from small_runs import random_run
from task_files import write_cola, write_suites

from mlsm.evaluation import estimate
from mlsm.evaluation.babylm.entry import read_data
from mlsm.evaluation.babylm.formats import TASKS
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue import read_task_data
from mlsm.evaluation.minimal_pairs import Scoring, read_files
from mlsm.evaluation.subject import Subject, of_run
from mlsm.evaluation.tasks import SUITES
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
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


def test_an_entry_takes_the_time_of_its_items_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts the items and words that are scored, of which reading times take two seconds each
    and children's words three.
    """
    run = load_run(random_run(tmp_path / "run", max_positions=256))
    tokenizer = huggingface_tokenizer(run.tokenizer)
    data = read_data(write_babylm(tmp_path / "data"), is_fast=False)
    clock = [0.0]
    monkeypatch.setattr(estimate, "score_items", lambda model, items, budget: clock.append(len(items)))
    monkeypatch.setattr(
        estimate.reading, "surprisals", lambda model, tokenizer, words, budget: clock.append(2 * len(words))
    )
    monkeypatch.setattr(
        estimate.acquisition,
        "surprisals",
        lambda model, tokenizer, words, budget: clock.append(3 * len(words)),
    )
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: sum(clock))
    seconds = estimate.entry_seconds(run.model, tokenizer, data)
    counts = {TASKS[name].title: sum(len(f.items) for f in files) for name, files in data.tasks.items()}
    assert seconds == pytest.approx(counts | {"reading": 2 * len(data.words)})
    assert sum(clock) < sum(counts.values()) + 2 * len(data.words)
    needed = estimate.acquisition_seconds(run.model, tokenizer, data)
    assert needed == pytest.approx(3 * len(data.occurrences))


def test_a_divergence_is_no_error(subject: Subject, tmp_path: Path) -> None:
    data = read_task_data(write_cola(tmp_path, 8, 8), "cola", ["cola"])
    subject.model.encoder.token_embedding.weight.data[20:] = float("nan")
    assert estimate.fine_tuning_seconds(subject, data, FineTuneSettings(max_epochs=1), 1) > 0
