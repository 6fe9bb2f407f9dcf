"""A run read back from its directory: record, weights and tokenizer, each checked.

The same functions read a finished run, one of its checkpoints, and an exported directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlsm.model import deberta_v2
from mlsm.model.language_model import LanguageModel
from mlsm.model.outside import AnyEncoder
from mlsm.runs.checkpoint import MODEL_FILE, read_weights
from mlsm.runs.hub_names import OWN_WEIGHTS_FILE, RUN_FILE, from_huggingface
from mlsm.runs.hub_outside import load_outside
from mlsm.runs.record import RunRecord, read_record
from mlsm.text.tokenizer import Tokenizer, run_tokenizer


class Run(NamedTuple):
    """A finished run, ready to use."""

    directory: Path
    record: RunRecord
    model: LanguageModel
    tokenizer: Tokenizer


class EncoderRun(NamedTuple):
    """The encoder of a finished run, ready to teach."""

    directory: Path
    record: RunRecord
    encoder: AnyEncoder
    tokenizer: Tokenizer


def load_run(run: Path, device: torch.device | str = "cpu") -> Run:
    """The model of a run in eval mode. Raises ValueError, with what is wrong, if it is missing or damaged."""
    record = read_record(run)
    check_has_heads(run, record)
    tensors = load_weights(run, record)
    with torch.device("meta"):
        model = LanguageModel(record.model)
    load_weights_(model, tensors, str(run))
    return Run(run, record, model.to(device).eval(), load_tokenizer(run, record))


def load_encoder(run: Path, device: torch.device | str = "cpu") -> EncoderRun:
    """The encoder of a run in eval mode. Raises ValueError as `load_run`."""
    record = read_record(run)
    if not record.is_encoder_alone:
        loaded = load_run(run, device)
        return EncoderRun(run, record, loaded.model.encoder, loaded.tokenizer)
    tensors = load_weights(run, record)
    encoder: AnyEncoder
    if record.outside:
        encoder = load_outside(run, record.model)
    else:
        assert record.layout
        with torch.device("meta"):
            encoder = deberta_v2.Encoder(record.model, record.layout)
    load_weights_(encoder, tensors, str(run))
    return EncoderRun(run, record, encoder.to(device).eval(), load_tokenizer(run, record))


def load_weights(run: Path, record: RunRecord) -> dict[str, Tensor]:
    """The weights of a finished run, of a checkpoint, or of an exported directory, under our names. Raises
    ValueError, with what is wrong, if they are missing or damaged.
    """
    if not (run / MODEL_FILE).exists():
        raise ValueError(f"{run} is not finished: continue it with --resume, or name one of its checkpoints")
    tensors = read_weights(run / MODEL_FILE)
    if (run / RUN_FILE).exists():
        tensors = from_huggingface(tensors)
        if record.model.num_concepts:
            tensors |= read_weights(run / OWN_WEIGHTS_FILE)
    return tensors


def load_tokenizer(run: Path, record: RunRecord) -> Tokenizer:
    """The tokenizer of a run. Raises ValueError if it is not the one that the record identifies."""
    is_rewritten = (run / RUN_FILE).exists() and not (run / Tokenizer.file_name).exists()  # for transformers
    tokenizer = run_tokenizer(run, None if is_rewritten else record.tokenizer)
    if tokenizer.vocab_size > record.model.vocab_size:
        raise ValueError(
            f"{run}: {tokenizer.vocab_size} pieces, but a vocab_size of {record.model.vocab_size}"
        )
    return tokenizer


def check_has_heads(run: Path, record: RunRecord) -> None:
    """Raise ValueError for a run that is an encoder alone."""
    if record.is_encoder_alone:
        kind = record.outside.model_type if record.outside else "DeBERTa v2 or v3"
        raise ValueError(
            f"{run} is an encoder alone ({kind}): it can teach (--teacher), but nothing evaluates, exports "
            "or starts from it; students of it take --init random"
        )


def load_weights_(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill a model with the tensors, all of them. Raises ValueError naming the weights that do not fit.

    A model on the device "meta" takes the tensors themselves. It has no memory of its own, so a false
    config.json is refused before there are weights of its shapes.
    """
    check_fit(model, tensors, source)
    model.load_state_dict(tensors, assign=any(weight.is_meta for weight in model.parameters()))


def check_fit(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Raise ValueError unless the tensors have the names, shapes and types of the model's weights."""
    own = {name: (weight.shape, weight.dtype) for name, weight in model.state_dict().items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if odd:
        raise ValueError(
            f"{source}: weights that do not fit this model: {', '.join(odd[:5])} ({len(odd)} in all)"
        )


def init_from_(model: LanguageModel, tensors: dict[str, Tensor], source: str) -> str:
    """Copy every weight that the model has too; the rest stay random. Returns a sentence on what was copied.

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
