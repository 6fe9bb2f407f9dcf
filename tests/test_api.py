"""A model from Python: what it answers is what the parts beneath it compute, and errors say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_checkpoints import v2_checkpoint
from pipeline import ROOT
from small_runs import random_run, write_dictionary

import mlsm
from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.runs import hub_import
from mlsm.runs.run import load_encoder, load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID

TEXT = "The cat sees [CLS] the red house."
NUM_CONCEPTS = 6


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("api") / "student", num_concepts=NUM_CONCEPTS)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher with a dictionary of 40 atoms for its layer 1."""
    run = random_run(tmp_path / "teacher")
    write_dictionary(run, seed=0)
    return run


def sequence_of(run: Path, text: str) -> Sequences:
    return Sequences.of([torch.tensor([CLS_ID, *load_run(run).tokenizer.encode(text), SEP_ID])])


def test_concepts_of_a_student_are_the_probabilities_it_predicts(student: Path) -> None:
    concepts = mlsm.load(student, device="cpu").concepts(TEXT, top=NUM_CONCEPTS)
    run, sequence = load_run(student), sequence_of(student, TEXT)
    assert [piece for piece, _ in concepts] == [run.tokenizer.piece(i) for i in sequence.ids_T.tolist()[1:-1]]
    with torch.no_grad():
        hidden_ND = run.model.hidden_at(sequence, torch.arange(1, len(sequence.ids_T) - 1))
        expected_NK = run.model.concept_logits(hidden_ND).softmax(-1)
    for (_, row), expected_K in zip(concepts, expected_NK, strict=True):
        weights = [weight for _, weight in row]
        assert weights == sorted(weights, reverse=True)
        assert weights == pytest.approx([float(expected_K[concept]) for concept, _ in row], rel=1e-4)
        assert sum(weights) == pytest.approx(1)
    shorter = mlsm.load(student, device="cpu").concepts(TEXT, top=2)
    assert shorter == [(piece, row[:2]) for piece, row in concepts]


def test_concepts_of_a_teacher_are_its_sparse_codes(teacher: Path) -> None:
    concepts = mlsm.load(teacher, device="cpu").concepts(TEXT, top=40)
    states_TD = load_run(teacher).model.encoder(sequence_of(teacher, TEXT), num_layers=1)
    signals_ND = torch.nn.functional.normalize(states_TD[1:-1].detach(), dim=1)
    codes_NK = Dictionary.load(next(teacher.glob("dictionary-*"))).code(signals_ND).codes_NK
    assert 0 < (codes_NK > 0).sum() < codes_NK.numel()
    for (_, row), code_K in zip(concepts, codes_NK, strict=True):
        assert {concept for concept, _ in row} == set(code_K.nonzero().flatten().tolist())
        assert [w for _, w in row] == pytest.approx(
            [float(code_K[k] / code_K.sum()) for k, _ in row], rel=1e-3
        )


def test_a_teacher_with_several_dictionaries_or_none(teacher: Path, student: Path, tmp_path: Path) -> None:
    other = write_dictionary(teacher, seed=1)
    with pytest.raises(ValueError, match="several dictionaries"):
        mlsm.load(teacher, device="cpu").concepts(TEXT)
    named = mlsm.load(teacher, device="cpu", dictionary=other)
    assert named.concepts(TEXT) != mlsm.load(
        teacher, dictionary=teacher / "dictionary-0.safetensors"
    ).concepts(TEXT)
    bare = random_run(tmp_path / "bare")
    assert mlsm.load(bare).score(["The cat."])
    with pytest.raises(ValueError, match=r"no concepts: learn them with python fit_dictionary.py --teacher"):
        mlsm.load(bare).concepts(TEXT)
    with pytest.raises(ValueError, match="predicts concepts itself"):
        mlsm.load(student, dictionary=other)


def test_a_mask_in_the_text_is_the_mask_and_nothing_else_is_special(student: Path) -> None:
    model = mlsm.load(student, device="cpu")
    pieces = [piece for piece, _ in model.concepts("a [MASK] [SEP] cat[CLS] [MASK].")]
    assert pieces.count("[MASK]") == 2
    assert not {"[SEP]", "[CLS]"} & set(pieces)
    tokenizer = model.run.tokenizer
    between = [tokenizer.piece(i) for i in tokenizer.encode("[SEP] cat[CLS]")]
    assert pieces == ["▁a", "[MASK]", *between, "[MASK]", "."]
    assert model.concepts("") == []


def test_a_masked_word_is_predicted_as_the_evaluation_masks_it(student: Path) -> None:
    """The piece of a word replaced by the mask, also before punctuation."""
    run, text = load_run(student), "a dog sees a dog."
    ids = torch.tensor([CLS_ID, *run.tokenizer.encode(text), SEP_ID])
    [_, place] = [i for i, piece_id in enumerate(ids.tolist()) if run.tokenizer.piece(piece_id) == "▁dog"]
    ids[place] = MASK_ID
    with torch.no_grad():
        hidden_ND = run.model.hidden_at(Sequences.of([ids]), torch.tensor([place]))
        expected_V = run.model.token_logits(hidden_ND)[0].softmax(-1)
    [row] = mlsm.load(student, device="cpu").predict("a dog sees a [MASK].", top=10**6)
    probabilities = {piece: probability for piece, probability in row}
    expected = {run.tokenizer.piece(i): p for i, p in enumerate(expected_V.tolist())}
    assert probabilities == pytest.approx(expected, rel=1e-4)


def test_predictions_are_distributions_over_the_vocabulary(student: Path) -> None:
    model = mlsm.load(str(student), device="cpu")
    everything = 10**6
    for row in model.predict("The [MASK] sees [MASK].", top=everything):
        assert len(row) == model.run.tokenizer.vocab_size
        assert sum(p for _, p in row) == pytest.approx(1)
    ids = [CLS_ID, MASK_ID, *model.run.tokenizer.encode("sees."), SEP_ID]
    with torch.no_grad():
        hidden_ND = model.run.model.hidden_at(Sequences.of([torch.tensor(ids)]), torch.tensor([1]))
        best = int(model.run.model.token_logits(hidden_ND).argmax())
    assert model.predict("[MASK] sees.", top=1)[0][0][0] == model.run.tokenizer.piece(best)


def test_scores_are_those_of_the_evaluation(student: Path) -> None:
    model, sentences = mlsm.load(student, device="cpu"), ["The cat sees.", "", "The cat see."]
    for reduction in ("mean", "sum"):
        expected = score_sentences(load_run(student), sentences, reduction=reduction)
        assert model.score(sentences, reduction=reduction) == pytest.approx(expected)


def test_what_cannot_be_asked(student: Path, tmp_path: Path) -> None:
    model = mlsm.load(student, device="cpu")
    with pytest.raises(ValueError, match=r"no \[MASK\]"):
        model.predict("The cat sees.")
    for wrong in ("The cat sees.", None, b"The cat sees.", 3):
        with pytest.raises(TypeError, match="score takes a list of sentences, got"):
            model.score(wrong)  # type: ignore[arg-type]
    for wrong in (None, ["The cat [MASK]"], 3, b"[MASK]"):
        for ask in (model.concepts, model.predict, lambda text: model.score([text])):
            with pytest.raises(TypeError, match="a text must be a str, got"):
                ask(wrong)
    for top in ("3", 3.0, None):
        with pytest.raises(TypeError, match="top must be an int, got"):
            model.predict("The cat [MASK]", top=top)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be one of"):
        model.score(["The cat sees."], reduction="median")
    with pytest.raises(ValueError, match="top must be at least 1"):
        model.concepts("The cat sees.", top=0)
    for ask in (
        model.concepts,
        lambda text: model.encode([text]),
        lambda text: model.intervene(text, {0: 0.5}),
        lambda text: model.predict(text + " [MASK]"),
        lambda text: model.score([text]),
    ):
        with pytest.raises(ValueError, match="tokens"):
            ask("The cat sees. " * 100)
    for wrong in ("The cat sees.", None, b"The cat sees.", 3):
        with pytest.raises(TypeError, match="encode takes a list of sentences, got"):
            model.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a text must be a str"):
        model.encode(["The cat", None])  # type: ignore[list-item]
    for wrong in ("1", 1.0, [None]):
        with pytest.raises(TypeError, match="a layer must be an int"):
            model.encode(["The cat"], layers=wrong)  # type: ignore[arg-type]
    for layer in (3, -4):
        with pytest.raises(ValueError, match=r"there is no layer .*: they are 0 \(the embeddings\) to 2"):
            model.encode(["The cat"], layers=layer)
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        model.encode(["The cat"], token_budget=0)
    for wrong in (None, ["run"], 3):
        with pytest.raises(TypeError, match="directory must be a path"):
            mlsm.load(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dictionary must be a path"):
        mlsm.load(student, dictionary=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device must be a str"):
        mlsm.load(student, device=0)  # type: ignore[arg-type]
    assert repr(model).endswith(": student with a token head, 2 layers of width 32, 105 pieces, on cpu")
    with pytest.raises(ValueError, match="no run at"):
        mlsm.load(tmp_path)
    with pytest.raises(ValueError, match="device must be"):
        mlsm.load(student, device="tpu")


def test_a_converted_encoder_has_concepts_and_no_words(tmp_path: Path) -> None:
    v2_checkpoint(tmp_path / "v2")
    hub_import.convert(tmp_path / "v2", tmp_path / "run")
    write_dictionary(tmp_path / "run", seed=0)
    model = mlsm.load(tmp_path / "run", device="cpu")
    ids = [CLS_ID, *model.run.tokenizer.encode(TEXT), SEP_ID]
    states_TD = load_encoder(tmp_path / "run").encoder(Sequences.of([torch.tensor(ids)]), num_layers=1)
    signals_ND = torch.nn.functional.normalize(states_TD[1:-1].detach(), dim=1)
    codes_NK = Dictionary.load(next((tmp_path / "run").glob("dictionary-*"))).code(signals_ND).codes_NK
    concepts = model.concepts(TEXT, top=40)
    assert [{k for k, _ in row} for _, row in concepts] == [
        set(code_K.nonzero().flatten().tolist()) for code_K in codes_NK
    ]
    for ask in (lambda: model.predict("a [MASK]"), lambda: model.score([TEXT])):
        with pytest.raises(ValueError, match=r"is an encoder alone \(DeBERTa v2 or v3\)"):
            ask()


def test_asking_changes_nothing_outside(student: Path) -> None:
    model = mlsm.load(student, device="cpu")
    before = (
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
    )
    answers = [(model.concepts(TEXT), model.predict("a [MASK]"), model.score([TEXT])) for _ in range(2)]
    assert answers[0] == answers[1]
    after = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, mlsm; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sentencepiece')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert (ROOT / "mlsm" / "py.typed").is_file()
