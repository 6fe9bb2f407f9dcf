"""GLUE: text forms, metrics as scikit-learn computes them, and fine-tuning that learns, resumes and admits
failure.
"""

import json
import random
import statistics
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from small_runs import random_run, small_tokenizer
from small_text import sentences
from test_minimal_pairs import write_lines

import evaluate
from mlsm.evaluation import finetune
from mlsm.evaluation.finetune import Classifier, Row, SeedResult, Settings, micro_batches, spread
from mlsm.evaluation.glue import (
    TASKS,
    Item,
    accuracy,
    encode_item,
    f1,
    majority_score,
    matthews,
    read_items,
    task_file,
)
from mlsm.evaluation.summary import glue_result, markdown, row
from mlsm.runs.run import load_run
from mlsm.text.tokenizer import CLS_ID, SEP_ID

FORMS = {  # a line of each task's file, and the segments it becomes
    "boolq": ({"question": "is it", "passage": "It is."}, ("is it", "It is.")),
    "cola": ({"sentence": "It is."}, ("It is.",)),
    "mnli": ({"premise": "A.", "hypothesis": "B."}, ("A.", "B.")),
    "mnli-mm": ({"premise": "A.", "hypothesis": "B."}, ("A.", "B.")),
    "mrpc": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "multirc": (
        {"paragraph": "P.", "question": "Q?", "answer": "A", "idx": {"paragraph": 0}},
        ("Question: Q? Answer: A", "P."),
    ),
    "qnli": ({"question": "Q?", "sentence": "S."}, ("Q?", "S.")),
    "qqp": ({"question1": "Q?", "question2": "R?"}, ("Q?", "R?")),
    "rte": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "sst2": ({"sentence": "good"}, ("good",)),
    "wsc": (
        {"text": "Joe beats him.", "span1_text": "Joe", "span2_text": "him", "span1_index": 0},
        ('Does "him" refer to "Joe" in this passage?', "Joe beats him."),
    ),
}
VERBS = ("sees", "likes", "finds", "hears")
QUICK = Settings(learning_rate=3e-3, batch_size=16, max_epochs=12)


def write_cola(data: Path, num_training: int = 160, num_valid: int = 48) -> Path:
    """Sentences that are right (1) if their verb is one of four."""
    for part, count, seed in (("train", num_training, 0), ("valid", num_valid, 9)):
        rows = [
            {"sentence": text, "label": int(any(verb in text for verb in VERBS)), "idx": number}
            for number, text in enumerate(sentences(count, seed))
        ]
        write_lines(task_file(data, "cola", part), rows)
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "mine")


def test_the_eleven_rows_of_the_paper() -> None:
    assert [task.title for task in TASKS.values()] == [
        "BoolQ", "CoLA", "MNLI", "MNLI-mm", "MRPC", "MultiRC", "QNLI", "QQP", "RTE", "SST2", "WSC",
    ]  # fmt: skip
    assert {name for name, task in TASKS.items() if task.metric is f1} == {"mrpc", "qqp"}
    assert {name for name, task in TASKS.items() if task.metric is matthews} == {"cola"}
    assert TASKS["mnli-mm"].trained_on == "mnli"
    assert {name for name, task in TASKS.items() if task.num_labels == 3} == {"mnli", "mnli-mm"}


@pytest.mark.parametrize("task", FORMS)
def test_text_forms(task: str, tmp_path: Path) -> None:
    values, segments = FORMS[task]
    write_lines(task_file(tmp_path, task, "valid"), [{**values, "label": 1, "idx": 0}])
    assert read_items(tmp_path, task, "valid") == [Item(segments, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_metrics_equal_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    true = [draw.randrange(2) for _ in range(50)]
    predicted = [label if draw.random() < 0.7 else draw.randrange(2) for label in true]
    assert accuracy(predicted, true) == pytest.approx(accuracy_score(true, predicted))
    assert f1(predicted, true) == pytest.approx(f1_score(true, predicted))
    assert matthews(predicted, true) == pytest.approx(matthews_corrcoef(true, predicted))
    of_three = [draw.randrange(3) for _ in range(50)]
    assert accuracy(of_three, true) == pytest.approx(accuracy_score(true, of_three))


@pytest.mark.parametrize(("predicted", "true"), [([1, 1], [1, 0]), ([0, 0], [1, 0]), ([0, 0], [0, 0])])
def test_metrics_of_a_single_label(predicted: list[int], true: list[int]) -> None:
    assert f1(predicted, true) == pytest.approx(f1_score(true, predicted, zero_division=0))
    assert matthews(predicted, true) == 0.0


def test_majority_class() -> None:
    training = [Item(("a",), label) for label in (1, 1, 0)]
    valid = [Item(("a",), label) for label in (1, 0, 0, 0)]
    assert majority_score(training, valid, "rte") == 0.25
    assert majority_score(training, valid, "mrpc") == pytest.approx(0.4)
    assert majority_score(training, valid, "cola") == 0.0


def test_long_pairs_are_cut_at_the_longer_segment_and_counted() -> None:
    tokenizer = small_tokenizer()
    short, long = "The cat sees.", "the river " * 40
    first, second = tokenizer.encode(short), tokenizer.encode(long)
    ids, num_cut = encode_item(tokenizer, (short, long), 40)
    assert ids == [CLS_ID, *first, SEP_ID, *second[: 40 - 3 - len(first)], SEP_ID]
    assert num_cut == len(first) + len(second) + 3 - 40
    assert encode_item(tokenizer, (short,), 40) == ([CLS_ID, *first, SEP_ID], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"cola\.valid\.jsonl, line 2: label must be in 0\.\.1, got 2"),
        ({"label": -1}, "line 2: label must be"),
        ({"label": "1"}, "line 2: label must be a whole number, got '1'"),
        ({"label": True}, "line 2: label must be a whole number, got True"),
        ({"sentence": None}, "line 2: sentence must be text, got None"),
    ],
)
def test_bad_lines_are_named(change: dict, message: str, tmp_path: Path) -> None:
    good = {"sentence": "It is.", "label": 1}
    write_lines(task_file(tmp_path, "cola", "valid"), [good, good | change])
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path, "cola", "valid")


def test_a_missing_file_is_said_before_anything_is_trained(run: Path, tmp_path: Path) -> None:
    data = write_cola(tmp_path, 8, 8)
    with pytest.raises(ValueError, match=r"no file .*rte\.train\.jsonl"):
        evaluate.main([str(run), f"--data={data}", "--tasks=cola,rte"])
    assert not (run / "evaluation" / "glue").exists()


def test_micro_batches_hold_every_row_once_with_little_padding() -> None:
    draw = random.Random(0)
    rows = [Row([7] * draw.randrange(3, 128), 0) for _ in range(64)]
    cut = micro_batches(rows, torch.device("cpu"))
    assert sorted(i for numbers in cut for i in numbers) == list(range(64))
    for numbers in cut:
        lengths = [len(rows[i].ids) for i in numbers]
        assert min(lengths) >= finetune.SHORTEST_SHARE * max(lengths)


def test_micro_batches_do_not_change_an_update(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    rows = [Row([CLS_ID, *loaded.tokenizer.encode(s), SEP_ID], i % 2) for i, s in enumerate(sentences(9))]
    rows += [Row(rows[0].ids[:4], 1), Row(rows[1].ids[:7], 0)]
    weights = []
    for shortest_share in (0.0, 1.0):
        monkeypatch.setattr(finetune, "SHORTEST_SHARE", shortest_share)
        model = Classifier(loaded.model.encoder, 2, 0.02, seed=12).eval()
        # no dropout, whose draws depend on the shapes
        monkeypatch.setattr(model, "train", lambda model=model: model)
        finetune._update(model, torch.optim.SGD(model.parameters(), lr=1.0), rows, 1e9)
        weights.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_fine_tuning_learns_and_repeats_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cola(tmp_path)
    monkeypatch.setattr(finetune, "Settings", lambda max_epochs: QUICK)
    command = [str(run), f"--data={data}", "--tasks=cola", "--seeds=12,13", "--baseline", "--paper=10M"]
    evaluate.main(command)
    shown = capsys.readouterr().out
    assert "±" in shown
    assert "majority class" in shown
    assert "LSM (quoted: 10M words, Table 2)" in shown
    cola = json.loads((run / "results.json").read_text())["glue"]["cola"]
    assert cola["mean"] > 0.5
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


def test_mnli_mm_is_scored_with_the_model_of_mnli(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"premise": s, "hypothesis": s, "label": number % 3, "idx": number}
        for number, s in enumerate(sentences(12))
    ]
    for task, part in (("mnli", "train"), ("mnli", "valid"), ("mnli-mm", "valid")):
        write_lines(task_file(tmp_path, task, part), rows)
    monkeypatch.setattr(finetune, "Settings", lambda max_epochs: Settings(max_epochs=1, batch_size=8))
    evaluate.main([str(run), f"--data={tmp_path}", "--tasks=mnli-mm", "--seeds=12"])
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
    plain = finetune.fine_tune
    monkeypatch.setattr(finetune, "fine_tune", lambda *args: trained.append(1) or plain(*args))
    for tasks in ("mnli", "mnli,mnli-mm", "mnli-mm"):
        evaluate.main([str(run), f"--data={tmp_path}", f"--tasks={tasks}", "--seeds=7", "--max-epochs=1"])
    assert trained == [1]


def test_a_text_may_be_empty(tmp_path: Path) -> None:
    """As two questions of QQP's training set are."""
    write_lines(task_file(tmp_path, "qqp", "train"), [{"question1": "Q?", "question2": "", "label": 0}])
    [item] = read_items(tmp_path, "qqp", "train")
    assert encode_item(small_tokenizer(), item.segments, 64)[0][-2:] == [SEP_ID, SEP_ID]


def test_a_gradient_that_is_not_finite_is_no_result(run: Path) -> None:
    model = Classifier(load_run(run).model.encoder, 2, 0.02, seed=12)
    model.classifier.bias.register_hook(lambda gradient: gradient * float("nan"))
    rows = [Row([CLS_ID, 7, SEP_ID], 0), Row([CLS_ID, 8, SEP_ID], 1)]
    with finetune.tqdm(disable=True) as bar, pytest.raises(finetune.Diverged, match="gradient nan"):
        finetune.fine_tune(model, rows, [rows], Settings(max_epochs=1), 12, bar)


def test_the_best_epoch_and_patience(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.6, 0.6005, 0.55, 0.6008, 0.9])
    monkeypatch.setattr(finetune, "selecting_metric", lambda *_: next(values))
    loaded = load_run(run)
    rows = [Row([CLS_ID, 7, SEP_ID], 0), Row([CLS_ID, 8, SEP_ID], 1)]
    model = Classifier(loaded.model.encoder, 2, 0.02, seed=12)
    before = torch.random.get_rng_state()
    with finetune.tqdm(disable=True) as bar:
        outcome = finetune.fine_tune(model, rows, [rows], Settings(), 12, bar)
    assert torch.equal(torch.random.get_rng_state(), before)
    # epochs 3 to 5 do not improve by more than 0.001: stopped before the 0.9, and epoch 5 is the best
    assert outcome.epoch == 5
    assert outcome.selected_by == [0.5, 0.6, 0.6005, 0.55, 0.6008]


def test_a_seed_that_fails_is_reported_and_not_averaged_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = random_run(tmp_path / "mine"), write_cola(tmp_path, 16, 8)
    plain = finetune.Classifier

    def failing(encoder, num_labels, init_std, seed):  # type: ignore[no-untyped-def]
        model = plain(encoder, num_labels, init_std, seed)
        if seed == 13:
            torch.nn.init.constant_(model.classifier.weight, float("nan"))
        return model

    monkeypatch.setattr(finetune, "Classifier", failing)
    evaluate.main([str(run), f"--data={data}", "--tasks=cola", "--seeds=12,13", "--max-epochs=1"])
    captured = capsys.readouterr()
    assert "mine: cola, seed 13 failed: the loss became nan" in captured.err
    assert "(1, 1 failed)" in captured.out
    evaluate.main([str(run), f"--data={data}", "--tasks=cola", "--seeds=13", "--max-epochs=1"])
    assert "failed (1)" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text())["glue"]["cola"]["failed"] == [13]
    assert "| CoLA | 13 | failed |" in (run / "results.md").read_text()


def test_the_average_needs_all_rows_without_failures() -> None:
    def results(failure: str) -> dict:
        seeds = {
            12: SeedResult(dict.fromkeys(TASKS, 0.5), 1, "", 0),
            13: SeedResult({} if failure else dict.fromkeys(TASKS, 0.7), 1, failure, 0),
        }
        return {"glue": {task: glue_result(task, seeds, Settings()) for task in TASKS}}

    assert row(results(""))["GLUE avg."] == pytest.approx(0.6)
    assert "GLUE avg." not in row(results("the loss became nan"))
    of_other_seeds = results("")
    of_other_seeds["glue"]["rte"]["seeds"].pop(13)
    assert "GLUE avg." not in row(of_other_seeds)
    incomplete = results("")
    del incomplete["glue"]["wsc"]
    assert "GLUE avg." not in row(incomplete)
    assert "| WSC | 12 | 0.5000 |" in markdown("mine", results(""))


def test_no_seed_finished() -> None:
    assert spread({12: SeedResult({}, 0, "the loss became nan", 0)}, "cola") is None


def test_the_backbone_of_a_student_is_tuned_without_its_heads(tmp_path: Path) -> None:
    loaded = load_run(random_run(tmp_path / "student", num_concepts=6))
    model = Classifier(loaded.model.encoder, 2, 0.02, seed=12)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"encoder", "dense", "classifier"}
    assert all(w.requires_grad for w in model.parameters())
    assert model.encoder is not loaded.model.encoder


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_epochs must be above 0, got 0"):
        Settings(max_epochs=0)
