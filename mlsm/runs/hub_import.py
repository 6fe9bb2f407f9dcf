"""Import of models: a checkpoint of transformers becomes a run, which can teach.

    python -m mlsm.runs.hub_import DIRECTORY RUN

The other commands convert a checkpoint themselves where --teacher or --init names its directory; the run is
then runs/outside-NAME. DeBERTa v1 becomes a whole run, to teach and to start from. Of v2 and v3 the encoder
is converted, which can teach. A setting that this project does not compute is refused by its name. Of other
types the encoder can teach, too, and the package transformers computes it (`mlsm.runs.hub_outside`).

A student of the paper's authors is a DeBERTa v1 with a row of its masked-LM head for each concept and, after
the third phase, a matrix from concepts to words. They become the heads of the run.

Weights are copied in float32. The rows of a DeBERTa's vocabulary are put in the order of this project's ids.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mlsm import cli, command_line
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.files import (
    LARGEST_JSON,
    open_file,
    read_bytes,
    read_object,
    read_tensors,
    read_text,
    write_directory,
    write_json,
    write_tensors,
    write_text,
)
from mlsm.log import say
from mlsm.model import deberta_v2
from mlsm.model.deberta_v2 import Layout
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.hub_config import MODEL_TYPES, hub_config
from mlsm.runs.hub_names import RUN_FILE, from_huggingface, from_huggingface_v2
from mlsm.runs.hub_outside import ENCODER_FOLDER, digest_of, read_outside, weight_files
from mlsm.runs.record import OutsideRecord, RunRecord, SourceRecord, read_record, record_json
from mlsm.runs.run import check_fit
from mlsm.settings import Flags, FlagValue, argument
from mlsm.text.tokenizer import Tokenizer, concept_pieces, renumbered_json, renumbered_sentencepiece

PICKLE_FILE = "pytorch_model.bin"
MOST_PIECES = 1 << 22  # of a vocabulary; the package tokenizers allocates memory up to the largest id
EMBEDDINGS = "deberta.embeddings.word_embeddings.weight"


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a model of transformers, whose config.json names a type of model."""
    path = directory / "config.json"
    return path.is_file() and "model_type" in read_object(path)


def with_converted_checkpoints(given: Flags, *names: str) -> Flags:
    """The flags, with the converted run in place of each checkpoint that a flag of these names points to. A
    directory that this project exported is a run already.
    """
    runs: dict[str, FlagValue] = {}
    for name in names:
        source = Path(str(given.get(name, "")))
        if name in given and is_checkpoint(source) and not (source / RUN_FILE).exists():
            run = Path("runs") / f"outside-{source.resolve().name}"
            convert(source, run)
            runs[name] = str(run)
    return {**given, **runs}


class _Converted(NamedTuple):
    """What a run is written from."""

    shape: ModelConfig
    tokenizer: Tokenizer
    tensors: dict[str, Tensor]
    layout: Layout | None = None
    outside: OutsideRecord | None = None
    outside_config: str = ""  # config.json of transformers


def convert(source: Path, run: Path) -> None:
    """Write the run of a checkpoint, unless it exists. Raises ValueError for a checkpoint that cannot be
    converted, and if there is something else at `run`.
    """
    files = weight_files(source) or [source / PICKLE_FILE]
    if not files[0].exists():
        raise ValueError(f"no {MODEL_FILE} and no {PICKLE_FILE} in {source}")
    origin = SourceRecord(directory=str(source), weights=digest_of(files))
    if run.exists():
        converted = read_record(run).source if (run / "config.json").exists() else None
        if converted is None or converted.weights != origin.weights:
            raise ValueError(
                f"{run} is there and not made from {source} as it is now; remove it, or write another: "
                f"python -m mlsm.runs.hub_import {source} RUN"
            )
        return
    settings = read_object(source / "config.json")
    read = _read_deberta if settings["model_type"] in MODEL_TYPES else _read_other
    try:
        found = read(source, settings, files)
    except ValueError as error:
        raise ValueError(f"{source} cannot be used: {error}") from error
    record = RunRecord(
        preset="base",
        model=found.shape,
        data=DataConfig(max_length=min(DataConfig().max_length, found.shape.max_positions)),
        train=TrainConfig(),
        tokenizer=found.tokenizer.fingerprint,
        layout=found.layout,
        source=origin,
        outside=found.outside,
    )

    def fill(work: Path) -> None:
        (work / found.tokenizer.file_name).write_bytes(found.tokenizer.model)
        write_tensors(work / MODEL_FILE, found.tensors)
        if found.outside:
            (work / ENCODER_FOLDER).mkdir()
            write_text(work / ENCODER_FOLDER / "config.json", found.outside_config)
        write_json(work / "config.json", record_json(record))

    write_directory(run, fill)
    say(f"{run}: converted from {source}")


def _read_deberta(source: Path, settings: dict[str, object], files: list[Path]) -> _Converted:
    """A DeBERTa, whose weights get the names that they have here."""
    config = hub_config(settings)
    tokenizer, their_ids = _read_tokenizer(source)
    shape, layout = config.shape(tokenizer.vocab_size), config.layout
    tensors = _read_weights(files)
    if max(their_ids) >= len(tensors[EMBEDDINGS]):
        raise ValueError(f"the tokenizer has ids up to {max(their_ids)}, beyond the embedded words")
    if layout is None:
        tensors, concepts = _concept_head(tensors, _concept_ids(source))
        tensors, words = _word_head(tensors, len(concepts.get("concepts.bias", ())), their_ids)
        _say_unknown(tensors)
        found = from_huggingface(_with_tied_head(tensors))
        found = _in_our_order(found, their_ids) | concepts | words
        num_concepts = len(concepts.get("concepts.bias", ()))
        shape = dataclasses.replace(shape, num_concepts=num_concepts, has_token_head=bool(words))
        return _Converted(shape, tokenizer, _with_all_heads(shape, found))
    found = from_huggingface_v2(tensors, shape.num_heads, config.share_att_key)
    ours = {n.removeprefix("encoder."): w for n, w in _in_our_order(found, their_ids).items()}
    with torch.device("meta"):
        check_fit(deberta_v2.Encoder(shape, layout), ours, "the checkpoint")
    return _Converted(shape, tokenizer, ours, layout)


def _read_other(source: Path, settings: dict[str, object], files: list[Path]) -> _Converted:
    """An encoder that stays one of transformers."""
    found = read_outside(source, settings, files)
    tensors = {name: weight.clone() for name, weight in found.encoder.state_dict().items()}
    return _Converted(
        found.shape, found.tokenizer, tensors, outside=found.record, outside_config=found.config_json
    )


def _concept_ids(source: Path) -> list[int]:
    """The ids of a student's concepts in a checkpoint of the paper's authors, whose tokenizer has an added
    piece [MASK-i] for each; none in other checkpoints.
    """
    path = source / "tokenizer.json"
    if not path.exists() or (source / "spm.model").exists():
        return []
    return concept_pieces(read_bytes(path, LARGEST_JSON))[1]


def _concept_head(
    tensors: dict[str, Tensor], concept_ids: list[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors, and the concept head of a student: rows of the masked-LM head beside those of the words.
    They are the rows of the concepts' pieces, or those that the decoder has beyond the embedded words.
    """
    embeddings = tensors[EMBEDDINGS]
    decoder, bias = (tensors.get(f"cls.predictions.{name}") for name in ("decoder.weight", "bias"))
    weight = embeddings if decoder is None else decoder
    ids = concept_ids or [*range(len(embeddings), len(weight))]
    if not ids or bias is None or max(ids) >= min(len(weight), len(bias)):
        return tensors, {}
    head = {"concepts.weight": weight[ids], "concepts.bias": bias[ids]}
    cut = {"cls.predictions.decoder.weight": weight, "cls.predictions.bias": bias}
    return tensors | {name: tensor[: len(embeddings)] for name, tensor in cut.items()}, head


def _word_head(
    tensors: dict[str, Tensor], num_concepts: int, their_ids: list[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors without the layer from a student's concepts to words, and this layer. Its name is not
    known; it is the only matrix of its shape that is no part of a DeBERTa.
    """
    num_words = (len(their_ids), len(tensors[EMBEDDINGS]))
    names = [
        name
        for name in _unknown_names(tensors)
        if num_concepts and tensors[name].dim() == 2 and tensors[name].shape[1] == num_concepts
        if len(tensors[name]) in num_words and len(tensors[name]) > max(their_ids)
    ]
    if len(names) != 1:
        return tensors, {}
    name = names[0]
    weight, bias_name = tensors[name], name.removesuffix("weight") + "bias"
    bias = tensors.get(bias_name, weight.new_zeros(len(weight)))
    say(f"the layer from concepts to words: {name}")
    others = {n: tensor for n, tensor in tensors.items() if n not in (name, bias_name)}
    return others, {"token_head.weight": weight[their_ids], "token_head.bias": bias[their_ids]}


def _unknown_names(tensors: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that a DeBERTa v1 with a masked-LM head does not have."""
    known = re.compile(r"(cls\.predictions|lm_predictions)\.|deberta\.embeddings\.position_ids$")
    named = (name for name, tensor in tensors.items() if not from_huggingface({name: tensor}))
    return sorted(name for name in named if not known.match(name))


def _say_unknown(tensors: dict[str, Tensor]) -> None:
    """Print one line with the names of the tensors that are not read, if there are any."""
    if names := _unknown_names(tensors):
        say(f"weights that are not read: {', '.join(names[:5])} ({len(names)} in all)")


def _read_weights(files: list[Path]) -> dict[str, Tensor]:
    """The tensors in float32, under names that begin with the encoder's `deberta.`, which an encoder saved
    alone lacks. Raises ValueError unless they are ordinary tensors with the embeddings of a DeBERTa.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= _read_weight_file(path)
    prefix = "" if any(name.startswith("deberta.") for name in tensors) else "deberta."
    tensors = {prefix + name: tensor.float() for name, tensor in tensors.items()}
    if EMBEDDINGS not in tensors or tensors[EMBEDDINGS].dim() != 2:
        raise ValueError(f"{files[0]} has no word embeddings of a DeBERTa")
    return tensors


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ValueError for anything else in it."""
    try:
        open_file(path).close()
        is_pickle = path.name == PICKLE_FILE
        tensors = torch.load(path, "cpu", weights_only=True) if is_pickle else read_tensors(path)
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} is damaged, or holds more than weights") from error
    if not isinstance(tensors, dict) or not all(_is_named_weight(*item) for item in tensors.items()):
        raise ValueError(f"{path} holds something else than named weights")
    return tensors


def _is_named_weight(name: object, tensor: object) -> bool:
    """Whether an entry is a tensor whose numbers can be read, under a name."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout == torch.strided and not (
        tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    )


def _with_tied_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the masked-LM head under one of its two names, or without the head if its decoder is
    not tied to the embeddings.
    """
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("lm_predictions.lm_head.", "cls.predictions.")
        renamed[re.sub(r"^(cls\.predictions)\.(dense|LayerNorm)\.", r"\1.transform.\2.", name)] = tensor
    embeddings = renamed[EMBEDDINGS]
    decoder = renamed.get("cls.predictions.decoder.weight", embeddings)
    bias = renamed.get("cls.predictions.bias", embeddings[:, 0])
    if torch.equal(decoder, embeddings) and len(bias) == len(embeddings):
        return renamed
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("cls.")}


def _in_our_order(tensors: dict[str, Tensor], their_ids: list[int]) -> dict[str, Tensor]:
    """The tensors with the rows of the vocabulary in the order of our ids."""
    by_piece = {"encoder.token_embedding.weight", "decoder_bias"}
    return {name: tensor[their_ids] if name in by_piece else tensor for name, tensor in tensors.items()}


def _with_all_heads(shape: ModelConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with random ones for the parts of a language model's heads that are missing. Raises
    ValueError if the others do not fit the model.
    """
    with torch.device("meta"):
        model = LanguageModel(shape)
    missing = {n for n in model.state_dict() if not n.startswith("encoder.")} - found.keys()
    check_fit(model, found | {n: model.state_dict()[n] for n in missing}, "the checkpoint")
    if missing:
        say(f"no masked-LM head tied to the embeddings; random instead: {', '.join(sorted(missing))}")
        random = LanguageModel(shape).state_dict()
        found = found | {name: random[name] for name in missing}
    return found


def _read_tokenizer(source: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer, and the id that each of its pieces has in the checkpoint."""
    file = source / "tokenizer_config.json"
    settings = read_object(file) if file.exists() else {}
    for name in ("do_lower_case", "split_by_punct"):
        if settings.get(name):
            raise ValueError(f"its tokenizer asks for {name}")
    try:
        if (source / "spm.model").exists():
            return renumbered_sentencepiece(read_bytes(source / "spm.model", LARGEST_JSON))
        if (source / "tokenizer.json").exists():
            content, _ = concept_pieces(read_bytes(source / "tokenizer.json", LARGEST_JSON))
            return renumbered_json(content)
        if (source / "vocab.json").exists() and (source / "merges.txt").exists():
            return renumbered_json(_byte_pairs(source, bool(settings.get("add_prefix_space"))))
    except ValueError as error:
        raise ValueError(f"its tokenizer: {error}") from error
    raise ValueError("it has no spm.model, no tokenizer.json, and no vocab.json with merges.txt")


def _byte_pairs(source: Path, has_prefix_space: bool) -> bytes:
    """The byte-level BPE of GPT-2, which DeBERTa v1 uses, as a tokenizer.json."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise ValueError("reading it takes the package tokenizers: pip install tokenizers") from None
    read = read_object(source / "vocab.json")
    if (source / "added_tokens.json").exists():
        read |= read_object(source / "added_tokens.json")
    vocabulary = {piece: i for piece, i in read.items() if type(i) is int and 0 <= i < MOST_PIECES}
    if len(vocabulary) < len(read):
        raise ValueError(f"vocab.json must number its pieces from 0 to {MOST_PIECES - 1} at most")
    lines = read_text(source / "merges.txt").split("\n")
    split = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in split if len(pair) == 2]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"vocab.json and merges.txt do not fit together ({error})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str().encode()


@dataclass(frozen=True)
class Settings:
    """What is converted, and where the run is written."""

    directory: Path = argument("a checkpoint as transformers saves it", "DIRECTORY")
    run: Path = argument("directory to write", "RUN")


def main(argv: list[str]) -> None:
    """Read the command line and write the run."""
    args = command_line.parse(Settings, argv, __doc__ or "")
    if not is_checkpoint(args.directory):
        raise ValueError(f"no checkpoint in {args.directory}: its config.json names no model_type")
    convert(args.directory, args.run)


if __name__ == "__main__":
    cli.run(main)
