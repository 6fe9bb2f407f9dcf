"""GLUE scores over seeds: fine-tuning that learns, continues after an interruption and admits failure."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from small_runs import random_run
from small_text import sentences
from task_files import write_cola, write_lines

import evaluate
from mlsm.evaluation import glue_scores
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue import task_file
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.tables import as_text
from mlsm.evaluation.tasks import accuracy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "mine")


def test_fine_tuning_learns_and_repeats_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cola(tmp_path)
    command = [str(run), f"--data={data}", "--tasks=cola", "--seeds=12,13", "--baseline", "--paper=10M"]
    command += ["--learning-rate=3e-3", "--batch-size=16", "--max-epochs=12"]
    evaluate.main(command)
    captured = capsys.readouterr()
    assert re.search(r"^this takes at most about \d+ s, .*\(cola \d+ s\)$", captured.err, re.MULTILINE)
    shown = captured.out
    assert "±" in shown
    assert "majority class" in shown
    assert "LSM (quoted: 10M words, Table 2)" in shown
    assert "Table 3: students that start from random weights" in shown
    assert "Table 4" not in shown
    cola = json.loads((run / "results.json").read_text())["glue"]["cola"]
    assert cola["mean"] > 0.5
    assert (cola["settings"]["learning_rate"], cola["settings"]["batch_size"]) == (3e-3, 16)
    assert "Learning rate 0.003, batches of 16" in (run / "results.md").read_text()
    scores = [cola["seeds"][seed]["scores"] for seed in ("12", "13")]
    assert cola["mean"] == pytest.approx(statistics.fmean(scores))
    assert cola["deviation"] == pytest.approx(statistics.stdev(scores))
    files = sorted((run / "evaluation" / "glue").iterdir())
    assert [path.name for path in files] == ["cola-seed-12.json", "cola-seed-13.json"]
    first, second = (json.loads(path.read_text()) for path in files)
    assert len(first["predictions"]["cola"]) == 48
    # an interruption after the first seed: it stays, the second is trained again, to the same result
    stamp = files[0].stat().st_mtime_ns
    files[1].unlink()
    evaluate.main(command)
    assert files[0].stat().st_mtime_ns == stamp
    assert json.loads(files[1].read_text()) == second


def test_mnli_mm_is_scored_with_the_model_of_mnli(run: Path, tmp_path: Path) -> None:
    rows = [
        {"premise": s, "hypothesis": s, "label": number % 3, "idx": number}
        for number, s in enumerate(sentences(12))
    ]
    for task, part in (("mnli", "train"), ("mnli", "valid"), ("mnli-mm", "valid")):
        write_lines(task_file(tmp_path, task, part), rows)
    quick = ["--max-epochs=1", "--batch-size=8"]
    evaluate.main([str(run), f"--data={tmp_path}", "--tasks=mnli-mm", "--seeds=12", *quick])
    glue = json.loads((run / "results.json").read_text())["glue"]
    assert "mnli" not in glue
    stored = json.loads((run / "evaluation" / "glue" / "mnli-seed-12.json").read_text())
    assert stored["predictions"].keys() == {"mnli", "mnli-mm"}
    assert glue["mnli-mm"]["mean"] == pytest.approx(
        accuracy(stored["predictions"]["mnli-mm"], [r["label"] for r in rows])
    )


def test_what_a_training_can_score_besides_is_scored_at_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"premise": "A.", "hypothesis": "B.", "label": number % 3} for number in range(6)]
    for task, part in (("mnli", "train"), ("mnli", "valid"), ("mnli-mm", "valid")):
        write_lines(task_file(tmp_path, task, part), rows)
    trained = []
    plain = glue_scores.fine_tune
    monkeypatch.setattr(glue_scores, "fine_tune", lambda *args: trained.append(1) or plain(*args))
    for tasks in ("mnli", "mnli,mnli-mm", "mnli-mm"):
        evaluate.main([str(run), f"--data={tmp_path}", f"--tasks={tasks}", "--seeds=7", "--max-epochs=1"])
    assert trained == [1]


def test_a_seed_that_fails_is_reported_and_not_averaged_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = random_run(tmp_path / "mine"), write_cola(tmp_path, 16, 8)
    plain = glue_scores.Classifier

    def failing(encoder, num_labels, init_std, seed, recipe):  # type: ignore[no-untyped-def]
        model = plain(encoder, num_labels, init_std, seed)
        if seed == 13:
            torch.nn.init.constant_(model.classifier.weight, float("nan"))
        return model

    monkeypatch.setattr(glue_scores, "Classifier", failing)
    evaluate.main([str(run), f"--data={data}", "--tasks=cola", "--seeds=12,13", "--max-epochs=1"])
    captured = capsys.readouterr()
    assert "mine: cola, seed 13 failed: the loss became nan" in captured.err
    assert "(1, 1 failed)" in captured.out
    evaluate.main([str(run), f"--data={data}", "--tasks=cola", "--seeds=13", "--max-epochs=1"])
    assert "failed (1)" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text())["glue"]["cola"]["failed"] == [13]
    assert "| CoLA, seed 13 | failed |" in (run / "results.md").read_text()


def test_a_spread_counts_seeds_and_failures() -> None:
    good, failed = SeedResult(0.5, 1, "", 0), SeedResult(None, 0, "the loss became nan", 0)
    one = GlueResult({12: good, 13: failed}, FineTuneSettings()).spread
    none = GlueResult({12: failed, 13: failed}, FineTuneSettings()).spread
    assert (one.mean, one.num_seeds, one.failed) == (0.5, 1, [13])
    assert math.isnan(none.mean)
    assert "0.500 (1, 1 failed)  failed (2)" in as_text({"run": {"CoLA": one, "RTE": none}}, "")


def test_predictions_of_earlier_versions_are_used(run: Path, tmp_path: Path) -> None:
    """Their files lack the settings that were added later."""
    data = write_cola(tmp_path, 32, 12)
    command = [str(run), f"--data={data}", "--tasks=cola", "--seeds=21", "--max-epochs=1"]
    evaluate.main(command)
    path = run / "evaluation" / "glue" / "cola-seed-21.json"
    values = json.loads(path.read_text())
    for name in ("recipe", "selects_by"):
        del values["origin"]["settings"][name]
    path.write_text(json.dumps(values))
    stamp = path.stat().st_mtime_ns
    evaluate.main(command)
    assert path.stat().st_mtime_ns == stamp


def test_the_recipe_of_2026_writes_what_the_organisers_collect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(tmp_path / "mine")
    texts = sentences(80, seed=4)
    for part, first, last in (("train", 0, 64), ("valid", 64, 80)):
        rows = [
            {"sentence1": text, "sentence2": text, "label": number % 2, "idx": number}
            for number, text in enumerate(texts[first:last])
        ]
        write_lines(task_file(tmp_path / "full_eval", "mrpc", part), rows)
    evaluate.main([str(run), f"--data={tmp_path}", "--tasks=mrpc", "--recipe=2026", "--max-epochs=2"])
    predictions = run / "evaluation/babylm2026/results/mine/main/finetune/mrpc/predictions.json"
    rows = json.loads(predictions.read_text())["mrpc"]["predictions"]
    assert [row["id"] for row in rows] == [f"mrpc_{number}" for number in range(16)]
    assert {row["pred"] for row in rows} <= {0, 1}
    assert (run / "evaluation/glue/mrpc-2026-seed-42.json").exists()
    assert not (run / "results.json").exists()  # there are the results of 2024
    shown = capsys.readouterr().out
    assert "GPT-2, strict-small *" in shown
    assert "0.835" in shown
    with pytest.raises(ValueError, match=r"the recipe of 2026 has boolq, .*, got cola"):
        evaluate.main([str(run), "--tasks=cola", "--recipe=2026"])
