"""SAEs from elsewhere: their codes are those of their formula, on the scale of our codes.

Shape suffixes: N signals, D width of a signal, K atoms.
"""

import dataclasses
import math

import pytest
import torch
from saes import NUM_ATOMS, SETTINGS, WIDTH, hidden_states, random_sae
from torch import Tensor
from torch.nn.functional import normalize

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae import Sae, SaeSettings, atoms_of
from mlsm.coding.targets import Teacher

WITH_ENCODER = [name for name, settings in SETTINGS.items() if settings.activation != "none"]


def scaled(state_D: Tensor, scaling: str) -> tuple[Tensor, float]:
    """p and c of one state in float64."""
    if scaling == "constant_norm_rescale":
        factor = math.sqrt(len(state_D)) / float(state_D.norm())
        return state_D * factor, factor
    if scaling == "layer_norm":
        centred_D = state_D - state_D.mean()
        factor = 1 / (math.sqrt(float(centred_D.square().sum()) / (len(state_D) - 1)) + 1e-5)
        return centred_D * factor, factor
    return state_D, 1.0


def code_by_formula(state_D: Tensor, dictionary: Dictionary) -> Tensor:
    """The code of one state in float64: activations times the norms of the decoder, over |p - b|."""
    sae = dictionary.sae
    assert sae
    assert sae.encoder_DK is not None
    assert sae.bias_K is not None
    settings = sae.settings
    decoder_DK = dictionary.atoms_DK if sae.decoder_DK is None else sae.decoder_DK
    norms_K = decoder_DK.double().norm(dim=0)
    p_D, _ = scaled(state_D.double(), settings.scaling)
    inputs_D = p_D - sae.offset_D if settings.subtracts_offset else p_D
    sums_K = sae.encoder_DK.double().mT @ inputs_D + sae.bias_K
    ranks_K = sums_K * norms_K if settings.selects_by_norm else sums_K
    is_kept_K = sums_K > 0
    if settings.activation == "topk":
        is_kept_K &= ranks_K >= ranks_K.sort(descending=True).values[settings.k - 1]
    elif settings.activation == "groupmax":
        groups = ranks_K.unflatten(0, (settings.k, -1))
        is_kept_K &= (groups == groups.amax(1, keepdim=True)).flatten()
    elif settings.activation == "jumprelu":
        is_kept_K &= sums_K > sae.threshold_K
    return torch.where(is_kept_K, sums_K * norms_K, 0.0) / (p_D - sae.offset_D).norm()


@pytest.mark.parametrize("has_unit_norm", [True, False])
@pytest.mark.parametrize("name", WITH_ENCODER)
def test_codes_are_those_of_the_formula(name: str, has_unit_norm: bool) -> None:
    dictionary, states_ND = random_sae(SETTINGS[name], has_unit_norm=has_unit_norm), hidden_states()
    assert dictionary.sae
    assert (dictionary.sae.decoder_DK is None) == has_unit_norm
    codes_NK = dictionary.sae.encode(states_ND)
    expected_NK = torch.stack([code_by_formula(state_D, dictionary) for state_D in states_ND])
    torch.testing.assert_close(codes_NK.double(), expected_NK, rtol=1e-4, atol=1e-5)
    assert (codes_NK >= 0).all()
    if SETTINGS[name].k:
        assert ((codes_NK > 0).sum(1) <= SETTINGS[name].k).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_signals_are_what_the_decoder_reconstructs(name: str) -> None:
    """p = b + |p - b| unit, and a step of the code moves the state by as much as it moves p, over c."""
    dictionary, states_ND = random_sae(SETTINGS[name]), hidden_states()
    assert dictionary.sae
    signals = dictionary.signals(states_ND)
    torch.testing.assert_close(signals.unit_ND.norm(dim=1), torch.ones(len(states_ND)))
    for state_D, unit_D, scale in zip(states_ND.double(), signals.unit_ND, signals.scale_N1, strict=True):
        p_D, factor = scaled(state_D, SETTINGS[name].scaling)
        found_D = float(scale) * factor * unit_D.double() + dictionary.sae.offset_D
        torch.testing.assert_close(found_D, p_D, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_a_reconstruction_is_the_decoders_on_the_scale_of_the_states(name: str) -> None:
    """x + (W f + b - p) / c, because p = c (x - m)."""
    dictionary, states_ND = random_sae(SETTINGS[name]), hidden_states()
    assert dictionary.sae
    teacher = Teacher(None, dictionary, None, coder="sae")  # type: ignore[arg-type]
    for state_D, found_D in zip(states_ND.double(), teacher.reconstructed(states_ND), strict=True):
        p_D, factor = scaled(state_D, SETTINGS[name].scaling)
        code_K = code_by_formula(state_D, dictionary) * (p_D - dictionary.sae.offset_D).norm()
        decoded_D = dictionary.atoms_DK.double() @ code_K + dictionary.sae.offset_D
        expected_D = state_D + (decoded_D - p_D) / factor
        torch.testing.assert_close(found_D.double(), expected_D, rtol=1e-3, atol=1e-3)


def test_signals_of_a_dictionary_without_sae_are_unit_states() -> None:
    dictionary = dataclasses.replace(random_sae(SETTINGS["relu"]), sae=None)
    states_ND = hidden_states()
    signals = dictionary.signals(states_ND)
    assert torch.equal(signals.unit_ND, normalize(states_ND))
    torch.testing.assert_close(signals.unit_ND * signals.scale_N1, states_ND)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "topk by norm"])
def test_codes_do_not_depend_on_how_encoder_and_decoder_share_a_scale(name: str) -> None:
    """f_k / s_k with s_k w_k is the same SAE."""
    dictionary, states_ND = random_sae(SETTINGS[name]), hidden_states()
    sae = dictionary.sae
    assert sae
    assert sae.norms_K is not None
    shares_K = torch.empty(NUM_ATOMS).uniform_(0.3, 3, generator=torch.Generator().manual_seed(1))
    changed = {"decoder_DK": sae.decoder_DK * shares_K}
    for field in ("encoder_DK", "bias_K", "threshold_K"):
        if (weight := getattr(sae, field)) is not None:
            changed[field] = weight / shares_K
    torch.testing.assert_close(
        dataclasses.replace(sae, **changed).encode(states_ND), sae.encode(states_ND), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_of_zeros_has_a_finite_code(name: str) -> None:
    dictionary = random_sae(SETTINGS[name])
    assert dictionary.sae
    states_ND = torch.zeros(2, WIDTH)
    signals = dictionary.signals(states_ND)
    assert signals.unit_ND.isfinite().all()
    assert signals.scale_N1.isfinite().all()
    if dictionary.sae.encoder_DK is not None:
        assert dictionary.sae.encode(states_ND).isfinite().all()
    assert dictionary.sae.signals(torch.zeros(0, WIDTH)).unit_ND.shape == (0, WIDTH)


def test_atoms_have_norm_1_and_the_decoder_is_kept_if_it_has_not() -> None:
    decoder_DK = random_sae(SETTINGS["relu"]).sae.decoder_DK.clone()
    decoder_DK[:, 2] = 0
    atoms_DK, kept_DK = atoms_of(decoder_DK)
    assert kept_DK is decoder_DK
    norms_K = atoms_DK.norm(dim=0)
    assert norms_K[2] == 0
    torch.testing.assert_close(norms_K.sum(), torch.tensor(NUM_ATOMS - 1.0))
    torch.testing.assert_close(atoms_DK * decoder_DK.norm(dim=0), decoder_DK)
    unit_DK = normalize(torch.randn(WIDTH, 9), dim=0)
    assert atoms_of(unit_DK) == (unit_DK, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "tanh"}, "activation 'tanh'"),
        ({"activation": "relu", "scaling": "whitened"}, "scaling 'whitened'"),
        ({"activation": "topk"}, "k None"),
        ({"activation": "relu", "k": 3}, "k 3"),
        ({"activation": "topk", "k": 2.5}, "k must be"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaeSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset_D": torch.zeros(WIDTH + 1)}, "offset_D of an SAE is"),
        ({"offset_D": torch.zeros(1, WIDTH)}, "offset_D of an SAE is"),
        ({"bias_K": torch.zeros(NUM_ATOMS).double()}, "bias_K of an SAE is torch.float64"),
        ({"encoder_DK": torch.full((WIDTH, NUM_ATOMS), math.nan)}, "must be finite"),
        ({"encoder_DK": torch.zeros(NUM_ATOMS, WIDTH)}, "encoder_DK of an SAE is"),
        ({"encoder_DK": None}, "has .*encoder_DK"),
        ({"threshold_K": torch.zeros(NUM_ATOMS)}, "has .* not .*threshold_K"),
        ({"settings": SaeSettings("topk", k=NUM_ATOMS + 1)}, "of k 37 and 36 atoms"),
        ({"settings": SaeSettings("topk", k=0)}, "of k 0"),
        ({"settings": SaeSettings("groupmax", k=5)}, "groupmax of k 5 and 36 atoms"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    dictionary = random_sae(SETTINGS["relu"])
    assert dictionary.sae
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(dictionary, sae=dataclasses.replace(dictionary.sae, **changes))


def test_an_sae_without_encoder_encodes_nothing() -> None:
    sae = random_sae(SETTINGS["no encoder"]).sae
    assert isinstance(sae, Sae)
    with pytest.raises(ValueError, match="this SAE has no encoder"):
        sae.encode(hidden_states())
