"""Zero-shot suites: pairs of each suite, averages, ties and resumption."""

import json
from pathlib import Path

import pytest
from small_runs import random_run, small_tokenizer
from task_files import blimp_rows, write_lines, write_suites

import evaluate
from mlsm.evaluation import minimal_pairs
from mlsm.evaluation.minimal_pairs import (
    PairScore,
    Scoring,
    SubTask,
    encode_suite,
    pair_accuracy,
    read_files,
    summarize,
)
from mlsm.evaluation.pseudo_likelihood import Score, Text
from mlsm.evaluation.tasks import SUITES
from mlsm.text.tokenizer import SEP_ID, Tokenizer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_suites(tmp_path / "data")


def encoded(name: str, data: Path, tokenizer: Tokenizer, *, has_prefix: bool = False) -> list[SubTask]:
    """The sub-tasks of a suite, from its files."""
    return encode_suite(SUITES[name], read_files(SUITES[name], data), tokenizer, 128, has_prefix)


def pair_scores(*pairs: tuple[float, float]) -> list[PairScore]:
    return [PairScore(Score(good, 1), Score(bad, 1)) for good, bad in pairs]


def test_ties_count_as_asked() -> None:
    scores = pair_scores((-1, -2), (-3, -3), (-2, -1), (-1, -1))
    assert pair_accuracy(scores, "mean", "wrong") == 0.25
    assert pair_accuracy(scores, "mean", "half") == 0.5
    assert pair_accuracy(scores, "mean", "correct") == 0.75


def test_mean_and_sum_can_disagree() -> None:
    scores = [PairScore(Score(-4.0, 4), Score(-3.0, 2))]  # a longer good sentence
    assert pair_accuracy(scores, "mean", "wrong") == 1.0
    assert pair_accuracy(scores, "sum", "wrong") == 0.0


def test_averages_weigh_sub_tasks_equally() -> None:
    subtasks = [SubTask(name, "", group, []) for name, group in [("a", "x"), ("b", "x"), ("c", "y")]]
    right, wrong = (-1.0, -2.0), (-2.0, -1.0)
    scores = {
        "a": pair_scores(right),
        "b": pair_scores(wrong, wrong, wrong, right),
        "c": pair_scores((-1.0, -1.0)),
    }
    summary = summarize(subtasks, scores, Scoring(ties="correct"))
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
    subtasks = encoded("blimp", data, small_tokenizer())
    assert {s.group for s in subtasks} == {"syntax_semantics", "syntax", "semantics"}


def test_ewok_makes_one_pair_of_a_line_with_contexts_visible_and_not_scored(data: Path) -> None:
    tokenizer = small_tokenizer()
    [subtask] = encoded("ewok", data, tokenizer)
    contexts = [tokenizer.encode(t) for t in ("The cat sees the river.", "The dog hears it.")]
    targets = [tokenizer.encode(t) for t in ("The cat sees.", "The dog hears.")]
    first, second = ([Text(tuple(c), tuple(t)) for t in targets] for c in contexts)
    assert [(pair.good, pair.bad) for pair in subtask.pairs] == [(first[0], first[1]), (second[1], second[0])]


def test_the_official_prefix_adds_sep_and_a_scored_word_boundary(data: Path) -> None:
    tokenizer = small_tokenizer()
    plain = encoded("blimp", data, tokenizer)[0].pairs[0].good
    prefixed = encoded("blimp", data, tokenizer, has_prefix=True)[0].pairs[0].good
    assert prefixed.visible == (SEP_ID,)
    assert tokenizer.piece(prefixed.scored[0]) == "▁"
    assert prefixed.scored[1:] == plain.scored
    with_context = encoded("ewok", data, tokenizer, has_prefix=True)[0].pairs[0].good
    assert with_context.visible == tuple(tokenizer.encode("The cat sees the river."))


def test_a_newline_in_a_sentence_is_a_blank(data: Path) -> None:
    tokenizer = small_tokenizer()
    [subtask] = encoded("supplement", data, tokenizer)
    assert subtask.pairs[0].good.scored == tuple(tokenizer.encode("Who sees? The cat sees."))


def test_missing_files_and_sentences_that_are_too_long(data: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=r"no \.jsonl files in .*ewok_filtered"):
        encoded("ewok", tmp_path, tokenizer)
    rows = [*blimp_rows(["The cat."], ["Cat the."]), *blimp_rows(["The cat. " * 60], ["Cat."])]
    write_lines(data / "blimp_filtered" / "long.jsonl", rows)
    with pytest.raises(ValueError, match=r"long\.jsonl, line 2: \d+ tokens, the model reads 128 at most"):
        encoded("blimp", data, tokenizer)


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
