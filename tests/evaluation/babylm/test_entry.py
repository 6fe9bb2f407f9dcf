"""An entry from the command line: the files that the organisers collect, and what is not computed twice."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from babylm_files import write_babylm
from small_runs import random_run

import evaluate
from mlsm import report
from mlsm.evaluation.babylm import entry
from mlsm.files import read_json, read_tensors
from mlsm.pages.model_card import model_card
from mlsm.runs.checkpoint import MODEL_FILE, TrainingState, save_milestone, words_name
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.revisions import Revision
from mlsm.runs.run import load_run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with models after 0, 1000 and 2000 words on all tasks, and the data."""
    folder = tmp_path_factory.mktemp("entry")
    run = random_run(folder / "my.run", max_positions=256)
    for words in (0, 1000, 2000):
        weights = {name: w * (1 + words / 2000) for name, w in read_tensors(run / MODEL_FILE).items()}
        save_milestone(run, words_name(words), words, weights, TrainingState(words, 0))
    (run / "metrics.jsonl").write_text('{"step": 5, "words_seen": 2100}\n')
    data = write_babylm(folder / "data", num_items=3)
    evaluate.main([str(run), "--tasks=babylm2026,fast", f"--data={data}"])
    return run, data


def results(run: Path) -> Path:
    return run / "evaluation" / "babylm2026" / "results" / "my"  # the organisers cut a name at its last dot


def test_files_are_where_the_organisers_look(measured: tuple[Path, Path]) -> None:
    run, _ = measured
    main = results(run) / "main" / "zero_shot" / "mlm"
    double = ("entity_tracking", "comps", "global_piqa_parallel", "global_piqa_nonparallel")
    places = [f"{name}/{name}" for name in double]
    places += ["blimp/blimp_filtered", "blimp/supplement_filtered", "ewok/ewok_filtered", "reading"]
    for place in places:
        assert (main / place / "predictions.json").is_file(), place
    predictions = read_json(main / "comps" / "comps" / "predictions.json")
    assert {group: len(rows["predictions"]) for group, rows in predictions.items()} == dict.fromkeys(
        ["base", "wugs", "wugs_dist_before", "wugs_dist_in_between"], 3
    )
    assert predictions["base"]["predictions"][2]["id"] == "base_2"
    for name in ("chck_0M", "chck_1000", "chck_2000"):
        fast = results(run) / name / "zero_shot" / "mlm"
        assert (fast / "blimp" / "blimp_fast" / "predictions.json").is_file()
        rows = json.loads((fast / "reading" / "predictions.json").read_text())["reading"]["predictions"]
        assert [row["id"] for row in rows] == list(range(len(rows)))
        assert rows[0].keys() == {"id", "pred", "prev_pred"}


def test_surprisals_are_those_of_each_trained_checkpoint(measured: tuple[Path, Path]) -> None:
    run, data = measured
    rows = read_json(results(run) / "main" / "zero_shot" / "mlm" / "AoA_word" / "surprisal.json")["results"]
    contexts = read_json(data / "full_eval" / "aoa" / "cdi_childes.json")
    num_contexts = sum(len(these) for word, these in contexts.items() if len(word) > 1)
    by_step = {
        step: [r["surprisal"] for r in rows if r["step"] == step] for step in ("chck_1000", "chck_2000")
    }
    assert [len(these) for these in by_step.values()] == [num_contexts] * 2
    assert len(rows) == 2 * num_contexts
    assert by_step["chck_1000"] != by_step["chck_2000"]


def test_accuracies_are_those_of_the_predictions(measured: tuple[Path, Path]) -> None:
    run, data = measured
    text = (data / "full_eval/ewok_filtered/agent-properties.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    path = results(run) / "main" / "zero_shot" / "mlm" / "ewok" / "ewok_filtered" / "predictions.json"
    chosen = [row["pred"] for row in read_json(path)["agent-properties"]["predictions"]]
    right = [f"{row['Context1']} {row['Target1']}" == text for row, text in zip(rows, chosen, strict=True)]
    stored = entry.read_results(entry.place_of(run))["main"].tasks["ewok_filtered"]
    assert stored.average_without_ties == pytest.approx(sum(right[:-1]) / len(right))
    assert stored.num_ties == 1  # the last item, whose contexts are equal


def test_stored_scores_are_not_computed_again(
    measured: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed for equal scores needs no model, and the seed decides between equal scores alone."""
    run, data = measured
    before = entry.read_results(entry.place_of(run))

    def no_model(self: entry.Scorer) -> None:
        raise AssertionError("a model was needed")

    with monkeypatch.context() as patch:
        patch.setattr(entry.Scorer, "model", property(no_model))
        averages = set()
        for seed in (12, 13, 14, 15, 16):
            evaluate.main([str(run), "--tasks=fast", f"--data={data}", f"--tie-seed={seed}"])
            averages.add(entry.read_results(entry.place_of(run))["chck_0M"].tasks["blimp_fast"].average)
    assert len(averages) > 1
    evaluate.main([str(run), "--tasks=babylm2026,fast", f"--data={data}"])
    assert entry.read_results(entry.place_of(run)) == before


def test_one_lost_file_of_scores_is_computed_again(measured: tuple[Path, Path]) -> None:
    run, data = measured
    stored = run / "evaluation" / "babylm2026" / "scores"
    [path] = stored.glob(f"{entry.fingerprint(run)}/comps/comps_base.json")
    before = path.read_text()
    path.write_text("{")
    evaluate.main([str(run), "--tasks=babylm2026", f"--data={data}"])
    assert path.read_text() == before


def test_scores_of_other_data_are_not_used(measured: tuple[Path, Path]) -> None:
    run, data = measured
    scorer = entry.Scorer(
        entry.place_of(run),
        Revision("main", 0, run),
        huggingface_tokenizer(load_run(run).tokenizer),
        torch.device("cpu"),
    )
    file = entry.read_data(data, is_fast=False).tasks["comps"][0]
    swapped = {line: item._replace(candidates=item.candidates[::-1]) for line, item in file.items.items()}
    before = scorer.choices("other", file)
    after = scorer.choices("other", file._replace(items=swapped, digest="another"))
    for row, other in zip(before, after, strict=True):
        assert [score.total for score in row] == pytest.approx([score.total for score in other[::-1]])
        assert row[0] != row[1]


def test_results_of_other_weights_are_dropped(tmp_path: Path) -> None:
    place = entry.place_of(tmp_path)
    for weights, task in (("one", "rte"), ("one", "mnli"), ("other", "wsc")):
        entry.store_glue(tmp_path, weights, {task: 0.5}, {})
        if task == "mnli":
            assert entry.read_results(place)["main"].glue.keys() == {"rte", "mnli"}
    assert entry.read_results(place)["main"].glue == {"wsc": 0.5}


def test_tables_and_curves_are_written(measured: tuple[Path, Path]) -> None:
    folder = measured[0] / "evaluation" / "babylm2026"
    text = (folder / "results.md").read_text()
    assert (folder / "curves.png").stat().st_size > 10_000
    for name in ("chck_0M", "chck_2000", "main", "GPT-2, strict-small", "0.651", "3d57ddc"):
        assert name in text


def test_the_page_and_the_model_card_show_the_results(measured: tuple[Path, Path], tmp_path: Path) -> None:
    run = measured[0]
    report.main([str(run), f"--output={tmp_path / 'page.html'}"])
    page, card = (tmp_path / "page.html").read_text(), model_card(load_run(run))
    average = f"{entry.read_results(entry.place_of(run))['main'].tasks['comps'].average:.3f}"
    for shown in (page, card):
        for text in ("entity tracking", "GPT-2, strict-small", "3d57ddc", "my.run, ties wrong", average):
            assert text in shown
    assert "chck_2000" in page


def test_mistakes_are_said_before_the_work(
    measured: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = measured
    with pytest.raises(ValueError, match="no model for chck_1M, chck_2M"):
        evaluate.main([str(run), "--tasks=fast", f"--data={data}", "--track=strict-small"])
    with pytest.raises(ValueError, match="--track takes"):
        evaluate.main([str(run), "--tasks=fast", f"--data={data}", "--track=strict-big"])
    with pytest.raises(ValueError, match="has no task of BabyLM 2026"):
        evaluate.main([str(run), "--tasks=fast", f"--data={tmp_path}"])
    student = random_run(tmp_path / "student", num_concepts=5, has_token_head=False)
    config = read_json(student / "config.json")
    config["train"]["objective"] = "lsm"
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="student predicts no words"):
        evaluate.main([str(student), "--tasks=fast", f"--data={data}"])
    shutil.copytree(data / "fast_eval" / "blimp_fast", tmp_path / "fast_eval" / "blimp_fast")
    (tmp_path / "fast_eval" / "blimp_fast" / "adjunct_island.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"adjunct_island\.jsonl, line 1: no field 'sentence_good'"):
        evaluate.main([str(run), "--tasks=fast", f"--data={tmp_path}"])
    assert "left out, because the files are missing" in capsys.readouterr().err


def test_a_limit_is_measured_apart(measured: tuple[Path, Path]) -> None:
    run, data = measured
    before = entry.read_results(entry.place_of(run))
    evaluate.main([str(run), "--tasks=fast", f"--data={data}", "--limit=2", "--track=1000"])
    assert entry.read_results(entry.place_of(run)) == before
    found = entry.read_results(entry.place_of(run, 2))
    assert found.keys() == {"chck_1000", "main"}
    assert {name: one.num_items for name, one in found["main"].tasks.items()} == {
        "blimp_fast": 4,  # of two files
        "supplement_fast": 2,
        "ewok_fast": 2,
        "entity_tracking_fast": 2,
        "global_piqa_parallel": 2,
        "global_piqa_nonparallel": 2,
    }
    assert not found["main"].reading
