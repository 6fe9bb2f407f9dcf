"""Zero-shot suites: scores by hand, averages, ties, resumption, and every kind of bad file."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import random_run, small_tokenizer
from small_text import sentences
from torch import Tensor, nn

import evaluate
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.evaluation import minimal_pairs
from mlsm.evaluation.glue import TASKS
from mlsm.evaluation.jsonl import read_examples
from mlsm.evaluation.lineage import Lineage, lineage
from mlsm.evaluation.minimal_pairs import SUITES, Scores, SubTask, accuracy, read_suite, summarize
from mlsm.evaluation.paper import EWOK_TIES_CORRECT, GLUE_AVERAGE, quoted_rows
from mlsm.evaluation.pseudo_likelihood import Score, Text, score_texts
from mlsm.evaluation.summary import over_seeds
from mlsm.evaluation.tables import Spread, as_text
from mlsm.runs.record import ConceptsRecord, RunRecord
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import SEP_ID


class NeighbourModel(nn.Module):
    """A word is as probable as a table says for the token on its left."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.log_probability_VV = nn.Parameter(table_VV.log())
        self.config = SimpleNamespace(max_positions=16)

    def hidden_at(self, sequences: Sequences, selected_N: Tensor) -> Tensor:
        return self.log_probability_VV[sequences.ids_T[selected_N - 1]]

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND


def write_lines(path: Path, rows: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def blimp_rows(good: Sequence[str], bad: Sequence[str], field: str = "syntax") -> list[dict]:
    return [
        {"sentence_good": g, "sentence_bad": b, "field": field, "UID": "x"}
        for g, b in zip(good, bad, strict=True)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three BLiMP files of two fields, one of the supplement, one of EWoK."""
    folder, texts = tmp_path / "data", sentences(60, seed=1)
    for number, field in enumerate(["syntax", "syntax", "semantics"]):
        these = texts[10 * number : 10 * number + 10]
        bad = [" ".join(reversed(s.split())) for s in these]
        write_lines(folder / "blimp_filtered" / f"task_{number}.jsonl", blimp_rows(these, bad, field))
    rows = [{"sentence_good": "Who sees?\nThe cat sees.", "sentence_bad": "Who sees?\nThe river sees."}]
    write_lines(folder / "supplement_filtered" / "qa.jsonl", rows)
    item = {"Domain": "sight", "Context1": "The cat sees the river.", "Context2": "The dog hears it."}
    item |= {"Target1": "The cat sees.", "Target2": "The dog hears."}
    write_lines(folder / "ewok_filtered" / "sight.jsonl", [item])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "random")


def test_scores_of_a_model_computed_by_hand() -> None:
    table_VV = torch.full((8, 8), 0.05)
    table_VV[0, 5], table_VV[5, 6], table_VV[6, 5], table_VV[4, 6] = 0.5, 0.25, 0.1, 0.2
    table_VV[:, 7] += 1 - table_VV.sum(1)  # each row sums to 1
    texts = [Text((), (5, 6)), Text((), (5, 6, 5)), Text((5,), (6,)), Text((), (5, 6))]
    # [CLS] is 0: p(5 | [CLS]) p(6 | 5) p(5 | 6), each with only its own token masked
    expected = [0.5 * 0.25, 0.5 * 0.25 * 0.1, 0.25, 0.5 * 0.25]
    for budget in (1, 9, 1000):
        scores = score_texts(NeighbourModel(table_VV), texts, budget)  # type: ignore[arg-type]
        assert [s.num_tokens for s in scores] == [2, 3, 1, 2]
        assert [math.exp(s.total) for s in scores] == pytest.approx(expected, rel=1e-5)
    assert scores[1].reduced("mean") == pytest.approx(math.log(expected[1]) / 3, rel=1e-5)
    assert scores[1].reduced("sum") == scores[1].total


def test_a_model_that_diverged_is_refused() -> None:
    model = NeighbourModel(torch.full((8, 8), math.nan))
    with pytest.raises(ValueError, match="not finite"):
        score_texts(model, [Text((), (5, 6))], 100)  # type: ignore[arg-type]


def pair_scores(*pairs: tuple[float, float]) -> list[Scores]:
    return [Scores(Score(good, 1), Score(bad, 1)) for good, bad in pairs]


def test_ties_count_as_asked() -> None:
    scores = pair_scores((-1, -2), (-3, -3), (-2, -1), (-1, -1))
    assert accuracy(scores, "mean", "wrong") == 0.25
    assert accuracy(scores, "mean", "half") == 0.5
    assert accuracy(scores, "mean", "correct") == 0.75


def test_mean_and_sum_can_disagree() -> None:
    scores = [Scores(Score(-4.0, 4), Score(-3.0, 2))]  # a longer good sentence
    assert accuracy(scores, "mean", "wrong") == 1.0
    assert accuracy(scores, "sum", "wrong") == 0.0


def test_averages_weigh_sub_tasks_equally() -> None:
    subtasks = [SubTask(name, Path(name), group, []) for name, group in [("a", "x"), ("b", "x"), ("c", "y")]]
    right, wrong = (-1.0, -2.0), (-2.0, -1.0)
    scores = {
        "a": pair_scores(right),
        "b": pair_scores(wrong, wrong, wrong, right),
        "c": pair_scores((-1.0, -1.0)),
    }
    summary = summarize(subtasks, scores, "mean", "correct")
    assert summary.subtasks == {"a": 1.0, "b": 0.25, "c": 1.0}
    assert summary.groups == {"x": 0.625, "y": 1.0}
    assert summary.average == pytest.approx(0.75)
    assert (summary.num_pairs, summary.num_ties) == (6, 1)


def test_two_spellings_of_a_field_are_one(data: Path) -> None:
    write_lines(
        data / "blimp_filtered" / "a.jsonl", blimp_rows(["The cat."], ["Cat the."], "syntax/semantics")
    )
    write_lines(
        data / "blimp_filtered" / "b.jsonl", blimp_rows(["The cat."], ["Cat the."], "syntax_semantics")
    )
    subtasks = read_suite(SUITES["blimp"], data, small_tokenizer(), 128, has_prefix=False)
    assert {s.group for s in subtasks} == {"syntax_semantics", "syntax", "semantics"}


def test_ewok_uses_each_item_twice_with_contexts_visible_and_not_scored(data: Path) -> None:
    tokenizer = small_tokenizer()
    [subtask] = read_suite(SUITES["ewok"], data, tokenizer, 128, has_prefix=False)
    contexts = [tokenizer.encode(t) for t in ("The cat sees the river.", "The dog hears it.")]
    targets = [tokenizer.encode(t) for t in ("The cat sees.", "The dog hears.")]
    first, second = ([Text(tuple(c), tuple(t)) for t in targets] for c in contexts)
    assert [(pair.good, pair.bad) for pair in subtask.pairs] == [(first[0], first[1]), (second[1], second[0])]


def test_the_official_prefix_adds_sep_and_a_scored_word_boundary(data: Path) -> None:
    tokenizer = small_tokenizer()
    plain = read_suite(SUITES["blimp"], data, tokenizer, 128, has_prefix=False)[0].pairs[0].good
    prefixed = read_suite(SUITES["blimp"], data, tokenizer, 128, has_prefix=True)[0].pairs[0].good
    assert prefixed.visible == (SEP_ID,)
    assert tokenizer.piece(prefixed.scored[0]) == "▁"
    assert prefixed.scored[1:] == plain.scored
    with_context = read_suite(SUITES["ewok"], data, tokenizer, 128, has_prefix=True)[0].pairs[0].good
    assert with_context.visible == tuple(tokenizer.encode("The cat sees the river."))


def test_a_newline_in_a_sentence_is_a_blank(data: Path) -> None:
    tokenizer = small_tokenizer()
    [subtask] = read_suite(SUITES["supplement"], data, tokenizer, 128, has_prefix=False)
    assert subtask.pairs[0].good.scored == tuple(tokenizer.encode("Who sees? The cat sees."))


def test_scores_stay_on_their_pairs_whatever_the_order(run: Path) -> None:
    loaded = load_run(run)
    texts = [Text((), tuple(loaded.tokenizer.encode(s))) for s in [*sentences(20), *sentences(3)]]
    expected = [score_texts(loaded.model, [text], 10_000)[0].total for text in texts]
    for order in (range(23), reversed(range(23)), torch.randperm(23).tolist()):
        numbers = list(order)
        for budget in (1, 300, 10_000):
            scores = score_texts(loaded.model, [texts[i] for i in numbers], budget)
            assert [s.total for s in scores] == pytest.approx([expected[i] for i in numbers], abs=1e-4)
    assert score_texts(loaded.model, texts, 300)[0] == score_texts(loaded.model, texts, 300)[20]


def test_all_suites_reach_table_json_and_markdown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(tmp_path / "runs" / "mine")
    evaluate.main([str(run), f"--data={data}", "--tasks=blimp,supplement,ewok", "--baseline", "--paper=10M"])
    shown = capsys.readouterr()
    for text in ("BLiMP", "supplement", "EWoK, ties correct", "chance", "quoted: 10M words, Table 4"):
        assert text in shown.out
    assert "3 files, not 67" in shown.err
    results = json.loads((run / "results.json").read_text())
    assert results["blimp"]["average"] == pytest.approx(sum(results["blimp"]["subtasks"].values()) / 3)
    assert set(results["blimp"]["groups"]) == {"syntax", "semantics"}
    assert results["ewok"]["num_pairs"] == 2
    assert "| task_1 |" in (run / "results.md").read_text()
    assert len((run / "evaluation" / "blimp" / "task_0.jsonl").read_text().splitlines()) == 11


def test_runs_that_differ_in_their_seed_get_a_row_of_means(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [random_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (1, 2)]
    other = random_run(tmp_path / "other", num_concepts=4)
    evaluate.main([*map(str, runs), str(other), f"--data={data}", "--tasks=blimp"])
    averages = [json.loads((run / "results.json").read_text())["blimp"]["average"] for run in runs]
    mean, deviation = statistics.fmean(averages), statistics.stdev(averages)
    assert deviation > 0
    shown = capsys.readouterr().out
    assert f"mean of seed-1, seed-2  {mean:.3f} ±{deviation:.3f} (2)" in shown
    assert shown.count("mean of") == 1


def record_of(
    *, objective: str = "lsm", seed: int = 12, init: str = "random", lam: float = 0.05
) -> RunRecord:
    concepts = ConceptsRecord("lsm", "gone", "t", "gone too", "d", layer=12, k=4, lam=lam)
    train = TrainConfig(objective=objective, seed=seed, init=init)
    return RunRecord("tiny", ModelConfig(), DataConfig(), train, "", concepts=concepts)


def test_only_runs_that_were_made_alike_with_other_seeds_are_averaged(tmp_path: Path) -> None:
    def means(**records: RunRecord) -> list[str]:
        rows = {name: {"BLiMP": 0.5} for name in records}
        return list(over_seeds(rows, {name: lineage(record) for name, record in records.items()}))

    assert means(a=record_of(), b=record_of(seed=13)) == ["mean of a, b"]
    assert not means(a=record_of(), b=record_of())  # as of two checkpoints of a run
    assert not means(a=record_of(), b=record_of(seed=13), c=record_of(seed=13))
    assert not means(a=record_of(), b=record_of(seed=13, lam=0.2))
    assert not means(a=record_of(), b=record_of(seed=13, init="teacher"))
    students = [random_run(tmp_path / name, seed=seed) for name, seed in (("s1", 1), ("s2", 2))]
    heads = [record_of(objective="token-head", init=str(student)) for student in students]
    assert means(a=heads[0], b=heads[1]) == ["mean of a, b"]  # one seed, but that of their students differs
    record = json.loads((students[1] / "config.json").read_text())
    record["train"]["num_steps"] = 7
    (students[1] / "config.json").write_text(json.dumps(record))
    heads[1] = record_of(objective="token-head", init=str(students[1]))
    assert not means(a=heads[0], b=heads[1])


def test_means_of_runs_leave_out_what_has_none() -> None:
    failed = Spread(math.nan, math.nan, 0, [12, 13])
    rows = {
        name: {"CoLA": failed, "RTE": Spread(mean, 0.1, 4, [16]), "ppl": math.inf}
        for name, mean in {"a": 0.4, "b": 0.6}.items()
    }
    [mean] = over_seeds(rows, {"a": Lineage("same", (1,)), "b": Lineage("same", (2,))}).values()
    assert mean["RTE"] == Spread(0.5, pytest.approx(math.sqrt(0.02)), 2, [16, 16])
    assert mean["ppl"].mean == math.inf  # type: ignore[union-attr]
    assert "CoLA" not in mean


def test_random_weights_of_a_run_with_a_token_head_can_tell_words_apart(data: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "head", num_concepts=4)
    evaluate.main([str(run), f"--data={data}", "--tasks=blimp", "--baseline"])
    results = json.loads((run / "evaluation" / "random-weights" / "results.json").read_text())
    assert results["blimp"]["num_ties"] < results["blimp"]["num_pairs"]


def test_results_of_other_weights_are_not_kept(data: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "mine")
    evaluate.main([str(run), f"--data={data}", "--tasks=blimp"])
    evaluate.main([str(run), f"--data={data}", "--tasks=supplement"])
    assert json.loads((run / "results.json").read_text()).keys() >= {"blimp", "supplement"}
    random_run(run, seed=1)
    evaluate.main([str(run), f"--data={data}", "--tasks=supplement"])
    assert "blimp" not in json.loads((run / "results.json").read_text())


def test_a_stopped_evaluation_continues_with_the_next_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = random_run(tmp_path / "mine")
    command = [str(run), f"--data={data}", "--tasks=blimp"]
    evaluate.main(command)
    expected = json.loads((run / "results.json").read_text())
    (run / "evaluation" / "blimp" / "task_1.jsonl").unlink()
    damaged = run / "evaluation" / "blimp" / "task_2.jsonl"
    damaged.write_text(damaged.read_text()[:-30])
    scored = []
    plain = minimal_pairs.score_pairs

    def counted(model, pairs, *rest):  # type: ignore[no-untyped-def]
        scored.append(len(pairs))
        return plain(model, pairs, *rest)

    monkeypatch.setattr(minimal_pairs, "score_pairs", counted)
    evaluate.main(command)
    assert scored == [10, 10]
    again = json.loads((run / "results.json").read_text())
    assert again["blimp"]["subtasks"] == expected["blimp"]["subtasks"]
    evaluate.main([*command, "--score=sum", "--ties=half"])
    assert scored == [10, 10]  # other averages of the same scores
    random_run(run, seed=1)
    evaluate.main(command)
    assert scored == [10, 10, 10, 10, 10]  # other weights: nothing stored is theirs


BAD_FILES = {
    "empty": (b"", r"task\.jsonl is empty"),
    "blank lines only": (b"\n\r\n\n", r"task\.jsonl is empty"),
    "not JSON": (b'{"sentence_good": "a"\n', r"task\.jsonl, line 1: not JSON"),
    "not UTF-8": (b'{"sentence_good": "\xff"}\n', r"task\.jsonl, line 1: not UTF-8"),
    "not an object": (b"[1, 2]\n", r"task\.jsonl, line 1: a line must be an object"),
    "wrong field": (
        b'{"good": "a", "sentence_bad": "b"}\n',
        r"line 1: no field 'sentence_good'; there are good",
    ),
    "not text": (
        b'{"sentence_good": 3, "sentence_bad": "b"}\n',
        r"line 1: sentence_good must be text, got 3",
    ),
    "empty sentence": (b'{"sentence_good": " ", "sentence_bad": "b"}\n', r"line 1: sentence_good is empty"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_with_their_line(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "supplement_filtered" / "task.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_suite(SUITES["supplement"], tmp_path, small_tokenizer(), 128, has_prefix=False)


def test_the_line_of_a_mistake_counts_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'{"a": "x"}\n\n\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"task\.jsonl, line 4: a must be text"):
        read_examples(path, {"a": str})


def test_byte_order_mark_and_crlf_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n\r\n{"a": "y"}')
    assert [(e.line, e.values["a"]) for e in read_examples(path, {"a": str})] == [(1, "x"), (3, "y")]


def test_missing_files_and_sentences_that_are_too_long(data: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=r"no \.jsonl files in .*ewok_filtered"):
        read_suite(SUITES["ewok"], tmp_path, tokenizer, 128, has_prefix=False)
    with pytest.raises(ValueError, match=r"no file .*nowhere\.jsonl"):
        read_examples(tmp_path / "nowhere.jsonl", {})
    rows = [*blimp_rows(["The cat."], ["Cat the."]), *blimp_rows(["The cat. " * 60], ["Cat."])]
    write_lines(data / "blimp_filtered" / "long.jsonl", rows)
    with pytest.raises(ValueError, match=r"long\.jsonl, line 2: \d+ tokens, the model reads 128 at most"):
        read_suite(SUITES["blimp"], data, tokenizer, 128, has_prefix=False)


def test_a_mistake_in_the_last_suite_is_said_before_the_first_is_scored(data: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "mine")
    write_lines(data / "ewok_filtered" / "sight.jsonl", [{"Domain": "sight"}])
    with pytest.raises(ValueError, match=r"sight\.jsonl, line 1: no field 'Context1'"):
        evaluate.main([str(run), f"--data={data}", "--tasks=blimp,ewok"])
    assert not (run / "evaluation").exists()


def test_tasks_must_be_known(run: Path) -> None:
    with pytest.raises(ValueError, match="--tasks takes demo, blimp"):
        evaluate.main([str(run), "--tasks=blimp,glu"])


def test_quoted_rows_have_the_averages_the_paper_prints() -> None:
    for size, count in (("10M", 19), ("100M", 16)):
        rows = quoted_rows(
            size, [*(t.title for t in (*TASKS.values(), *SUITES.values())), GLUE_AVERAGE, EWOK_TIES_CORRECT]
        )
        assert len(rows) == count
        for name, row in rows.items():
            if "Table 2" in name or "Table 3" in name:
                values = list(row.values())
                assert sum(values[:-1]) / 11 == pytest.approx(values[-1], abs=0.0016), name
    assert rows["LSM (quoted: 100M words, Table 5)"]["EWoK"] == 0.522
    assert all(row.keys() == {"BLiMP"} for row in quoted_rows("10M", ["BLiMP"]).values())


def test_a_cell_over_seeds_shows_spread_and_failures() -> None:
    text = as_text({"run": {"CoLA": Spread(0.5, 0.012, 4, [13])}}, "Title")
    assert "0.500 ±0.012 (4, 1 failed)" in text
    text = as_text({"run": {"CoLA": Spread(0.5, 0.0, 1), "RTE": Spread(math.nan, math.nan, 0, [12, 13])}}, "")
    assert "0.500 (1)  failed (2)" in text
