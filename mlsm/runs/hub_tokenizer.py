"""Our tokenizers as transformers reads them: a `tokenizers.Tokenizer` with the same pieces and rules.

[MASK] in a text is the mask, as in mlsm.load. The other special tokens are ordinary text in this project; for
transformers they are special, as with each of its tokenizers.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from sentencepiece import sentencepiece_model_pb2

from mlsm.files import write_json, write_whole
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
        raise ValueError("the package tokenizers is missing: pip install tokenizers") from None
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


def write_tokenizer(directory: Path, tokenizer: Tokenizer, longest: int) -> None:
    """Write a tokenizer for texts of `longest` tokens at most, in the files that `AutoTokenizer` of
    transformers reads. Raises ValueError if the package tokenizers is missing.
    """
    fast, special_tokens = huggingface_tokenizer(tokenizer), special_tokens_of(tokenizer)
    # It replaces the tokenizer.json of an imported run, which puts no special tokens around a text.
    write_whole(directory / "tokenizer.json", lambda path: fast.save(str(path)))
    # As an Albert tokenizer, transformers 5 would lower the case of the text.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    settings["clean_up_tokenization_spaces"] = False
    write_json(directory / "tokenizer_config.json", settings | special_tokens)
    write_json(directory / "special_tokens_map.json", special_tokens)


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
