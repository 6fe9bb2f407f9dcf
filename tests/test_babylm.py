"""The commands of docs/babylm.md, with a nano model and thousands of words in place of millions."""

import shlex
from pathlib import Path

import pytest
from babylm_files import write_babylm
from pipeline import ROOT
from small_text import NANO_FLAGS, write_corpus
from task_files import write_lines

import evaluate
import train
from mlsm import export
from mlsm.evaluation.babylm.entry import place_of, read_results
from mlsm.evaluation.glue import task_file
from mlsm.files import read_json
from mlsm.runs.run import load_run

WORDS = "0,200,400"


def commands() -> list[list[str]]:
    """The commands of the page's first block without the one that uploads."""
    page = (ROOT / "docs" / "babylm.md").read_text(encoding="utf-8")
    lines = page.split("## From nothing to an entry")[1].split("\n\n    ")[1].split("\n\n")[0].splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("python")]


def test_from_nothing_to_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    write_corpus(tmp_path / "text" / "one.train")
    write_babylm(tmp_path / "evaluation_data", num_items=3)
    rows = [{"sentence1": "a", "sentence2": "b", "label": i % 2, "idx": i} for i in range(8)]
    rows = [row | {"question": "q", "passage": "p", "premise": "p", "hypothesis": "h"} for row in rows]
    rows = [row | {"question1": "q", "question2": "r", "paragraph": "p", "answer": "a"} for row in rows]
    rows = [row | {"text": "t", "span1_text": "s", "span2_text": "u"} for row in rows]
    for task in ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"):
        for part in ("train", "valid"):
            write_lines(task_file(tmp_path / "evaluation_data" / "full_eval", task, part), rows)
    training, evaluation, exporting = (
        [word.replace("strict-small", WORDS).replace("*", "one") for word in command]
        for command in commands()
    )
    assert training[1] == "train.py"
    train.main([*training[2:], *NANO_FLAGS, "--num-steps=30", "--preset=tiny", "--cache-dir=cache"])
    assert evaluation[1] == "evaluate.py"
    evaluate.main([*evaluation[2:], "--max-epochs=1"])
    assert exporting[1:3] == ["-m", "mlsm.export"]
    export.main(exporting[3:])
    names = ["main", "chck_0M", "chck_200", "chck_400"]
    assert sorted(path.name for path in Path("entry").iterdir()) == sorted([*names, "upload.sh"])
    found = read_results(place_of(Path("runs/entry")))
    assert found.keys() == set(names)
    assert found["main"].glue.keys() == {"boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"}
    weights = {name: load_run(Path("entry") / name).model.decoder_bias.sum().item() for name in names}
    assert len(set(weights.values())) == len(names)
    labels = read_json(
        Path("runs/entry/evaluation/babylm2026/results/entry/main/finetune/wsc/predictions.json")
    )
    assert len(labels["wsc"]["predictions"]) == 8
    assert "GPT-2, strict-small *" in capsys.readouterr().out
