"""The command that exchanges dictionaries: what it writes, and what it refuses."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from saes import SETTINGS, learnt_dictionary, random_sae
from small_runs import random_run, write_dictionary

from mlsm import cli, dictionary
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.sae_export import write_sae
from mlsm.coding.sae_import import CONFIG_FILE
from mlsm.config import DICTIONARY_FORMATS
from mlsm.runs.checkpoint import fingerprint

WIDTH = 32  # of the random runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return random_run(tmp_path / "run")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An SAE of SAELens that does not know this project."""
    folder = tmp_path / "foreign"
    write_sae(random_sae(SETTINGS["topk"], width=WIDTH), folder, "saelens")
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["metadata"] = {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_resid_post"}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layout", DICTIONARY_FORMATS)
def test_a_dictionary_travels_there_and_back(
    layout: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = write_dictionary(run), tmp_path / "copy.safetensors"
    dictionary.main(["export", str(path), str(tmp_path / "sae"), f"--format={layout}"])
    dictionary.main(["import", str(tmp_path / "sae"), str(copy)])
    before, after = Dictionary.load(path), Dictionary.load(copy, teacher=fingerprint(run), layer=1)
    assert before.fingerprint == after.fingerprint
    assert before.about() == after.about()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith(f"wrote {tmp_path / 'sae'}: s")
    assert lines[-1] == f"wrote {copy}: 40 concepts of layer 1, without an encoder"


def test_an_sae_from_elsewhere_becomes_a_dictionary(
    run: Path, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "dictionary.safetensors"
    flags = [f"--teacher={run}", "--layer=1", "--lam=0.2"]
    dictionary.main(["import", str(foreign), str(path), *flags])
    assert capsys.readouterr().err.endswith("36 concepts of layer 1, with an encoder\n")
    found = Dictionary.load(path, teacher=fingerprint(run), layer=1)
    assert found.lam == 0.2
    assert found.sae
    assert found.sae.settings == SETTINGS["topk"]
    torch.testing.assert_close(found.atoms_DK.norm(dim=0), torch.ones(36))
    with pytest.raises(ValueError, match=r"dictionary\.safetensors is there; students may depend on it"):
        dictionary.main(["import", str(foreign), str(path), *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"cannot be imported: .*give --teacher and --layer; it reads 'blocks\.0\.hook_resid_post'"),
        (["--layer=1"], "give --teacher and --layer"),
        (["--teacher={run}"], "give --teacher and --layer"),
        (["--teacher={run}", "--layer=3"], "layer 3, the teacher .* has width 32 and 2 layers"),
        (["--teacher={run}", "--layer=-1"], "layer at least 0"),
        (["--teacher={run}", "--layer=1", "--lam=0"], "lam must be above 0"),
        (["--teacher={run}/nowhere", "--layer=1"], "nowhere"),
    ],
)
def test_an_import_that_does_not_fit_is_refused(
    flags: list[str], message: str, run: Path, foreign: Path, tmp_path: Path
) -> None:
    words = [flag.format(run=run) for flag in flags]
    with pytest.raises((ValueError, OSError), match=message):
        dictionary.main(["import", str(foreign), str(tmp_path / "new.safetensors"), *words])
    assert not (tmp_path / "new.safetensors").exists()


def test_an_sae_of_another_width_is_refused(run: Path, tmp_path: Path) -> None:
    write_sae(dataclasses.replace(learnt_dictionary(), teacher=fingerprint(run)), tmp_path / "sae", "saelens")
    words = ["import", str(tmp_path / "sae"), str(tmp_path / "new.safetensors"), f"--teacher={run}"]
    with pytest.raises(ValueError, match=r"is of width 20 and layer 2, the teacher .* has width 32"):
        dictionary.main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["move", "{path}", "{new}"], "the first word is export or import, got 'move'"),
        (["export", "{path}", "{run}"], "is there; name a new directory"),
        (["export", "{run}/nothing", "{new}"], "no dictionary at"),
        (["export", "{path}", "{new}", "--residual=1.5"], "residual must be between 0 and 1"),
        (["export", "{path}", "{new}", "--residual=0.1", "--format=sparsify"], "--residual is for --format"),
        (["import", "{run}", "{new}"], r"no cfg\.json of SAELens or sparsify"),
    ],
)
def test_mistakes_are_refused(words: list[str], message: str, run: Path, tmp_path: Path) -> None:
    path, new = write_dictionary(run), tmp_path / "new"
    with pytest.raises(ValueError, match=message):
        dictionary.main([word.format(path=path, new=new, run=run) for word in words])
    assert not new.exists()


def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dictionary", "import", str(run), str(tmp_path / "new")])
    with pytest.raises(SystemExit) as ended:
        cli.run(dictionary.main)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
