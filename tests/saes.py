"""SAEs with random weights for tests, one for each kind that can be imported, and the packages that compute
them elsewhere.

Shape suffixes: D width of a signal, K atoms.
"""

import warnings
from types import ModuleType

import pytest
import torch
from torch.nn.functional import normalize

from mlsm.coding.dictionary import Dictionary, Statistics
from mlsm.coding.sae import Sae, SaeSettings, atoms_of

PACKAGES = {"sae_lens": "sae-lens==6.54.12", "sparsify": "eai-sparsify==1.3.3"}
SETTINGS = {
    "relu": SaeSettings("relu"),
    "relu, offset added alone": SaeSettings("relu", subtracts_offset=False),
    "relu, states of one norm": SaeSettings("relu", scaling="constant_norm_rescale"),
    "jumprelu": SaeSettings("jumprelu"),
    "jumprelu, standardised": SaeSettings("jumprelu", scaling="layer_norm"),
    "topk": SaeSettings("topk", k=5),
    "topk by norm": SaeSettings("topk", k=5, selects_by_norm=True),
    "groupmax": SaeSettings("groupmax", k=6),
    "no encoder": SaeSettings(scaling="constant_norm_rescale", residual_threshold=0.5, max_iterations=9),
}
WIDTH, NUM_ATOMS = 20, 36


def package(name: str) -> ModuleType:
    """The package of this name; the test is skipped without it. Its own imports warn."""
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip(name, reason=f"needs {PACKAGES[name]}, which needs transformers below 6")


def random_sae(settings: SaeSettings, *, has_unit_norm: bool = False, width: int = WIDTH) -> Dictionary:
    """The dictionary of an SAE with these settings. Columns of its decoder have norms from 0.5 to 2, or 1."""
    draw = torch.Generator().manual_seed(5)
    decoder_DK = normalize(torch.randn(width, NUM_ATOMS, generator=draw), dim=0)
    if not has_unit_norm:
        decoder_DK = decoder_DK * torch.empty(NUM_ATOMS).uniform_(0.5, 2, generator=draw)
    atoms_DK, unscaled_DK = atoms_of(decoder_DK)
    weights: dict[str, torch.Tensor] = {"offset_D": torch.randn(width, generator=draw)}
    if settings.activation != "none":
        weights["encoder_DK"] = torch.randn(width, NUM_ATOMS, generator=draw)
        weights["bias_K"] = torch.randn(NUM_ATOMS, generator=draw)
    if settings.activation == "jumprelu":
        weights["threshold_K"] = torch.rand(NUM_ATOMS, generator=draw)
    sae = Sae(settings, decoder_DK=unscaled_DK, **weights)
    return Dictionary(atoms_DK, 0.04, layer=1, teacher="cafe", sae=sae)


def learnt_dictionary(width: int = WIDTH) -> Dictionary:
    """A dictionary as fit_dictionary.py writes it, with an atom that is shorter than 1."""
    draw = torch.Generator().manual_seed(6)
    atoms_DK = normalize(torch.randn(width, NUM_ATOMS, generator=draw), dim=0)
    atoms_DK[:, 3] *= 0.7
    statistics = Statistics(0.4, 6.6, 0.75, 0, 100)
    return Dictionary(atoms_DK, 0.06, 2, "cafe", statistics, {"k": NUM_ATOMS}, words=1234)


def hidden_states(num: int = 50, width: int = WIDTH) -> torch.Tensor:
    """States of norms between 1 and 100 with a common mean."""
    draw = torch.Generator().manual_seed(7)
    states_ND = torch.randn(num, width, generator=draw) + torch.randn(width, generator=draw)
    return states_ND * 10 ** torch.empty(num, 1).uniform_(-0.7, 1.3, generator=draw)
