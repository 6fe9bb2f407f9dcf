"""Tensors of texts are those of the model's parts, whatever the batch, and offsets point at the words."""

from pathlib import Path

import pytest
import torch
from hub_checkpoints import v1_checkpoint, v2_checkpoint
from small_runs import random_run, write_dictionary
from torch.nn import functional as F

import mlsm
from mlsm.coding.dictionary import Dictionary
from mlsm.runs import hub_import
from mlsm.runs.run import load_encoder, load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID

TEXTS = [
    "The cat sees the red house.",
    "",
    "A dog.",
    "The dog  sees a\tcat and the [MASK], un[MASK]able.",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = random_run(tmp_path_factory.mktemp("encoding") / "teacher")
    write_dictionary(run, layer=1)
    return run


def test_hidden_states_and_codes_are_those_of_the_parts(teacher: Path) -> None:
    encoding = mlsm.load(teacher, device="cpu").encode(TEXTS, layers=[0, 1, -1])
    encoder, tokenizer = load_encoder(teacher).encoder, load_run(teacher).tokenizer
    dictionary = Dictionary.load(next(teacher.glob("dictionary-*")))
    assert list(encoding.hidden) == [0, 1, 2]
    for number, text in enumerate(TEXTS):
        row = torch.tensor([CLS_ID, *tokenizer.encode_with_masks(text), SEP_ID])
        part = encoding[number]
        assert part.texts == (text,)
        assert part.pieces == [tokenizer.piece(i) for i in row[1:-1].tolist()]
        for layer, hidden_TD in part.hidden.items():
            expected_TD = encoder(Sequences.of([row]), num_layers=layer)[1:-1]
            assert torch.allclose(hidden_TD, expected_TD, atol=1e-5)
        expected_TK = dictionary.code(F.normalize(part.hidden[1], dim=1)).codes_NK
        assert torch.allclose(part.codes_TK, expected_TK, atol=1e-3)
    assert encoding[-1].pieces == encoding[len(TEXTS) - 1].pieces
    assert torch.equal(encoding.sparse_codes_TK.to_dense(), encoding.codes_TK)
    is_coded_T = encoding.codes_TK.sum(1) > 0
    assert torch.allclose(encoding.concepts_TK.sum(1), is_coded_T.float())
    assert encoding.text_T.tolist() == sorted(encoding.text_T.tolist())


@pytest.mark.parametrize("token_budget", [1, 20, 10_000])
def test_the_batch_does_not_matter(teacher: Path, token_budget: int) -> None:
    model = mlsm.load(teacher, device="cpu")
    together = model.encode(TEXTS, token_budget=token_budget)
    for number, text in enumerate(TEXTS):
        alone, part = model.encode([text]), together[number]
        assert (alone.pieces, alone.offsets_T2.tolist()) == (part.pieces, part.offsets_T2.tolist())
        assert torch.allclose(alone.hidden[1], part.hidden[1], atol=1e-5)


def test_a_student_has_probabilities_and_a_bare_teacher_hidden_states(tmp_path: Path) -> None:
    student = mlsm.load(random_run(tmp_path / "student", num_concepts=6), device="cpu")
    encoding = student.encode(TEXTS)
    assert encoding.codes_TK is None
    assert encoding.concepts_TK.shape == (len(encoding), 6)
    listed = student.concepts(TEXTS[0], top=6)
    for row_K, (_, row) in zip(encoding[0].concepts_TK, listed, strict=True):
        assert row_K.tolist() == pytest.approx([weight for _, weight in sorted(row)], rel=1e-4)
    bare = mlsm.load(random_run(tmp_path / "bare"), device="cpu").encode(TEXTS)
    assert (bare.codes_TK, bare.concepts_TK, list(bare.hidden)) == (None, None, [2])
    with pytest.raises(ValueError, match="no sparse codes"):
        _ = bare.sparse_codes_TK


def test_no_texts_have_no_tokens_and_the_right_shapes(teacher: Path) -> None:
    encoding = mlsm.load(teacher, device="cpu").encode([])
    assert len(encoding) == 0
    assert encoding.offsets_T2.shape == (0, 2)
    assert encoding.hidden[1].shape == (0, 32)
    assert encoding.codes_TK.shape == (0, 40)
    with pytest.raises(IndexError):
        encoding[0]


@pytest.mark.parametrize("kind", ["run", "v1", "v2"])
def test_offsets_are_those_of_the_words(kind: str, tmp_path: Path) -> None:
    if kind == "run":
        random_run(tmp_path / "run")
    else:
        {"v1": v1_checkpoint, "v2": v2_checkpoint}[kind](tmp_path / "outside")
        hub_import.convert(tmp_path / "outside", tmp_path / "run")
    model = mlsm.load(tmp_path / "run", device="cpu")
    text = "The dog sees  a cat again, and the [MASK]."
    encoding = model.encode([text])
    starts, stops = encoding.offsets_T2.T.tolist()
    words = [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
    assert [word.strip() for word in words] == [piece.lstrip("▁") for piece in encoding.pieces]
    assert "".join(words).replace(" ", "") == text.replace(" ", "")
    assert starts == sorted(starts)
    odd = "ünï  ﬁx \U0001f600\ud800 x"  # unknown and normalised characters, and one that is not Unicode
    starts, stops = model.encode([odd]).offsets_T2.T.tolist()
    assert all(0 <= a <= b <= len(odd) for a, b in zip(starts, stops, strict=True))
    assert odd[starts[-1] : stops[-1]] == "x"
