"""SentencePiece Unigram, cased: text to piece ids and back. One file, `tokenizer.model`, holds all of it; a
model from outside may bring a `tokenizer.json` instead.

The special pieces have fixed ids, so that every other module can name them without a tokenizer at hand.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import operator
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

CLS_ID, SEP_ID, UNK_ID, PAD_ID, MASK_ID = range(5)
SPECIAL_PIECES = ("[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]")
NUM_SPECIALS = len(SPECIAL_PIECES)
SAMPLE_LINES = 1_000_000  # lines the training samples from more; bounds its memory
SAMPLE_BYTES = 32 << 20  # of text, of a larger corpus: the training takes 20 bytes of memory a byte
# Scores of pieces (log p) are multiples of it, so that float32 sums of thousands of them are exact: the same
# pieces in another order ("ba" "baba") tie, and the tie is broken in one way by whoever encodes.
SCORE_UNIT = 1 / 256
LONGEST_LINE = 8192  # characters; longer lines are cut for training
_SPECIAL_NAMES = (("[CLS]",), ("[SEP]",), ("<unk>", "[UNK]"), ("<pad>", "[PAD]"), ("[MASK]",))

# The quotation marks of tokenised corpora become plain ones; every kind of blank becomes a space.
_REPLACEMENTS = {"``": '"', "''": '"', "\t": " ", "\r": " ", "\n": " ", "\u00a0": " "}


class Tokenizer:
    """A trained SentencePiece model. `vocab_size` counts the special pieces."""

    file_name = "tokenizer.model"  # in a run

    def __init__(self, model: bytes) -> None:
        """Raises ValueError if the bytes are not a SentencePiece model with our special pieces."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            specials = tuple(self._processor.id_to_piece(i) for i in range(NUM_SPECIALS))
        except (RuntimeError, IndexError) as error:
            raise ValueError("not a SentencePiece model") from error
        if specials != SPECIAL_PIECES:
            raise ValueError(f"the first pieces must be {' '.join(SPECIAL_PIECES)}, got {' '.join(specials)}")
        self.model = model
        self.vocab_size = self._processor.get_piece_size()

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> Tokenizer:
        """From either kind of file. Raises ValueError with the path if it is missing, not a tokenizer, or not
        that of the fingerprint. The file is parsed only if its fingerprint matches.
        """
        try:
            kind, model = JsonTokenizer if path.suffix == ".json" else cls, path.read_bytes()
            if fingerprint not in (None, fingerprint_of(model)):
                raise ValueError("damaged, or the tokenizer of another run")
            return kind(model)
        except FileNotFoundError:
            raise ValueError(f"no tokenizer at {path}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the model."""
        return fingerprint_of(self.model)

    def encode(self, text: str) -> list[int]:
        """Piece ids without special ones; text that is not valid Unicode is repaired, never refused."""
        return self._processor.encode(_well_formed(text))

    def encode_with_masks(self, text: str) -> list[int]:
        """Piece ids as `encode`, but [MASK] in the text is the mask. It replaces one piece and the space
        before that piece: 'the [MASK].' has the ids of 'the city.' with MASK_ID in place of '▁city'.

        A word of several pieces needs as many masks, 'the [MASK][MASK].'. A word whose space is a piece of
        its own is such a word. Around a mask within a word no space is added: 'un[MASK]able' becomes '▁un',
        the mask, 'able', whatever the pieces of 'unable' are.
        """
        ids: list[int] = []
        space_id = self._processor_with_masks.piece_to_id("▁")
        for piece_id in self._processor_with_masks.encode(_well_formed(text)):
            while piece_id == MASK_ID and ids and ids[-1] == space_id != UNK_ID:
                ids.pop()
            ids.append(piece_id)
        return ids

    @functools.cached_property
    def _processor_with_masks(self) -> sentencepiece.SentencePieceProcessor:
        """A processor that reads [MASK] in a text as the special piece."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model)  # type: ignore[attr-defined]
        proto.pieces[MASK_ID].type = proto.pieces[MASK_ID].USER_DEFINED
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode_lines(self, lines: list[str]) -> list[list[int]]:
        """`encode` for many lines at once, on all cores."""
        return self._processor.encode([_well_formed(line) for line in lines], num_threads=-1)

    def decode(self, ids: list[int]) -> str:
        """The text of piece ids; special pieces are left out."""
        return self._processor.decode([i for i in ids if i >= NUM_SPECIALS or i == UNK_ID])

    def piece(self, piece_id: int) -> str:
        """The piece itself; '▁' stands for the space before a word."""
        return self._processor.id_to_piece(piece_id)


class JsonTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face's package `tokenizers`, whose special pieces have our ids."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes) -> None:
        """Raises ValueError if there is no package `tokenizers`, or if the bytes are not what it reads."""
        self._tokenizer = _read_json(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # where it can, it reads [MASK] in a text as text
        known = self._tokenizer.get_vocab()
        if _special_ids(known) != list(range(NUM_SPECIALS)):
            raise ValueError(f"the special pieces must be the first {NUM_SPECIALS}")
        self.model = model
        self.vocab_size = len(known)

    def encode(self, text: str) -> list[int]:
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: list[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch(
            [_well_formed(line) for line in lines], add_special_tokens=False
        )
        # where it cannot, that is an unknown piece: no one can write a [MASK]
        return [[i if i >= NUM_SPECIALS else UNK_ID for i in line.ids] for line in encoded]

    def encode_with_masks(self, text: str) -> list[int]:
        """Piece ids as `Tokenizer.encode_with_masks` gives them."""
        ids = self._tokenizer_with_masks.encode(_well_formed(text), add_special_tokens=False).ids
        return [i if i >= NUM_SPECIALS or i == MASK_ID else UNK_ID for i in ids]

    @functools.cached_property
    def _tokenizer_with_masks(self) -> Any:
        """A tokenizer of which [MASK] is the only special token."""
        settings = json.loads(json_with_masks(self.model))
        added = settings["added_tokens"]
        settings["added_tokens"] = [t for t in added if t["id"] == MASK_ID or not t["special"]]
        return _read_json(json.dumps(settings).encode())

    def decode(self, ids: list[int]) -> str:
        shown = [i for i in ids if i >= NUM_SPECIALS or i == UNK_ID]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def piece(self, piece_id: int) -> str:
        return str(self._tokenizer.id_to_token(piece_id)).replace("Ġ", "▁")


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


def _read_json(model: bytes) -> Any:
    """What the package `tokenizers` makes of a tokenizer.json; imported only here."""
    try:
        import tokenizers
    except ImportError:
        raise ValueError("reading it takes the package tokenizers: pip install tokenizers") from None
    try:
        return tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"not a tokenizer.json ({error})") from error


def _special_ids(ids: dict[str, int]) -> list[int]:
    """Where a vocabulary of others has the special pieces. Raises ValueError naming one it has not."""
    for names in _SPECIAL_NAMES:
        if not ids.keys() & set(names):
            raise ValueError(f"it has no piece {' or '.join(names)}")
    return [next(ids[name] for name in names if name in ids) for names in _SPECIAL_NAMES]


def run_tokenizer(run: Path, fingerprint: str | None = None) -> Tokenizer:
    """The tokenizer in a run's directory. Raises ValueError as `Tokenizer.load`."""
    own, other = run / Tokenizer.file_name, run / JsonTokenizer.file_name
    return Tokenizer.load(other if other.exists() and not own.exists() else own, fingerprint)


def renumbered_sentencepiece(model: bytes) -> tuple[Tokenizer, list[int]]:
    """A SentencePiece model of others with the special pieces where ours are, and each piece's former id.

    [MASK], where it is no piece, is the id behind the last, as in DeBERTa v2 and v3. Raises ValueError if
    another special piece is missing.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ValueError("not a SentencePiece model") from error
    if "[MASK]" not in {piece.piece for piece in proto.pieces}:
        proto.pieces.add(piece="[MASK]")
    specials = _special_ids({piece.piece: i for i, piece in enumerate(proto.pieces)})
    for ours, theirs in enumerate(specials):
        piece = proto.pieces[theirs]
        piece.piece, piece.type = SPECIAL_PIECES[ours], piece.UNKNOWN if ours == UNK_ID else piece.CONTROL
    order = list(dict.fromkeys([*specials, *range(len(proto.pieces))]))
    pieces = copy.deepcopy([proto.pieces[i] for i in order])
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    spec = proto.trainer_spec
    spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id = CLS_ID, SEP_ID, UNK_ID, PAD_ID
    spec.bos_piece, spec.eos_piece, spec.unk_piece, spec.pad_piece = SPECIAL_PIECES[:4]
    return Tokenizer(proto.SerializeToString(deterministic=True)), order


def renumbered_json(model: bytes) -> tuple[Tokenizer, list[int]]:
    """The same for a tokenizer.json: the special pieces first in our order, then the others in theirs."""
    their_ids = _read_json(model).get_vocab()
    order = list(dict.fromkeys([*_special_ids(their_ids), *sorted(their_ids.values())]))
    pieces = {their_ids[piece]: piece for piece in their_ids}
    ids = {pieces[theirs]: ours for ours, theirs in enumerate(order)}
    made = json.loads(model)
    vocabulary = made["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score], and the place is the id
        scores = dict(vocabulary)
        least = min(scores.values())  # of a piece added later: it changes no other's chances
        made["model"] |= {"vocab": [[piece, scores.get(piece, least)] for piece in ids], "unk_id": UNK_ID}
    else:
        made["model"]["vocab"] = ids
    for token in made["added_tokens"]:
        token["id"] = ids[token["content"]]
    made["post_processor"] = None  # it puts special pieces around a text by their old ids
    return JsonTokenizer(json.dumps(made, ensure_ascii=False).encode()), order


def fingerprint_of(model: bytes) -> str:
    """`Tokenizer.fingerprint` of the bytes of a model."""
    return hashlib.sha256(model).hexdigest()[:12]


def _well_formed(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _normalization_rules() -> str:
    def codepoints(text: str) -> str:
        return " ".join(f"{ord(c):X}" for c in text)

    return "".join(f"{codepoints(a)}\t{codepoints(b)}\n" for a, b in _REPLACEMENTS.items())


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """A Unigram model of at most `vocab_size` pieces; fewer when the text does not have that many.

    Raises ValueError if the text is too small to make any, and whatever reading the lines raises.
    """
    model = io.BytesIO()
    faults: list[Exception] = []

    def cut_lines() -> Iterator[str]:
        try:
            for line in lines:
                yield _well_formed(line)[:LONGEST_LINE]
        except Exception as fault:  # SentencePiece would go on as if the text ended here
            faults.append(fault)

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
                bos_id=CLS_ID,
                bos_piece="[CLS]",
                eos_id=SEP_ID,
                eos_piece="[SEP]",
                unk_id=UNK_ID,
                unk_piece="<unk>",
                pad_id=PAD_ID,
                pad_piece="<pad>",
                control_symbols=["[MASK]"],
            )
        except RuntimeError as error:
            if faults:
                raise faults[0] from None
            if "required_chars" in str(error):
                raise ValueError(
                    f"{vocab_size} pieces are fewer than the text has characters: raise --vocab-size"
                ) from error
            raise ValueError(f"the text is too small for a tokenizer of {vocab_size} pieces") from error
    if faults:
        raise faults[0]
    trained = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    # A path; the rules themselves are compiled in.
    trained.normalizer_spec.ClearField("normalization_rule_tsv")
    for piece in trained.pieces:
        piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
    return Tokenizer(trained.SerializeToString(deterministic=True))
