"""The dictionary: what belongs to its atoms, its statistics, and its file.

Shape suffixes as in mlsm/coding/dictionary.py. Signals are planted atoms with sparse non-negative codes.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from planted import LAM, NUM_ATOMS, WIDTH, Planted, learnt_dictionary, planted_problem, seeded
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mlsm.coding.dictionary
from kernels.lasso import largest_step
from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.statistics import SplicedLoss
from mlsm.files import write_tensors


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_problem()


@pytest.fixture(scope="module")
def learnt() -> Dictionary:
    return learnt_dictionary()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 1), (1, 8)])
def test_step_is_one_over_the_largest_eigenvalue_and_never_above(shape: tuple[int, int]) -> None:
    atoms_DK = torch.randn(shape, generator=seeded())
    largest = float(torch.linalg.matrix_norm(atoms_DK.double(), ord=2)) ** 2
    assert 1 - 1e-4 < largest_step(atoms_DK) * largest <= 1


def test_the_gram_matrix_is_computed_in_float64(learnt: Dictionary) -> None:
    wide_DK = learnt.atoms_DK.double()
    assert torch.equal(learnt.gram_KK, (wide_DK.mT @ wide_DK).float())


def test_codes_are_non_negative_and_certified(planted, learnt: Dictionary) -> None:
    heldout_ND = planted[2]
    for tol in (1e-2, 1e-4):
        result = learnt.code(heldout_ND, tol=tol)
        assert float(result.codes_NK.min()) == 0
        assert (result.gap_N <= tol * 0.5 * heldout_ND.square().sum(dim=1)).all()


def test_statistics_are_what_they_are_called(planted, learnt: Dictionary, monkeypatch) -> None:
    heldout_ND = planted[2]
    monkeypatch.setattr(mlsm.coding.dictionary, "SIGNALS_PER_BLOCK", 64)
    atoms_DK = learnt.atoms_DK.clone()
    atoms_DK[:, 5] = 0  # an atom that no code can use
    dictionary = Dictionary(atoms_DK, LAM, layer=6, teacher="cafe")
    codes_NK = dictionary.code(heldout_ND).codes_NK.double()
    error_ND = heldout_ND.double() - codes_NK @ atoms_DK.double().mT
    statistics = measure(dictionary, heldout_ND)
    objective = (0.5 * error_ND.square().sum() + LAM * codes_NK.sum()) / len(heldout_ND)
    assert statistics.objective == pytest.approx(float(objective), rel=1e-4)
    explained_share = 1 - error_ND.square().sum() / heldout_ND.double().square().sum()
    assert statistics.explained_share == pytest.approx(float(explained_share), rel=1e-4)
    assert statistics.mean_nonzeros == pytest.approx(
        float((codes_NK > 0).sum(dim=1).double().mean()), rel=1e-3
    )
    variation = (heldout_ND.double() - heldout_ND.double().mean(0)).square().sum()
    assert statistics.explained_variance == pytest.approx(
        float(1 - error_ND.square().sum() / variation), abs=1e-5
    )
    assert statistics.unused_atoms == 1
    assert statistics.dense_atoms == int(((codes_NK > 0).double().mean(0) > 0.1).sum())
    assert statistics.num_signals == len(heldout_ND)


def test_codes_of_a_few_steps_are_measured_as_they_are(planted: Planted, learnt: Dictionary) -> None:
    """A tolerance that is never reached and a few steps, as students of such codes have them."""
    signals_ND = planted[2][:100]
    codes_NK = learnt.code(signals_ND, tol=1e-9, solver="fista", max_steps=5).codes_NK
    measured = measure(learnt, signals_ND, tol=1e-9, solver="fista", max_steps=5)
    assert measured.mean_nonzeros == pytest.approx(float((codes_NK > 0).sum(1).double().mean()))
    assert measured.mean_nonzeros > 1.05 * measure(learnt, signals_ND).mean_nonzeros


def test_equal_signals_have_no_variance_to_explain(learnt: Dictionary) -> None:
    signals_ND = learnt.atoms_DK[:, :1].mT.repeat(50, 1)
    statistics = measure(learnt, signals_ND)
    assert statistics.explained_variance == 0
    assert statistics.explained_share > 0.5


def test_measuring_nothing_is_refused(planted, learnt: Dictionary) -> None:
    with pytest.raises(ValueError, match="no signals"):
        measure(learnt, planted[2][:0])


def test_fingerprint_tells_atoms_and_shapes_apart(learnt: Dictionary) -> None:
    nudged_DK = learnt.atoms_DK.clone()
    nudged_DK[0, 0] += 1e-6
    turned = dataclasses.replace(learnt, atoms_DK=learnt.atoms_DK.reshape(NUM_ATOMS, WIDTH))
    nudged = dataclasses.replace(learnt, atoms_DK=nudged_DK)
    assert len({learnt.fingerprint, turned.fingerprint, nudged.fingerprint}) == 3
    assert dataclasses.replace(learnt, lam=1.0).fingerprint == learnt.fingerprint


@pytest.mark.parametrize(
    "change", [{"lam": 0.0}, {"lam": float("nan")}, {"layer": -1}, {"lam": float("inf")}]
)
def test_impossible_dictionaries_are_refused(learnt: Dictionary, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"above 0|finite"):
        dataclasses.replace(learnt, **change)  # type: ignore[arg-type]


def test_atoms_must_be_a_float32_matrix(learnt: Dictionary) -> None:
    with pytest.raises(ValueError, match="float32 matrix"):
        Dictionary(learnt.atoms_DK.double(), LAM, layer=1, teacher="")


# The file


@pytest.fixture
def path(learnt: Dictionary, tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "dictionary.safetensors"
    learnt.save(path)
    return path


def test_what_is_loaded_is_what_was_saved(learnt: Dictionary, path: Path) -> None:
    loaded = Dictionary.load(path, teacher="cafe", layer=6)
    assert torch.equal(loaded.atoms_DK, learnt.atoms_DK)
    for name in ("step", "lam", "layer", "teacher", "statistics", "fingerprint"):
        assert getattr(loaded, name) == getattr(learnt, name)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_dictionary_without_statistics_survives_the_file(learnt: Dictionary, path: Path) -> None:
    dataclasses.replace(learnt, statistics=None).save(path)
    assert Dictionary.load(path).statistics is None


def test_statistics_of_early_files_are_read_and_hostile_ones_are_refused(
    learnt: Dictionary, path: Path
) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    early = ("objective", "mean_nonzeros", "explained_share", "unused_atoms", "num_signals")
    now = json.loads(metadata["statistics"])
    spliced = {name: 1.5 for name in ("cross_entropy", "spliced_cross_entropy", "zero_cross_entropy")}
    spliced |= {"spliced_kl": 0.1, "zero_kl": 0.4, "num_words": 7}

    def load(statistics: dict[str, object]) -> Dictionary:
        save_file(load_file(path), path, metadata | {"statistics": json.dumps(statistics)})
        return Dictionary.load(path)

    loaded = load({name: now[name] for name in early}).statistics
    assert loaded is not None
    assert (loaded.objective, loaded.explained_variance, loaded.spliced) == (now["objective"], None, None)
    loaded = load(now | {"spliced": spliced}).statistics
    assert loaded is not None
    assert loaded.spliced == SplicedLoss(1.5, 1.5, 1.5, 0.1, 0.4, 7)
    for wrong in (
        {"spliced": 3}, {"spliced": {}}, {"spliced": spliced | {"num_words": "7"}},
        {"spliced": spliced | {"zero_kl": math.nan}}, {"explained_variance": "most"},
        {"dense_atoms": [1]}, {"explained_variance": math.inf}, {"unknown": 1},
    ):  # fmt: skip
        load(now)
        with pytest.raises(ValueError, match="not a dictionary file, or a damaged one"):
            load(now | wrong)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"teacher": "beef"}, r"another teacher \(cafe, not beef\); .*fit_dictionary"),
        ({"layer": 5}, r"layer 6, not 5; .*fit_dictionary.py --layer 5"),
    ],
)
def test_dictionary_of_another_teacher_or_layer_is_refused(path: Path, expected, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Dictionary.load(path, **expected)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path)


@pytest.mark.parametrize("position", [0, 20, -1000])
def test_flipped_bits_are_noticed(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x41
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("name", ["lam", "layer", "teacher", "statistics", "fingerprint"])
@pytest.mark.parametrize("value", [None, "not json", '["a list"]'])
def test_missing_or_odd_metadata_is_refused(path: Path, learnt: Dictionary, name: str, value) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata)
    assert Dictionary.load(path).lam == learnt.lam
    if value is None:
        del metadata[name]
    else:
        metadata[name] = value
    save_file(load_file(path), path, metadata)
    assert_refused(path)


@pytest.mark.parametrize("step", [1e300, math.nan, 0.0, -1.0, None, "long"])
def test_the_step_is_that_of_the_atoms_whatever_a_file_says(
    path: Path, learnt: Dictionary, planted: Planted, step: object
) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"step": json.dumps(step)}
    save_file(load_file(path), path, metadata)
    loaded = Dictionary.load(path)
    assert loaded.step == learnt.step
    assert loaded.code(planted[2], solver="fista").gap_N.max() <= 1e-3 * 0.5


def test_a_dictionary_of_absurdly_many_atoms_is_refused_before_their_gram_matrix(tmp_path: Path) -> None:
    path = tmp_path / "dictionary.safetensors"
    write_tensors(path, {"atoms_DK": torch.zeros(1, 1_000_000)})
    with pytest.raises(ValueError, match="not a dictionary file") as refused:
        Dictionary.load(path)
    assert "atoms of shape" in str(refused.value.__cause__)


def test_other_files_are_refused(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)
    assert_refused(path)
    path.write_text("hello")
    assert_refused(path)


def assert_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"fit_dictionary\.py") as refusal:
        Dictionary.load(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
