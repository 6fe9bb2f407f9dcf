"""An intervention changes what it says, by as much as it says, and nothing else."""

from pathlib import Path

import pytest
import torch
from hub_checkpoints import v2_checkpoint
from small_runs import random_run, write_dictionary

import mlsm
from mlsm.coding.dictionary import Dictionary
from mlsm.inspection.intervention import Intervention
from mlsm.runs import hub_import
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID

TEXT = "The dog sees the [MASK] again."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intervention")
    for layer in (1, 2):
        write_dictionary(random_run(folder / f"teacher-{layer}"), layer=layer)
    random_run(folder / "student", num_concepts=6)
    return folder


def used_concept(done: Intervention) -> int:
    return int(done.concepts_before_NK.sum(0).argmax())


@pytest.mark.parametrize("layer", [1, 2])
def test_a_state_moves_along_the_atom_and_the_rest_is_computed(folder: Path, layer: int) -> None:
    path = folder / f"teacher-{layer}"
    model, run = mlsm.load(path, device="cpu"), load_run(path)
    atoms_DK = Dictionary.load(next(path.glob("dictionary-*"))).atoms_DK
    concept = used_concept(model.intervene(TEXT, {0: 0.0}))
    other = (concept + 1) % 40
    done = model.intervene(TEXT, {concept: 0.25, other: 0.0})
    ids = torch.tensor([CLS_ID, *run.tokenizer.encode_with_masks(TEXT), SEP_ID])
    batch, encoder = Sequences.of([ids]), run.model.encoder
    with torch.no_grad():
        state_TD = encoder(batch, num_layers=layer)
        changed_TD = state_TD.clone()
        for place, code_K in enumerate(done.concepts_before_NK):
            for k, new in ((concept, 0.25), (other, 0.0)):
                changed_TD[place + 1] += (new - code_K[k]) * state_TD[place + 1].norm() * atoms_DK[:, k]
        state_TD = changed_TD
        table_RD = encoder._table(len(ids))
        for module in encoder.layers[layer:]:
            state_TD = module(state_TD, table_RD, batch)
        expected_V = run.model.token_logits(run.model.transformed(state_TD))[ids == 4][0].softmax(-1)
    assert done.places == [done.pieces.index("[MASK]")]
    assert torch.allclose(done.after_PV[0], expected_V, atol=1e-5)
    assert done.concepts_after_NK[:, concept].tolist() == [0.25] * len(done.pieces)
    assert model.predict(TEXT, top=1)[0][0][1] == pytest.approx(float(done.before_PV.max()), rel=1e-4)
    [changes] = done.changes(top=10**6)
    assert len(changes) == run.tokenizer.vocab_size
    sizes = [abs(change.after - change.before) for change in changes]
    assert sizes == sorted(sizes, reverse=True)
    assert "->" in repr(done)


def test_only_the_chosen_tokens_change(folder: Path) -> None:
    model = mlsm.load(folder / "teacher-2", device="cpu")  # no layer follows that could mix tokens
    concept = used_concept(model.intervene(TEXT, {0: 0.0}))
    done = model.intervene(TEXT, {concept: 0.5}, at=[1, 2])
    moved_N = (done.hidden_after_ND - done.hidden_before_ND).norm(dim=1)
    assert moved_N.nonzero().flatten().tolist() == [1, 2]
    nothing = model.intervene(TEXT, {concept: 0.5}, at=[])
    assert torch.equal(nothing.before_PV, nothing.after_PV)
    assert repr(nothing).endswith("[MASK]: no change")


def test_a_probability_is_set_and_the_others_keep_their_proportions(folder: Path) -> None:
    model = mlsm.load(folder / "student", device="cpu")
    done = model.intervene(TEXT, {2: 0.5, 4: 0.0}, at=[0, 1])
    before_NK, after_NK = done.concepts_before_NK.double(), done.concepts_after_NK.double()
    assert torch.equal(before_NK[2:], after_NK[2:])
    assert after_NK[:2, 2].tolist() == pytest.approx([0.5, 0.5], rel=1e-5)
    assert after_NK[:2, 4].tolist() == pytest.approx([1e-6, 1e-6], rel=1e-3)
    assert after_NK.sum(1).tolist() == pytest.approx([1] * len(after_NK))
    rest = [0, 1, 3, 5]
    ratio_NK = after_NK[:2, rest] / before_NK[:2, rest]
    assert ratio_NK.tolist() == [pytest.approx([float(row[0])] * 4, rel=1e-4) for row in ratio_NK]


def test_a_student_s_words_follow_from_its_concepts(folder: Path) -> None:
    model = mlsm.load(folder / "student", device="cpu")
    done = model.intervene(TEXT, {2: 0.9})
    head = load_run(folder / "student").model.token_head
    [place] = done.places
    with torch.no_grad():
        row = torch.tensor([CLS_ID, *model.run.tokenizer.encode_with_masks(TEXT), SEP_ID])
        hidden_ND = model.run.model.hidden_at(Sequences.of([row]), torch.tensor([place + 1]))
        logits_K = model.run.model.concept_logits(hidden_ND)[0]
        rest = [0, 1, 3, 4, 5]
        logits_K[2] = logits_K[rest].logsumexp(0) + torch.tensor(0.9 / 0.1).log()
        expected_V = head(logits_K).softmax(-1)
    assert torch.allclose(done.after_PV[0], expected_V, atol=1e-5)


def test_an_encoder_alone_shows_how_its_states_move(tmp_path: Path) -> None:
    v2_checkpoint(tmp_path / "v2")
    hub_import.convert(tmp_path / "v2", tmp_path / "run")
    write_dictionary(tmp_path / "run", layer=1)
    model = mlsm.load(tmp_path / "run", device="cpu")
    concept = used_concept(model.intervene(TEXT, {0: 0.0}))
    done = model.intervene(TEXT, {concept: 0.7})
    assert (done.hidden_after_ND - done.hidden_before_ND).norm() > 1e-3
    assert "last hidden state" in repr(done)
    with pytest.raises(ValueError, match="no words of this model"):
        done.changes()
    student = mlsm.load(random_run(tmp_path / "plain", num_concepts=6, has_token_head=False), device="cpu")
    done = student.intervene("a", {0: float(student.encode(["a"]).concepts_TK[0, 0]) + 0.25})
    assert "distribution over concepts" in repr(done)
    assert "0.250" in repr(done)
    with pytest.raises(ValueError, match="no words of this model"):
        done.changes()


def test_what_cannot_be_set(folder: Path) -> None:
    teacher, student = (mlsm.load(folder / name, device="cpu") for name in ("teacher-1", "student"))
    for wrong in (None, [17], "17", 17, {}):
        with pytest.raises(TypeError, match="concepts must map"):
            teacher.intervene(TEXT, wrong)
    for wrong in ({"3": 0.0}, {None: 0.0}, {3: "0"}, {3: None}, {1.5: 0.0}, {True: 0.0}):
        with pytest.raises(TypeError, match=r"must be a number|a concept is an int"):
            teacher.intervene(TEXT, wrong)
    for wrong in ({3: -1.0}, {3: float("nan")}):
        with pytest.raises(ValueError, match="at least 0"):
            teacher.intervene(TEXT, wrong)
    with pytest.raises(IndexError, match="there is no concept 40: they are 0 to 39"):
        teacher.intervene(TEXT, {40: 0.0})
    with pytest.raises(TypeError, match="a text must be a str"):
        teacher.intervene([TEXT], {3: 0.0})
    with pytest.raises(TypeError, match="at must be a list"):
        teacher.intervene(TEXT, {3: 0.0}, at="all")
    with pytest.raises(IndexError, match="there is no token 999"):
        teacher.intervene(TEXT, {3: 0.0}, at=[999])
    for wrong in ({3: 1.5}, {3: 0.6, 4: 0.6}, dict.fromkeys(range(6), 0.1)):
        with pytest.raises(ValueError, match="leave some to the others"):
            student.intervene(TEXT, wrong)
