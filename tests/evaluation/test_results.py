"""results.json: what is written is read back, older files are readable, and damaged ones are refused."""

import json
import math
from pathlib import Path

import pytest

from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.minimal_pairs import SuiteResult
from mlsm.evaluation.results import Results, read_results, results_json
from mlsm.files import write_json

SUITE = SuiteResult(
    0.5,
    {"syntax": 0.5},
    {"a": 0.25, "b": 0.75},
    8,
    1,
    {"wrong": 0.5, "correct": 0.75},
    "mean",
    "wrong",
    False,
)
SEEDS = {12: SeedResult(0.75, 3, "", 2), 13: SeedResult(None, 0, "the loss became nan", 2)}
RESULTS = Results(
    "w",
    {"word perplexity": math.inf},
    {"word perplexity": 7},
    {"blimp": SUITE},
    {"cola": GlueResult(SEEDS, FineTuneSettings(max_epochs=3))},
)


def test_results_are_read_back(tmp_path: Path) -> None:
    assert read_results(tmp_path) == Results()
    for results in (RESULTS, Results("w", suites=RESULTS.suites), Results()):
        write_json(tmp_path / "results.json", results_json(results))
        assert read_results(tmp_path) == results


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    failed = {"scores": None, "epoch": 0, "failure": "the loss became nan", "num_truncated": 2}
    seeds = {"12": {"scores": 0.75, "epoch": 3, "failure": "", "num_truncated": 2}, "13": failed}
    settings = {
        "learning_rate": 5e-05, "batch_size": 64, "max_epochs": 3, "patience": 3, "threshold": 0.001,
        "max_length": 128, "weight_decay": 0.0, "clip_norm": 1.0,
    }  # fmt: skip
    cola = {"mean": 0.75, "deviation": 0.0, "num_seeds": 1, "failed": [13], "seeds": seeds}
    rte = {"mean": None, "failed": [13], "seeds": {"13": failed}, "settings": settings}
    write_json(tmp_path / "results.json", {"glue": {"cola": {**cola, "settings": settings}, "rte": rte}})
    results = read_results(tmp_path)
    assert results.glue["cola"] == RESULTS.glue["cola"]
    assert results.glue["rte"].spread.failed == [13]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", []),
        ("weights", 3),
        ("demo", 3),
        ("demo/word perplexity", "7"),
        ("demo baseline", []),
        ("blimp", 3),
        ("blimp/average", None),
        ("blimp/subtasks/a", "x"),
        ("blimp/surplus", 1),
        ("blimp/num_pairs", 0.5),
        ("glue", []),
        ("glue/none", {}),
        ("glue/cola", {}),
        ("glue/cola/seeds", 12),
        ("glue/cola/seeds/x", {}),
        ("glue/cola/seeds/12/scores", "0.75"),
        ("glue/cola/settings/max_epochs", "3"),
    ],
)
def test_damaged_results_are_refused(path: str, value: object, tmp_path: Path) -> None:
    whole = json.loads(json.dumps({"": results_json(RESULTS)}))
    *parents, name = ["", *filter(None, path.split("/"))]
    place = whole
    for parent in parents:
        place = place[parent]
    place[name] = value
    write_json(tmp_path / "results.json", whole[""])
    with pytest.raises(ValueError, match=r"results\.json holds no results of this program"):
        read_results(tmp_path)


def test_new_results_replace_those_of_other_weights_only() -> None:
    new = Results("w", suites={"ewok": SUITE})
    assert RESULTS.updated(new).suites.keys() == {"blimp", "ewok"}
    assert RESULTS.updated(new).demo == RESULTS.demo
    other = Results("v", suites={"ewok": SUITE})
    assert RESULTS.updated(other) == other
