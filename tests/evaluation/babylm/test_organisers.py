"""Our choices and surprisals are those of the organisers' own code, item by item, on invented items.

What their code computed with transformers 4.51.3 for an exported model is stored in organisers.json. This
command runs their code again, in an environment of its own, and stores what it computes:

    pytest tests/evaluation/babylm/test_organisers.py --organisers PYTHON STRICT

STRICT is the folder strict of babylm-org/babylm-eval (commit 3d57ddc). PYTHON is a Python with transformers
4.51.3 and the other packages that this code imports.
"""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from babylm_files import write_babylm
from pipeline import ROOT
from small_runs import random_run

from mlsm import export
from mlsm.evaluation.babylm import entry
from mlsm.evaluation.babylm.formats import TASKS
from mlsm.files import read_json, write_text
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.revisions import MAIN, Revision
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import Tokenizer

FACTS = Path(__file__).with_name("organisers.json")
CPU = torch.device("cpu")
IDS = [0, 9, 4, 12, 30, 1]
Scores = list[tuple[list[str], list[float]]]  # the sentences of each item, and their scores


class Theirs(NamedTuple):
    """What the organisers' code computed for the exported model."""

    tokenizer: str  # in base64: a tokenizer that is trained again may have other pieces on another machine
    logits: list[list[float]]  # of IDS
    scores: dict[str, Scores]  # by the keys of TASKS
    predictions: dict[str, dict[str, dict[str, list[dict[str, str]]]]]
    reading: list[list[float]]  # surprisal of each word, and of the one before it if there is one
    acquisition: list[tuple[str, float]]  # each word with its surprisal


class Ours(NamedTuple):
    """What this project computed."""

    run: Path
    folder: Path  # of the full tasks
    data: entry.Data
    place: entry.Place
    scorer: entry.Scorer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    folder = tmp_path_factory.mktemp("organisers")
    tokenizer = Tokenizer(base64.b64decode(read_json(FACTS)["tokenizer"]))
    run = random_run(folder / "run", max_positions=256, tokenizer=tokenizer)
    data = entry.read_data(write_babylm(folder / "data", num_items=5), is_fast=False)
    place, revision = entry.place_of(run), Revision(MAIN, 0, run)
    entry.measure(place, [revision], data, 12, CPU)
    scorer = entry.Scorer(place, revision, huggingface_tokenizer(tokenizer), CPU)
    return Ours(run, folder / "data" / "full_eval", data, place, scorer)


@pytest.fixture(scope="module")
def theirs(ours: Ours, request: pytest.FixtureRequest) -> Theirs:
    if (paths := request.config.getoption("--organisers")) is not None:
        facts = computed_by_them(ours, *paths)._asdict()
        lines = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()
        ]
        write_text(FACTS, "{\n" + ",\n".join(lines) + "\n}\n")
    return Theirs(**read_json(FACTS))


def computed_by_them(ours: Ours, python: str, strict: str) -> Theirs:
    """Run their code in their environment, on the exported model. Numbers keep six decimals."""
    exported = ours.run.with_name("exported")
    export.main([str(ours.run), str(exported)])

    def call(name: str, *arguments: object) -> Any:
        command = [python, str(ROOT / "tests" / "organisers.py"), name, str(exported), *map(str, arguments)]
        done = subprocess.run(command, cwd=strict, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(
            done.stdout.strip().splitlines()[-1], parse_float=lambda text: round(float(text), 6)
        )

    by_task = {name: call("zero-shot", task.task, ours.folder / task.full) for name, task in TASKS.items()}
    return Theirs(
        read_json(FACTS)["tokenizer"],
        call("logits", ",".join(map(str, IDS))),
        {name: result["scores"] for name, result in by_task.items()},
        {name: result["predictions"] for name, result in by_task.items()},
        call("reading", ours.folder / "reading" / "reading_data.csv"),
        call("aoa", ours.folder / "aoa" / "cdi_childes.json"),
    )


def test_logits(ours: Ours, theirs: Theirs) -> None:
    model = load_run(ours.run).model
    with torch.no_grad():
        hidden_TD = model.hidden_at(Sequences.of([torch.tensor(IDS)]), torch.arange(len(IDS)))
        expected_TV = torch.tensor(theirs.logits)
        torch.testing.assert_close(model.token_logits(hidden_TD), expected_TV, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_choices(ours: Ours, theirs: Theirs, name: str) -> None:
    """Scores agree, and predictions are equal where the best score is not shared."""
    task, files = TASKS[name], ours.data.tasks[name]
    scores, tied = {}, set()
    for file in files:
        for item, row in zip(file.items.values(), ours.scorer.choices(task.full, file), strict=True):
            texts = tuple(candidate.sentence for candidate in item.candidates)
            scores[texts] = [score.reduced(task.reduction) for score in row]
            if scores[texts].count(max(scores[texts])) > 1:
                tied |= {task.prediction(candidate) for candidate in item.candidates}
    assert len(theirs.scores[name]) == sum(len(file.items) for file in files)
    for sentences, row in theirs.scores[name]:
        assert scores[tuple(sentences)] == pytest.approx(row, abs=1e-4)
    mine = read_json(ours.place.predictions(MAIN, task.task, task.full, "predictions.json"))
    assert mine.keys() == theirs.predictions[name].keys()
    for group, rows in theirs.predictions[name].items():
        for one, other in zip(mine[group]["predictions"], rows["predictions"], strict=True):
            assert one == other or {one["pred"], other["pred"]} <= tied


def test_reading(ours: Ours, theirs: Theirs) -> None:
    for row, mine in zip(theirs.reading, ours.scorer.reading(ours.data), strict=True):
        assert row[0] == pytest.approx(mine.word, abs=1e-4)
        assert row[1:] == ([] if mine.before != mine.before else [pytest.approx(mine.before, abs=1e-4)])


def test_surprisal_of_words_of_children(ours: Ours, theirs: Theirs) -> None:
    words, values = zip(*theirs.acquisition, strict=True)
    assert words == tuple(one.word for one in ours.data.occurrences)
    assert ours.scorer.acquisition(ours.data) == pytest.approx(values, abs=1e-4)
