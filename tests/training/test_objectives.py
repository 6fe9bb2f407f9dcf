"""Losses and targets: sums over the selected positions of an update, whatever the micro-batches; codes as in
Eq. 2.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from pipeline import nano_teacher

from mlsm.coding.targets import Teacher, unit_states
from mlsm.config import TrainConfig
from mlsm.model.language_model import LanguageModel
from mlsm.runs.run import load_run
from mlsm.runs.teacher import load_dictionary, load_teacher
from mlsm.text.batches import Corpus, Selection, Update
from mlsm.training.objectives import OBJECTIVES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_teacher(tmp_path_factory.mktemp("objectives"))


@pytest.fixture(scope="module")
def teacher(directory: Path) -> Teacher:
    [dictionary] = directory.glob("dictionary-*.safetensors")
    return load_teacher(directory, load_dictionary(dictionary, directory), TrainConfig(), CPU)


@pytest.fixture(scope="module")
def corpus(directory: Path) -> Corpus:
    run = load_run(directory)
    return Corpus(run.record.data, run.tokenizer)


@pytest.fixture
def model(directory: Path) -> LanguageModel:
    shape = load_run(directory).record.model
    heads = dataclasses.replace(shape, num_concepts=24, has_token_head=True, dropout=0.0)
    return LanguageModel(heads, seed=4)


def update_of(corpus: Corpus, selection: Selection, token_budget: int = 96) -> Update:
    return corpus.update(5, batch_size=16, token_budget=token_budget, selection=selection, seed=1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_do_not_depend_on_the_micro_batches(
    name: str, corpus: Corpus, model: LanguageModel, teacher: Teacher
) -> None:
    objective = OBJECTIVES[name]
    gradients = []
    for budget in (40, 10_000):
        update = update_of(corpus, objective.selection(0.15), budget)
        model.zero_grad(set_to_none=True)
        for micro in update.micro_batches:
            outcome = objective.loss(model, micro, teacher, TrainConfig())
            (outcome.loss / update.num_selected).backward()
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    largest = max(float(g.norm()) for g in gradients[1].values())
    for weight, gradient in gradients[0].items():
        assert float((gradient - gradients[1][weight]).norm()) <= 1e-5 * largest, weight


def test_each_objective_trains_the_weights_it_should(
    corpus: Corpus, model: LanguageModel, teacher: Teacher
) -> None:
    trained = {}
    for name, objective in OBJECTIVES.items():
        model.zero_grad(set_to_none=True)
        micro = update_of(corpus, objective.selection(0.15)).micro_batches[0]
        objective.loss(model, micro, teacher, TrainConfig()).loss.backward()
        trained[name] = {
            n for n, w in model.named_parameters() if w.grad is not None and w.grad.abs().max() > 0
        }
    head = {"token_head.weight", "token_head.bias"}
    concepts, words = {"concepts.weight", "concepts.bias"}, {"decoder_bias"}
    backbone = {n for n, _ in model.named_parameters()} - head - concepts - words
    assert trained["token-head"] == head
    assert trained["mlm"] == backbone | words
    assert trained["mlm+mlsm"] == backbone | words | concepts
    for name in ("mlsm", "lsm", "lsm15"):
        assert trained[name] == backbone | concepts


def test_the_joint_loss_is_the_weighted_sum(corpus: Corpus, model: LanguageModel, teacher: Teacher) -> None:
    micro = update_of(corpus, OBJECTIVES["mlm"].selection(0.15)).micro_batches[0]
    config = TrainConfig(mlm_weight=0.3)
    losses = {n: o.loss(model, micro, teacher, config).loss.item() for n, o in OBJECTIVES.items()}
    assert losses["mlm+mlsm"] == pytest.approx(losses["mlsm"] + 0.3 * losses["mlm"], rel=1e-5)


def test_selections_are_the_papers() -> None:
    chosen = {name: objective.selection(0.15) for name, objective in OBJECTIVES.items()}
    assert chosen["lsm"] == Selection(1.0, is_masked=False)
    assert chosen["lsm15"] == Selection(0.15, is_masked=False)
    for name in ("mlm", "mlsm", "mlm+mlsm", "token-head"):
        assert chosen[name] == Selection(0.15, is_masked=True)


def test_targets_are_distributions_of_the_unmasked_text(corpus: Corpus, teacher: Teacher) -> None:
    masked = update_of(corpus, Selection(0.15, is_masked=True)).micro_batches[0]
    plain = masked._replace(inputs=masked.text)
    targets = teacher.targets(masked)
    assert torch.equal(targets.distribution_NK, teacher.targets(plain).distribution_NK)
    assert (targets.distribution_NK >= 0).all()
    sums_N = targets.distribution_NK.sum(1)
    assert (((sums_N - 1).abs() < 1e-5) | (sums_N == 0)).all()
    assert targets.worst_gap <= teacher.tolerance
    assert not targets.distribution_NK.requires_grad
    states_ND = unit_states(teacher.encoder, masked, teacher.dictionary.layer)
    torch.testing.assert_close(states_ND.norm(dim=1), torch.ones(len(states_ND)))
    assert not teacher.encoder.training


def test_a_zero_code_adds_nothing_but_still_counts(
    corpus: Corpus, model: LanguageModel, teacher: Teacher
) -> None:
    """A penalty above every correlation makes all codes zero: the loss is 0, not NaN."""
    blind = dataclasses.replace(teacher, dictionary=dataclasses.replace(teacher.dictionary, lam=5.0))
    micro = update_of(corpus, Selection(1.0, is_masked=False)).micro_batches[0]
    assert blind.targets(micro).num_uses_K.sum() == 0
    outcome = OBJECTIVES["lsm"].loss(model, micro, blind, TrainConfig())
    assert outcome.loss.item() == 0.0
    outcome.loss.backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())


def test_the_divergence_is_kl_in_nats(corpus: Corpus, model: LanguageModel, teacher: Teacher) -> None:
    micro = update_of(corpus, Selection(1.0, is_masked=False)).micro_batches[0]
    target_NK = teacher.targets(micro).distribution_NK.double()
    hidden_ND = model.hidden_at(micro.inputs, micro.selected_N)
    student_NK = model.concept_logits(hidden_ND).detach().double().softmax(-1)
    expected = sum(
        float((p[p > 0] * (p[p > 0] / q[p > 0]).log()).sum())
        for p, q in zip(target_NK, student_NK, strict=True)
    )
    outcome = OBJECTIVES["lsm"].loss(model, micro, teacher, TrainConfig())
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-5)
