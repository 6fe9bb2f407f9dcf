"""Our choices are those of the organisers' own code, item by item, on invented items. Their code runs in an
environment of its own: pytest tests/evaluation/babylm/test_organisers.py --organisers PYTHON STRICT
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from babylm_files import write_babylm
from pipeline import ROOT
from small_runs import random_run, small_tokenizer

import evaluate
from mlsm import export
from mlsm.evaluation.babylm import entry
from mlsm.evaluation.babylm.formats import TASKS
from mlsm.files import read_json
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.revisions import Revision
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences

Organisers = Callable[..., Any]


class Ours(NamedTuple):
    """What this project computed."""

    run: Path
    exported: Path
    data: Path
    scorer: entry.Scorer


@pytest.fixture(scope="module")
def organisers(request: pytest.FixtureRequest) -> Organisers:
    """A function that calls tests/organisers.py and returns what it prints."""
    if (paths := request.config.getoption("--organisers")) is None:
        pytest.skip("needs --organisers PYTHON STRICT: the organisers' code and its environment")
    python, strict = paths

    def call(*arguments: str) -> Any:
        command = [python, str(ROOT / "tests" / "organisers.py"), *arguments]
        done = subprocess.run(command, cwd=strict, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return call


@pytest.fixture(scope="module")
def ours(organisers: Organisers, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    folder = tmp_path_factory.mktemp("organisers")
    run = random_run(folder / "run", max_positions=256)
    export.main([str(run), str(folder / "exported")])
    data = write_babylm(folder / "data")
    evaluate.main([str(run), "--tasks=babylm2026", f"--data={data}"])
    tokenizer = huggingface_tokenizer(small_tokenizer())
    scorer = entry.Scorer(entry.place_of(run), Revision("main", 0, run), tokenizer, torch.device("cpu"))
    return Ours(run, folder / "exported", data, scorer)


def test_logits(ours: Ours, organisers: Organisers) -> None:
    ids, model = [0, 9, 4, 12, 30, 1], load_run(ours.run).model
    theirs = torch.tensor(organisers("logits", str(ours.exported), ",".join(map(str, ids))))
    with torch.no_grad():
        hidden_TD = model.hidden_at(Sequences.of([torch.tensor(ids)]), torch.arange(len(ids)))
        torch.testing.assert_close(theirs, model.token_logits(hidden_TD), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_choices(ours: Ours, organisers: Organisers, name: str) -> None:
    """Scores agree, and predictions are equal where the best score is not shared."""
    task = TASKS[name]
    data = entry.read_data(ours.data, is_fast=False)
    folder = ours.data / "full_eval" / task.full
    theirs = organisers("zero-shot", str(ours.exported), task.task, str(folder))
    scores, tied = {}, set()
    for file in data.tasks[name]:
        for item, row in zip(file.items.values(), ours.scorer.choices(task.full, file), strict=True):
            texts = tuple(candidate.sentence for candidate in item.candidates)
            scores[texts] = [score.reduced(task.reduction) for score in row]
            if scores[texts].count(max(scores[texts])) > 1:
                tied |= {task.prediction(candidate) for candidate in item.candidates}
    assert len(theirs["scores"]) == sum(len(file.items) for file in data.tasks[name])
    for texts, row in theirs["scores"]:
        assert scores[tuple(texts)] == pytest.approx(row, abs=1e-4)
    written = ours.scorer.folder.parents[1] / "results/run/main/zero_shot/mlm" / task.task / task.full
    mine = read_json(written / "predictions.json")
    assert mine.keys() == theirs["predictions"].keys()
    for group, rows in theirs["predictions"].items():
        for one, other in zip(mine[group]["predictions"], rows["predictions"], strict=True):
            assert one == other or {one["pred"], other["pred"]} <= tied


def test_reading(ours: Ours, organisers: Organisers) -> None:
    data = entry.read_data(ours.data, is_fast=False)
    file = ours.data / "full_eval" / "reading" / "reading_data.csv"
    theirs = organisers("reading", str(ours.exported), str(file))
    for row, mine in zip(theirs, ours.scorer.reading(data), strict=True):
        assert row[0] == pytest.approx(mine.word, abs=1e-4)
        assert row[1:] == ([] if mine.before != mine.before else [pytest.approx(mine.before, abs=1e-4)])


def test_surprisal_of_words_of_children(ours: Ours, organisers: Organisers) -> None:
    data = entry.read_data(ours.data, is_fast=False)
    theirs = organisers("aoa", str(ours.exported), str(ours.data / "full_eval" / "aoa" / "cdi_childes.json"))
    assert [row["surprisal"] for row in theirs] == pytest.approx(ours.scorer.acquisition(data), abs=1e-4)
    assert [row["target_word"] for row in theirs] == [one.word for one in data.occurrences]
