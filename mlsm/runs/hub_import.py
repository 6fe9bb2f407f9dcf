"""Models from outside: a Hugging Face DeBERTa checkpoint becomes a run of ours, so that it can teach.

    python -m mlsm.runs.hub_import DIRECTORY RUN

The other commands do the same by themselves where --teacher or --init names such a directory: the run is
runs/outside-NAME then. DeBERTa v1 becomes a whole run, to teach and to start from; of v2 and v3 the encoder
is kept, which teaches. A setting that this code does not compute is refused by its name.

The weights are copied, in float32, and the rows of words put in the order of our ids.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlsm import cli
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.files import (
    LARGEST_JSON,
    file_digest,
    open_file,
    read_bytes,
    read_json,
    read_tensors,
    read_text,
    write_directory,
    write_json,
    write_tensors,
)
from mlsm.log import say
from mlsm.model import deberta_v2
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.hub_names import RUN_FILE, from_huggingface, from_huggingface_v2
from mlsm.runs.record import RunRecord, SourceRecord, read_record, record_json
from mlsm.runs.run import load_weights_
from mlsm.settings import Flags, FlagValue, argument
from mlsm.text.tokenizer import Tokenizer, renumbered_json, renumbered_sentencepiece

PICKLE_FILE = "pytorch_model.bin"
WORDS = "deberta.embeddings.word_embeddings.weight"
KINDS = ("deberta", "deberta-v2")  # v3 is v2 to transformers


def is_checkpoint(directory: Path) -> bool:
    """Whether this is a directory of transformers, which calls its kinds of models by a name."""
    path = directory / "config.json"
    return path.is_file() and "model_type" in _object(path)


def with_converted_checkpoints(given: Flags, *names: str) -> Flags:
    """The flags with a converted run in place of each checkpoint that a flag of these names points to; a
    directory that was exported by this project is a run already.
    """
    runs: dict[str, FlagValue] = {}
    for name in names:
        source = Path(str(given.get(name, "")))
        if name in given and is_checkpoint(source) and not (source / RUN_FILE).exists():
            run = Path("runs") / f"outside-{source.resolve().name}"
            convert(source, run)
            runs[name] = str(run)
    return {**given, **runs}


def convert(source: Path, run: Path) -> None:
    """Make the run of a checkpoint, unless it is there. Raises ValueError for a checkpoint that cannot be
    one, and if the place is taken.
    """
    weights_file = _weights_file(source)
    origin = SourceRecord(directory=str(source), weights=file_digest(weights_file))
    if run.exists():
        if not (run / "config.json").exists() or _weights_of(run) != origin.weights:
            raise ValueError(
                f"{run} is there and not made from {source} as it is now; remove it, or write another: "
                f"python -m mlsm.runs.hub_import {source} RUN"
            )
        return
    config = _object(source / "config.json")
    if unknown := unsupported(config):
        raise ValueError(f"{source} cannot be used: {unknown}")
    tensors = _read_weights(weights_file)
    tokenizer, their_ids = _read_tokenizer(source)
    if WORDS not in tensors:
        raise ValueError(f"{source} cannot be used: its weights have no word embeddings of a DeBERTa")
    if max(their_ids) >= len(tensors[WORDS]):
        raise ValueError(f"{source}: the tokenizer has ids up to {max(their_ids)}, beyond the embedded words")
    shape, layout = _shape(config, tokenizer.vocab_size), _layout(config)
    if layout is None:
        ours = _whole_model(
            shape, _in_our_order(from_huggingface(_with_tied_head(tensors)), their_ids), source
        )
    else:
        is_shared = bool(config.get("share_att_key"))
        found = _in_our_order(from_huggingface_v2(tensors, shape.num_heads, is_shared), their_ids)
        ours = {name.removeprefix("encoder."): tensor for name, tensor in found.items()}
        load_weights_(deberta_v2.Encoder(shape, layout), ours, str(source))
    record = RunRecord(
        preset="base",
        model=shape,
        data=DataConfig(max_length=min(DataConfig().max_length, shape.max_positions)),
        train=TrainConfig(),
        tokenizer=tokenizer.fingerprint,
        layout=layout,
        source=origin,
    )

    def fill(work: Path) -> None:
        (work / tokenizer.file_name).write_bytes(tokenizer.model)
        write_tensors(work / MODEL_FILE, ours)
        write_json(work / "config.json", record_json(record))

    write_directory(run, fill)
    say(f"{run}: made from {source}")


def _weights_of(run: Path) -> str | None:
    """The digest of the weights a run was made from; None for one that was trained here."""
    source = read_record(run).source
    return source.weights if source else None


def _whole_model(shape: ModelConfig, found: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Every weight of a language model: those found, and random ones for a head that is not there."""
    model = LanguageModel(shape)
    heads = {name: w for name, w in model.state_dict().items() if not name.startswith("encoder.")}
    load_weights_(model, heads | found, str(source))
    if missing := sorted(heads.keys() - found.keys()):
        say(f"{source} has no masked-LM head tied to its words; random instead: {', '.join(missing)}")
    return heads | found


def unsupported(config: dict[str, Any]) -> str | None:
    """What in a config.json of transformers this code does not compute, in words; None if nothing."""
    kind = config.get("model_type")
    if kind not in KINDS:
        return f"model_type is {kind}, not one of {', '.join(KINDS)}"
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in sizes:
        if not isinstance(config.get(name), int) or config[name] < 1:
            return f"its config.json has no {name}"
    width, num_heads = config["hidden_size"], config["num_attention_heads"]
    # Each with its value where the file is silent, and the one that is computed here.
    settings: dict[str, tuple[Any, Any]] = {
        "hidden_act": ("gelu", "gelu"),
        "layer_norm_eps": (1e-7, 1e-7),
        "relative_attention": (False, True),
        "position_biased_input": (True, False),
        "type_vocab_size": (0, 0),
        "talking_head": (False, False),
        "conv_kernel_size": (0, 0),
        "embedding_size": (width, width),
        "attention_head_size": (width // num_heads, width // num_heads),
    }
    for name, (silent, known) in settings.items():
        if config.get(name, silent) != known:
            return f"{name} is {config.get(name, silent)}, only {known} is computed here"
    terms = config.get("pos_att_type") or []
    terms = terms.split("|") if isinstance(terms, str) else terms
    if {term.strip().lower() for term in terms} != {"c2p", "p2c"}:
        return f"pos_att_type is {'|'.join(terms) or 'empty'}, only c2p|p2c is computed here"
    return None


def _shape(config: dict[str, Any], vocab_size: int) -> ModelConfig:
    """The size of the model; sequences may be as long as none of its distances is clipped."""
    max_positions = config.get("max_position_embeddings", 512)
    max_distance = config.get("max_relative_positions", -1)
    if config["model_type"] == "deberta" and max_distance > 0:
        max_positions = max_distance
    return ModelConfig(
        vocab_size=vocab_size,
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        max_positions=max_positions,
        dropout=float(config.get("hidden_dropout_prob", 0.1)),
    )


def _layout(config: dict[str, Any]) -> deberta_v2.Layout | None:
    """None for v1."""
    if config["model_type"] == "deberta":
        return None
    max_distance = config.get("max_relative_positions", -1)
    return deberta_v2.Layout(
        num_buckets=max(0, config.get("position_buckets", -1)),
        max_distance=max_distance if max_distance > 0 else config.get("max_position_embeddings", 512),
        is_table_normed="layer_norm" in config.get("norm_rel_ebd", "none").lower(),
    )


def _weights_file(source: Path) -> Path:
    for name in (MODEL_FILE, PICKLE_FILE):
        if (source / name).exists():
            return source / name
    raise ValueError(
        f"no {MODEL_FILE} and no {PICKLE_FILE} in {source}; weights in several files cannot be read"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """In float32, under names that begin with the encoder's `deberta.` (an encoder saved alone has none)."""
    if path.name == MODEL_FILE:
        tensors = read_tensors(path)
    else:
        try:
            open_file(path).close()
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is damaged, or holds more than weights") from error
        if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise ValueError(f"{path} holds something else than named weights")
    if not any(name.startswith("deberta.") for name in tensors):
        tensors = {f"deberta.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor.float() for name, tensor in tensors.items()}


def _with_tied_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masked-LM head under one of its two names; without it if its words are not the embedded ones."""
    tensors = {name.replace("lm_predictions.lm_head.", "cls.predictions."): t for name, t in tensors.items()}
    for part in ("dense", "LayerNorm"):  # the other name has these under its transform
        old, new = f"cls.predictions.{part}.", f"cls.predictions.transform.{part}."
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    words = tensors[WORDS]
    decoder = tensors.get("cls.predictions.decoder.weight", words)
    if decoder.shape != words.shape or not torch.equal(decoder, words):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("cls.")}
    return tensors


def _in_our_order(tensors: dict[str, Tensor], their_ids: list[int]) -> dict[str, Tensor]:
    """With a row a word, in the order of our ids."""
    rows = torch.tensor(their_ids)
    by_word = {"encoder.token_embedding.weight", "decoder_bias"}
    return {name: tensor[rows] if name in by_word else tensor for name, tensor in tensors.items()}


def _read_tokenizer(source: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer and the id that each of its pieces has in the checkpoint."""
    settings = (
        _object(source / "tokenizer_config.json") if (source / "tokenizer_config.json").exists() else {}
    )
    for name in ("do_lower_case", "split_by_punct"):
        if settings.get(name):
            raise ValueError(f"{source} cannot be used: its tokenizer asks for {name}")
    try:
        if (source / "spm.model").exists():
            return renumbered_sentencepiece(read_bytes(source / "spm.model", LARGEST_JSON))
        if (source / "tokenizer.json").exists():
            return renumbered_json(read_bytes(source / "tokenizer.json", LARGEST_JSON))
        if (source / "vocab.json").exists() and (source / "merges.txt").exists():
            return renumbered_json(_byte_pairs(source, bool(settings.get("add_prefix_space"))))
    except ValueError as error:
        raise ValueError(f"the tokenizer of {source}: {error}") from error
    raise ValueError(f"no spm.model, no tokenizer.json, and no vocab.json with merges.txt in {source}")


def _byte_pairs(source: Path, has_prefix_space: bool) -> bytes:
    """GPT-2's byte-level pairs, which DeBERTa v1 uses, as a tokenizer.json."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise ValueError("reading it takes the package tokenizers: pip install tokenizers") from None
    vocabulary = _object(source / "vocab.json")
    if (source / "added_tokens.json").exists():
        vocabulary |= _object(source / "added_tokens.json")
    lines = read_text(source / "merges.txt").split("\n")
    split = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in split if len(pair) == 2]
    try:
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"vocab.json and merges.txt do not fit together ({error})") from error
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix_space)
    made.decoder = decoders.ByteLevel()
    return made.to_str().encode()


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold an object")
    return value


@dataclass(frozen=True)
class Arguments:
    """What is converted, and where the run is written."""

    directory: Path = argument("a checkpoint as transformers saves it", "DIRECTORY")
    run: Path = argument("directory to write", "RUN")


def main(argv: list[str]) -> None:
    """Read the command line and make the run."""
    args = cli.parse(Arguments, argv, __doc__ or "")
    if not is_checkpoint(args.directory):
        raise ValueError(f"no checkpoint in {args.directory}: its config.json names no model_type")
    convert(args.directory, args.run)


if __name__ == "__main__":
    cli.run(main)
