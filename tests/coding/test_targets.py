"""Targets: sparse codes of the states of the unmasked text, as distributions; and samples of states.

Legend: N selected positions, D width, K concepts.
"""

import dataclasses
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from small_text import sentences
from torch import Tensor
from torch.nn.functional import normalize

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN, Sample, TargetRule, Teacher, sample_states, unit_states
from mlsm.config import DataConfig, ModelConfig
from mlsm.device import choose_precision
from mlsm.model.deberta import Encoder, init_weights_
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.corpus import corpus_tokenizer
from mlsm.text.sequences import Sequences

CPU = torch.device("cpu")
FLOAT32 = choose_precision("off", CPU, 16)
WIDTH, NUM_ATOMS = 16, 30


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Random weights and atoms, and dropout, which a teacher must not use."""
    shape = ModelConfig(
        vocab_size=90, width=WIDTH, depth=2, num_heads=2, ffn_width=32, max_positions=40, dropout=0.5
    )
    encoder = Encoder(shape)
    init_weights_(encoder, 0.3, seeded())
    atoms_DK = normalize(torch.randn(WIDTH, NUM_ATOMS, generator=seeded()), dim=0)
    dictionary = Dictionary(atoms_DK, 0.05, layer=1, teacher="cafe")
    return Teacher(encoder.eval(), dictionary, FLOAT32, tolerance=1e-4)


def micro_batch(is_masked: bool) -> MicroBatch:
    rows = [torch.randint(5, 90, (n,), generator=seeded()) for n in (20, 9)]
    selected = [torch.rand(len(row), generator=seeded()) < 0.4 for row in rows]
    return MicroBatch.of(Sequences.of(rows), torch.cat(selected), Selection(0.4, is_masked))


def test_targets_are_distributions_of_the_unmasked_text(teacher: Teacher) -> None:
    micro = micro_batch(is_masked=True)
    assert not torch.equal(micro.inputs.ids_T, micro.text.ids_T)
    targets = teacher.targets(micro)
    assert torch.equal(targets.distribution_NK, teacher.targets(micro_batch(False)).distribution_NK)
    assert (targets.distribution_NK >= 0).all()
    torch.testing.assert_close(targets.distribution_NK.sum(1), torch.ones(len(micro.selected_N)))
    assert torch.equal(targets.num_uses_K, (targets.distribution_NK > 0).sum(0))
    assert targets.worst_gap <= teacher.tolerance
    assert not targets.distribution_NK.requires_grad


def test_codes_are_those_of_unit_norm_states_of_the_layer(teacher: Teacher) -> None:
    micro = micro_batch(is_masked=False)
    states_ND = unit_states(teacher.encoder, micro, teacher.dictionary.layer)
    torch.testing.assert_close(states_ND.norm(dim=1), torch.ones(len(states_ND)))
    hidden_TD = teacher.encoder(micro.text, num_layers=1)
    torch.testing.assert_close(states_ND, normalize(hidden_TD)[micro.selected_N])
    codes_NK = teacher.dictionary.code(states_ND, tol=teacher.tolerance).codes_NK
    torch.testing.assert_close(teacher.targets(micro).distribution_NK, normalize(codes_NK, p=1))


def test_no_selected_position_has_no_targets(teacher: Teacher) -> None:
    empty = micro_batch(False)._replace(selected_N=torch.tensor([], dtype=torch.long))
    targets = teacher.targets(empty)
    assert targets.distribution_NK.shape == (0, NUM_ATOMS)
    assert targets.worst_gap == 0


def test_a_sample_holds_states_of_training_text_in_the_order_drawn(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(sentences(400)) + "\n")
    data = DataConfig(corpus=(str(tmp_path / "text.txt"),), cache_dir=str(tmp_path), max_length=32)
    corpus = Corpus(data, corpus_tokenizer(data, 80))

    def sample(num_tokens: int, seed: int = 1) -> Sample:
        return sample_states(
            teacher.encoder,
            1,
            corpus,
            num_tokens=num_tokens,
            token_budget=100,
            seed=seed,
            precision=FLOAT32,
            device=CPU,
        )

    (some_ND, num_words), (all_ND, num_words_of_all) = sample(500), sample(10**6)
    assert 0 < num_words < num_words_of_all == corpus.num_words(len(corpus.training), seed=0)
    assert some_ND.shape == (500, WIDTH)
    assert torch.equal(some_ND, all_ND[:500])
    assert not torch.equal(some_ND, sample(500, seed=2).states_ND)
    update = corpus.cut(corpus.training, 10**6, EVERY_TOKEN, torch.Generator())
    assert len(all_ND) == update.num_selected
    expected_ND = unit_states(teacher.encoder, update.micro_batches[0], 1)
    torch.testing.assert_close(all_ND.sum(0), expected_ND.sum(0), rtol=1e-4, atol=1e-3)


def random_codes() -> Tensor:
    """Codes (N, K) with zeros, a row of zeros, and weights of very different sizes."""
    codes_NK = torch.randn(9, 14, generator=seeded()).clamp_min(0) ** 3
    codes_NK[4] = 0
    codes_NK[5] *= 1e-12
    codes_NK[6] *= 1e12
    return codes_NK


def entropy_of(distribution_NK: Tensor) -> Tensor:
    return -torch.xlogy(distribution_NK, distribution_NK).sum(1)


@pytest.mark.parametrize(
    "rule",
    [
        TargetRule(),
        *(TargetRule("soft-code", t) for t in (0.02, 0.7, 3.0, 1e6)),
        TargetRule("top-k", top_k=3),
    ],
    ids=str,
)
def test_every_target_is_the_distribution_of_its_formula(rule: TargetRule) -> None:
    """Against float64. Concepts of weight 0 stay at 0, and a code of zeros stays zero."""
    codes_NK = random_codes()
    found_NK = rule.distribution(codes_NK)
    for code_K, found_K in zip(codes_NK.double(), found_NK, strict=True):
        if rule.kind == "top-k":
            code_K = torch.where(code_K >= code_K.sort(descending=True).values[rule.top_k - 1], code_K, 0.0)
        elif rule.kind == "soft-code":
            code_K = torch.where(code_K > 0, (code_K.log() / rule.temperature).softmax(0), 0.0)
        expected_K = code_K / code_K.sum() if code_K.sum() > 0 else code_K
        torch.testing.assert_close(found_K.double(), expected_K, rtol=2e-4, atol=1e-7)
    sums_N = found_NK.sum(1)
    torch.testing.assert_close(sums_N, (codes_NK.sum(1) > 0).float())
    assert not found_NK[codes_NK == 0].any()


def test_temperature_changes_the_entropy_and_not_the_order() -> None:
    codes_NK = random_codes()[:4]
    entropies = [entropy_of(TargetRule("soft-code", t).distribution(codes_NK)) for t in (0.5, 1.0, 2.0, 1e5)]
    for sharper_N, flatter_N in pairwise(entropies):
        assert (flatter_N > sharper_N).all()
    torch.testing.assert_close(entropies[-1], (codes_NK > 0).sum(1).log(), rtol=1e-3, atol=0)
    assert torch.equal(
        TargetRule("soft-code", 2.0).distribution(codes_NK).argsort(dim=1, stable=True),
        codes_NK.argsort(dim=1, stable=True),
    )


def test_the_top_weights_are_the_nearest_distribution_on_so_few_concepts() -> None:
    """No other choice of 2 concepts has a smaller KL divergence to the code."""
    for code_K in torch.rand(5, 6, generator=seeded()).double():
        p_K = code_K / code_K.sum()
        found_K = TargetRule("top-k", top_k=2).distribution(code_K[None])[0]
        kl = float(torch.xlogy(found_K, found_K / p_K).sum())
        others = [-float(p_K[list(pair)].sum().log()) for pair in combinations(range(6), 2)]
        assert kl == pytest.approx(min(others))


def test_targets_of_a_teacher_follow_its_rule(teacher: Teacher) -> None:
    micro = micro_batch(is_masked=False)
    top = dataclasses.replace(teacher, rule=TargetRule("top-k", top_k=2)).targets(micro)
    assert (top.distribution_NK > 0).sum(1).max() == 2
    assert torch.equal(top.num_uses_K, (top.distribution_NK > 0).sum(0))
