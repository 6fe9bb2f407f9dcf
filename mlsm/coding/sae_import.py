"""SAEs of SAELens and sparsify, from their directories.

| layout | files | atoms | encoder |
| --- | --- | --- | --- |
| saelens | cfg.json, sae_weights.safetensors | W_dec (K, D) | none, or W_enc (D, K), b_enc, threshold |
| sparsify | cfg.json, sae.safetensors | W_dec (K, D) | encoder.weight (K, D), encoder.bias |

Both have an offset b_dec. Names and meanings are those of sae-lens 6.54.12 and eai-sparsify 1.3.3, neither of
which is imported. A cfg.json that `mlsm.coding.sae_export` wrote has an entry "mlsm" with what our file says
of the atoms, so that the same dictionary comes back, bit by bit. An entry of that name is believed, as the
file of a dictionary is.

Shape suffixes: D width of a signal, K atoms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae import Sae, SaeSettings, atoms_of
from mlsm.config import MOST_ATOMS, DictionaryConfig
from mlsm.files import open_tensors, read_object

CONFIG_FILE = "cfg.json"
SAELENS_FILE, SPARSIFY_FILE = "sae_weights.safetensors", "sae.safetensors"
EXACT = "mlsm_lasso"  # the architecture that mlsm.saelens registers
ARCHITECTURES = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "matching_pursuit": "none",
    EXACT: "none",
}
"""Architectures of SAELens, with the activation of their encoder."""
FLOATS = ("F64", "F32", "F16", "BF16")


class Imported(NamedTuple):
    """What the directory of an SAE says."""

    atoms_DK: Tensor
    sae: Sae | None  # None: exported from a dictionary that was learnt here
    about: dict[str, Any] | None  # `Dictionary.about` of the exported dictionary; None: made by others
    place: str  # where the SAE reads its states, as its own file calls it; "" if it does not say


def read_sae(directory: Path) -> Imported:
    """The SAE in a directory of SAELens or sparsify. Raises ValueError, in one line, for a directory without
    one, a damaged one, and an SAE whose codes cannot be computed here.
    """
    if not (directory / CONFIG_FILE).is_file():
        inside = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}"))
        holds = f"; it holds {', '.join(inside[:9])}: name one of them" if inside else ""
        raise ValueError(f"no {CONFIG_FILE} of SAELens or sparsify in {directory}{holds}")
    config = read_object(directory / CONFIG_FILE)
    is_sparsify = (directory / SPARSIFY_FILE).exists()
    try:
        if is_sparsify:
            return _read_sparsify(config, directory / SPARSIFY_FILE)
        return _read_saelens(_with_metadata(config), directory / SAELENS_FILE)
    except (KeyError, TypeError, SafetensorError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        raise ValueError(f"{directory} cannot be read as an SAE: {detail}") from error
    except ValueError as error:
        raise ValueError(f"{directory} cannot be read as an SAE: {error}") from error


def _with_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """cfg.json of SAELens in the form of version 6, for the older one that has no entry "metadata"."""
    if isinstance(config.get("metadata"), dict):
        return config
    names = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}
    config = {names.get(name, name): value for name, value in config.items()}
    if config.get("activation_fn", "relu") not in ("relu", "topk"):
        raise ValueError(f"its activation {config['activation_fn']!r} is none of relu, topk")
    if config.get("activation_fn") == "topk":
        config |= {"architecture": "topk", "k": config["activation_fn_kwargs"]["k"]}
    usual = {"architecture": "standard", "reshape_activations": "none", "apply_b_dec_to_input": True}
    if config.get("normalize_activations") in (None, False):
        config["normalize_activations"] = "none"
    hook = config.get("hook_name")
    return usual | config | {"metadata": {"hook_name": hook}}


def _read_saelens(config: dict[str, Any], path: Path) -> Imported:
    architecture, metadata = config["architecture"], config["metadata"]
    if architecture not in ARCHITECTURES:
        known = ", ".join(name for name in ARCHITECTURES if name != EXACT)
        raise ValueError(f"its architecture is {architecture!r}; those that can be read are {known}")
    if config.get("reshape_activations", "none") != "none":
        raise ValueError("it reads the heads of an attention layer, which are no hidden states")
    scaling = config.get("normalize_activations", "none")
    if scaling in ("expected_average_only_in", "covariance_whitening"):
        raise ValueError(f"normalize_activations is {scaling}: fold it into the weights with SAELens first")
    activation, subtracts = ARCHITECTURES[architecture], config.get("apply_b_dec_to_input", True)
    names = {"W_dec": "decoder", "b_dec": "offset_D"}
    if activation != "none":
        names |= {"W_enc": "encoder_DK", "b_enc": "bias_K"}
    if activation == "jumprelu":
        names["threshold"] = "threshold_K"
    tensors = _tensors(path, names, _size(config, "d_in"), _size(config, "d_sae"))
    settings = SaeSettings(
        activation=activation,
        scaling=scaling,
        subtracts_offset=subtracts,
        k=config["k"] if activation == "topk" else None,
        selects_by_norm=config.get("rescale_acts_by_decoder_norm", False),
        residual_threshold=config.get("residual_threshold", SaeSettings.residual_threshold),
        max_iterations=config.get("max_iterations"),
        stop_on_duplicate_support=config.get("stop_on_duplicate_support", True),
    )
    if architecture == "matching_pursuit" and not subtracts:
        tensors["offset_D"].zero_()  # SAELens adds it to a reconstruction only if it is subtracted, too
    return _imported(tensors, settings, metadata.get("mlsm"), str(metadata.get("hook_name") or ""))


def _read_sparsify(config: dict[str, Any], path: Path) -> Imported:
    for name in ("transcode", "skip_connection", "signed"):
        if config.get(name):
            raise ValueError(f"it has {name}, so its codes are no codes of a hidden state")
    width, num_atoms = _size(config, "d_in"), config.get("num_latents")
    num_atoms = _size(config, "num_latents") if num_atoms else width * _size(config, "expansion_factor")
    names = {"W_dec": "decoder", "b_dec": "offset_D"}
    names |= {"encoder.weight": "encoder_KD", "encoder.bias": "bias_K"}
    tensors = _tensors(path, names, width, num_atoms)
    tensors["encoder_DK"] = tensors.pop("encoder_KD").mT.contiguous()
    settings = SaeSettings(activation=config.get("activation", "topk"), k=config["k"])
    return _imported(tensors, settings, config.get("mlsm"), path.parent.name)


def _size(config: dict[str, Any], name: str) -> int:
    """A number of cfg.json that is above 0. Raises KeyError and ValueError for another value."""
    value = config[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
    return value


def _tensors(path: Path, names: dict[str, str], width: int, num_atoms: int) -> dict[str, Tensor]:
    """The tensors of a file in float32, under our names. Raises ValueError for other names or shapes than
    cfg.json lets expect, before a tensor takes memory.
    """
    sizes = {"D": width, "K": num_atoms}
    if num_atoms > MOST_ATOMS:
        raise ValueError(f"it has {num_atoms} atoms, more than the {MOST_ATOMS} that are read")
    with open_tensors(path) as file:
        if odd := sorted(names.keys() ^ set(file.keys())):
            raise ValueError(f"{path.name} has other tensors than expected: {', '.join(odd[:5])}")
        for theirs, ours in names.items():
            part = file.get_slice(theirs)
            axes = "KD" if ours == "decoder" else ours.rpartition("_")[2]
            if part.get_shape() != [sizes[axis] for axis in axes] or part.get_dtype() not in FLOATS:
                raise ValueError(f"{theirs} is {part.get_dtype()} of shape {part.get_shape()}")
        tensors = {ours: file.get_tensor(theirs).float() for theirs, ours in names.items()}
    tensors["decoder_DK"] = tensors.pop("decoder").mT.contiguous()
    return tensors


def _imported(tensors: dict[str, Tensor], settings: SaeSettings, mlsm: object, place: str) -> Imported:
    decoder_DK = tensors.pop("decoder_DK")
    about = None
    if mlsm is not None:
        if not isinstance(mlsm, dict):
            raise ValueError(f"its entry mlsm must be an object, got {mlsm!r}")
        about = {name: value for name, value in mlsm.items() if name != "learnt_here"}
        if mlsm.get("learnt_here"):
            return Imported(decoder_DK, None, about, place)
    atoms_DK, unscaled_DK = atoms_of(decoder_DK)
    sae = Sae(settings, decoder_DK=unscaled_DK, **tensors)
    sae.check_fits(atoms_DK)
    return Imported(atoms_DK, sae, about, place)


def to_dictionary(
    found: Imported,
    *,
    teacher: str | None = None,
    layer: int | None = None,
    lam: float | None = None,
) -> Dictionary:
    """The dictionary of an imported SAE. `teacher` is the fingerprint of the run whose states it codes.
    Teacher and layer are needed unless the directory was exported from a dictionary. By default, lambda is
    that of the exported dictionary, else that of the paper.

    Raises ValueError for a teacher or a layer that is missing, or is not that of the exported dictionary.
    """
    about = {"statistics": None, "lam": DictionaryConfig.lam} | (found.about or {})
    for name, value in {"teacher": teacher, "layer": layer}.items():
        if value is None and name not in about:
            reads = f"; it reads {found.place!r}" if found.place else ""
            raise ValueError(f"it does not say whose states it codes: give --teacher and --layer{reads}")
        if value is not None and about.setdefault(name, value) != value:
            raise ValueError(f"it codes the states of {name} {about[name]}, not of {value}")
    about |= {} if lam is None else {"lam": lam}
    try:
        return Dictionary.described(found.atoms_DK, about, found.sae)
    except (KeyError, TypeError, ValueError) as error:
        if not found.about:
            raise
        raise ValueError(f"its entry mlsm is damaged: {error}") from error
