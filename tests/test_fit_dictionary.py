"""fit_dictionary.py knows its text by content: that of the teacher, and that of a dictionary that exists."""

import shutil
from pathlib import Path

import pytest
from small_text import write_corpus

import fit_dictionary
from mlsm.coding.dictionary import Dictionary
from mlsm.config import DataConfig
from mlsm.text.corpus import corpus_digest

SETTINGS = ["--k=24", "--num-tokens=2000", "--num-updates=20", "--batch-size=100"]


def test_a_dictionary_of_other_text_than_its_teachers_is_announced_and_recorded(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_corpus(tmp_path / "other.txt", seed=1)
    fit_dictionary.main(
        [f"--teacher={teacher}", *SETTINGS, f"--corpus={other}", f"--output={tmp_path / 'new.safetensors'}"]
    )
    assert f"the teacher {teacher} read another text" in capsys.readouterr().err
    settings = Dictionary.load(tmp_path / "new.safetensors").settings
    assert settings is not None
    assert settings["text"] == corpus_digest(DataConfig(corpus=(str(other),)))
    fit_dictionary.main([f"--teacher={teacher}", *SETTINGS, f"--output={tmp_path / 'same.safetensors'}"])
    assert "another text" not in capsys.readouterr().err


def test_an_existing_dictionary_is_compared_by_the_content_of_its_text(teacher: Path, tmp_path: Path) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "dictionary.safetensors"
    shutil.copy(teacher.parent.parent / "text.txt", text)
    flags = [f"--teacher={teacher}", *SETTINGS, f"--output={path}"]
    fit_dictionary.main([*flags])
    before = path.read_bytes()
    fit_dictionary.main([*flags, f"--corpus={text}"])  # the same text elsewhere
    text.write_text(text.read_text().replace("The cat", "The dog", 1))
    with pytest.raises(ValueError, match=r"exists; students may .* \(it was learnt with another text\)"):
        fit_dictionary.main([*flags, f"--corpus={text}"])
    assert path.read_bytes() == before


def test_text_that_changed_since_the_teacher_was_trained_is_announced(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = teacher.parent.parent / "text.txt"
    before = text.read_text()
    text.write_text(before.replace("The cat", "The dog", 1))
    try:
        fit_dictionary.main([f"--teacher={teacher}", *SETTINGS, f"--output={tmp_path / 'new.safetensors'}"])
    finally:
        text.write_text(before)
    assert f"the teacher {teacher} read another text" in capsys.readouterr().err


def test_several_layers_and_lambdas_give_a_dictionary_each_and_a_table(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(teacher, runs)
    fit_dictionary.main([f"--teacher={runs}", *SETTINGS, "--lam", "0.02,0.2", "--layer=1,2"])
    shown = capsys.readouterr()
    assert shown.err.count("hidden states: 100%") == 2  # once for each layer
    codes = {}
    for layer in (1, 2):
        for lam in (0.02, 0.2):
            dictionary = Dictionary.load(
                runs / f"dictionary-l{layer}-k24-lam{lam:g}.safetensors", layer=layer
            )
            assert dictionary.lam == lam
            codes[layer, lam] = dictionary.statistics
            assert f"layer {layer}, lambda {lam:g} " in shown.out
    for layer in (1, 2):
        few, many = codes[layer, 0.2], codes[layer, 0.02]
        assert few.mean_nonzeros < many.mean_nonzeros
        assert few.explained_variance < many.explained_variance
        assert few.spliced.kl_recovered < many.spliced.kl_recovered
    alone = tmp_path / "alone.safetensors"
    fit_dictionary.main([f"--teacher={runs}", *SETTINGS, "--lam=0.2", "--layer=1", f"--output={alone}"])
    kept = Dictionary.load(runs / "dictionary-l1-k24-lam0.2.safetensors")
    assert Dictionary.load(alone).fingerprint == kept.fingerprint  # a sweep learns what one fit learns
    assert Dictionary.load(alone).statistics == kept.statistics


def test_a_sweep_with_a_mistake_learns_nothing(teacher: Path, tmp_path: Path) -> None:
    before = sorted(teacher.iterdir())
    for flags, message in (
        (["--lam=0.03,0.3,-1"], "lam must be above 0"),
        (["--lam=0.03,", "--layer=1"], "lam"),
        (["--lam=0.03,much"], "lam"),
        (["--layer=0,3"], r"has layers 0 \(the embeddings\) to 2, --layer asks for 3"),
        (["--layer", "1,1.5"], "layer"),
        (["--layer=0,1", f"--output={tmp_path / 'one'}"], "--output names the file of one dictionary"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_dictionary.main([f"--teacher={teacher}", *SETTINGS, *flags])
    assert sorted(teacher.iterdir()) == before
    with pytest.raises(ValueError, match="--layer"):
        fit_dictionary.main(["--layer"])
    assert fit_dictionary.each_alone(["--k=3", "--lam", "1,2"]) == [
        ["--k=3", "--lam=1"],
        ["--k=3", "--lam=2"],
    ]
