"""Checkpoints of other architectures: they teach by their directory alone, and what cannot teach is refused
in one line.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_checkpoints import set_config, write
from outside_checkpoints import BERT_SPECIALS, CANNOT_TEACH, byte_pairs, write_checkpoint, write_tokenizer
from small_text import sentences, small_flags
from transformers import AutoTokenizer

import evaluate
import fit_dictionary
import mlsm
import train
from mlsm import export
from mlsm.files import read_json, read_tensors, write_tensors
from mlsm.runs import hub_import
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.run import load_encoder, load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, NUM_SPECIALS, SEP_ID


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_an_encoder_teaches_by_its_directory_alone(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student predicts the teacher's pieces, and everything that reads a student reads it."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "theirs", architecture)
    sample = {"layer": 0, "k": 20, "num-tokens": 900, "num-updates": 2, "batch-size": 90}
    fit_dictionary.main(["--teacher=theirs", *small_flags(tmp_path, **sample)])
    updates = {"num-steps": 3, "batch-size": 8, "token-budget": 200}
    flags = ["--objective=lsm", "--teacher=theirs", *small_flags(tmp_path, **updates)]
    train.main([*flags, "--init=random", "--output=student"])
    train.main([*flags, "--init=random", "--output=student", "--resume"])
    assert "student is finished" in capsys.readouterr().err
    with pytest.raises(ValueError, match="students of it take --init random"):
        train.main([*flags, "--output=started"])
    record = read_json(tmp_path / "student" / "config.json")
    assert record["concepts"]["teacher_fingerprint"] == fingerprint(Path("runs/outside-theirs"))
    assert record["concepts"]["layer"] == 0
    evaluate.main(["student", "--tasks=demo", "--device=cpu"])

    student, teacher = load_run(Path("student")), load_encoder(Path("runs/outside-theirs"))
    assert student.tokenizer.fingerprint == teacher.tokenizer.fingerprint
    assert MASK_ID not in student.tokenizer.encode("the [MASK]")
    export.main(["student", "exported"])
    exported = AutoTokenizer.from_pretrained("exported")
    for text in sentences(3, seed=8):
        ids = student.tokenizer.encode(text)
        assert min(ids) >= NUM_SPECIALS
        assert student.tokenizer.decode(ids).lower() == text.lower()
        assert exported(text)["input_ids"] == [CLS_ID, *ids, SEP_ID]

    model = mlsm.load("runs/outside-theirs", device="cpu")
    found = model.encode(["the red house"], layers=[0, -1])
    row = torch.tensor([CLS_ID, *teacher.tokenizer.encode("the red house"), SEP_ID])
    with torch.no_grad():
        expected_TD = teacher.encoder(Sequences.of([row]))[1:-1]
    torch.testing.assert_close(found.hidden[2], expected_TD)
    assert found.codes_TK is not None
    with pytest.raises(ValueError, match="its layers cannot be run one by one"):
        model.intervene("the red house", {1: 0.0})


def test_offsets_are_places_in_the_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", "bert")
    hub_import.main([str(tmp_path / "theirs"), str(tmp_path / "run")])
    tokenizer = load_encoder(tmp_path / "run").tokenizer
    text = "The river, THE [MASK] house"
    spans = tokenizer.spans_with_masks(text)
    words = [(tokenizer.piece(s.piece_id), text[s.start : s.stop]) for s in spans]
    assert ("▁the", "The") in words
    assert ("▁the", "THE") in words
    assert ("[MASK]", "[MASK]") in words
    assert [s.piece_id for s in spans].count(MASK_ID) == 1


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "whole", "bert")
    write_checkpoint(tmp_path / "parts", "bert", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    for name in ("whole", "parts"):
        hub_import.main([str(tmp_path / name), str(tmp_path / f"run-{name}")])
    whole, parts = (read_tensors(tmp_path / f"run-{name}" / MODEL_FILE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"names model-0000.* which is not beside it"):
        hub_import.main([str(tmp_path / "parts"), str(tmp_path / "again")])


def drop_weight(folder: Path) -> None:
    tensors = read_tensors(folder / MODEL_FILE)
    del tensors["encoder.layer.1.output.dense.bias"]
    write_tensors(folder / MODEL_FILE, tensors, {"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(read_tensors(folder / MODEL_FILE), folder / hub_import.PICKLE_FILE)
    (folder / MODEL_FILE).unlink()


def without_masks(folder: Path) -> None:
    write_tokenizer(folder, byte_pairs({k: v for k, v in BERT_SPECIALS.items() if k != "mask"}))


MISTAKES: list[tuple[str, Callable[[Path], None], str]] = [
    ("gpt2", lambda _: None, "a gpt2 is a decoder: it reads from left to right"),
    ("vit", lambda _: None, "a vit reads pixel_values, a teacher reads tokens"),
    ("convbert", lambda _: None, "the hidden states of a convbert depend on padding"),
    ("bert", set_config(quantization_config={"quant_method": "gptq"}), "its weights are quantised"),
    ("bert", set_config(auto_map={"AutoModel": "code.Model"}), "asks for code of its own"),
    ("bert", set_config(model_type="nonsense"), "transformers cannot read its config.json"),
    ("bert", set_config(hidden_size=40), "transformers cannot load it as a bert"),
    ("bert", drop_weight, "weights are missing: encoder.layer.1.output.dense.bias (1 in all)"),
    ("bert", pickled, "it has no model.safetensors; pickled weights are not read for a bert"),
    ("bert", lambda folder: (folder / MODEL_FILE).unlink(), "no model.safetensors and no"),
    ("bert", write(MODEL_FILE, b"junk"), "cannot load it as a bert"),
    ("bert", lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    ("bert", write("tokenizer.json", b"{}"), "not a tokenizer.json"),
    ("bert", without_masks, "its tokenizer: it has no mask token"),
    ("bert", lambda folder: write_tokenizer(folder, byte_pairs(BERT_SPECIALS)), "beyond the 1"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for architecture in ("bert", *CANNOT_TEACH):
        write_checkpoint(folder / architecture, architecture)
    return folder


@pytest.mark.parametrize(("kind", "damage", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_what_cannot_teach_is_refused_in_one_line(
    kind: str, damage: Callable[[Path], None], message: str, checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / kind, tmp_path / kind)
    damage(tmp_path / kind)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the message is looked at
        hub_import.main([str(tmp_path / kind), str(tmp_path / "run")])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_without_the_package_transformers_one_line_says_so(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_import.main([str(checkpoints / "bert"), str(tmp_path / "run")])
    monkeypatch.setitem(sys.modules, "transformers", None)
    for action in (
        lambda: hub_import.main([str(checkpoints / "bert"), str(tmp_path / "again")]),
        lambda: load_encoder(tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match=r"pip install transformers==5\.23\.0"):
            action()
