"""Write a run as a directory that transformers loads without any code of ours.

    python -m mlsm.export RUN DIRECTORY

The third phase is linear (concept logits, then words), so it is folded into one decoder. The concept rows
themselves, which transformers has no place for, go into concepts.safetensors. Needs the package `tokenizers`,
which comes with transformers; nothing else of this project does.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from mlsm import cli
from mlsm.checkpoint import MODEL_FILE, write_json, write_tensors, write_whole
from mlsm.config import ModelConfig
from mlsm.deberta import LAYER_NORM_EPS
from mlsm.heads import LanguageModel, load_run
from mlsm.huggingface import to_huggingface
from mlsm.log import say
from mlsm.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, SPECIAL_PIECES, UNK_ID, Tokenizer

SPECIAL_TOKENS = {
    "bos_token": SPECIAL_PIECES[CLS_ID],
    "eos_token": SPECIAL_PIECES[SEP_ID],  # scorers take it as the prefix of an empty context
    "unk_token": SPECIAL_PIECES[UNK_ID],
    "sep_token": SPECIAL_PIECES[SEP_ID],
    "pad_token": SPECIAL_PIECES[PAD_ID],
    "cls_token": SPECIAL_PIECES[CLS_ID],
    "mask_token": SPECIAL_PIECES[MASK_ID],
}


def export(run: Path, directory: Path) -> None:
    """Write everything. Raises ValueError if there is no run, or no package `tokenizers`."""
    loaded = load_run(run)
    fast_tokenizer = huggingface_tokenizer(loaded.tokenizer)
    model = loaded.model
    write_json(directory / "config.json", huggingface_config(model.config))
    write_tensors(directory / MODEL_FILE, exported_tensors(model), {"format": "pt"})
    if model.concepts is not None:
        write_tensors(
            directory / "concepts.safetensors", {n: w.data for n, w in model.concepts.named_parameters()}
        )
    write_whole(directory / "tokenizer.json", lambda path: fast_tokenizer.save(str(path)))
    # a plain fast tokenizer: as an Albert tokenizer, transformers 5 would load it lower-cased
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_positions,
            "clean_up_tokenization_spaces": False,
            **SPECIAL_TOKENS,
        },
    )
    write_json(directory / "special_tokens_map.json", SPECIAL_TOKENS)


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


def huggingface_tokenizer(tokenizer: Tokenizer) -> Any:
    """The same pieces and rules as a `tokenizers.Tokenizer`. Raises ValueError if the package is missing."""
    try:
        from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as FastTokenizer
    except ModuleNotFoundError:
        raise ValueError("exporting needs the package tokenizers: pip install tokenizers") from None
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    made = FastTokenizer(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=False))
    rules = replacement_rules(proto.normalizer_spec.precompiled_charsmap)
    made.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(old, new) for old, new in rules),
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    cls, sep = SPECIAL_PIECES[CLS_ID], SPECIAL_PIECES[SEP_ID]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, CLS_ID), (sep, SEP_ID)],
    )
    made.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in SPECIAL_PIECES])
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


def main(argv: list[str]) -> None:
    """Read the command line and export."""
    parser = cli.plain_parser(__doc__ or "")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="where to write")
    args = parser.parse_args(argv)
    export(args.run, args.directory)
    say(f"wrote {args.directory}: AutoModelForMaskedLM and AutoTokenizer load it")


if __name__ == "__main__":
    cli.run(main)
