"""Tokenizers: SentencePiece Unigram, cased, in one file `tokenizer.model`; and the `tokenizer.json` that a
converted DeBERTa may have instead.

The special pieces have fixed ids, so that other modules can use them without a tokenizer.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from mlsm.files import LARGEST_JSON, read_bytes

if TYPE_CHECKING:
    import tokenizers

CLS_ID, SEP_ID, UNK_ID, PAD_ID, MASK_ID = range(5)
SPECIAL_PIECES = ("[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]")
NUM_SPECIALS = len(SPECIAL_PIECES)
# Training reads a sample of a larger corpus, as it takes 20 bytes of memory for a byte of text.
SAMPLE_LINES, SAMPLE_BYTES = 1_000_000, 32 << 20
# Scores of pieces (log p) are rounded to multiples of this unit, so that float32 sums of thousands of them
# are exact. Then the same pieces in another order ("ba" "baba") have equal sums in every library.
SCORE_UNIT = 1 / 256
LONGEST_LINE = 8192  # characters; training cuts longer lines
_SPECIAL_NAMES = (("[CLS]",), ("[SEP]",), ("<unk>", "[UNK]"), ("<pad>", "[PAD]"), ("[MASK]",))
ABSENT = -1  # in place of the former id of a special piece that a vocabulary did not have
# The names that transformers has for tokens in the role of our special pieces, the better name first.
_SPECIAL_ROLES = (
    ("cls_token", "bos_token"),
    ("sep_token", "eos_token"),
    ("unk_token",),
    ("pad_token",),
    ("mask_token",),
)
_T5_MASK = "<extra_id_0>"  # T5 has no mask token; its first sentinel stands where text is missing

# Quotation marks as in the Penn Treebank become plain ones; every kind of blank becomes a space.
_REPLACEMENTS = {"``": '"', "''": '"', "\t": " ", "\r": " ", "\n": " ", "\u00a0": " "}


class Span(NamedTuple):
    """A piece and its place in a text."""

    piece_id: int
    start: int  # in characters
    stop: int


def _without_spaces(span: Span, text: str) -> Span:
    """The span without the spaces before its word; a piece that is a space alone keeps its place."""
    word = text[span.start : span.stop].lstrip()
    return span._replace(start=span.stop - len(word)) if word else span


class Tokenizer:
    """A trained SentencePiece model. `vocab_size` counts the special pieces."""

    file_name = "tokenizer.model"  # in the directory of a run

    def __init__(self, model: bytes) -> None:
        """Raises ValueError if the bytes are not a SentencePiece model with our special pieces."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            specials = tuple(self._processor.id_to_piece(i) for i in range(NUM_SPECIALS))
        except (RuntimeError, IndexError) as error:
            raise ValueError("not a SentencePiece model") from error
        if specials != SPECIAL_PIECES:
            raise ValueError(f"the first pieces must be {' '.join(SPECIAL_PIECES)}, got {' '.join(specials)}")
        self.model, self.fingerprint = model, fingerprint_of(model)
        self.vocab_size = self._processor.get_piece_size()

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> Tokenizer:
        """Read a file of either kind. Raises ValueError with the path if it is missing, if it is not a
        tokenizer, or if it has another fingerprint than the one given; then it is not even parsed.
        """
        try:
            model = read_bytes(path, LARGEST_JSON)
            if fingerprint not in (None, fingerprint_of(model)):
                raise ValueError("damaged, or the tokenizer of another run")
            return (JsonTokenizer if path.suffix == ".json" else cls)(model)
        except FileNotFoundError:
            raise ValueError(f"no tokenizer at {path}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special pieces. Characters that are not valid Unicode become '?'."""
        return self._processor.encode(_well_formed(text))

    def encode_with_masks(self, text: str) -> list[int]:
        """Piece ids as `encode`, but [MASK] in the text is the mask. It replaces one piece and the space
        before that piece: 'the [MASK].' has the ids of 'the city.' with MASK_ID in place of '▁city'.

        A word of several pieces needs as many masks, 'the [MASK][MASK].'. A word whose space is a piece of
        its own is such a word. Around a mask within a word no space is added: 'un[MASK]able' becomes '▁un',
        the mask, 'able', whatever the pieces of 'unable' are.
        """
        return [span.piece_id for span in self.spans_with_masks(text)]

    def spans_with_masks(self, text: str) -> list[Span]:
        """The pieces of `encode_with_masks`, each with its place in the text, without spaces before it."""
        spans: list[Span] = []
        text, space_id = _well_formed(text), self._processor_with_masks.piece_to_id("▁")
        # SentencePiece counts bytes of UTF-8; a piece of a character's bytes has the whole character.
        character_of_byte = [i for i, c in enumerate(text) for _ in c.encode()]
        character_of_byte.append(len(text))
        for piece in self._processor_with_masks.encode(text, return_type="proto").pieces:
            while piece.id == MASK_ID and spans and spans[-1].piece_id == space_id != UNK_ID:
                spans.pop()
            start, stop = character_of_byte[piece.begin], character_of_byte[piece.end]
            spans.append(_without_spaces(Span(piece.id, start, stop), text))
        return spans

    @functools.cached_property
    def _processor_with_masks(self) -> sentencepiece.SentencePieceProcessor:
        """A processor that reads [MASK] in a text as the special piece."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model)  # type: ignore[attr-defined]
        proto.pieces[MASK_ID].type = proto.pieces[MASK_ID].USER_DEFINED
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode_lines(self, lines: list[str]) -> list[list[int]]:
        """The ids of each line as by `encode`, computed on all cores."""
        return self._processor.encode([_well_formed(line) for line in lines], num_threads=-1)

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, without special pieces."""
        return self._processor.decode([i for i in ids if i >= NUM_SPECIALS or i == UNK_ID])

    def piece(self, piece_id: int) -> str:
        """The piece with an id. '▁' stands for the space before a word."""
        return self._processor.id_to_piece(piece_id)


class JsonTokenizer(Tokenizer):
    """A tokenizer.json of the package `tokenizers`, with the special pieces at the ids above."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes) -> None:
        """Raises ValueError if there is no package `tokenizers`, or if the bytes are not what it reads."""
        self._tokenizer = _read_json(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text, if the model allows that
        ids = self._tokenizer.get_vocab()
        if _special_ids(ids) != list(range(NUM_SPECIALS)):
            raise ValueError(f"the special pieces must be the first {NUM_SPECIALS}")
        self.model, self.fingerprint = model, fingerprint_of(model)
        self.vocab_size = len(ids)
        settings = json.loads(model)["model"]
        is_word_piece = settings["type"] == "WordPiece"
        self._inner_prefix = settings["continuing_subword_prefix"] if is_word_piece else None

    def encode(self, text: str) -> list[int]:
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: list[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch(
            [_well_formed(line) for line in lines], add_special_tokens=False
        )
        # If the model does not allow it, "[MASK]" in a text is an unknown piece, and not the special one.
        return [[i if i >= NUM_SPECIALS else UNK_ID for i in line.ids] for line in encoded]

    def encode_with_masks(self, text: str) -> list[int]:
        """Piece ids as `Tokenizer.encode_with_masks` gives them."""
        return [span.piece_id for span in self.spans_with_masks(text)]

    def spans_with_masks(self, text: str) -> list[Span]:
        """Pieces and places as `Tokenizer.spans_with_masks` gives them."""
        text = _well_formed(text)
        encoded = self._tokenizer_with_masks.encode(text, add_special_tokens=False)
        ids = [i if i >= NUM_SPECIALS or i == MASK_ID else UNK_ID for i in encoded.ids]
        spans = map(Span, ids, *zip(*encoded.offsets, strict=True)) if ids else []
        return [_without_spaces(span, text) for span in spans]

    @functools.cached_property
    def _tokenizer_with_masks(self) -> tokenizers.Tokenizer:
        """A tokenizer of which [MASK] is the only special token."""
        settings = json.loads(json_with_masks(self.model))
        added = settings["added_tokens"]
        settings["added_tokens"] = [t for t in added if t["id"] == MASK_ID or not t["special"]]
        return _read_json(json.dumps(settings).encode())

    def decode(self, ids: list[int]) -> str:
        shown = [i for i in ids if i >= NUM_SPECIALS or i == UNK_ID]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def piece(self, piece_id: int) -> str:
        """The piece with an id. '▁' stands for the space before a word, also where the vocabulary marks the
        pieces within words instead (WordPiece).
        """
        piece = str(self._tokenizer.id_to_token(piece_id))
        if self._inner_prefix and piece_id >= NUM_SPECIALS:
            is_inner = piece.startswith(self._inner_prefix)
            return piece.removeprefix(self._inner_prefix) if is_inner else f"▁{piece}"
        return piece.replace("Ġ", "▁")


def json_with_masks(model: bytes) -> bytes:
    """A tokenizer.json that reads [MASK] in a text as `Tokenizer.encode_with_masks` does.

    The package `tokenizers` cuts a text at its special tokens, and what puts a space before a text puts it
    before every part. Here [MASK] is cut out after the text is normalised, which also removes the spaces
    before a mask, and a pre-tokenizer puts a space before the first part only.
    """
    settings = json.loads(model)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    others = [token for token in settings["added_tokens"] if token["id"] != MASK_ID]
    added = [*others, {"id": MASK_ID, "content": SPECIAL_PIECES[MASK_ID], **flags}]
    settings["added_tokens"] = sorted(added, key=operator.itemgetter("id"))
    space_removed = {"type": "Replace", "pattern": {"Regex": r"[ ▁]+(?=\[MASK\])"}, "content": ""}
    steps = [settings["normalizer"]] if settings["normalizer"] else []
    settings["normalizer"] = {"type": "Sequence", "normalizers": [*steps, space_removed]}
    settings["pre_tokenizer"] = _space_before_first_part(settings["pre_tokenizer"])
    return json.dumps(settings, ensure_ascii=False).encode()


def _space_before_first_part(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A pre-tokenizer of a tokenizer.json, changed to put a space before no part but the first."""
    if step is None:
        return None
    if step["type"] == "Sequence":
        return step | {"pretokenizers": [*map(_space_before_first_part, step["pretokenizers"])]}
    if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "always":
        return {"type": "Metaspace", "replacement": step["replacement"], "prepend_scheme": "first"}
    if step.get("add_prefix_space"):
        space = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False}
        return {"type": "Sequence", "pretokenizers": [space, step | {"add_prefix_space": False}]}
    return step


def _read_json(model: bytes) -> tokenizers.Tokenizer:
    """A tokenizer.json as the package `tokenizers` reads it. Raises ValueError if the package is missing, or
    if it cannot read the bytes.
    """
    try:
        import tokenizers
    except ImportError:
        raise ValueError("to read it, install the package tokenizers: pip install tokenizers") from None
    try:
        return tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"not a tokenizer.json ({error})") from error


def _special_ids(ids: dict[str, int]) -> list[int]:
    """The ids of the special pieces in another vocabulary. Raises ValueError if one is missing."""
    for names in _SPECIAL_NAMES:
        if not ids.keys() & set(names):
            raise ValueError(f"it has no piece {' or '.join(names)}")
    return [next(ids[name] for name in names if name in ids) for names in _SPECIAL_NAMES]


def run_tokenizer(run: Path, fingerprint: str | None = None) -> Tokenizer:
    """The tokenizer in the directory of a run. Raises ValueError as `Tokenizer.load`."""
    own, other = run / Tokenizer.file_name, run / JsonTokenizer.file_name
    return Tokenizer.load(other if other.exists() and not own.exists() else own, fingerprint)


def renumbered_sentencepiece(model: bytes) -> tuple[Tokenizer, list[int]]:
    """Another project's SentencePiece model with the special pieces at the ids above, and the former id of
    each piece.

    If [MASK] is not a piece, its former id is the one after the last, as in DeBERTa v2 and v3. Raises
    ValueError if another special piece is missing.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ValueError("not a SentencePiece model") from error
    if "[MASK]" not in {piece.piece for piece in proto.pieces}:
        proto.pieces.add(piece="[MASK]")
    former_specials = _special_ids({piece.piece: i for i, piece in enumerate(proto.pieces)})
    for i, former in enumerate(former_specials):
        piece = proto.pieces[former]
        piece.piece, piece.type = SPECIAL_PIECES[i], piece.UNKNOWN if i == UNK_ID else piece.CONTROL
    former_ids = list(dict.fromkeys([*former_specials, *range(len(proto.pieces))]))
    pieces = copy.deepcopy([proto.pieces[i] for i in former_ids])
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    spec = proto.trainer_spec
    spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id = CLS_ID, SEP_ID, UNK_ID, PAD_ID
    spec.bos_piece, spec.eos_piece, spec.unk_piece, spec.pad_piece = SPECIAL_PIECES[:4]
    return Tokenizer(proto.SerializeToString(deterministic=True)), former_ids


def renumbered_json(
    model: bytes, special_tokens: Mapping[str, str] | None = None
) -> tuple[Tokenizer, list[int]]:
    """Another project's tokenizer.json with the special pieces at the ids above and the other pieces after
    them in their order, and the former id of each piece.

    The special pieces have our names there, or are those that `special_tokens` names by transformers' names
    for them; they then get our names, and `ABSENT` for the former id of one that is not there. Raises
    ValueError as `JsonTokenizer`, and if there is no mask.
    """
    vocabulary, content = _read_json(model).get_vocab(), json.loads(model)
    absent: set[int] = set()
    if special_tokens is not None:
        absent = _rename_specials_(content, vocabulary, _names_of_specials(vocabulary, special_tokens))
    former_ids = list(dict.fromkeys([*_special_ids(vocabulary), *sorted(vocabulary.values())]))
    pieces = {i: piece for piece, i in vocabulary.items()}
    ids = {pieces[former]: i for i, former in enumerate(former_ids)}
    if isinstance(content["model"]["vocab"], list):  # Unigram: [piece, score], whose index is the id
        scores = dict(content["model"]["vocab"])
        lowest = min(scores.values())  # for pieces without a score: it changes no other's probability
        scored = [[piece, scores.get(piece, lowest)] for piece in ids]
        content["model"] |= {"vocab": scored, "unk_id": UNK_ID}
    else:
        content["model"]["vocab"] = ids
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    content["post_processor"] = None  # it would add special pieces with their former ids
    content["truncation"] = content["padding"] = None
    tokenizer = JsonTokenizer(json.dumps(content, ensure_ascii=False).encode())
    return tokenizer, [ABSENT if former in absent else former for former in former_ids]


def concept_pieces(model: bytes) -> tuple[bytes, list[int]]:
    """A tokenizer.json without the pieces [MASK-0], [MASK-1] and so on that the paper's authors added for the
    concepts of a student, and the ids of these pieces, that of the first concept first.
    """
    try:
        content = json.loads(model)
        found = {t["content"]: t["id"] for t in content["added_tokens"] if t["content"].startswith("[MASK-")}
    except (ValueError, KeyError, TypeError):
        return model, []  # the error is raised where the tokenizer is read
    names = [f"[MASK-{i}]" for i in range(len(found))]
    if not found or found.keys() != set(names):
        return model, []
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in found]
    return json.dumps(content, ensure_ascii=False).encode(), [found[name] for name in names]


def _names_of_specials(vocabulary: Mapping[str, int], tokens: Mapping[str, str]) -> list[str | None]:
    """What another vocabulary calls our special pieces; None for those that it does not have. Raises
    ValueError if it has no mask.
    """
    names: list[str | None] = []
    for ours, roles in zip(_SPECIAL_NAMES, _SPECIAL_ROLES, strict=True):
        asked = [*(tokens.get(role) for role in roles), *ours]
        names.append(next((n for n in asked if n is not None and n in vocabulary and n not in names), None))
    if names[MASK_ID] is None:
        names[MASK_ID] = _T5_MASK if _T5_MASK in vocabulary else None
    if names[MASK_ID] is None:
        raise ValueError("it has no mask token, which students read in place of masked words")
    return names


def _rename_specials_(
    content: dict[str, Any], vocabulary: dict[str, int], names: Sequence[str | None]
) -> set[int]:
    """Give the special pieces our names, in a tokenizer.json and in its vocabulary, and add those without a
    name. Returns the ids of those that were added.
    """
    renamed, added = {}, set()
    for name, ours in zip(names, _SPECIAL_NAMES, strict=True):
        if name is None:
            vocabulary[ours[0]] = max(vocabulary.values()) + 1
            added.add(vocabulary[ours[0]])
        elif name not in ours:
            if ours[0] in vocabulary:
                raise ValueError(f"it has a piece {ours[0]} beside {name}")
            renamed[name] = ours[0]
            vocabulary[ours[0]] = vocabulary.pop(name)
    model = content["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    return added


def fingerprint_of(model: bytes) -> str:
    """Twelve hexadecimal digits that identify the bytes of a model."""
    return hashlib.sha256(model).hexdigest()[:12]


def _well_formed(text: str) -> str:
    """The text with '?' for each surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _normalization_rules() -> str:
    """The replacements in SentencePiece's format, with code points in hexadecimal."""

    def codepoints(text: str) -> str:
        return " ".join(f"{ord(c):X}" for c in text)

    return "".join(f"{codepoints(a)}\t{codepoints(b)}\n" for a, b in _REPLACEMENTS.items())


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a Unigram model of `vocab_size` pieces, or fewer if the text does not have that many.

    Raises ValueError if the text is too small, and any error of the iterator `lines`.
    """
    model = io.BytesIO()
    errors: list[Exception] = []

    def cut_lines() -> Iterator[str]:
        try:
            for line in lines:
                yield _well_formed(line)[:LONGEST_LINE]
        except Exception as error:  # SentencePiece would train as if the text ended here
            errors.append(error)

    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="ascii") as rules:
        rules.write(_normalization_rules())
        rules.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=cut_lines(),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=0.9999,
                normalization_rule_tsv=rules.name,
                input_sentence_size=SAMPLE_LINES,
                max_sentence_length=4 * LONGEST_LINE,
                num_threads=2,
                minloglevel=2,
                control_symbols=["[MASK]"],
                bos_id=CLS_ID,
                bos_piece="[CLS]",
                eos_id=SEP_ID,
                eos_piece="[SEP]",
                unk_id=UNK_ID,
                unk_piece="<unk>",
                pad_id=PAD_ID,
                pad_piece="<pad>",
            )
        except RuntimeError as error:
            if errors:
                raise errors[0] from None
            if "required_chars" in str(error):
                raise ValueError(
                    f"{vocab_size} pieces are less than one per character of the text: raise --vocab-size"
                ) from error
            raise ValueError(f"the text is too small for a tokenizer of {vocab_size} pieces") from error
    if errors:
        raise errors[0]
    trained = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    # The field holds a path of this machine; the rules themselves are part of the model.
    trained.normalizer_spec.ClearField("normalization_rule_tsv")
    for piece in trained.pieces:
        piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
    return Tokenizer(trained.SerializeToString(deterministic=True))
