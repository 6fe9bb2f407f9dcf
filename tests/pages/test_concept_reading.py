"""Reading a text: codes, predictions and agreement are those of the models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import student_flags
from small_text import sentences

import train
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.evaluation.heldout import SEED, score_concepts
from mlsm.log import progress
from mlsm.pages.concept_reading import Readers, read_concepts, read_sentence
from mlsm.pages.concept_source import open_source
from mlsm.runs.run import load_run
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


@pytest.fixture(scope="module")
def students(teacher: Path) -> dict[str, Path]:
    runs = {objective: teacher.parent / objective for objective in ("lsm", "mlsm")}
    for objective, output in runs.items():
        train.main(student_flags(teacher, objective, output))
    return runs


@pytest.fixture(params=["lsm", "mlsm"])
def student(request: pytest.FixtureRequest, students: dict[str, Path]) -> Path:
    return students[request.param]


def readers_of(student: Path) -> tuple[Readers, Corpus]:
    run = load_run(student)
    corpus = Corpus(run.record.data, run.tokenizer)
    return open_source(student).readers, corpus


def test_the_codes_are_those_of_the_models(student: Path) -> None:
    readers, corpus = readers_of(student)
    parts, generator = [corpus.heldout, corpus.training], torch.Generator()
    some = corpus.sample(parts, readers.selection, num_selected=300, token_budget=200, generator=generator)
    batches = list(some)
    with progress(300, "") as bar:
        reading = read_concepts(readers, batches, bar)
    assert len(reading.places_N) == 300
    assert reading.ids_N.tolist() == torch.cat([m.labels_N() for m in batches]).tolist()
    first = readers.distributions(batches[0])
    for name, codes in reading.codes.items():
        dense_NK = np.zeros((300, codes.num_concepts), np.float32)
        for k in range(codes.num_concepts):
            positions, weights = codes.of(k)
            dense_NK[positions, k] = weights
        expected_NK = first[name].detach().numpy()
        least = 0.01 if name == "student" else 0
        assert dense_NK[: len(expected_NK)] == pytest.approx(np.where(expected_NK >= least, expected_NK, 0))
    starts = reading.sequence_starts
    assert (reading.ids_T[starts] == CLS_ID).all()
    assert (reading.sequences_N == np.cumsum(reading.ids_T == CLS_ID)[reading.places_N]).all()


def test_agreement_is_that_of_the_evaluation(students: dict[str, Path]) -> None:
    readers, corpus = readers_of(students["lsm"])
    assert readers.teacher is not None
    expected = score_concepts(load_run(students["lsm"]).model, readers.teacher, corpus, EVERY_TOKEN, 500)
    heldout = corpus.heldout_update(500, EVERY_TOKEN, SEED)
    with progress(heldout.num_selected, "") as bar:
        agreement = read_concepts(readers, heldout.micro_batches, bar).agreement
    assert agreement is not None
    assert agreement.kl == pytest.approx(expected.kl, rel=1e-4)
    assert agreement.constant_kl == pytest.approx(expected.constant_kl, rel=1e-4)


def test_agreement_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_NK = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]])
    student_NK = torch.tensor([[0.25, 0.15, 0.3, 0.2, 0.05, 0.05], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])
    monkeypatch.setattr(Readers, "distributions", lambda *_: {"teacher": teacher_NK, "student": student_NK})
    monkeypatch.setattr(Readers, "device", torch.device("cpu"))
    row, selected = torch.tensor([CLS_ID, 9, 8, SEP_ID]), torch.tensor([False, True, True, False])
    readers = Readers("teacher", "student", EVERY_TOKEN)  # type: ignore[arg-type]
    with progress(2, "") as bar:
        agreement = read_concepts(
            readers, [MicroBatch.of(Sequences.of([row]), selected, EVERY_TOKEN)], bar
        ).agreement
    assert agreement is not None
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.15)
    assert agreement.kl == pytest.approx((first + np.log(2)) / 2)
    mean_code = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25) + np.log(1 / 0.75)
    assert agreement.constant_kl == pytest.approx(mean_code / 2)
    assert agreement.overlap == pytest.approx(
        (1 / 2 + 1) / 2
    )  # concept 0 of {0, 1} among the student's {2, 0}
    assert agreement.constant_overlap == pytest.approx(1)  # {0, 1} are the strongest on the whole
    assert agreement.shared == pytest.approx((0.25 + 0.15 + 0.5) / 2)
    assert agreement.shared_K[:2] == pytest.approx([0.75 / 1.5, 0.15 / 0.5])


def test_a_masked_student_sees_all_but_the_token_it_predicts(student: Path) -> None:
    readers, _ = readers_of(student)
    ids = load_run(student).tokenizer.encode(sentences(1)[0])
    sentence = read_sentence(readers, ids, longest=64, token_budget=100)
    assert sentence.weights["teacher"].shape == sentence.weights["student"].shape == (len(ids), 24)
    row = torch.tensor([CLS_ID, *ids, SEP_ID])
    place = len(ids) // 2
    is_chosen = torch.arange(len(row)) == place + 1
    inputs = row.masked_fill(is_chosen, MASK_ID) if readers.selection.is_masked else row
    micro = MicroBatch.of(Sequences.of([inputs]), is_chosen, Selection(1.0, False))
    expected_K = readers._replace(teacher=None).distributions(micro)["student"][0].detach().numpy()
    assert sentence.weights["student"][place] == pytest.approx(expected_K, abs=1e-5)
