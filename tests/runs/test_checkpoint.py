"""Checkpoints: whole or passed over, as many as asked for, and readable under former names of weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pipeline import flags_for
from safetensors.torch import load_file

import train
from mlsm.files import file_digest, read_tensors, write_json, write_tensors
from mlsm.runs.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Checkpoint,
    TrainingState,
    load_newest,
    read_state,
    save_checkpoint,
    save_milestone,
)
from mlsm.runs.run import load_run

STATE = TrainingState(words_seen=7, skipped_updates=1, scaler={"scale": 8.0})


def save(run: Path, step: int, keep: int = 9) -> Path:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text("{}")
    weights = {"weight": torch.full((2,), float(step))}
    return save_checkpoint(run, Checkpoint(step, weights, {"weight/exp_avg": torch.zeros(2)}, STATE), keep)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    assert read_state(save(tmp_path, 3)) == (3, STATE)
    checkpoint = load_newest(tmp_path, pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state) == (3, STATE)
    assert checkpoint.model["weight"].tolist() == [3.0, 3.0]
    assert checkpoint.optimizer.keys() == {"weight/exp_avg"}


def test_damaged_checkpoints_do_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    for step in (200, 300):
        save(tmp_path, step, keep=2)
    (tmp_path / "checkpoints" / "step-300" / MODEL_FILE).write_bytes(b"")
    save(tmp_path, 250, keep=1)  # after a resume at 200
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-250"}
    newest = load_newest(tmp_path, print)
    assert newest is not None
    assert newest.step == 250


def test_where_no_checkpoint_can_be_used_a_new_start_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert load_newest(tmp_path, said.append) is None
    assert not said
    for step in (2, 4):
        (save(tmp_path, step) / MODEL_FILE).write_bytes(b"")
    assert load_newest(tmp_path, said.append) is None
    assert [line.split(" ")[:2] for line in said[:2]] == [["checkpoint", "step-4"], ["checkpoint", "step-2"]]
    assert said[2] == f"no checkpoint of {tmp_path} can be used: training starts again from its first update"


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "x"}, {"step": 5}, {"words_seen": -1}, {"words_seen": 1.0}, {"words_seen": 10**30},
        {"skipped_updates": None}, {"skipped_updates": True}, {"scaler": []}, {"sha256": {}}, {"sha256": 3},
        {"sha256": {MODEL_FILE: "0"}}, {"sha256": {MODEL_FILE: "", "../../config.json": ""}},
    ],
)  # fmt: skip
def test_a_state_that_is_damaged_is_passed_over(changes: dict[str, object], tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    values = json.loads((folder / STATE_FILE).read_text())
    write_json(folder / STATE_FILE, values | changes)
    said: list[str] = []
    assert load_newest(tmp_path, said.append) is None
    assert "checkpoint step-3 cannot be used: " in said[0]
    assert STATE_FILE in said[0] or "is damaged" in said[0]


def test_what_is_missing_in_a_state_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    values = json.loads((folder / STATE_FILE).read_text())
    del values["words_seen"]
    write_json(folder / STATE_FILE, values)
    with pytest.raises(ValueError, match=r"state\.json does not describe a checkpoint: .*words_seen"):
        read_state(folder)


def test_other_names_in_the_folder_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-²", "step-" + "1" * 200, "step--1", "step-x", "step-"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert load_newest(tmp_path, pytest.fail) is None


def test_nothing_is_removed_or_written_through_a_link_that_leaves_the_run(tmp_path: Path) -> None:
    save(tmp_path / "other", 999)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "checkpoints").symlink_to(tmp_path / "other" / "checkpoints")
    for write in (
        lambda: load_newest(run, print),
        lambda: save(run, 2, keep=1),
        lambda: save_milestone(run, 100, 2, {"weight": torch.ones(1)}, STATE),
    ):
        with pytest.raises(
            ValueError, match=r"checkpoints is a link that leaves .*; remove it|nothing is written"
        ):
            write()
    assert [path.name for path in (tmp_path / "other" / "checkpoints").iterdir()] == ["step-999"]


def test_a_special_file_beside_the_tokenizer_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.odd").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"tokenizer\.odd is not a regular file"):
        save(tmp_path, 2)
    assert os.listdir(tmp_path / "checkpoints") == []


# ---- names that weights had in earlier versions

FORMER_NAMES = {
    "encoder.token_embedding.weight": "encoder.words.weight",
    "encoder.embedding_norm.weight": "encoder.word_norm.weight",
    "encoder.embedding_norm.bias": "encoder.word_norm.bias",
    "encoder.relative_embedding.weight": "encoder.distances.weight",
    "decoder_bias": "vocabulary_bias",
}


def give_former_names(path: Path) -> None:
    """Rewrite a file of weights, or of an optimiser's `NAME/exp_avg`, as an earlier version wrote it."""
    tensors, former = read_tensors(path), {}
    for name, tensor in tensors.items():
        weight, slash, part = name.partition("/")
        former[FORMER_NAMES.get(weight, weight) + slash + part] = tensor
    assert former.keys() != tensors.keys()
    write_tensors(path, former)


def test_a_run_with_former_names_loads_and_resumes(teacher: Path, tmp_path: Path) -> None:
    flags = flags_for("mlm", teacher, teacher, tmp_path / "run")
    train.main(flags)
    whole = load_file(tmp_path / "run" / MODEL_FILE)
    shutil.copytree(tmp_path / "run", tmp_path / "former")
    give_former_names(tmp_path / "former" / MODEL_FILE)
    loaded = load_run(tmp_path / "former").model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in whole.items())

    (tmp_path / "run" / MODEL_FILE).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")
    folder = tmp_path / "run" / "checkpoints" / "step-4"
    values = json.loads((folder / STATE_FILE).read_text())
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        give_former_names(folder / name)
        values["sha256"][name] = file_digest(folder / name)
    write_json(folder / STATE_FILE, values)
    train.main([*flags, "--resume"])
    resumed = load_file(tmp_path / "run" / MODEL_FILE)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
