"""Scores against hand-computed ones, and that nothing but the sentence decides its score."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pipeline import nano_teacher, student_flags
from small_text import sentences

import evaluate
import train
from mlsm.evaluation.grammar import PHENOMENA, demo_pairs
from mlsm.evaluation.heldout import score_unigram, score_words
from mlsm.evaluation.pseudo_likelihood import score_sentences, token_log_probabilities
from mlsm.evaluation.tables import as_markdown, as_text
from mlsm.runs.run import Run, load_run
from mlsm.text.batches import Corpus
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_teacher(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def run(teacher: Path) -> Run:
    return load_run(teacher)


def test_pseudo_likelihood_masks_each_token_once(run: Run) -> None:
    ids = run.tokenizer.encode("The cat sees the river again.")
    [scores] = token_log_probabilities(run.model, [ids], 4096)
    for position, token in enumerate(ids):
        row = [CLS_ID, *ids, SEP_ID]
        row[position + 1] = MASK_ID
        hidden = run.model.hidden_at(Sequences.of([torch.tensor(row)]), torch.tensor([position + 1]))
        expected = run.model.decoder_logits(hidden).log_softmax(-1)[0, token]
        assert float(scores[position]) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_scores_do_not_depend_on_order_batch_or_repetition(run: Run) -> None:
    texts = [*sentences(12), "The cat.", sentences(12)[3], ""]
    expected = score_sentences(run, texts, token_budget=10_000)
    assert score_sentences(run, texts, token_budget=1) == pytest.approx(expected, abs=1e-5)
    backwards = score_sentences(run, texts[::-1], token_budget=64)[::-1]
    assert backwards == pytest.approx(expected, abs=1e-5)
    assert expected[3] == expected[13]
    assert expected[-1] == 0.0


def test_sum_is_mean_times_tokens(run: Run) -> None:
    text = sentences(1)[0]
    count = len(run.tokenizer.encode(text))
    [mean], [total] = (score_sentences(run, [text], reduction=r) for r in ("mean", "sum"))
    assert total == pytest.approx(mean * count, rel=1e-5)


def test_a_sentence_longer_than_the_model_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="sentence 1 has 602 tokens, the model reads 512"):
        token_log_probabilities(run.model, [[7] * 5, [7] * 600], 4096)


def test_pairs_are_many_distinct_and_the_same_every_time(run: Run) -> None:
    pairs = demo_pairs(run.tokenizer)
    assert pairs == demo_pairs(run.tokenizer)
    assert len(pairs) == len(PHENOMENA)
    for name, these in pairs.items():
        assert len(these) >= 100, name
        assert len(set(these)) == len(these)
        for good, bad in these:
            changed = [a != b for a, b in zip(good.split(), bad.split(), strict=True)]
            assert sum(changed) == 1, (good, bad)


def test_word_scores_of_known_predictions(run: Run) -> None:
    corpus = Corpus(run.record.data, run.tokenizer)
    trained, unigram = score_words(run.model, corpus, 4096), score_unigram(corpus, 4096)
    assert 1 < trained.perplexity < unigram.perplexity
    with torch.no_grad():
        bias = run.model.decoder_bias.clone()
        run.model.transform_norm.weight.zero_()
        run.model.transform_norm.bias.zero_()
        run.model.decoder_bias.zero_()
        uniform = score_words(run.model, corpus, 4096)
        run.model.decoder_bias.copy_(bias)
        run.model.transform_norm.weight.fill_(1.0)
    assert uniform.perplexity == pytest.approx(run.tokenizer.vocab_size, rel=1e-4)


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
    assert math.isfinite(results["word perplexity"])
    assert (words / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "| token-head-lsm-random |" in (words / "results.md").read_text()
    elsewhere = teacher.parent / "elsewhere" / "teacher"
    shutil.copytree(teacher, elsewhere)
    evaluate.main([str(teacher), str(elsewhere), "--tasks=demo"])
    shown = capsys.readouterr().out
    assert f"\n{teacher}  " in shown
    assert f"\n{elsewhere}  " in shown


def test_tables_align_and_leave_unknown_cells_empty() -> None:
    rows = {"first": {"a": 0.5, "b": 123.4}, "second": {"b": 1.0}}
    text = as_text(rows, "Title").splitlines()
    assert text[0] == "Title"
    assert len({len(line) for line in text[1:]}) == 1
    assert as_markdown(rows).splitlines()[-1] == "| second |  | 1.000 |"
