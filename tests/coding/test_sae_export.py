"""Exported dictionaries: round trips give the same bits, and the packages compute from them what is said."""

import filecmp
import math
from pathlib import Path

import pytest
import torch
from saes import SETTINGS, hidden_states, learnt_dictionary, package, random_sae

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae_export import write_sae
from mlsm.coding.sae_import import CONFIG_FILE, SAELENS_FILE, read_sae, to_dictionary
from mlsm.config import DICTIONARY_FORMATS
from mlsm.files import read_json, read_tensors

KINDS: dict[str, Dictionary] = {"learnt here": learnt_dictionary()}
KINDS |= {name: random_sae(settings) for name, settings in SETTINGS.items()}
KINDS |= {f"{name}, norm 1": random_sae(SETTINGS[name], has_unit_norm=True) for name in ("topk", "groupmax")}
IN_SPARSIFY = {"learnt here", "topk", "groupmax", "topk, norm 1", "groupmax, norm 1"}


def can_be_held(kind: str, layout: str) -> bool:
    """Whether a layout has everything that an SAE needs."""
    if layout == "sparsify":
        return kind in IN_SPARSIFY
    return layout == "saelens-exact" or not kind.startswith("groupmax")


HELD = [(kind, layout) for kind in KINDS for layout in DICTIONARY_FORMATS if can_be_held(kind, layout)]


@pytest.mark.parametrize(("kind", "layout"), HELD)
def test_export_import_export_gives_the_same_bits(kind: str, layout: str, tmp_path: Path) -> None:
    before = KINDS[kind]
    write_sae(before, tmp_path / "first", layout)
    after = to_dictionary(read_sae(tmp_path / "first"))
    write_sae(after, tmp_path / "second", layout)
    names = [path.name for path in (tmp_path / "first").iterdir()]
    assert len(names) == 2
    assert filecmp.cmpfiles(tmp_path / "first", tmp_path / "second", names, shallow=False)[0] == names
    if layout != "saelens-exact" or not before.sae:  # which leaves out the encoder of an SAE
        assert after.fingerprint == before.fingerprint
        assert after.about() == before.about()
    states_ND = hidden_states()
    assert torch.equal(
        before.code(before.signals(states_ND).unit_ND).codes_NK,
        after.code(after.signals(states_ND).unit_ND).codes_NK,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_a_dictionary_keeps_its_sae(kind: str, tmp_path: Path) -> None:
    KINDS[kind].save(tmp_path / "dictionary.safetensors")
    loaded = Dictionary.load(tmp_path / "dictionary.safetensors")
    assert loaded.fingerprint == KINDS[kind].fingerprint
    assert (loaded.sae is None) == (kind == "learnt here")
    if loaded.sae and loaded.sae.encoder_DK is not None:
        states_ND, sae = hidden_states(), KINDS[kind].sae
        assert sae
        assert torch.equal(loaded.sae.encode(states_ND), sae.encode(states_ND))


def test_the_fingerprint_tells_encoders_apart() -> None:
    found = {KINDS[kind].fingerprint for kind in KINDS}
    assert len(found) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, layout) for kind in KINDS for layout in DICTIONARY_FORMATS if not can_be_held(kind, layout)],
)
def test_what_a_layout_cannot_hold_is_refused_with_another_format(
    kind: str, layout: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"export it with --format .* or saelens-exact"):
        write_sae(KINDS[kind], tmp_path / "sae", layout)
    assert not (tmp_path / "sae").exists()


def test_matching_pursuit_reads_states_of_norm_sqrt_d(tmp_path: Path) -> None:
    dictionary = learnt_dictionary()
    write_sae(dictionary, tmp_path / "sae", "saelens")
    config, tensors = read_json(tmp_path / "sae" / CONFIG_FILE), read_tensors(tmp_path / "sae" / SAELENS_FILE)
    assert torch.equal(tensors["W_dec"], dictionary.atoms_DK.mT)
    assert not tensors["b_dec"].any()
    assert config["normalize_activations"] == "constant_norm_rescale"
    width = len(dictionary.atoms_DK)
    assert config["residual_threshold"] == pytest.approx(math.sqrt(0.25 * width))  # 75 % is explained
    write_sae(dictionary, tmp_path / "finer", "saelens", residual=0.1)
    finer = read_json(tmp_path / "finer" / CONFIG_FILE)["residual_threshold"]
    assert finer == pytest.approx(0.1 * math.sqrt(width))


# ---- in the packages


def test_saelens_runs_matching_pursuit_until_the_residual(tmp_path: Path) -> None:
    sae_lens = package("sae_lens")
    dictionary, draw = learnt_dictionary(), torch.Generator().manual_seed(1)
    weights_NK = torch.rand(50, dictionary.atoms_DK.shape[1], generator=draw)
    states_ND = 9 * weights_NK.where(weights_NK > 0.9, 0) @ dictionary.atoms_DK.mT
    write_sae(dictionary, tmp_path / "sae", "saelens")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    assert type(sae) is sae_lens.MatchingPursuitSAE
    with torch.no_grad():
        codes_NK = sae.encode(states_ND)
        left_N = (states_ND - sae.decode(codes_NK)).norm(dim=1) / states_ND.norm(dim=1)
    assert (left_N < 0.5).all()
    unit_ND = dictionary.signals(states_ND).unit_ND
    found_ND = codes_NK @ dictionary.atoms_DK.mT / math.sqrt(len(dictionary.atoms_DK))
    torch.testing.assert_close((unit_ND - found_ND).norm(dim=1), left_N, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind, layout in HELD if layout == "saelens"])
def test_saelens_loads_what_was_exported(kind: str, tmp_path: Path) -> None:
    sae_lens = package("sae_lens")
    write_sae(KINDS[kind], tmp_path / "sae", "saelens")
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    loaded.save_model(tmp_path / "again")
    first, again = (to_dictionary(read_sae(tmp_path / name)) for name in ("sae", "again"))
    assert first.fingerprint == again.fingerprint == KINDS[kind].fingerprint


@pytest.mark.parametrize("kind", sorted(IN_SPARSIFY))
def test_sparsify_loads_what_was_exported(kind: str, tmp_path: Path) -> None:
    sparsify = package("sparsify")
    dictionary, states_ND = KINDS[kind], hidden_states()
    write_sae(dictionary, tmp_path / "layers.1", "sparsify")
    coder = sparsify.SparseCoder.load_many(str(tmp_path), local=True)["layers.1"]
    with torch.no_grad():
        encoded = coder.encode(states_ND)
        outputs_ND = coder.decode(encoded.top_acts, encoded.top_indices)
    if dictionary.sae is None:
        largest_NC = (states_ND @ dictionary.atoms_DK).clamp_min(0).topk(7, dim=1).values  # of 6.6 on average
        torch.testing.assert_close(encoded.top_acts.sort(descending=True).values, largest_NC)
        return
    signals = dictionary.signals(states_ND)
    codes_NK = dictionary.sae.encode(states_ND)
    found_ND = states_ND + signals.scale_N1 * (codes_NK @ dictionary.atoms_DK.mT - signals.unit_ND)
    torch.testing.assert_close(found_ND, outputs_ND, rtol=1e-3, atol=1e-2)
