"""Our DeBERTa v1 equals the published one: same weights, same logits, same gradients, same number of
parameters.
"""

import dataclasses
import functools
import warnings
from unittest import mock

import pytest
import torch
from transformers import DebertaConfig, DebertaForMaskedLM

from kernels.attention import disentangled_attention
from mlsm.config import ModelConfig, base
from mlsm.export import huggingface_config
from mlsm.model import deberta
from mlsm.model.deberta import Encoder
from mlsm.model.language_model import LanguageModel
from mlsm.runs.hub_names import from_huggingface
from mlsm.runs.run import load_weights_
from mlsm.text.sequences import Sequences

SIZES = {
    "narrow": ModelConfig(
        vocab_size=61, width=32, depth=3, num_heads=4, ffn_width=48, max_positions=40, dropout=0.0
    ),
    "one head": ModelConfig(
        vocab_size=97, width=24, depth=2, num_heads=1, ffn_width=96, max_positions=130, dropout=0.0
    ),
    "wide": ModelConfig(
        vocab_size=211, width=192, depth=2, num_heads=3, ffn_width=256, max_positions=512, dropout=0.0
    ),
}


def published_model(config: ModelConfig) -> DebertaForMaskedLM:
    """transformers' model of the same shape, with every weight (also biases and norms) random."""
    theirs = DebertaForMaskedLM(DebertaConfig.from_dict(huggingface_config(config)))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return theirs


def our_model(theirs: DebertaForMaskedLM, config: ModelConfig) -> LanguageModel:
    ours = LanguageModel(config)
    load_weights_(ours, from_huggingface(dict(theirs.state_dict())), "transformers")
    return ours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", [[40, 40], [7], [1, 33, 12], [2, 1]])
def test_equals_the_published_model(size: str, lengths: list[int]) -> None:
    config = SIZES[size]
    theirs = published_model(config)
    ours = our_model(theirs, config)
    generator = torch.Generator().manual_seed(len(lengths))
    ids_BL = torch.randint(5, config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    is_real_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels_N = torch.randint(5, config.vocab_size, (int(is_real_BL.sum()),), generator=generator)
    sequences = Sequences.of([ids_L[:length] for ids_L, length in zip(ids_BL, lengths, strict=True)])

    ours_NV = ours.decoder_logits(ours.hidden_at(sequences, torch.arange(len(labels_N))))
    theirs_NV = theirs(ids_BL, attention_mask=is_real_BL.long()).logits[is_real_BL]
    scale = float(theirs_NV.detach().abs().max())
    assert float((ours_NV - theirs_NV).detach().abs().max()) <= 1e-5 * max(1.0, scale)

    torch.nn.functional.cross_entropy(ours_NV, labels_N).backward()
    torch.nn.functional.cross_entropy(theirs_NV, labels_N).backward()
    expected = from_huggingface({n: w.grad for n, w in theirs.named_parameters() if w.grad is not None})
    gradients = {n: w.grad for n, w in ours.named_parameters() if w.grad is not None}
    assert gradients.keys() == expected.keys() == dict(ours.named_parameters()).keys()
    largest = max(float(g.norm()) for g in expected.values())
    for name, gradient in gradients.items():
        # A weight whose true gradient is zero (all keys of a one-token sequence) holds only rounding.
        error = float((gradient - expected[name]).norm())
        assert error <= 1e-4 * float(expected[name].norm()) + 1e-7 * largest, name


def test_hidden_states_of_each_layer_equal_the_published_ones() -> None:
    config = SIZES["narrow"]
    theirs = published_model(config)
    encoder = our_model(theirs, config).encoder
    ids_BL = torch.arange(5, 5 + 18).view(2, 9)
    expected = theirs.deberta(ids_BL, output_hidden_states=True).hidden_states
    for layer, hidden_BLD in enumerate(expected):
        ours_TD = encoder(Sequences.of(ids_BL.unbind()), num_layers=layer)
        torch.testing.assert_close(ours_TD, hidden_BLD.flatten(0, 1), atol=2e-5, rtol=1e-5)
        at_N = torch.tensor([3, 11, 12])
        ours_ND = encoder(Sequences.of(ids_BL.unbind()), at_N, num_layers=layer)
        torch.testing.assert_close(ours_ND, hidden_BLD.flatten(0, 1)[at_N], atol=2e-5, rtol=1e-5)


def test_base_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = Encoder(base().model)
    sizes = {name: weight.numel() for name, weight in encoder.named_parameters()}
    words = sizes.pop("token_embedding.weight")
    assert words == 19_200_000
    assert sum(sizes.values()) == 99_998_208


def test_a_sequence_does_not_see_its_neighbours() -> None:
    model = LanguageModel(SIZES["narrow"]).eval()
    rows = [torch.randint(5, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 11, 4)]
    alone_LD = model.encoder(Sequences.of([rows[1]]))
    together_TD = model.encoder(Sequences.of(rows))
    torch.testing.assert_close(together_TD[20:31], alone_LD, atol=1e-6, rtol=1e-5)


def test_a_sequence_longer_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="sequences of 41 tokens, but the model was built for 40"):
        LanguageModel(SIZES["narrow"]).encoder(Sequences.of([torch.full((41,), 7)]))


def loss_and_gradients(encoder: Encoder, sequences: Sequences) -> list[torch.Tensor]:
    torch.manual_seed(1)  # of the dropout
    encoder.zero_grad()
    loss = encoder(sequences, torch.tensor([1, 4, 8, 9, 12])).square().sum()
    loss.backward()
    return [loss.detach(), *(w.grad.clone() for w in encoder.parameters() if w.grad is not None)]


def test_recomputed_layers_give_the_same_gradients_also_with_dropout() -> None:
    encoder = LanguageModel(dataclasses.replace(SIZES["narrow"], dropout=0.3)).encoder
    sequences = Sequences.of([torch.arange(5, 14), torch.arange(20, 26)])
    expected = loss_and_gradients(encoder, sequences)
    encoder.recomputes_layers = True
    for ours, true in zip(loss_and_gradients(encoder, sequences), expected, strict=True):
        assert torch.equal(ours, true)


def test_compiled_layers_give_the_same_gradients_for_any_lengths() -> None:
    encoder = LanguageModel(dataclasses.replace(SIZES["narrow"], depth=2)).encoder
    inputs = [Sequences.of([torch.arange(5, 5 + n) for n in lengths]) for lengths in ([9, 6], [13, 2, 5])]
    expected = [loss_and_gradients(encoder, sequences) for sequences in inputs]
    encoder.compile_layers_("aot_eager")  # traces as inductor does, and spares the test its C++ compiler
    num_graphs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, which looks at gradients of inner tensors
        for sequences, true in zip(inputs, expected, strict=True):
            torch.testing.assert_close(loss_and_gradients(encoder, sequences), true, rtol=1e-4, atol=1e-4)
            num_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert num_graphs[1] == num_graphs[0] > 0


def test_the_loss_is_the_same_with_the_kernel_that_never_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused (interpreted here) on flat sequences, and strided on padded ones."""
    encoder = LanguageModel(dataclasses.replace(SIZES["narrow"], width=64, num_heads=2, depth=2)).encoder
    sequences = Sequences.of([torch.arange(5, 5 + n) for n in (9, 2, 5)])
    strided = loss_and_gradients(encoder, sequences)
    fused = mock.Mock(wraps=functools.partial(disentangled_attention, implementation="triton"))
    monkeypatch.setattr(deberta, "disentangled_attention", fused)
    torch.testing.assert_close(loss_and_gradients(encoder, sequences), strided, rtol=1e-4, atol=1e-4)
    assert fused.call_count == 2  # layers


def test_updates_of_any_shape_share_a_few_graphs() -> None:
    """A student in training and a frozen teacher, as in train.py; "eager" counts graphs without compiling."""
    shape = dataclasses.replace(SIZES["narrow"], dropout=0.1, depth=3)
    student, teacher = LanguageModel(shape).encoder, LanguageModel(shape, seed=1).encoder.eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for encoder in (student, teacher):
        encoder.compile_layers_("eager")
    num_graphs = []
    # Padded, of equal length, alone; with several selected positions, with one, with none; and lengths anew.
    kinds = [([9, 6], 4), ([7, 7], 2), ([11], 3), ([12, 5], 1), ([13], 1), ([4, 3], 0), ([6], 0)]
    anew = [([13, 2, 5], 8), ([30], 9), ([3, 3, 3, 2], 5), ([17, 8], 1), ([21, 21], 6), ([8, 3], 0)]
    for lengths, num_selected in [*kinds, *anew]:
        sequences = Sequences.of([torch.arange(5, 5 + n) for n in lengths])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            with torch.no_grad():
                teacher(sequences, torch.arange(num_selected))
            student(sequences, torch.arange(num_selected)).sum().backward()
        num_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 4 <= num_graphs[0] <= num_graphs[-1] <= 24
    assert num_graphs[len(kinds) - 1] == num_graphs[-1]
