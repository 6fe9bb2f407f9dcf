"""Scores of sentences against scores by hand, and that nothing but the sentence decides its score."""

import math
from types import SimpleNamespace

import pytest
import torch
from small_runs import random_run
from small_text import sentences
from torch import Tensor, nn

from mlsm.evaluation.pseudo_likelihood import Text, score_sentences, score_texts, token_log_probabilities
from mlsm.runs.run import Run, load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


class NeighbourModel(nn.Module):
    """A word is as probable as a table says for the token on its left."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.log_probability_VV = nn.Parameter(table_VV.log())
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(max_positions=16)

    def hidden_at(self, sequences: Sequences, selected_N: Tensor) -> Tensor:
        return self.log_probability_VV[sequences.ids_T[selected_N - 1]]

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(random_run(tmp_path_factory.mktemp("runs") / "mine"))


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


def test_pseudo_likelihood_masks_each_token_once(run: Run) -> None:
    ids = run.tokenizer.encode("The cat sees the river again.")
    [scores] = token_log_probabilities(run.model, [Text((), tuple(ids))], 4096)
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
    with pytest.raises(ValueError, match="sentence 1 has 202 tokens, the model reads 128"):
        token_log_probabilities(run.model, [Text((), (7,) * 5), Text((), (7,) * 200)], 4096)


def test_scores_stay_on_their_pairs_whatever_the_order(run: Run) -> None:
    texts = [Text((), tuple(run.tokenizer.encode(s))) for s in [*sentences(20), *sentences(3)]]
    expected = [score_texts(run.model, [text], 10_000)[0].total for text in texts]
    for order in (range(23), reversed(range(23)), torch.randperm(23).tolist()):
        numbers = list(order)
        for budget in (1, 300, 10_000):
            scores = score_texts(run.model, [texts[i] for i in numbers], budget)
            assert [s.total for s in scores] == pytest.approx([expected[i] for i in numbers], abs=1e-4)
    assert score_texts(run.model, texts, 300)[0] == score_texts(run.model, texts, 300)[20]
