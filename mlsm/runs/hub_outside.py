"""Encoders of other architectures than DeBERTa as teachers: what transformers' AutoModel loads.

The model stays one of transformers. Its run has the weights under their own names, its config.json in the
folder `encoder`, and its tokenizer with the special pieces at our ids. Files of the checkpoint are data only:
no code of its own is run, and no pickle is read.

Legend: L tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from mlsm.config import ModelConfig
from mlsm.files import LARGEST_JSON, file_digest, read_bytes, read_object
from mlsm.model.outside import OutsideEncoder, empty_encoder, import_transformers, text_encoder
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import OutsideRecord
from mlsm.text.tokenizer import ABSENT, Tokenizer, renumbered_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ENCODER_FOLDER = "encoder"  # of a run: config.json of transformers
SHARDS_FILE = "model.safetensors.index.json"  # names the files of weights that are split
MOST_POSITIONS = 512  # of a teacher, and so of its students' tables of distances
DEVIATION = 1e-3  # of hidden states of size 1 that may come from rounding


class OutsideModel(NamedTuple):
    """A checkpoint of another architecture, read and checked."""

    encoder: OutsideEncoder
    tokenizer: Tokenizer
    shape: ModelConfig  # of a student that is as large
    record: OutsideRecord
    config_json: str  # config.json of transformers


def weight_files(source: Path) -> list[Path]:
    """The files with the weights of a checkpoint; none if they are not in the format safetensors. Raises
    ValueError if one is missing.
    """
    if (source / MODEL_FILE).exists():
        return [source / MODEL_FILE]
    if not (source / SHARDS_FILE).exists():
        return []
    names = read_object(source / SHARDS_FILE).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{source / SHARDS_FILE} has no weight_map")
    files = [source / name for name in sorted(set(names.values()))]
    for path in files:
        if path.parent != source or not path.is_file():
            raise ValueError(f"{source / SHARDS_FILE} names {path.name}, which is not beside it")
    return files


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, of their digests."""
    digests = [file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_outside(source: Path, settings: Mapping[str, object], files: Sequence[Path]) -> OutsideModel:
    """The encoder and the tokenizer of a checkpoint with these files of weights, whose config.json holds
    `settings`.

    Raises ValueError in one line for what cannot teach: a decoder, a model of images, quantised weights, code
    of its own, missing weights, and a tokenizer that is missing or has no mask.
    """
    model_type = str(settings["model_type"])
    import_transformers(model_type)
    if "auto_map" in settings:
        raise ValueError("its config.json asks for code of its own (auto_map), which is not run")
    if "quantization_config" in settings:
        raise ValueError("its weights are quantised; name the checkpoint that they were made from")
    if any(path.suffix != ".safetensors" for path in files):
        raise ValueError(f"it has no {MODEL_FILE}; pickled weights are not read for a {model_type}")
    model, config = _load(source, model_type)
    _check_reads_both_ways(model, model_type)
    tokenizer, their_ids = _read_tokenizer(source)
    num_rows = _num_rows(model)
    if max(their_ids) >= num_rows:
        raise ValueError(
            f"the tokenizer has ids up to {max(their_ids)}, beyond the {num_rows} embedded words"
        )
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[their_ids[-1]] * 3]), output_hidden_states=True).hidden_states
    depth, width = len(states) - 1, states[-1].shape[-1]
    if any(hidden.shape != states[-1].shape for hidden in states):
        raise ValueError(f"the hidden states of a {model_type} differ in shape from layer to layer")
    num_heads = config.num_attention_heads
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=width,
        depth=depth,
        num_heads=num_heads if width % num_heads == 0 else 1,
        ffn_width=getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * width,
        max_positions=min(MOST_POSITIONS, _num_positions(model)),
    )
    encoder = OutsideEncoder(model, their_ids, shape)
    record = OutsideRecord(model_type, import_transformers(model_type))
    return OutsideModel(encoder, tokenizer, shape, record, config.to_json_string(use_diff=False))


def load_outside(run: Path, shape: ModelConfig) -> OutsideEncoder:
    """The encoder of a converted run, whose weights are about to be filled in. Raises ValueError if the
    package transformers is missing, or does not know the configuration.
    """
    config = _config_of(run / ENCODER_FOLDER)
    try:
        model = empty_encoder(config)
    except Exception as error:  # a configuration of anybody's can raise anything
        raise ValueError(f"transformers cannot build the encoder of {run}: {first_line(error)}") from error
    return OutsideEncoder(model, [ABSENT] * shape.vocab_size, shape)


def _config_of(folder: Path) -> PretrainedConfig:
    import_transformers(str(read_object(folder / "config.json").get("model_type")))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a configuration of anybody's can raise anything
        raise ValueError(f"transformers cannot read its config.json: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message that is not empty, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _load(source: Path, model_type: str) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The encoder in float32, and the configuration of the whole model. Raises ValueError for weights that
    are missing or damaged, and for a model that does not read tokens.
    """
    config = _config_of(source)
    from transformers import AutoModel

    try:
        model, info = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # weights of anybody's can raise anything
        raise ValueError(f"transformers cannot load it as a {model_type}: {first_line(error)}") from error
    if model.main_input_name != "input_ids":
        raise ValueError(f"a {model_type} reads {model.main_input_name}, a teacher reads tokens")
    named = dict(model.named_parameters())
    encoder = text_encoder(model)
    used = {id(weight) for weight in encoder.parameters()}
    missing = sorted(name for name in info["missing_keys"] if id(named.get(name)) in used)
    if missing:
        raise ValueError(f"weights are missing: {', '.join(missing[:5])} ({len(missing)} in all)")
    return encoder, config


@torch.no_grad()
def _check_reads_both_ways(model: PreTrainedModel, model_type: str) -> None:
    """Raise ValueError unless the first hidden state depends on the last token, as in an encoder, and no
    hidden state on padding.
    """
    pad_id = model.config.pad_token_id or 0
    num_rows = _num_rows(model)
    ids_L = torch.tensor([i for i in range(num_rows) if i != pad_id][-6:])
    other_L = ids_L.clone()
    other_L[-1] = ids_L[0]
    padded_L = torch.cat([ids_L, ids_L.new_full((3,), pad_id)])

    def last_states(row_L: Tensor, length: int) -> Tensor:
        mask = (torch.arange(len(row_L)) < length).long()
        output = model(input_ids=row_L[None], attention_mask=mask[None], output_hidden_states=True)
        return output.hidden_states[-1][0, :length]

    try:
        own_LD, other_LD = last_states(ids_L, 6), last_states(other_L, 6)
        padded_LD = last_states(padded_L, 6)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a {model_type} cannot be called as an encoder: {first_line(error)}") from error
    if torch.equal(own_LD[0], other_LD[0]):
        raise ValueError(
            f"a {model_type} is a decoder: it reads from left to right, and a teacher reads whole sentences"
        )
    if (own_LD - padded_LD).norm(dim=1).max() > DEVIATION * own_LD.norm(dim=1).max():
        raise ValueError(f"the hidden states of a {model_type} depend on padding")


def _num_rows(model: PreTrainedModel) -> int:
    """The number of embedded words."""
    return len(cast(nn.Embedding, model.get_input_embeddings()).weight)


def _num_positions(model: PreTrainedModel) -> int:
    """The longest sequence in tokens; positions that begin behind the padding's, as in RoBERTa, are fewer
    than their rows.
    """
    rows = getattr(model.config, "max_position_embeddings", None) or MOST_POSITIONS
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return rows - module.padding_idx - 1
    return rows


def _read_tokenizer(source: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer with our ids, and the id that the encoder has for each piece."""
    path = source / "tokenizer.json"
    if not path.exists():
        raise ValueError(
            "it has no tokenizer.json; AutoTokenizer.from_pretrained(...).save_pretrained(...) of "
            "transformers writes one"
        )
    try:
        return renumbered_json(read_bytes(path, LARGEST_JSON), _special_tokens(source))
    except ValueError as error:
        raise ValueError(f"its tokenizer: {error}") from error


def _special_tokens(source: Path) -> dict[str, str]:
    """The special tokens by transformers' names, as the files of a tokenizer have them."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = read_object(source / name) if (source / name).exists() else {}
        for role, token in settings.items():
            content = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(content, str):
                tokens[role] = content
    return tokens
