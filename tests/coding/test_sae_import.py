"""Directories of SAELens and sparsify become the dictionaries that they are, and whatever else they hold is
refused in one line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saes import NUM_ATOMS, SETTINGS, WIDTH, hidden_states, learnt_dictionary, package, random_sae
from safetensors.torch import load, save_file

from mlsm.coding.sae_export import write_sae
from mlsm.coding.sae_import import CONFIG_FILE, SAELENS_FILE, SPARSIFY_FILE, read_sae, to_dictionary


def change(path: Path, **values: object) -> None:
    """Set values of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def saelens(folder: Path, kind: str = "topk") -> Path:
    """A directory of SAELens as others write it."""
    write_sae(random_sae(SETTINGS[kind]), folder, "saelens")
    change(
        folder / CONFIG_FILE,
        metadata={"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post"},
    )
    return folder


def sparsify(folder: Path) -> Path:
    """A directory of sparsify as others write it."""
    write_sae(random_sae(SETTINGS["topk"], has_unit_norm=True), folder, "sparsify")
    change(folder / CONFIG_FILE, mlsm=None)
    return folder


def test_an_sae_of_others_needs_a_teacher_and_a_layer(tmp_path: Path) -> None:
    found = read_sae(saelens(tmp_path / "sae"))
    with pytest.raises(
        ValueError, match=r"give --teacher and --layer; it reads 'blocks\.3\.hook_resid_post'"
    ):
        to_dictionary(found)
    with pytest.raises(ValueError, match="give --teacher and --layer"):
        to_dictionary(found, teacher="cafe")
    dictionary = to_dictionary(found, teacher="beef", layer=4)
    assert (dictionary.teacher, dictionary.layer, dictionary.lam) == ("beef", 4, 0.05)
    assert to_dictionary(found, teacher="beef", layer=4, lam=0.2).lam == 0.2
    assert read_sae(sparsify(tmp_path / "layers.3")).place == "layers.3"


def test_an_exported_dictionary_knows_its_teacher_and_layer(tmp_path: Path) -> None:
    write_sae(learnt_dictionary(), tmp_path / "sae", "saelens")
    found = read_sae(tmp_path / "sae")
    assert to_dictionary(found).teacher == "cafe"
    assert to_dictionary(found, teacher="cafe", layer=2, lam=0.3).lam == 0.3
    for given in ({"teacher": "beef"}, {"layer": 3}):
        with pytest.raises(ValueError, match="it codes the states of"):
            to_dictionary(found, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saelens(tmp_path / "sae")
    tensors = {name: tensor.to(dtype) for name, tensor in load((folder / SAELENS_FILE).read_bytes()).items()}
    save_file(tensors, folder / SAELENS_FILE)
    found = read_sae(folder)
    assert found.sae
    assert found.sae.encoder_DK is not None
    assert torch.equal(found.sae.encoder_DK, tensors["W_enc"].float())


def test_the_older_cfg_of_saelens_is_read(tmp_path: Path) -> None:
    """Before version 6, cfg.json had no metadata and named the activation."""
    folder = saelens(tmp_path / "sae")
    expected = read_sae(folder)
    change(
        folder / CONFIG_FILE,
        metadata=None, architecture=None, k=None, normalize_activations=False, apply_b_dec_to_input=None,
        activation_fn_str="topk", activation_fn_kwargs={"k": 5}, hook_point="blocks.2.hook_resid_pre",
    )  # fmt: skip
    found = read_sae(folder)
    assert found.place == "blocks.2.hook_resid_pre"
    assert found.sae
    assert expected.sae
    assert found.sae.settings == expected.sae.settings
    change(folder / CONFIG_FILE, activation_fn_str="tanh-relu")
    with pytest.raises(ValueError, match="its activation 'tanh-relu' is none of relu, topk"):
        read_sae(folder)


def test_a_directory_of_hookpoints_names_them(tmp_path: Path) -> None:
    sparsify(tmp_path / "layers.3")
    sparsify(tmp_path / "layers.5")
    with pytest.raises(ValueError, match=r"it holds layers\.3, layers\.5: name one of them"):
        read_sae(tmp_path)
    with pytest.raises(ValueError, match=r"no cfg\.json of SAELens or sparsify in \S+$"):
        read_sae(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "gated"}, "its architecture is 'gated'; those that can be read are standard,"),
        ({"architecture": ["topk"]}, "cannot be read as an SAE"),
        ({"reshape_activations": "hook_z"}, "heads of an attention layer"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it into the weights"),
        ({"normalize_activations": "covariance_whitening"}, "fold it into the weights"),
        ({"normalize_activations": "l1"}, "scaling 'l1'"),
        ({"d_in": WIDTH + 1}, r"W_dec is F32 of shape \[36, 20\]"),
        ({"d_sae": 10**9}, "more than the 32768 that are read"),
        ({"d_sae": -1}, "d_sae must be a whole number above 0"),
        ({"d_in": "wide"}, "d_in must be a whole number above 0"),
        ({"k": 99}, "topk of k 99"),
        ({"k": None}, "'k' is missing"),
        ({"k": 2.5}, "k must be"),
        ({"architecture": "jumprelu"}, "other tensors than expected: threshold"),
        ({"metadata": {"mlsm": 3}}, "entry mlsm must be an object"),
        ({"rescale_acts_by_decoder_norm": "yes"}, "selects_by_norm must be"),
    ],
)  # fmt: skip
def test_what_is_not_computed_here_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    folder = saelens(tmp_path / "sae")
    change(folder / CONFIG_FILE, **values)
    with pytest.raises(ValueError, match=message) as refused:
        read_sae(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transcode": True}, "it has transcode"),
        ({"skip_connection": True}, "it has skip_connection"),
        ({"signed": True}, "it has signed"),
        ({"activation": "softmax"}, "activation 'softmax'"),
        ({"activation": "groupmax", "k": 7}, "groupmax of k 7 and 36 atoms"),
        ({"num_latents": 0, "expansion_factor": "x" * 50}, "expansion_factor must be"),
        ({"num_latents": 0, "expansion_factor": 2}, "shape"),
    ],
)
def test_what_sparsify_has_beyond_codes_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = sparsify(tmp_path / "layers.3")
    change(folder / CONFIG_FILE, **values)
    with pytest.raises(ValueError, match=message):
        read_sae(folder)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def with_an_integer(path: Path) -> None:
    save_file(load(path.read_bytes()) | {"b_dec": torch.zeros(WIDTH, dtype=torch.long)}, path)


def with_infinity(path: Path) -> None:
    save_file(load(path.read_bytes()) | {"b_dec": torch.full((WIDTH,), torch.inf)}, path)


def with_infinite_atoms(path: Path) -> None:
    save_file(load(path.read_bytes()) | {"W_dec": torch.full((NUM_ATOMS, WIDTH), torch.inf)}, path)


def a_pickle(path: Path) -> None:
    torch.save(load(path.read_bytes()), path)


@pytest.mark.parametrize("damage", [truncated, with_an_integer, with_infinity, a_pickle, Path.unlink])
@pytest.mark.parametrize("make", [saelens, sparsify])
def test_damaged_weights_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], damage: Callable[[Path], None]
) -> None:
    folder = make(tmp_path / "sae")
    damage(folder / (SAELENS_FILE if make is saelens else SPARSIFY_FILE))
    with pytest.raises(ValueError, match="cannot be read as an SAE") as refused:
        read_sae(folder)
    assert "\n" not in str(refused.value)


def test_infinite_atoms_are_refused(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "sae", "no encoder")
    with_infinite_atoms(folder / SAELENS_FILE)
    with pytest.raises(ValueError, match="finite"):
        to_dictionary(read_sae(folder), teacher="cafe", layer=1)


@pytest.mark.parametrize(
    "entry", [{"learnt_here": True}, {"learnt_here": True, "lam": -1, "layer": 1, "teacher": "cafe"}]
)
def test_a_damaged_entry_of_ours_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    write_sae(learnt_dictionary(), tmp_path / "sae", "saelens")
    change(tmp_path / "sae" / CONFIG_FILE, metadata={"mlsm": {"statistics": {"odd": 1}, **entry}})
    with pytest.raises(ValueError, match=r"entry mlsm is damaged|lam must be above 0|give --teacher"):
        to_dictionary(read_sae(tmp_path / "sae"), lam=None if "lam" in entry else 0.1)


# ---- against the packages


def test_codes_are_those_of_saelens(tmp_path: Path) -> None:
    """SAEs of each class are saved by SAELens. Its activations, times the norms of its decoder, are the codes
    before they are divided by the norm of the signal.
    """
    sae_lens = package("sae_lens")
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("Standard", "none", {}), ("Standard", "layer_norm", {"apply_b_dec_to_input": False}),
        ("JumpReLU", "constant_norm_rescale", {}), ("JumpReLU", "none", {"apply_b_dec_to_input": False}),
        ("TopK", "none", {"k": 4}), ("TopK", "layer_norm", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    ]  # fmt: skip
    states_ND = hidden_states()
    draw = torch.Generator().manual_seed(2)
    for number, (name, scaling, more) in enumerate(kinds):
        make_config = getattr(sae_lens, f"{name}SAEConfig")
        config = make_config(d_in=WIDTH, d_sae=NUM_ATOMS, normalize_activations=scaling, **more)
        sae = getattr(sae_lens, f"{name}SAE")(config)
        for weight in sae.parameters():
            weight.data = torch.randn(weight.shape, generator=draw)
        folder = tmp_path / f"{number}"
        sae.save_model(folder)
        ours = to_dictionary(read_sae(folder), teacher="cafe", layer=1)
        assert ours.sae
        with torch.no_grad():
            theirs_NK = sae.encode(states_ND)
            norms_K = 1 if more.get("rescale_acts_by_decoder_norm") else sae.W_dec.norm(dim=1)
            reconstructed_ND = sae.decode(theirs_NK) - states_ND
        signals = ours.signals(states_ND)
        codes_NK = ours.sae.encode(states_ND)
        norm_N1 = (ours.sae._scaled(states_ND)[0] - ours.sae.offset_D).norm(dim=1, keepdim=True)
        torch.testing.assert_close(codes_NK * norm_N1, theirs_NK * norms_K, rtol=1e-4, atol=1e-4)
        moved_ND = signals.scale_N1 * (codes_NK @ ours.atoms_DK.mT - signals.unit_ND)
        torch.testing.assert_close(moved_ND, reconstructed_ND, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_codes_are_those_of_sparsify(tmp_path: Path, activation: str) -> None:
    sparsify_package = package("sparsify")
    config = sparsify_package.SparseCoderConfig(activation=activation, num_latents=NUM_ATOMS, k=6)
    coder = sparsify_package.SparseCoder(WIDTH, config)
    draw = torch.Generator().manual_seed(2)
    for weight in coder.parameters():
        weight.data = torch.randn(weight.shape, generator=draw)
    coder.set_decoder_norm_to_unit_norm()
    coder.save_to_disk(tmp_path / "layers.1")
    ours = to_dictionary(read_sae(tmp_path / "layers.1"), teacher="cafe", layer=2)
    assert ours.sae
    assert ours.sae.decoder_DK is None
    states_ND = hidden_states()
    with torch.no_grad():
        encoded = coder.encode(states_ND)
    theirs_NK = torch.zeros(len(states_ND), NUM_ATOMS).scatter(1, encoded.top_indices, encoded.top_acts)
    norm_N1 = (states_ND - ours.sae.offset_D).norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.sae.encode(states_ND) * norm_N1, theirs_NK, rtol=1e-4, atol=1e-4)
