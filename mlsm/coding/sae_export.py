"""Dictionaries as directories of SAELens and sparsify; `mlsm.coding.sae_import` has the layouts.

An imported SAE is written as it was, with its own encoder. A dictionary that was learnt here has no encoder,
and its codes are those of states of norm 1. What the packages compute of it:

| format | activations |
| --- | --- |
| saelens | matching pursuit of states of norm sqrt(D); they are sqrt(D) times as large as codes of norm 1 |
| saelens-exact | our codes, where `mlsm.saelens` is imported; this format also holds the atoms of an SAE |
| sparsify | the k largest correlations of a state with the atoms |

Shape suffixes: D width of a signal, K atoms.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae import Sae
from mlsm.coding.sae_import import ARCHITECTURES, CONFIG_FILE, EXACT, SAELENS_FILE, SPARSIFY_FILE
from mlsm.files import write_json, write_tensors

SAELENS_VERSION = "6.54.12"  # whose layout is written; from version 6 on, SAELens does not convert cfg.json
USUAL_RESIDUAL = 0.3  # that matching pursuit leaves of a state of norm 1, if the dictionary was not measured
USUAL_K = 32  # of sparsify, if the dictionary was not measured


def write_sae(dictionary: Dictionary, directory: Path, layout: str, residual: float | None = None) -> None:
    """Write a dictionary in one of DICTIONARY_FORMATS. `residual` is for matching pursuit: the norm that it
    leaves of a state of norm 1, by default the one that the codes left when the dictionary was measured.

    Raises ValueError for an SAE that the layout cannot hold.
    """
    mlsm = {"learnt_here": dictionary.sae is None, **dictionary.about()}
    if layout == "sparsify":
        config, tensors = _sparsify(dictionary)
        write_tensors(directory / SPARSIFY_FILE, tensors)
        write_json(directory / CONFIG_FILE, config | {"mlsm": mlsm})
        return
    if layout == "saelens-exact":
        special, tensors = _exact(dictionary)
    elif dictionary.sae:
        special, tensors = _saelens(dictionary, dictionary.sae)
    else:
        special, tensors = _pursuit(dictionary, residual)
    width, num_atoms = dictionary.atoms_DK.shape
    config = {
        "d_in": width,
        "d_sae": num_atoms,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **special,
        "metadata": {"sae_lens_version": SAELENS_VERSION, "mlsm": mlsm},
    }
    write_tensors(directory / SAELENS_FILE, tensors)
    write_json(directory / CONFIG_FILE, config)


_Parts = tuple[dict[str, Any], dict[str, Tensor]]  # of cfg.json, and tensors


def _exact(dictionary: Dictionary) -> _Parts:
    """Our coder in SAELens, by the class of `mlsm.saelens`. An SAE's own encoder is left out."""
    sae = dictionary.sae
    scaling = sae.settings.scaling if sae else "none"
    offset_D = sae.offset_D if sae else torch.zeros(len(dictionary.atoms_DK))
    config = {"architecture": EXACT, "lam": dictionary.lam, "normalize_activations": scaling}
    return config, {"W_dec": dictionary.atoms_DK.mT, "b_dec": offset_D}


def _pursuit(dictionary: Dictionary, residual: float | None) -> _Parts:
    """Matching pursuit of stock SAELens. It reads states of norm sqrt(D), so its codes are of that scale."""
    width = len(dictionary.atoms_DK)
    if residual is None:
        measured = dictionary.statistics
        residual = math.sqrt(max(0.0, 1 - measured.explained_share)) if measured else USUAL_RESIDUAL
    config = {
        "architecture": "matching_pursuit",
        "residual_threshold": residual * math.sqrt(width),
        "max_iterations": None,
        "stop_on_duplicate_support": False,  # it would stop where an atom is chosen again
        "normalize_activations": "constant_norm_rescale",
    }
    return config, {"W_dec": dictionary.atoms_DK.mT, "b_dec": torch.zeros(width)}


def _saelens(dictionary: Dictionary, sae: Sae) -> _Parts:
    """An imported SAE as it was, by its own encoder."""
    settings = sae.settings
    if settings.activation == "groupmax":
        raise ValueError("SAELens has no groupmax: export it with --format sparsify or saelens-exact")
    names = {activation: name for name, activation in ARCHITECTURES.items() if name != EXACT}
    config = {
        "architecture": names[settings.activation],
        "apply_b_dec_to_input": settings.subtracts_offset,
        "normalize_activations": settings.scaling,
    }
    if settings.activation == "topk":
        config |= {"k": settings.k, "rescale_acts_by_decoder_norm": settings.selects_by_norm}
    if settings.activation == "none":
        fields = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")
        config |= {name: getattr(settings, name) for name in fields}
    decoder_DK = dictionary.atoms_DK if sae.decoder_DK is None else sae.decoder_DK
    tensors = {"W_dec": decoder_DK.mT, "b_dec": sae.offset_D, "W_enc": sae.encoder_DK, "b_enc": sae.bias_K}
    tensors["threshold"] = sae.threshold_K
    return config, {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _sparsify(dictionary: Dictionary) -> _Parts:
    """An imported SAE with its own encoder. A dictionary that was learnt here gets the encoder that sparsify
    itself starts from, which is the decoder: activations are the largest correlations with the atoms.
    """
    width, num_atoms = dictionary.atoms_DK.shape
    sae, measured = dictionary.sae, dictionary.statistics
    decoder_DK = encoder_DK = dictionary.atoms_DK
    bias_K, offset_D = torch.zeros(num_atoms), torch.zeros(width)
    activation, k = "topk", min(num_atoms, max(1, round(measured.mean_nonzeros)) if measured else USUAL_K)
    if sae:
        settings = sae.settings
        is_plain = settings.scaling == "none" and settings.subtracts_offset and not settings.selects_by_norm
        if not is_plain or sae.encoder_DK is None or sae.bias_K is None or settings.k is None:
            raise ValueError(
                "sparsify has SAEs with topk or groupmax of unscaled states alone: "
                "export it with --format saelens or saelens-exact"
            )
        decoder_DK = decoder_DK if sae.decoder_DK is None else sae.decoder_DK
        encoder_DK, bias_K, offset_D = sae.encoder_DK, sae.bias_K, sae.offset_D
        activation, k = settings.activation, settings.k
    config = {
        "activation": activation,
        "expansion_factor": max(1, num_atoms // width),
        "normalize_decoder": True,
        "num_latents": num_atoms,
        "k": k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": width,
    }
    tensors = {"encoder.weight": encoder_DK.mT, "encoder.bias": bias_K, "W_dec": decoder_DK.mT}
    return config, tensors | {"b_dec": offset_D}
