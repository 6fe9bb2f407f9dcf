"""Choices between texts, against a loop over the exported model in transformers; draws between equals."""

import random
from pathlib import Path

import pytest
import torch
from babylm_files import ODD
from small_runs import random_run
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlsm import export
from mlsm.evaluation.babylm.choices import choose, encode, encode_file, judge, score_items
from mlsm.evaluation.babylm.formats import TASKS, Candidate, Item, TaskFile
from mlsm.evaluation.pseudo_likelihood import Score
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.run import load_run


def test_scores_equal_a_loop_with_transformers(tmp_path: Path) -> None:
    """A token counts if it ends behind the start of the completion and is not special."""
    run = load_run(random_run(tmp_path / "run"))
    export.main([str(run.directory), str(tmp_path / "exported")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported").eval()
    candidates = [Candidate(text, text) for text in ODD]
    candidates += [Candidate(f"The cat. {text}", f" {text}") for text in ODD]
    candidates += [Candidate(f"The dog {text}", text) for text in ODD]
    candidates += [Candidate("A river", "er"), Candidate("A river", "")]  # within a word; nothing at all
    fast = huggingface_tokenizer(run.tokenizer)
    scores = score_items(run.model, [[encode(fast, candidate)] for candidate in candidates], 256)
    for candidate, [score] in zip(candidates, scores, strict=True):
        encoded = tokenizer(candidate.sentence, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        start = len(candidate.sentence) - len(candidate.completion)
        expected = []
        for position, (_, end) in enumerate(offsets):
            if end > start:
                masked = torch.tensor([ids])
                masked[0, position] = tokenizer.mask_token_id
                with torch.no_grad():
                    log_p_V = model(masked).logits[0, position].log_softmax(-1)
                expected.append(float(log_p_V[ids[position]]))
        assert score.num_tokens == len(expected)
        assert score.total == pytest.approx(sum(expected), abs=1e-4)
    assert scores[-1] == [Score(0, 0)]


def test_a_text_that_is_too_long_is_named(tmp_path: Path) -> None:
    run = load_run(random_run(tmp_path / "run", max_positions=16))
    text = Candidate("cat " * 20, "cat")
    file = TaskFile("things", "", {3: Item("g", (text, text), 0)})
    with pytest.raises(ValueError, match=r"comps/things\.jsonl, line 3: \d+ tokens, the model reads 16"):
        encode_file(huggingface_tokenizer(run.tokenizer), file, 16, "comps")


def test_the_highest_score_is_chosen_and_equals_are_drawn() -> None:
    assert choose([-3.0, -1.0, -2.0], random.Random(0)) == (1, False)
    drawn = [choose([-1.0, -2.0, -1.0], random.Random(seed)) for seed in range(200)]
    assert {choice.chosen for choice in drawn} == {0, 2}
    assert all(choice.is_tie for choice in drawn)
    assert 60 < sum(choice.chosen == 0 for choice in drawn) < 140


def one_file(num_items: int) -> TaskFile:
    candidates = (Candidate("A cat runs", "runs"), Candidate("A tin runs", "runs"))
    return TaskFile("comps_base", "", {line: Item("base", candidates, 0) for line in range(1, num_items + 1)})


def test_a_tie_is_drawn_or_wrong() -> None:
    file = one_file(400)
    scores = [[Score(-1, 2), Score(-1, 2)]] * 300 + [[Score(-1, 2), Score(-2, 2)]] * 100
    results = [judge(TASKS["comps"], [file], {"comps_base": scores}, seed)[0] for seed in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0].average != results[2].average  # the probability that both seeds agree is small
    for result in results:
        assert (result.num_items, result.num_ties, result.average_without_ties) == (400, 300, 0.25)
        assert 0.55 < result.average < 0.70


def test_predictions_are_numbered_by_group_and_hold_what_was_chosen() -> None:
    scores = {"comps_base": [[Score(-1, 2), Score(-2, 2)], [Score(-5, 2), Score(-2, 2)]]}
    _, predictions = judge(TASKS["comps"], [one_file(2)], scores, 0)
    rows = [{"id": "base_0", "pred": "A cat runs"}, {"id": "base_1", "pred": "A tin runs"}]
    assert predictions == {"base": {"predictions": rows}}
    _, predictions = judge(TASKS["entity"], [one_file(2)], scores, 0)
    assert [row["pred"] for row in predictions["base"]["predictions"]] == ["runs", "runs"]


def test_only_global_piqa_is_normalised_by_length() -> None:
    scores = {"comps_base": [[Score(-3, 3), Score(-2, 1)]]}
    assert judge(TASKS["comps"], [one_file(1)], scores, 0)[0].average == 0
    assert judge(TASKS["global_piqa_parallel"], [one_file(1)], scores, 0)[0].average == 1
