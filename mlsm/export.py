"""Write a run as a directory that transformers loads without code of this project.

    python -m mlsm.export runs/token-head-lsm-random exported
    python -m mlsm.export runs/teacher/checkpoints/words-10M exported-10M

A run that predicts words becomes a masked language model. If it has a token head, concept head and token head
are folded into one decoder, which is exact because both are linear. A student that predicts concepts alone
becomes an encoder. Weights that have no place in the exported model lie beside it in concepts.safetensors,
and the settings of the run in mlsm.json, so that mlsm.load reads the directory as it reads the run. README.md
is a model card. Exporting needs the package `tokenizers`, which comes with transformers.

[MASK] in a text is the mask, as in mlsm.load. The other special tokens are ordinary text in this project; for
transformers they are special, as with each of its tokenizers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from mlsm import cli
from mlsm.command_line import Parser
from mlsm.config import ModelConfig
from mlsm.files import write_json, write_tensors, write_text, write_whole
from mlsm.log import say
from mlsm.model.deberta import LAYER_NORM_EPS
from mlsm.model.language_model import LanguageModel
from mlsm.pages.model_card import model_card, predicts_words
from mlsm.runs.checkpoint import MODEL_FILE, STATE_FILE, read_state
from mlsm.runs.hub_names import OWN_WEIGHTS_FILE, RUN_FILE, from_huggingface, to_huggingface
from mlsm.runs.record import record_json
from mlsm.runs.run import Run, load_run
from mlsm.settings import argument, option
from mlsm.text.tokenizer import (
    CLS_ID,
    MASK_ID,
    NUM_SPECIALS,
    PAD_ID,
    SEP_ID,
    UNK_ID,
    JsonTokenizer,
    Tokenizer,
    json_with_masks,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

# Bytes. Larger compiled rules are those of Unicode, in imported tokenizers (those trained here take 1,032).
# They are too many to apply one by one; the package `tokenizers` reads rules of single characters correctly.
UNICODE_TABLE = 65_536


def export(run: Path, directory: Path, *, folded: bool = False) -> Run:
    """Write everything, and return the run that was written. `folded` requires a token head.

    Raises ValueError if there is no run, no required token head or no package `tokenizers`, and if the
    directory holds other files, which might be those of a run.
    """
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RUN_FILE).exists():
        raise ValueError(f"{directory} holds other files; name a new directory, or one that was exported to")
    if (run / STATE_FILE).exists():
        read_state(run)  # raises ValueError for a damaged checkpoint
    loaded = load_run(run)
    model, tokenizer = loaded.model, loaded.tokenizer
    if folded and model.token_head is None:
        raise ValueError(
            f"{run} has no token head to fold in: train one with --objective token-head --init {run}"
        )
    fast_tokenizer, has_words = huggingface_tokenizer(tokenizer), predicts_words(loaded.record)
    tensors = exported_tensors(model, has_words)
    readable = from_huggingface(tensors)
    own = {n: w for n, w in model.state_dict().items() if n not in readable or not readable[n].equal(w)}
    special_tokens = special_tokens_of(tokenizer)
    write_json(directory / RUN_FILE, record_json(loaded.record))
    write_json(directory / "config.json", huggingface_config(model.config, has_words))
    write_tensors(directory / MODEL_FILE, tensors, {"format": "pt"})
    if own:
        write_tensors(directory / OWN_WEIGHTS_FILE, own)
    write_whole(directory / tokenizer.file_name, lambda path: path.write_bytes(tokenizer.model))
    # It replaces the tokenizer.json of an imported run, which puts no special tokens around a text.
    write_whole(directory / "tokenizer.json", lambda path: fast_tokenizer.save(str(path)))
    # As an Albert tokenizer, transformers 5 would lower the case of the text.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.max_positions}
    settings["clean_up_tokenization_spaces"] = False
    write_json(directory / "tokenizer_config.json", settings | special_tokens)
    write_json(directory / "special_tokens_map.json", special_tokens)
    write_text(directory / "README.md", model_card(loaded))
    return loaded


def huggingface_config(config: ModelConfig, has_words: bool = True) -> dict[str, object]:
    """config.json of a masked language model, or of an encoder. Every field is written: the defaults of
    DebertaConfig are those of another model.
    """
    return {
        "architectures": ["DebertaForMaskedLM" if has_words else "DebertaModel"],
        "model_type": "deberta",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_positions,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": -1,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "initializer_range": config.init_std,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0,
        "legacy": True,
        "tie_word_embeddings": not config.has_token_head,
        "bos_token_id": CLS_ID,
        "eos_token_id": SEP_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "float32",
    }


@torch.no_grad()
def exported_tensors(model: LanguageModel, has_words: bool = True) -> dict[str, Tensor]:
    """Weights under transformers' names: those of the encoder alone, or with a masked-LM head. The heads of
    the third phase are one untied decoder, W2 W1 h + W2 b1 + b2.
    """
    tensors = to_huggingface(model.state_dict())
    if not has_words:
        return {name: tensor for name, tensor in tensors.items() if name.startswith("deberta.")}
    if model.token_head is not None and model.concepts is not None:
        head_VK, concepts_KD = model.token_head.weight.double(), model.concepts.weight.double()
        bias_V = (head_VK @ model.concepts.bias.double() + model.token_head.bias.double()).float()
        tensors["cls.predictions.decoder.weight"] = (head_VK @ concepts_KD).float()
        # transformers 4 reads one of these names, transformers 5 the other.
        tensors["cls.predictions.decoder.bias"] = bias_V
        tensors["cls.predictions.bias"] = bias_V.clone()
    return tensors


def special_tokens_of(tokenizer: Tokenizer) -> dict[str, str]:
    """The special pieces by transformers' names."""
    cls, sep, unk, pad, mask = (tokenizer.piece(i) for i in (CLS_ID, SEP_ID, UNK_ID, PAD_ID, MASK_ID))
    names = {"unk_token": unk, "sep_token": sep, "pad_token": pad, "cls_token": cls, "mask_token": mask}
    return {"bos_token": cls, "eos_token": sep, **names}  # eos: scorers take it for an empty context


def huggingface_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """A `tokenizers.Tokenizer` with the same pieces and rules. It puts special pieces around a text and reads
    [MASK] as `Tokenizer.encode_with_masks` does. Raises ValueError if the package is missing.
    """
    try:
        from tokenizers import AddedToken, processors
        from tokenizers import Tokenizer as FastTokenizer
    except ModuleNotFoundError:
        raise ValueError("exporting needs the package tokenizers: pip install tokenizers") from None
    is_json = isinstance(tokenizer, JsonTokenizer)
    model = tokenizer.model if is_json else _unigram(tokenizer).to_str().encode()
    fast = FastTokenizer.from_buffer(json_with_masks(model))
    cls, sep = tokenizer.piece(CLS_ID), tokenizer.piece(SEP_ID)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, CLS_ID), (sep, SEP_ID)],
    )
    others = [tokenizer.piece(i) for i in range(NUM_SPECIALS) if i != MASK_ID]
    fast.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in others])
    return fast


def _unigram(tokenizer: Tokenizer) -> FastTokenizer:
    """A SentencePiece model as a `tokenizers.Tokenizer`."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    fast = FastTokenizer(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    rules: list[normalizers.Normalizer]
    if len(charsmap) > UNICODE_TABLE:
        rules = [normalizers.Precompiled(charsmap)]
    else:
        rules = [normalizers.Replace(old, new) for old, new in replacement_rules(charsmap)]
    # SentencePiece drops spaces at both ends of a text, and all but one of those between words.
    rules += [normalizers.Replace(Regex(pattern), "") for pattern in (r"\A +", " (?= )", r"[ ▁]+\z")]
    # The space before a text is not left to Metaspace, which adds none to a text that begins with '▁'.
    fast.normalizer = normalizers.Sequence([*rules, normalizers.Prepend("▁")])
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return fast


def replacement_rules(charsmap: bytes) -> list[tuple[str, str]]:
    """The (old, new) texts of SentencePiece's compiled rules, longest first.

    The rules are a double-array trie of UTF-8 bytes (in the layout of darts-clone), followed by the new
    texts, each ended by a zero byte. The reader of the package `tokenizers` looks at single characters and
    would miss rules for two. Raises ValueError if the new text of one rule contains the old text of another:
    applied one after the other they would change more than SentencePiece does.
    """
    if not charsmap:
        return []
    (num_bytes,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{num_bytes // 4}I", charsmap, 4)
    texts = charsmap[4 + num_bytes :]
    rules: list[tuple[str, str]] = []
    waiting = [(b"", _offset(units[0]))]
    while waiting:
        prefix, base = waiting.pop()
        for byte in range(1, 256):
            place = base ^ byte
            if place >= len(units) or units[place] & 0x8000_00FF != byte:
                continue
            child = place ^ _offset(units[place])
            if units[place] >> 8 & 1:  # a rule ends here; its value follows
                start = units[child] & 0x7FFF_FFFF
                end = texts.index(b"\0", start)
                rules.append(((prefix + bytes([byte])).decode(), texts[start:end].decode()))
            waiting.append((prefix + bytes([byte]), child))
    for _, new in rules:
        if any(old in new for old, _ in rules):
            raise ValueError(f"the tokenizer's rules build on each other at {new!r}; they cannot be exported")
    return sorted(rules, key=lambda rule: (-len(rule[0]), rule[0]))


def _offset(unit: int) -> int:
    """The number that the place of a node is combined with (by exclusive or) to find its children."""
    return unit >> 10 << ((unit & 1 << 9) >> 6)


@dataclass(frozen=True)
class Settings:
    """What is exported, and where it is written."""

    run: Path = argument("a finished run, or a checkpoint: runs/teacher/checkpoints/words-10M", "RUN")
    directory: Path = argument("where to write", "DIRECTORY")
    folded: bool = option(
        False, "refuse a run without a token head (one that has a token head is always folded)"
    )


def parser() -> Parser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line and export."""
    args = cli.parse(Settings, argv, __doc__ or "")
    written = export(args.run, args.directory, folded=args.folded)
    if predicts_words(written.record):
        say(f"wrote {args.directory}: AutoModelForMaskedLM and AutoTokenizer load it, mlsm.load too")
    else:
        say(
            f"wrote {args.directory}, an encoder, because {written.record.train.objective} trains no words: "
            "AutoModel and AutoTokenizer load it; mlsm.load also reads its concepts"
        )


if __name__ == "__main__":
    cli.run(main)
