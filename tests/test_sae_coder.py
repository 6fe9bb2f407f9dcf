"""Students of SAEs: with --coder sae they learn the codes of the SAE's encoder, otherwise our codes on its
decoder.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from pipeline import learnt, student_flags
from saes import SETTINGS, random_sae
from torch.nn.functional import normalize

import evaluate
import mlsm
import train
from mlsm import concepts
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN, states_at
from mlsm.files import read_json, write_json
from mlsm.log import read_metrics
from mlsm.pages.concept_source import open_source
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.record import read_record
from mlsm.runs.teacher import load_dictionary, teacher_of
from mlsm.text.batches import Corpus
from mlsm.text.tokenizer import run_tokenizer

CPU = torch.device("cpu")


def write_sae_dictionary(teacher: Path, kind: str) -> Path:
    """A dictionary with a random SAE of this kind for a layer of the teacher; returns its file."""
    width = read_record(teacher).model.width
    dictionary = dataclasses.replace(random_sae(SETTINGS[kind], width=width), teacher=fingerprint(teacher))
    path = teacher.parent / f"{kind.replace(' ', '-')}.safetensors"
    dictionary.save(path)
    return path


@pytest.fixture(scope="module")
def path(teacher: Path) -> Path:
    return write_sae_dictionary(teacher, "topk")


@pytest.fixture(scope="module")
def student(teacher: Path, path: Path) -> Path:
    run = teacher.parent / "student"
    train.main([*student_flags(teacher, "lsm", run), f"--dictionary={path}", "--coder=sae"])
    return run


def test_a_student_learns_the_codes_of_the_encoder(student: Path, path: Path) -> None:
    record = read_record(student)
    assert record.concepts
    assert (record.train.coder, record.concepts.coder, record.concepts.k) == ("sae", "sae", 36)
    lines = [line for line in read_metrics(student) if "concept_kl" in line]
    assert all("gap_max" not in line and line["nonzeros_per_code"] <= 5 for line in lines)
    teacher = teacher_of(record.concepts, record.train, CPU)
    corpus = Corpus(record.data, run_tokenizer(student))
    micro = corpus.cut(corpus.training[:4], 10**4, EVERY_TOKEN, torch.Generator()).micro_batches[0]
    targets = teacher.targets(micro)
    states_ND = states_at(teacher.encoder, micro, 1)
    expected = Dictionary.load(path)
    assert expected.sae
    expected_NK = normalize(expected.sae.encode(states_ND), p=1, dim=1)
    torch.testing.assert_close(targets.distribution_NK, expected_NK)
    assert targets.worst_gap is None
    ours = dataclasses.replace(teacher, coder="lasso").targets(micro)
    codes_NK = expected.code(expected.signals(states_ND).unit_ND).codes_NK
    torch.testing.assert_close(ours.distribution_NK, normalize(codes_NK, p=1, dim=1))
    assert ours.worst_gap is not None
    assert not torch.allclose(ours.distribution_NK, targets.distribution_NK, atol=0.1)


def test_our_coder_takes_the_decoder(teacher: Path, path: Path, tmp_path: Path) -> None:
    train.main([*student_flags(teacher, "lsm", tmp_path / "run"), f"--dictionary={path}"])
    record = read_record(tmp_path / "run")
    assert record.concepts
    assert record.concepts.coder == "lasso"
    assert all(line["gap_max"] <= 1e-3 * 1.01 for line in read_metrics(tmp_path / "run") if "gap_max" in line)


def test_a_stopped_run_goes_on_with_its_coder(
    teacher: Path, student: Path, path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(student, run)
    (run / MODEL_FILE).unlink()
    shutil.rmtree(run / "checkpoints" / "step-6")
    flags = [*student_flags(teacher, "lsm", run), f"--dictionary={path}", "--resume"]
    with pytest.raises(ValueError, match="coder was sae and is now lasso"):
        train.main(flags)
    train.main([*flags, "--coder=sae"])
    assert (run / MODEL_FILE).read_bytes() == (student / MODEL_FILE).read_bytes()
    assert learnt(run) == learnt(student)


def test_such_a_run_is_read_measured_and_gets_a_token_head(
    teacher: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    flags = [
        f for f in student_flags(teacher, "token-head", words) if not f.startswith(("--init", "--teacher"))
    ]
    train.main([*flags, f"--init={student}"])
    record = read_record(words)
    assert record.concepts
    assert record.concepts.coder == "sae"
    for run in (student, words):
        readers = open_source(run, device="cpu").readers
        assert readers.teacher
        assert readers.teacher.coder == "sae"
    evaluate.main([str(student), "--tasks=demo"])
    concepts.main([str(student), "--num-tokens=200", f"--output={tmp_path / 'report'}"])
    assert "36 concepts of layer 1" in capsys.readouterr().out
    model = mlsm.load(student, device="cpu")
    assert model.encode(["The cat sees the river."]).concepts_TK.shape[1] == 36


def test_a_teacher_changes_by_the_atoms_of_an_sae(teacher: Path, path: Path) -> None:
    """A weight that is what it was changes nothing, and a larger one does."""
    model = mlsm.load(teacher, dictionary=path, device="cpu")
    text = "The cat sees the river."
    codes_TK = model.encode([text]).codes_TK
    assert codes_TK is not None
    concept = int(codes_TK[0].argmax())
    same = model.intervene(text, {concept: float(codes_TK[0, concept])}, at=[0])
    torch.testing.assert_close(same.hidden_before_ND, same.hidden_after_ND)
    other = model.intervene(text, {concept: 5.0}, at=[0])
    assert not torch.allclose(other.hidden_before_ND, other.hidden_after_ND)


@pytest.mark.parametrize("kind", ["no encoder", None])
def test_an_sae_without_encoder_is_refused(kind: str | None, teacher: Path, tmp_path: Path) -> None:
    flags = [*student_flags(teacher, "lsm", tmp_path / "run"), "--coder=sae"]
    flags += [f"--dictionary={write_sae_dictionary(teacher, kind)}"] if kind else []
    with pytest.raises(
        ValueError, match=r"--coder sae needs a dictionary with the encoder of an SAE"
    ) as refused:
        train.main(flags)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [["--targets=soft-code", "--target-lam=0.1"], ["--code-steps=4"]])
def test_settings_of_the_lasso_are_refused(
    more: list[str], teacher: Path, path: Path, tmp_path: Path
) -> None:
    flags = [*student_flags(teacher, "lsm", tmp_path / "run"), f"--dictionary={path}", "--coder=sae", *more]
    with pytest.raises(ValueError, match="are for --coder lasso"):
        train.main(flags)


def test_flags_of_the_solver_have_no_effect(
    teacher: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*student_flags(teacher, "mlsm", tmp_path / "run"), f"--dictionary={path}", "--coder=sae"]
    train.main([*flags, "--solver=fista", "--targets=top-k", "--top-k=2"])
    assert "without effect: --solver (with --coder sae)" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path / "run") if "nonzeros_per_code" in line]
    assert all(line["nonzeros_per_code"] <= 2 for line in lines)


def test_an_sae_of_another_width_is_refused(teacher: Path, tmp_path: Path) -> None:
    width = read_record(teacher).model.width + 1
    dictionary = dataclasses.replace(random_sae(SETTINGS["relu"], width=width), teacher=fingerprint(teacher))
    dictionary.save(tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=f"is of width {width} and layer 1, the teacher"):
        load_dictionary(tmp_path / "wide.safetensors", teacher)


def test_records_from_before_the_coder_mean_the_lasso(student: Path, tmp_path: Path) -> None:
    values = read_json(student / "config.json")
    del values["concepts"]["coder"], values["train"]["coder"]
    write_json(tmp_path / "config.json", values)
    record = read_record(tmp_path)
    assert record.concepts
    assert (record.train.coder, record.concepts.coder) == ("lasso", "lasso")
