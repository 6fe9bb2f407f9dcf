"""A run read back from its directory: settings, weights and tokenizer, each checked.

The same functions read a finished run, one of its checkpoints, and an exported directory.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlsm.config import OBJECTIVES, PRESETS, DataConfig, ModelConfig, TrainConfig, from_json
from mlsm.files import read_json
from mlsm.model import deberta_v2
from mlsm.model.deberta import Encoder
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE, read_weights
from mlsm.runs.hub_names import OWN_WEIGHTS_FILE, RUN_FILE, from_huggingface
from mlsm.text.tokenizer import Tokenizer, run_tokenizer


class Run(NamedTuple):
    """A finished run, ready to use."""

    directory: Path
    model: LanguageModel
    tokenizer: Tokenizer
    config: dict[str, Any]  # config.json


def run_config(run: Path) -> dict[str, Any]:
    """config.json of a run, also of an exported one. Raises ValueError, naming file and field, if anything in
    it is missing, unknown or of another type than a run writes.
    """
    path = run / (RUN_FILE if (run / RUN_FILE).exists() else "config.json")
    if not path.exists():
        raise ValueError(f"no run at {run}: a run is a directory such as runs/lsm-random")
    config = read_json(path)
    parts = {"preset": str, "model": dict, "data": dict, "train": dict, "tokenizer": str}
    if not isinstance(config, dict) or not all(isinstance(config.get(k), t) for k, t in parts.items()):
        raise ValueError(f"{path} does not describe a run: it must hold {', '.join(parts)}")
    try:
        _check_names(config, parts.keys(), {*parts, "concepts", "corpus", "versions", "layout", "source"})
        if config["preset"] not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {config['preset']!r}")
        for part, cls in {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}.items():
            from_json(cls, config[part])
        if config.get("concepts") is not None:
            _check_concepts(config["concepts"])
        if config.get("layout") is not None:
            from_json(deberta_v2.Layout, config["layout"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {"concepts": None, "layout": None, **config}


def _check_concepts(concepts: Any) -> None:
    kinds: dict[str, Any] = {"layer": int, "k": int, "lam": float}
    kinds |= dict.fromkeys(
        ("objective", "teacher", "teacher_fingerprint", "dictionary", "dictionary_fingerprint"), str
    )
    if not isinstance(concepts, dict):
        raise ValueError(f"concepts must be an object or null, got {concepts!r}")
    _check_names(concepts, kinds.keys(), kinds.keys())
    for name, kind in kinds.items():
        if type(concepts[name]) is not kind:
            raise ValueError(f"concepts: {name} must be {kind.__name__}, got {concepts[name]!r}")
    if concepts["objective"] not in OBJECTIVES:
        raise ValueError(f"concepts: no objective {concepts['objective']!r}")


def _check_names(values: dict[str, Any], needed: Collection[str], known: Collection[str]) -> None:
    if odd := sorted((set(values) - set(known)) | (set(needed) - set(values))):
        raise ValueError(f"fields that are unknown or missing: {', '.join(odd)}")


def model_config(run: Path) -> ModelConfig:
    """The shape of a run's model. Raises ValueError if there is no (readable) run."""
    return from_json(ModelConfig, run_config(run)["model"])


def run_weights(run: Path) -> dict[str, Tensor]:
    """The weights of a finished run, of a checkpoint, or of an exported directory, under our names. Raises
    ValueError, with what is wrong, if they are missing or damaged.
    """
    if not (run / MODEL_FILE).exists():
        raise ValueError(f"{run} is not finished: continue it with --resume, or name one of its checkpoints")
    tensors = read_weights(run / MODEL_FILE)
    if (run / RUN_FILE).exists():
        tensors = from_huggingface(tensors)
        if model_config(run).num_concepts:
            tensors |= read_weights(run / OWN_WEIGHTS_FILE)
    return tensors


def load_run(run: Path, device: torch.device | str = "cpu") -> Run:
    """The model of a run in eval mode. Raises ValueError, with what is wrong, if it is missing or damaged."""
    check_has_heads(run)
    tensors = run_weights(run)
    shape = model_config(run)
    # Shapes alone: what config.json claims takes no memory before the weights bear it out.
    with torch.device("meta"):
        check_fit(LanguageModel(shape), tensors, str(run))
    tokenizer = checked_tokenizer(run)
    model = LanguageModel(shape)
    load_weights_(model, tensors, str(run))
    return Run(run, model.to(device).eval(), tokenizer, run_config(run))


def check_has_heads(run: Path) -> None:
    """Raise ValueError for a run that is an encoder alone."""
    if run_config(run)["layout"]:
        raise ValueError(
            f"{run} is a DeBERTa v2 or v3 encoder: it can teach (--teacher), but nothing evaluates, exports "
            "or starts from it; students of it take --init random"
        )


def load_encoder(run: Path, device: torch.device | str = "cpu") -> tuple[Encoder, Tokenizer]:
    """The encoder of a run that teaches, in eval mode, and its tokenizer. Raises ValueError as `load_run`."""
    layout = run_config(run)["layout"]
    if layout is None:
        loaded = load_run(run, device)
        return loaded.model.encoder, loaded.tokenizer
    shape, tensors = model_config(run), read_weights(run / MODEL_FILE)
    with torch.device("meta"):
        check_fit(deberta_v2.Encoder(shape, deberta_v2.Layout(**layout)), tensors, str(run))
    encoder = deberta_v2.Encoder(shape, deberta_v2.Layout(**layout))
    load_weights_(encoder, tensors, str(run))
    return encoder.to(device).eval(), checked_tokenizer(run)


def checked_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run. Raises ValueError if it is not the one that config.json tells."""
    config, shape = run_config(run), model_config(run)
    is_rewritten = (run / RUN_FILE).exists() and not (run / Tokenizer.file_name).exists()  # for transformers
    tokenizer = run_tokenizer(run, None if is_rewritten else config["tokenizer"])
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(f"{run}: {tokenizer.vocab_size} pieces, but a vocab_size of {shape.vocab_size}")
    return tokenizer


def load_weights_(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill a model exactly. Raises ValueError naming the weights that do not fit."""
    check_fit(model, tensors, source)
    model.load_state_dict(tensors)


def check_fit(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    own = {name: (weight.shape, weight.dtype) for name, weight in model.state_dict().items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if odd:
        raise ValueError(
            f"{source}: weights that do not fit this model: {', '.join(odd[:5])} ({len(odd)} in all)"
        )


def init_from_(model: LanguageModel, tensors: dict[str, Tensor], source: str) -> str:
    """Copy every weight the model has too; the rest stay random. Returns what was copied, in words.

    Raises ValueError if a weight of the same name has another shape.
    """
    own = model.state_dict()
    shared = [name for name in tensors if name in own]
    odd = [name for name in shared if own[name].shape != tensors[name].shape]
    if odd:
        shapes = f"{tuple(tensors[odd[0]].shape)} there, {tuple(own[odd[0]].shape)} here"
        raise ValueError(
            f"cannot start from {source}: {odd[0]} is {shapes}; give the size (--preset, --width, --depth) "
            "or --init random"
        )
    model.load_state_dict({name: tensors[name] for name in shared}, strict=False)
    left_random = sorted({name.split(".")[0] for name in own if name not in tensors})
    return f"{len(shared)} weights from {source}; random: {', '.join(left_random) or 'none'}"
