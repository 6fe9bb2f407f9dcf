"""The demo of evaluate.py: its table, its files, and its measure of grammar."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pipeline import student_flags

import evaluate
import train
from mlsm.evaluation.demo import score_grammar
from mlsm.runs.run import load_run


def test_evaluate_writes_table_numbers_and_picture(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, words = teacher.parent / "lsm-random", teacher.parent / "token-head-lsm-random"
    train.main(student_flags(teacher, "lsm", student))
    flags = [
        f for f in student_flags(teacher, "token-head", words) if not f.startswith(("--init", "--teacher"))
    ]
    train.main([*flags, f"--init={student}"])
    evaluate.main([str(teacher), str(student), str(words), "--tasks=demo"])
    shown = capsys.readouterr().out
    for name in ("teacher", "lsm-random", "token-head-lsm-random", "baseline"):
        assert f"\n{name}  " in shown
    results = json.loads((words / "results.json").read_text())["demo"]
    assert results["concept KL"] == pytest.approx(
        json.loads((student / "results.json").read_text())["demo"]["concept KL"], rel=1e-5
    )
    assert 0 <= results["minimal pairs"] <= 1
    of_student = json.loads((student / "results.json").read_text())["demo"]
    assert of_student.keys() == {"concept KL"}  # its words are not trained
    assert math.isfinite(results["word perplexity"])
    assert (words / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "| token-head-lsm-random |" in (words / "results.md").read_text()
    elsewhere = teacher.parent / "elsewhere" / "teacher"
    shutil.copytree(teacher, elsewhere)
    evaluate.main([str(teacher), str(elsewhere), "--tasks=demo"])
    shown = capsys.readouterr().out
    assert f"\n{teacher}  " in shown
    assert f"\n{elsewhere}  " in shown


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_model_of_word_frequencies_is_right_in_half_of_the_pairs(teacher: Path, spread: float) -> None:
    """A model that predicts the same distribution everywhere; with all words alike, every pair is a tie."""
    run = load_run(teacher)
    with torch.no_grad():
        run.model.transform_norm.weight.zero_()
        run.model.transform_norm.bias.zero_()
        run.model.decoder_bias.normal_(generator=torch.Generator().manual_seed(3)).mul_(spread)
    assert set(score_grammar(run).values()) == {0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"corpus": ["gone.txt"]},
            r"the demo reads the text that .*here was trained on: no corpus file at gone",
        ),
        ({"heldout_share": 0.0}, r"no text was held out when .*here was trained: choose other --tasks"),
    ],
)
def test_a_text_that_cannot_be_measured_is_reported_with_the_run(
    settings: dict, message: str, teacher: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(teacher, tmp_path / "here"))
    record = json.loads((run / "config.json").read_text())
    record["data"] |= settings
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        evaluate.main([str(run)])
