"""Held-out words and concepts: known predictions have known scores."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlsm.coding.targets import EVERY_TOKEN
from mlsm.evaluation.heldout import KLSums, score_concepts, score_unigram, score_words
from mlsm.runs.run import Run, load_run
from mlsm.text.batches import Corpus


@pytest.fixture(scope="module")
def run(teacher: Path) -> Run:
    return load_run(teacher)


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


def test_an_all_zero_target_agrees_with_no_prediction(run: Run) -> None:
    corpus = Corpus(run.record.data, run.tokenizer)
    num_positions = corpus.heldout_update(4096, EVERY_TOKEN, 0).num_selected

    class Student:
        """Predicts concept 0 everywhere, with a probability of 1/2."""

        config, device = SimpleNamespace(num_concepts=3), torch.device("cpu")

        def hidden_at(self, inputs, selected_N):  # type: ignore[no-untyped-def]
            return torch.tensor([0.5, 0.25, 0.25]).log().expand(len(selected_N), 3)

        def concept_logits(self, hidden_ND):  # type: ignore[no-untyped-def]
            return hidden_ND

    class Teacher:
        """Every third code is zero; all others are concept 0."""

        def targets(self, micro):  # type: ignore[no-untyped-def]
            target_NK = torch.zeros(len(micro.selected_N), 3)
            target_NK[:, 0] = torch.arange(len(target_NK)) % 3 != 0
            self.num_zero = int((target_NK.sum(1) == 0).sum())
            return SimpleNamespace(distribution_NK=target_NK)

    teacher = Teacher()
    scores = score_concepts(Student(), teacher, corpus, EVERY_TOKEN, 1 << 30)  # type: ignore[arg-type]
    share = 1 - teacher.num_zero / num_positions
    assert scores.top_accuracy == pytest.approx(share)
    assert scores.kl == pytest.approx(share * math.log(2))


def test_the_entropy_of_the_targets_is_a_mean_over_all_positions() -> None:
    sums = KLSums(2)
    sums.add(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[-1.0, -1.0], [-2.0, -0.2]]))
    sums.add(torch.tensor([[0.0, 0.0]]), torch.tensor([[-1.0, -1.0]]))
    assert sums.target_entropy(3) == pytest.approx(math.log(2) / 3)
