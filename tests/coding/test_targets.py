"""Targets: sparse codes of the states of the unmasked text, as distributions; and samples of states.

Legend: N selected positions, D width, K concepts.
"""

from pathlib import Path

import pytest
import torch
from small_text import sentences
from torch.nn.functional import normalize

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN, Sample, Teacher, sample_states, unit_states
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
