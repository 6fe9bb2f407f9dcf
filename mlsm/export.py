"""Write a run as a directory that transformers loads without any code of ours.

    python -m mlsm.export runs/token-head-lsm-random exported
    python -m mlsm.export runs/teacher/checkpoints/words-10M exported-10M

If the run has a token head (the third phase), words are read through it: it is linear, as the concept head
before it is, and both are folded into one decoder. The heads themselves, which transformers has no place
for, lie beside it in concepts.safetensors, so that mlsm.load reads the directory as it reads the run, and
the run's own settings in mlsm.json. README.md is a model card. Needs the package `tokenizers`, which comes
with transformers; nothing else of this project does.

A text that spells a special token, such as [MASK], is ordinary text to this project's tokenizer; transformers
reads the token, as with every tokenizer of theirs.
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from mlsm import cli
from mlsm.config import ModelConfig
from mlsm.files import write_json, write_tensors, write_text, write_whole
from mlsm.log import say
from mlsm.model.deberta import LAYER_NORM_EPS
from mlsm.model.language_model import LanguageModel
from mlsm.pages.model_card import model_card
from mlsm.runs.checkpoint import MODEL_FILE, STATE_FILE, read_state
from mlsm.runs.hub_names import OWN_WEIGHTS_FILE, RUN_FILE, to_huggingface
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
)
from mlsm.training.objectives import find_objective

# Bytes. Larger compiled rules are those of Unicode, in models from outside (ours take 1,032). The reader of
# the package `tokenizers` is right for their single letters; one by one there are too many of them.
UNICODE_TABLE = 65_536


def export(run: Path, directory: Path, *, folded: bool = False) -> Run:
    """Write everything, and return what was written. `folded` insists on a token head.

    Raises ValueError if there is no run, no token head to insist on, no package `tokenizers`, or if the
    directory holds other files, which might be those of a run.
    """
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RUN_FILE).exists():
        raise ValueError(f"{directory} holds other files; name a new directory, or one that was exported to")
    if (run / STATE_FILE).exists():
        read_state(run)  # a checkpoint is exported only if it is whole
    loaded = load_run(run)
    model = loaded.model
    if folded and model.token_head is None:
        raise ValueError(
            f"{run} has no token head to fold in: train one with --objective token-head --init {run}"
        )
    fast_tokenizer = huggingface_tokenizer(loaded.tokenizer)
    write_json(directory / RUN_FILE, record_json(loaded.record))
    write_json(directory / "config.json", huggingface_config(model.config))
    write_tensors(directory / MODEL_FILE, exported_tensors(model), {"format": "pt"})
    if own := own_tensors(model):
        write_tensors(directory / OWN_WEIGHTS_FILE, own)
    write_whole(directory / loaded.tokenizer.file_name, lambda path: path.write_bytes(loaded.tokenizer.model))
    # in place of a tokenizer.json of the run, which puts no special pieces around a text
    write_whole(directory / "tokenizer.json", lambda path: fast_tokenizer.save(str(path)))
    special_tokens = special_tokens_of(loaded.tokenizer)
    # a plain fast tokenizer: as an Albert tokenizer, transformers 5 would load it lower-cased
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_positions,
            "clean_up_tokenization_spaces": False,
            **special_tokens,
        },
    )
    write_json(directory / "special_tokens_map.json", special_tokens)
    write_text(directory / "README.md", model_card(loaded))
    return loaded


def huggingface_config(config: ModelConfig) -> dict[str, Any]:
    """config.json; the defaults of DebertaConfig are those of another model, so every field is named."""
    return {
        "architectures": ["DebertaForMaskedLM"],
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
def exported_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Weights under transformers' names, with the third phase as one untied decoder W2 W1 h + W2 b1 + b2."""
    tensors = to_huggingface(model.state_dict())
    if model.token_head is not None and model.concepts is not None:
        head_VK, concepts_KD = model.token_head.weight.double(), model.concepts.weight.double()
        bias_V = (head_VK @ model.concepts.bias.double() + model.token_head.bias.double()).float()
        tensors["cls.predictions.decoder.weight"] = (head_VK @ concepts_KD).float()
        # an untied decoder needs both: transformers 4 reads one of them, 5 the other
        tensors["cls.predictions.decoder.bias"] = bias_V
        tensors["cls.predictions.bias"] = bias_V.clone()
    return tensors


def own_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The weights under our names that the exported model does not hold: with them, nothing is lost."""
    heads = ["concepts", "token_head"] + ["decoder_bias"] * model.config.has_token_head
    return {name: w for name, w in model.state_dict().items() if name.split(".")[0] in heads}


def special_tokens_of(tokenizer: Tokenizer) -> dict[str, str]:
    """What transformers calls the special pieces."""
    cls, sep, unk, pad, mask = (tokenizer.piece(i) for i in (CLS_ID, SEP_ID, UNK_ID, PAD_ID, MASK_ID))
    return {
        "bos_token": cls,
        "eos_token": sep,  # scorers take it as the prefix of an empty context
        "unk_token": unk,
        "sep_token": sep,
        "pad_token": pad,
        "cls_token": cls,
        "mask_token": mask,
    }


def huggingface_tokenizer(tokenizer: Tokenizer) -> Any:
    """The same pieces and rules as a `tokenizers.Tokenizer`, with special pieces around a text. Raises
    ValueError if the package is missing.
    """
    try:
        from tokenizers import AddedToken, processors
        from tokenizers import Tokenizer as FastTokenizer
    except ModuleNotFoundError:
        raise ValueError("exporting needs the package tokenizers: pip install tokenizers") from None
    if isinstance(tokenizer, JsonTokenizer):
        made = FastTokenizer.from_buffer(tokenizer.model)
    else:
        made = _unigram(tokenizer)
    specials = special_tokens_of(tokenizer)
    cls, sep = specials["cls_token"], specials["sep_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, CLS_ID), (sep, SEP_ID)],
    )
    made.add_special_tokens(
        [AddedToken(tokenizer.piece(i), special=True, normalized=False) for i in range(NUM_SPECIALS)]
    )
    return made


def _unigram(tokenizer: Tokenizer) -> Any:
    """A SentencePiece model as a `tokenizers.Tokenizer`."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    made = FastTokenizer(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    rules: list[Any]
    if len(charsmap) > UNICODE_TABLE:
        rules = [normalizers.Precompiled(charsmap)]
    else:
        rules = [normalizers.Replace(old, new) for old, new in replacement_rules(charsmap)]
    made.normalizer = normalizers.Sequence(
        [
            *rules,
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"[ ▁]+\z"), ""),
            # not left to Metaspace, which adds none where the text itself begins with one
            normalizers.Prepend("▁"),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return made


def replacement_rules(charsmap: bytes) -> list[tuple[str, str]]:
    """The (old, new) texts of SentencePiece's compiled rules, longest first.

    They are a double-array trie (as darts-clone lays it out) of UTF-8 bytes, then the new texts, each ended
    by a zero byte. transformers' own reader of them looks at one letter at a time and would miss the rules of
    two. Raises ValueError for rules of which one makes the old text of another: applied one after the other
    they would do more than SentencePiece does.
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
    """Of a node's children, exclusive or'ed with the node's place."""
    return unit >> 10 << ((unit & 1 << 9) >> 6)


@dataclass(frozen=True)
class Settings:
    """What is exported, and where it is written."""

    run: Path = argument("a finished run, or a checkpoint: runs/teacher/checkpoints/words-10M", "RUN")
    directory: Path = argument("where to write", "DIRECTORY")
    folded: bool = option(
        False, "refuse a run without a token head (one that has a token head is always folded)"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line and export."""
    args = cli.parse(Settings, argv, __doc__ or "")
    written = export(args.run, args.directory, folded=args.folded)
    if not find_objective(written.record.train.objective).predicts_words:
        say("this objective trains no words: fine-tune the model, or read its concepts with mlsm.load")
    say(f"wrote {args.directory}: AutoModelForMaskedLM and AutoTokenizer load it, mlsm.load too")


if __name__ == "__main__":
    cli.run(main)
