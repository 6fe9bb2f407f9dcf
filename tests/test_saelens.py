"""The sparse coder as an architecture of SAELens: the same codes, and reconstructions of the same scale."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pipeline import ROOT
from saes import SETTINGS, hidden_states, learnt_dictionary, package, random_sae

from mlsm.coding.sae_export import write_sae
from mlsm.coding.sae_import import read_sae, to_dictionary

KINDS = {"learnt here": learnt_dictionary()}
KINDS |= {name: random_sae(settings) for name, settings in SETTINGS.items()}


@pytest.fixture(scope="module")
def sae_lens() -> ModuleType:
    found = package("sae_lens")
    import mlsm.saelens  # noqa: F401 -- registers the architecture

    return found


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_ours_bit_by_bit(kind: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    dictionary, states_ND = KINDS[kind], hidden_states()
    write_sae(dictionary, tmp_path / "sae", "saelens-exact")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    signals = dictionary.signals(states_ND)
    codes_NK = dictionary.code(signals.unit_ND).codes_NK
    found_NK = sae.encode(states_ND)
    if kind == "learnt here":
        assert torch.equal(found_NK, codes_NK)
    else:  # SAELens scales states itself, and its rounding differs
        torch.testing.assert_close(found_NK, codes_NK, rtol=1e-4, atol=2e-4)
    by_position = sae.encode(states_ND.reshape(5, 10, -1))
    torch.testing.assert_close(by_position.flatten(0, 1), found_NK)
    outputs_ND = sae.decode(sae.encode(states_ND))
    expected_ND = states_ND + signals.scale_N1 * (codes_NK @ dictionary.atoms_DK.mT - signals.unit_ND)
    torch.testing.assert_close(outputs_ND, expected_ND, rtol=1e-3, atol=1e-2)
    assert torch.equal(sae(states_ND), outputs_ND)


def test_a_changed_decoder_has_other_codes(sae_lens: ModuleType, tmp_path: Path) -> None:
    dictionary, states_ND = learnt_dictionary(), hidden_states()
    write_sae(dictionary, tmp_path / "sae", "saelens-exact")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    before_NK = sae.encode(states_ND)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    torch.testing.assert_close(sae.encode(states_ND), before_NK.flip(1), rtol=1e-3, atol=1e-3)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    sae = sae.to(torch.float64)
    assert sae.encode(states_ND).dtype == torch.float64
    for fold in (sae.fold_W_dec_norm, lambda: sae.fold_activation_norm_scaling_factor(2.0)):
        with pytest.raises(NotImplementedError):
            fold()


def test_what_saelens_saves_comes_back(sae_lens: ModuleType, tmp_path: Path) -> None:
    write_sae(learnt_dictionary(), tmp_path / "sae", "saelens-exact")
    sae_lens.SAE.load_from_disk(tmp_path / "sae").save_model(tmp_path / "again")
    found = to_dictionary(read_sae(tmp_path / "again"))
    assert found.fingerprint == learnt_dictionary().fingerprint
    assert found.about() == learnt_dictionary().about()


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['sae_lens'] = None; import mlsm.saelens"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stderr.splitlines()[-1].endswith("pip install sae-lens==6.54.12")
